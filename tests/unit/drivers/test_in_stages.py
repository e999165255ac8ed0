# SPDX-License-Identifier: Apache-2.0
"""A loop in stages is the loop, and the loops of a gradient hold what is recurrent alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.drivers import loops
from braintrace.drivers.block_size import OFF_CPU
from braintrace.drivers.in_stages import HELD, LEAST, steps_together
from braintrace.drivers.loops import marked_scan
from braintrace.jaxprs.run import nested
from braintrace.jaxprs.stages import Stages
from braintrace.testing import assert_tree_close

STEPS = 18
Rows = pytest.MonkeyPatch


def mixed(carry: Any, now: Any) -> Any:
    """All there is: layers, a delay, a key, a count, a branch, a loop, and what stays the same."""
    weight, (a, b), key, last, count, _ = carry
    x, index = now
    key, own = jax.random.split(key)
    a = 0.5 * a + jnp.tanh(x @ weight) * jax.random.bernoulli(own, 0.7, a.shape)
    b = jnp.tanh(b @ weight + (a > 0) @ weight + last)
    error = (b @ weight - x) ** 2
    y = jax.lax.cond(count % 3 == 0, jnp.sin, jnp.cos, error)
    table = jax.lax.while_loop(lambda v: v.sum() < 9, lambda v: v + 1.0, y)
    out = {"y": y, "x": x, "old": last, "same": weight[0], "table": table, "i": index + count}
    return (weight, (a, b), key, a, count + 1, 4.0), (out, jnp.linalg.norm(error), 3.0)


@pytest.mark.parametrize("size", [STEPS, STEPS // 3])
def test_a_loop_in_stages_is_the_loop(monkeypatch: Rows, size: int) -> None:
    weight = 0.3 * jax.random.normal(jax.random.PRNGKey(0), (3, 3))
    state = jnp.ones((2, 3))
    start = weight, (state, state), jax.random.PRNGKey(1), 0 * state, jnp.int32(0), 5.0
    inputs = jax.random.normal(jax.random.PRNGKey(2), (STEPS, 2, 3)), jnp.arange(STEPS)
    sizes: list[int] = []

    def together(stages: Stages, steps: int) -> int:
        sizes.append(stages.bytes_per_step)
        return size

    wanted = jax.lax.scan(mixed, start, inputs)
    monkeypatch.setattr(loops, "steps_together", together)
    found = jax.jit(lambda start: marked_scan(mixed, start, inputs)[:2])(start)
    assert len(sizes) == 1
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    assert_tree_close(found, wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype


def test_how_many_steps_are_run_together(monkeypatch: Rows) -> None:
    of = lambda size, steps: steps_together(Stages((), size), steps)  # noqa: E731
    held = HELD[jax.default_backend()]
    assert of(held // 20, 18) == 18 and of(held // 20, 100) == 20
    assert of(held // 20, 72) == 18 and of(held // 20, 61) == 0  # no divisor is near
    assert of(held // (LEAST - 1), 1000) == 0 and of(2 * held, 1000) == 0 and of(0, 5) == 0
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert of(held // (LEAST - 1), 1000) > LEAST
    assert of(OFF_CPU // 250, 1000) == 250 and of(OFF_CPU // (LEAST - 1), 1000) == 0


class Stack(brainstate.nn.Module):
    """Two layers of leaky neurons, or a GRU; and a readout."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        gru = kind == "gru"
        self.cells = [bt.nn.GRUCell(3, 4)] if gru else [bt.nn.Linear(3, 4), bt.nn.Linear(4, 4)]
        self.gru, self.readout = gru, bt.nn.Linear(4, 2)
        if not gru:
            self.v = [brainstate.HiddenState(jnp.zeros((2, 4))) for _ in self.cells]
        brainstate.nn.init_all_states(self, batch_size=2)

    def reset_state(self, batch_size: int | None = None, **kwargs: object) -> None:
        for v in () if self.gru else self.v:
            v.value = jnp.zeros((2, 4))

    def update(self, x: Any) -> Any:
        if self.gru:
            return self.readout(self.cells[0](x))
        for cell, v in zip(self.cells, self.v, strict=True):
            v.value = 0.9 * v.value + cell(x)
            x = jnp.tanh(v.value) ** 2
        return self.readout(x)


