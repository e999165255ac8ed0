# SPDX-License-Identifier: Apache-2.0
"""Importing braintrace imports nothing; names resolve on first use."""

from __future__ import annotations

import runpy
import sys
from importlib import import_module
from pathlib import Path

import pytest

import braintrace
from braintrace import lazy

HEAVY = ["jax", "brainstate", "pluggy", "packaging", "importlib.metadata", "importlib_metadata"]


def test_import_imports_nothing(run):
    code = f"import braintrace; out([m for m in {HEAVY} if m in sys.modules])"
    assert run(code) == []


def test_import_adds_few_modules(run):
    code = "before = set(sys.modules); import braintrace; out(sorted(set(sys.modules) - before))"
    light = {"__future__", "braintrace", "importlib", "warnings"}
    assert {name.partition(".")[0] for name in run(code)} <= light


def test_import_is_quick(run):
    code = """
        import time
        start = time.perf_counter()
        import braintrace
        out(time.perf_counter() - start)
    """
    assert min(run(code) for _ in range(5)) < 0.020


def test_records_import_no_plugin(run):
    code = f"""
        import braintrace
        states = [r.state for r in braintrace.plugins.records()]
        heavy = [m for m in {HEAVY[:3]} if m in sys.modules]
        out([states, heavy, "braintrace_dense" in sys.modules])
    """
    states, heavy, dense = run(code)
    assert set(states) == {"discovered"} and heavy == [] and not dense


def test_an_operation_needs_no_parser_of_requirements(run):
    code = """
        import brainstate
        before = "packaging.requirements" in sys.modules
        import braintrace
        braintrace.matmul
        out([before, "packaging.requirements" in sys.modules])
    """
    before, after = run(code)
    assert before or not after


def test_loading_every_plugin_initialises_no_backend(run):
    code = """
        import braintrace
        braintrace.plugins.load_all(strict=True)
        from jax._src import xla_bridge
        out(xla_bridge.backends_are_initialized())
    """
    assert run(code) is False


@pytest.mark.parametrize("name", sorted(lazy.CORE))
def test_core_names_resolve(name):
    value = getattr(braintrace, name)
    assert value is getattr(import_module(f"braintrace.{lazy.CORE[name]}"), name)
    assert name in dir(braintrace)


@pytest.mark.parametrize("name", sorted({*lazy.SUBMODULES} - {"rules"}))
def test_submodules_resolve(name):
    assert getattr(braintrace, name) is sys.modules[f"braintrace.{name}"]


@pytest.mark.parametrize(("kind", "place"), [("ops", "braintrace"), ("nn", "braintrace.nn")])
def test_plugin_names_are_the_plugins_own_objects(kind, place):
    module = import_module(place)
    for name, distribution in lazy.OFFICIAL[kind].items():
        own = import_module(distribution.replace("-", "_") + place.removeprefix("braintrace"))
        assert getattr(module, name) is getattr(own, name)
    assert lazy.OFFICIAL[kind].keys() <= set(dir(module))


def test_other_layers_are_those_of_brainstate():
    import brainstate

    assert braintrace.nn.relu is brainstate.nn.relu
    assert braintrace.nn.Dropout is brainstate.nn.Dropout


@pytest.mark.parametrize("module", ["braintrace", "braintrace.nn"])
@pytest.mark.parametrize("name", ["no_such_name", "_private", "__wrapped__"])
def test_unknown_names(module, name):
    found = import_module(module)
    assert not hasattr(found, name)
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute '{name}'"):
        getattr(found, name)
    with pytest.raises(ImportError, match=f"cannot import name '{name}'"):
        exec(f"from {module} import {name}")
    with pytest.raises(ModuleNotFoundError, match=f"No module named '{module}.{name}'"):
        exec(f"import {module}.{name}")


def test_the_finder_is_installed_once_across_reloads(run):
    code = """
        import importlib, braintrace
        importlib.reload(braintrace)
        out(sum(type(f).__name__ == "_ProviderFinder" for f in sys.meta_path))
    """
    assert run(code) == 1


def test_the_stubs_are_written_from_the_table_of_names():
    """``python3 dev.py stubs`` writes them."""
    root = Path(__file__).resolve().parents[2]
    for name, text in runpy.run_path(str(root / "dev.py"))["stub_texts"]().items():
        assert (root / "core" / "src" / "braintrace" / name).read_text() == text


def test_the_former_name_of_the_algorithms_says_so(run):
    code = """
        import warnings
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            from braintrace.rules import LearningRule
            from braintrace import rules
        from braintrace.algorithms import LearningRule as same
        texts = [str(w.message) for w in said if w.category is DeprecationWarning]
        out([texts, [w.filename for w in said], LearningRule is same])
    """
    text = "braintrace.rules is called braintrace.algorithms now"
    assert run(code) == [[text], ["<string>"], True]  # the user's own line, so that it is shown


# --- braintrace.testing is a distribution of its own -------------------------------------------


def test_testing_is_the_package_itself_under_two_names(run):
    code = """
        import braintrace.testing, braintrace.testing.oracle, braintrace
        from braintrace.testing import ConformanceCase, oracle
        from braintrace.testing.conformance.case import ConformanceCase as Case
        import braintrace_testing, braintrace_testing.conformance, braintrace_testing.oracle
        assert braintrace.testing is braintrace_testing is sys.modules["braintrace.testing"]
        assert oracle is braintrace_testing.oracle is sys.modules["braintrace.testing.oracle"]
        assert ConformanceCase is Case is braintrace_testing.conformance.ConformanceCase
        assert Case.__module__ == "braintrace_testing.conformance.case"
        assert braintrace_testing.__spec__.name == "braintrace_testing"
        import importlib
        try:
            importlib.import_module("braintrace.testing.no_such_module")
        except ModuleNotFoundError as error:
            out([error.name, hasattr(braintrace, "testing"), "testing" in dir(braintrace)])
    """
    assert run(code) == ["braintrace.testing.no_such_module", True, True]


def test_without_braintrace_testing_all_ways_say_what_to_install(run):
    code = """
        import importlib.machinery
        find = importlib.machinery.PathFinder.find_spec
        importlib.machinery.PathFinder.find_spec = classmethod(
            lambda cls, name, *a: None if name == "braintrace_testing" else find(name, *a)
        )
        sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in repr(f).lower()]
        import braintrace
        said = []
        for statement in (
            "braintrace.testing", "from braintrace import testing", "import braintrace.testing",
            "from braintrace.testing import bptt", "import braintrace.testing.oracle",
        ):
            try:
                exec(statement)
            except (AttributeError, ImportError) as error:
                said.append([type(error).__name__, str(error)])
        out([said, hasattr(braintrace, "testing"), "testing" in dir(braintrace)])
    """
    said, has, listed = run(code)
    text = "braintrace.testing is provided by 'braintrace-testing', which is not installed. "
    text += "Run: pip install braintrace-testing"
    assert said == [["PluginAttributeError", text], *[["PluginImportError", text]] * 4]
    assert not has and not listed
