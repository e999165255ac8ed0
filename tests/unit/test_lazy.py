# SPDX-License-Identifier: Apache-2.0
"""Names of the package are resolved on first use."""

from __future__ import annotations

import sys
from importlib import import_module

import pytest

import braintrace
from braintrace import lazy


def test_a_plugin_may_provide_a_name_that_is_refused(site, host_of, plugin_source):
    assert not hasattr(braintrace.nn, "ALIF")
    text = plugin_source("neurons", "neurons_p")
    site.add("neurons", "neurons_module", text, family="neurons", nn=["ALIF"])
    host_of(site)
    layer = braintrace.nn.ALIF
    assert layer.__module__ == "neurons_module" and "ALIF" in dir(braintrace.nn)


def test_core_names_win(site, host_of, plugin_source):
    text = plugin_source("shadow", "shadow_p")
    host_of(site.add("shadow", "shadow_module", text, family="shadow", ops=["compile", "nn"]))
    assert braintrace.compile.__module__.startswith("braintrace.")
    assert braintrace.nn.__name__ == "braintrace.nn"


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
    text += "Run: pip install braintrace-testing "
    text += "(from files: its wheel, or plugins/testing of a checkout)"
    assert said == [["PluginAttributeError", text], *[["PluginImportError", text]] * 4]
    assert not has and not listed