COUNTED = ("etp_mm", "dot_general", "logistic", "tanh")


@pytest.mark.parametrize(
    ("kind", "rule", "expected"),
    [
        ("stack", bt.D_RTRL, (0, 0, 0, 1)),  # that of the filter in front of the second product
        ("gru", bt.D_RTRL, (3, 0, 2, 1)),  # those of D and f are not in it
        ("gru", lambda model: bt.pp_prop(model, 0.9), (3, 0, 3, 2)),  # but what filters read is
    ],
)
def test_the_loops_of_a_gradient_hold_what_is_recurrent(
    monkeypatch: Rows, kind: str, rule: Any, expected: tuple[int, ...]
) -> None:
    with jax.enable_x64(True):
        brainstate.random.seed(0)
        model = Stack(kind)
        learner = rule(model)
        xs = jnp.asarray(np.random.default_rng(0).standard_normal((STEPS, 2, 3)))
        learner.compile_graph(xs[0])
        states = model.states(brainstate.ParamState)

        def step_fn(x: Any) -> Any:
            return (learner(x) ** 2).sum()

        def gradient(xs: Any, together: int) -> Any:
            monkeypatch.setattr(loops, "steps_together", lambda stages, steps: together)
            learner._drivers.clear()
            brainstate.nn.reset_all_states(model, batch_size=2)
            learner.reset_state(batch_size=2)
            return learner.etrace_grad(xs, step_fn=step_fn, weights=states, block_size=STEPS)

        expected_grads = gradient(xs, 0)
        assert_tree_close(gradient(xs, STEPS), expected_grads, rtol=1e-9)
        assert_tree_close(gradient(xs, STEPS // 3), expected_grads, rtol=1e-9)
        program = brainstate.transform.StatefulFunction(lambda xs: gradient(xs, STEPS))
        program.make_jaxpr(xs)
    eqns = [eqn for top in program.get_jaxpr(xs).eqns for eqn in (top, *nested(top))]
    scans = [eqn for eqn in eqns if eqn.primitive.name == "scan"]
    names = Counter(eqn.primitive.name for scan in scans for eqn in nested(scan))
    assert tuple(names[name] for name in COUNTED) == expected


@pytest.mark.parametrize("kind", ["stack", "gru"])
def test_off_a_cpu_a_gradient_is_the_same_in_fewer_turns(monkeypatch: Rows, kind: str) -> None:
    with jax.enable_x64(True):
        xs = jnp.asarray(np.random.default_rng(0).standard_normal((64, 2, 3)))

        def run(backend: str) -> tuple[Any, float]:
            monkeypatch.setattr(jax, "default_backend", lambda: backend)
            brainstate.random.seed(0)
            model = Stack(kind)
            learner = bt.compile(model, bt.D_RTRL, xs[0], batch_size=2)
            states = model.states(brainstate.ParamState)

            def gradient(xs: Any) -> Any:
                step = lambda x: (learner(x) ** 2).sum()  # noqa: E731
                return learner.etrace_grad(xs, step_fn=step, weights=states)

            program = brainstate.transform.StatefulFunction(gradient)
            program.make_jaxpr(xs)
            eqns = [eqn for top in program.get_jaxpr(xs).eqns for eqn in (top, *nested(top))]
            scans = [eqn.params for eqn in eqns if eqn.primitive.name == "scan"]
            return gradient(xs), sum(scan["length"] / scan["unroll"] for scan in scans)

        (expected, before), (found, turns) = run("cpu"), run("gpu")
    assert_tree_close(found, expected, rtol=1e-9)
    assert turns < before / 2
