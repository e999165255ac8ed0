# SPDX-License-Identifier: Apache-2.0
"""The public executors."""

from __future__ import annotations

import copy
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.executor.graph_executor import compile_options, compiled_step
from tests import zoo


@pytest.mark.parametrize("kind", [bt.ETraceGraphExecutor, bt.ETraceVjpGraphExecutor])
def test_the_jacobians_of_a_step_give_its_gradient(kind: Any) -> None:
    """``sum_s x (x) l f`` of one step is the gradient of the weights of a dense product."""
    model = bt.nn.GRUCell(3, 4, key=1)
    brainstate.nn.init_all_states(model, batch_size=2)
    model.h.value = jnp.linspace(-1.0, 1.0, 8).reshape(2, 4)
    x = jnp.ones((2, 3))
    executor = kind(model)
    executor.compile_graph(x)
    out, hidden, other, h2w, h2h, l2h = executor.solve_h2w_h2h_l2h_jacobian(x)
    signals = l2h(2 * out)
    path = ("Wz", "weight")
    found = next(one for one in h2w if one.paths == (path,))
    traced = jnp.einsum("bi,bos,bos->io", found.x, found.f, signals[found.group])
    grads = brainstate.transform.grad(lambda: (model(x) ** 2).sum(), {path: model.Wz.weight})()
    np.testing.assert_allclose(traced, grads[path]["weight"], rtol=1e-12)
    assert (hidden["h",] == out).all() and other == {} and h2h[0].shape == (2, 4, 1, 1)
    assert "Relations" in (executor.show_graph(verbose=False, return_msg=True) or "")
    assert len(executor.solve_h2w_h2h_jacobian(x)) == 5
    with pytest.raises(ValueError, match="vjp_method must be 'single-step' or 'multi-step'"):
        bt.ETraceVjpGraphExecutor(model, vjp_method="windows")


def leaky() -> Any:
    model = zoo.Leaky()
    brainstate.nn.init_all_states(model, batch_size=2)
    return model


def test_options_are_checked_at_once() -> None:
    model = leaky()
    for options, error, text in (
        (
            {"jacobians": "all"},
            ValueError,
            r"jacobians must be one of \('near', 'whole'\), got 'all'",
        ),
        ({"frozn": ()}, TypeError, "unknown option 'frozn'; options of compiling are .*'frozen'"),
        (
            {"jacobians": "whole", "recurrence_scope": "diagonal"},
            ValueError,
            "jacobians='whole' needs recurrence_scope='coupled', got 'diagonal'",
        ),
    ):
        with pytest.raises(error, match=text):
            bt.ETraceGraphExecutor(model, **options)
    assert bt.ETraceGraphExecutor(model, jacobians="whole").options["recurrence_scope"] == "coupled"
    assert {"frozen", "vmap", "control_flow"} <= compile_options()


def test_before_and_after_compiling(capsys: pytest.CaptureFixture[str]) -> None:
    executor = bt.ETraceGraphExecutor(leaky())
    assert not executor.is_compiled
    for name in ("graph", "compiled", "states"):
        with pytest.raises(bt.CompilationError, match="call compile_graph"):
            getattr(executor, name)
    executor.compile_graph(jnp.ones((2, zoo.IN)))
    assert executor.is_compiled and {*executor.path_to_states} == {("w",), ("h",)}
    assert executor.states == tuple(executor.path_to_states.values())
    assert compiled_step(executor) is executor.compiled is compiled_step(executor.compiled)
    assert executor.show_graph() is None and "Relations" in capsys.readouterr().out


def test_a_copy_is_compiled_for_its_own_model() -> None:
    executor = bt.ETraceGraphExecutor(leaky(), frozen=())
    executor.compile_graph(jnp.ones((2, zoo.IN)))
    other = copy.deepcopy(executor)
    assert other.is_compiled and other.model is not executor.model
    assert other.options == executor.options
    assert not {*other.states} & {*executor.states}
    anew = executor.for_model(leaky(), compiled=False)
    assert not anew.is_compiled
    assert not any(held is executor.graph for held in vars(anew).values())


def test_jacobians_are_of_what_was_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = bt.ETraceGraphExecutor(leaky())
    executor.compile_graph(jnp.ones((2, zoo.IN)))
    monkeypatch.setattr("braintrace.executor.graph_executor.Executor", None)
    assert len(executor.solve_h2w_h2h_jacobian(jnp.ones((2, zoo.IN)))) == 5


def test_former_names_of_what_runs_a_step() -> None:
    executor: Any = bt.ETraceGraphExecutor(leaky())
    executor.compile_graph(jnp.ones((2, zoo.IN)))
    with pytest.warns(DeprecationWarning, match="links of an executor is executor.compiled.links"):
        assert executor.links is executor.compiled.links
    with pytest.raises(AttributeError, match="object has no attribute 'absent'"):
        executor.absent  # noqa: B018
    with pytest.raises(TypeError, match="Own defines run, which nothing calls"):
        type("Own", (bt.ETraceGraphExecutor,), {"run": None})
