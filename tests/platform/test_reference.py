# SPDX-License-Identifier: Apache-2.0
"""Every public name has a docstring with the sections that apply, and a place in the reference."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import brainstate
import pytest

from braintrace import lazy

PAGES = Path(__file__).resolve().parents[2] / "docs" / "api"
FAMILIES = ("conv", "dense", "elemwise", "lora", "sparse")
PLUGINS = "PluginError PluginRecord PluginState configure conformance_cases isolated load_all"
PLUGINS += " records refresh register"
DIRECTIVE = re.compile(r"^\.\. (?:auto|py:)\w+:: (\S+)", re.MULTILINE)


def names() -> Iterator[str]:
    """Every public name, with its module."""
    yield from (f"braintrace.{name}" for name in (*lazy.CORE, *lazy.OFFICIAL["ops"]))
    yield from (f"braintrace.nn.{name}" for name in lazy.OFFICIAL["nn"])
    yield from (f"braintrace.plugins.{name}" for name in PLUGINS.split())
    for module in ("plugin_api", "algorithms", "testing"):
        exported = import_module(f"braintrace.{module}").__all__
        yield from (f"braintrace.{module}.{name}" for name in exported)


def found(name: str) -> Any:
    module, _, own = name.rpartition(".")
    return getattr(import_module(module), own)


NAMES = sorted(names())
OF_PROJECT = [n for n in NAMES if str(getattr(found(n), "__module__", "")).startswith("braintrace")]
CALLABLES = [n for n in OF_PROJECT if inspect.isclass(found(n)) or inspect.isroutine(found(n))]
WITH_EXAMPLES = [n for n in CALLABLES if not n.endswith("Error")]
CLASSES = [n for n in CALLABLES if inspect.isclass(found(n))]


def sections(text: str) -> dict[str, str]:
    """The sections of a docstring by title; the text before them has the title ''."""
    parts = re.split(r"^(\w[\w ]*)\n-{3,}$", text, flags=re.MULTILINE)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def described(section: str) -> set[str]:
    """The names that a section of parameters or attributes describes."""
    heads = re.findall(r"^(\S.*)$", section, flags=re.MULTILINE)
    return {name.strip().lstrip("*") for head in heads for name in head.split(":")[0].split(",")}


def parameters(obj: Any) -> set[str]:
    """The parameters of a call; those of an exception, an enumeration or a state are inherited."""
    if inspect.isclass(obj) and issubclass(obj, BaseException | enum.Enum | brainstate.State):
        return set()
    # brainstate's modules are made by a metaclass whose call takes anything
    made = obj.__init__ if inspect.isclass(obj) and issubclass(obj, brainstate.nn.Module) else obj
    return {name for name in inspect.signature(made).parameters if name[0] != "_"} - {"self"}


def test_there_is_something_to_look_at():
    assert len(NAMES) > 120
    assert {found("braintrace.matmul"), found("braintrace.compile")} <= set(map(found, CALLABLES))


@pytest.mark.parametrize("name", OF_PROJECT)
def test_docstring(name):
    assert inspect.getdoc(found(name)), "no docstring"
    if inspect.isclass(found(name)):
        assert vars(found(name)).get("__doc__"), "the docstring is that of a base"


@pytest.mark.parametrize("name", CALLABLES)
def test_every_parameter_is_described(name):
    obj = found(name)
    text = sections(inspect.getdoc(obj) or "")
    known = described(text.get("Parameters", "")) | described(text.get("Attributes", ""))
    wanted = parameters(obj)
    assert wanted <= known, f"not described: {sorted(wanted - known)}"
    if not is_dataclass(obj):
        assert not inspect.isroutine(obj) or known <= wanted, "described, but not there"


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_there_is_an_example(name):
    assert ">>>" in sections(inspect.getdoc(found(name)) or "").get("Examples", "")


@pytest.mark.parametrize("name", CLASSES)
def test_public_methods_have_docstrings(name):
    """Their own, or that of what they override."""
    for key, member in vars(found(name)).items():
        function = getattr(member, "fget", None) or getattr(member, "__func__", member)
        forwards = getattr(function, "__name__", "") == "<lambda>"  # a field, in a class that wraps
        if inspect.isfunction(function) and not key.startswith("_") and not forwards:
            said = inspect.getdoc(getattr(found(name), key))
            assert said, f"{key} has no docstring"
            text = sections(said).get("Parameters", "")
            assert described(text) <= {*inspect.signature(function).parameters}, key


def test_every_public_name_is_in_the_reference():
    pages = "".join(page.read_text(encoding="utf-8") for page in PAGES.glob("*.md"))
    entries = DIRECTIVE.findall(pages)
    assert sorted(set(entries)) == sorted(entries), "twice"
    shown = [found(entry) for entry in entries]  # an entry that is not there raises
    missing = [name for name in NAMES if not any(found(name) is obj for obj in shown)]
    assert not missing


@pytest.mark.parametrize("family", FAMILIES)
def test_families_export_what_is_in_the_reference(family):
    package = import_module(f"braintrace_{family}")
    public = [n for n in getattr(package, "__all__", vars(package)) if not n.startswith("_")]
    functions = [getattr(package, n) for n in public if inspect.isfunction(getattr(package, n))]
    assert functions
    assert all(any(f is found(n) for n in NAMES) for f in functions)
