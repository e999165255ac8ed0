# SPDX-License-Identifier: Apache-2.0
"""Optional hooks: algorithms, conformance cases, findings, advice."""

from __future__ import annotations

import brainstate
import jax.numpy as jnp
import pytest

import braintrace
from braintrace.plugin_api import (
    DoctorContext,
    ETPPrimitiveSpec,
    Finding,
    PluginInfo,
    bind,
    hookimpl,
)
from braintrace.plugins import PluginError, isolated, process, services


def scale(x, w):
    return x * w


SPEC = ETPPrimitiveSpec("optional_scale", scale)


def plugin_with(family="extra", **hooks):
    """A plugin object with these optional hooks, each by the function that answers it."""

    def info(self):
        return PluginInfo(family)

    def primitives(self, api):
        return [SPEC] if family == "extra" else []

    body = {"braintrace_plugin_info": info, "braintrace_primitives": primitives, **hooks}
    return type("Plugin", (), {name: hookimpl(value) for name, value in body.items()})()


def raises(*_):
    raise OSError("no disk")


class Mine(braintrace.D_RTRL):
    """A learner of a plugin."""


def algorithms(answer):
    return {"braintrace_algorithms": lambda self, api: answer}


def compiled(name):
    return braintrace.compile(leaky_cell(), name, jnp.ones(3))


def leaky_cell():
    class Cell(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones(3))
            self.h = brainstate.HiddenState(jnp.zeros(3))

        def update(self, x):
            self.h.value = jnp.tanh(0.5 * self.h.value + bind(SPEC, x, self.w.value))
            return self.h.value

    return Cell()


def test_an_algorithm_of_a_plugin_is_compiled_by_name():
    with isolated([plugin_with(**algorithms({"mine": Mine}))]):
        assert type(compiled("mine")) is Mine
        assert type(compiled("Mine")) is Mine
        assert type(compiled("d_rtrl")) is braintrace.D_RTRL
        with pytest.raises(ValueError, match=r"'theirs'; known are \['d_rtrl', .*'mine'"):
            compiled("theirs")


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ([Mine], "must return learner classes by name, got list"),
        ({"Mine": Mine}, "'Mine' is not a name of an algorithm"),
        ({"d_rtrl": Mine}, "'d_rtrl' is an algorithm of braintrace-core"),
        ({"mine": 3}, "'mine' must be a subclass of braintrace.ETraceAlgorithm, got int 3"),
        ({"mine": int}, "'mine' must be a subclass of braintrace.ETraceAlgorithm, got type int"),
    ],
)
def test_algorithms_are_checked(answer, text):
    plugins = [plugin_with(**algorithms(answer)), plugin_with("fine", **algorithms({"ok": Mine}))]
    with isolated(plugins):
        assert type(compiled("ok")) is Mine
        with pytest.raises(ValueError, match=text):
            compiled("mine")


def test_core_goes_through_its_own_hook_and_cannot_be_switched_off(run):
    code = """
        import brainstate, braintrace, jax.numpy as jnp
        from braintrace.plugins import process, services
        names = services.plugin_of_core().manager.hook.braintrace_algorithms(api=1)
        found = services.algorithm(process.host(), "d_rtrl", braintrace.ETraceAlgorithm)
        states = {str(record.state) for record in braintrace.plugins.records()}
        out([sorted(names), found is braintrace.D_RTRL, sorted(states)])
    """
    names, same, states = run(code)
    assert same and {"d_rtrl", "pp_prop", "eprop", "dni"} <= {*names}
    assert states == ["discovered"]  # none of the plugins was loaded for it
    for variable in ({"BRAINTRACE_DISABLE_PLUGINS": "*"}, {"BRAINTRACE_PLUGINS": ""}):
        assert run(code, env=variable) == [names, True, ["disabled"]]


def test_a_plugin_may_offer_nothing_but_an_algorithm():
    class Plugin:
        @hookimpl
        def braintrace_plugin_info(self):
            return PluginInfo("lone")

        @hookimpl
        def braintrace_algorithms(self, api):
            return {"mine": Mine}

    with isolated([Plugin(), plugin_with()]):
        assert type(compiled("mine")) is Mine


def test_a_name_of_two_algorithms_is_refused_to_both():
    plugins = [plugin_with(name, **algorithms({"mine": Mine})) for name in ("one", "two")]
    with isolated(plugins), pytest.raises(ValueError, match="'mine' is provided by 'one'.* 'two'"):
        compiled("mine")


def cases(function):
    return plugin_with(braintrace_conformance_cases=function)


def test_conformance_cases_are_collected():
    with isolated([cases(lambda self, api: (case for case in (len, max)))]):
        assert braintrace.plugins.conformance_cases("extra") == (len, max)
    with isolated([plugin_with()]):
        assert braintrace.plugins.conformance_cases("extra") == ()


@pytest.mark.parametrize("answer", ["text", 3, {"a": 1}])
def test_conformance_cases_are_checked(answer):
    with (
        isolated([cases(lambda self, api: answer)]),
        pytest.raises(PluginError, match="cases of 'extra'.*must return cases, got"),
    ):
        braintrace.plugins.conformance_cases("extra")


def test_conformance_cases_that_cannot_be_had():
    with isolated([cases(lambda self, api: raises())]):
        with pytest.raises(PluginError, match="OSError: no disk") as caught:
            braintrace.plugins.conformance_cases("extra")
        assert isinstance(caught.value.__cause__, OSError)
        with pytest.raises(PluginError, match="provides the family 'none'; families are: extra"):
            braintrace.plugins.conformance_cases("none")


def findings_of(*plugins):
    with isolated(plugins):
        host = process.host()
        return services.findings(host, host.candidates()[0])


def test_findings_of_a_plugin():
    def doctor(self, context):
        assert isinstance(context, DoctorContext)
        text = f"{context.distribution} with {context.core_version}"
        return [Finding("blas", "warning", text, "install it")]

    (found,) = findings_of(plugin_with(braintrace_doctor=doctor))
    assert found == Finding("blas", "warning", f"extra with {braintrace.__version__}", "install it")
    assert findings_of(plugin_with()) == ()


@pytest.mark.parametrize("answer", ["text", 3, [("blas", "error")]])
def test_findings_are_checked(answer):
    with pytest.raises(TypeError, match="braintrace_doctor must return findings"):
        findings_of(plugin_with(braintrace_doctor=lambda self, context: answer))


def explains(answer):
    return {"braintrace_explain": lambda self, record: answer(record)}


def test_the_first_plugin_with_advice_gives_it():
    plugins = [
        plugin_with("a", **explains(raises)),
        plugin_with("b", **explains(lambda record: "two\nlines")),
        plugin_with("c", **explains(lambda record: None)),
        plugin_with("d", **explains(lambda record: f" see {record} ")),
        plugin_with("e", **explains(lambda record: "too late")),
    ]
    with isolated(plugins):
        assert services.advice(process.host(), "this") == ("d", "see this")
    with isolated([plugin_with()]):
        assert services.advice(process.host(), "this") is None
