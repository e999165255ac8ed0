# SPDX-License-Identifier: Apache-2.0
"""One call of a user's step as a program over inputs and states."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.drivers.traced import TracedStep, trace_step
from tests import zoo

X = np.random.default_rng(0).normal(size=(2, zoo.IN))


class WithReadout(zoo.Leaky):
    """The state, and a parameter that acts on the loss of its own step."""

    def __init__(self) -> None:
        super().__init__()
        self.out = zoo.weight(zoo.HIDDEN, 2)

    def update(self, x: Any) -> Any:
        return bt.matmul(super().update(x), self.out.value)


def compiled(**options: Any) -> Any:
    return bt.compile(WithReadout(), "d_rtrl", X, batch_size=2, **options)


@pytest.fixture
def learner() -> Any:
    return compiled(downstream="step")


def traced(learner: Any, step_fn: Any, *inputs: Any) -> TracedStep:
    return trace_step(learner, step_fn, inputs, [*learner.param_states.values()])


def test_a_step_runs_as_a_program(learner: Any) -> None:
    model = learner.model
    step = traced(learner, lambda x: (jnp.sum(learner(x) ** 2), {"seen": x[0, 0]}), X)
    assert {model.w, model.out, model.h} <= {*step.leaves}
    leaves = step.read()
    (h,), (w,) = step.leaves[model.h], step.leaves[model.w]
    assert leaves[h] is model.h.value and leaves[w] is model.w.value
    perturb = learner.graph.perturbed.init_perturb_data()
    loss, aux, _, new, moving = step.run(perturb, (X,), leaves, step.direct.shifts())
    h1 = 0.8 * model.h.value + X @ model.w.value
    np.testing.assert_allclose(loss, ((jnp.tanh(h1) @ model.out.value) ** 2).sum(), rtol=1e-12)
    np.testing.assert_allclose(new[h], h1, rtol=1e-12)
    assert float(aux["seen"]) == float(X[0, 0])
    assert len(step.direct.products) == 1  # the readout: the recurrent weight has a trace
    np.testing.assert_allclose(moving[0][0], jnp.tanh(h1), rtol=1e-12)
    step.write(new)
    np.testing.assert_allclose(model.h.value, h1, rtol=1e-12)
    assert model.w.value is leaves[w]


def test_what_the_loss_depends_on_directly(learner: Any) -> None:
    model = learner.model
    old = traced(learner, lambda x: (jnp.sum(model.h.value) + jnp.sum(learner(x)), None), X)
    assert old.live_leaves(model.h) == [*old.leaves[model.h]]
    assert old.live_leaves(brainstate.ShortTermState(1.0)) == []


def test_an_old_value_of_a_uniform_state_has_the_derivative_of_its_filters() -> None:
    learner = compiled()
    model, (one,) = learner.model, learner.filters
    loss_of = lambda x: (jnp.sum(model.h.value) + jnp.sum(learner(x)), None)  # noqa: E731
    step = trace_step(learner, loss_of, (X,), [])
    assert step.live_leaves(model.h) == []
    (w,) = step.leaves[model.w]
    leaves, one.value = step.read(), jnp.ones(one.value.shape)
    (q,) = step.leaves[one]

    def loss(weight: Any) -> Any:
        given = {**leaves, w: weight, q: one.value}
        return step.run([], (0 * X,), given, step.direct.shifts())[0]

    slope = 1 - jnp.tanh(0.8 * leaves[step.leaves[model.h][0]]) ** 2
    signal = 1.0 + 0.8 * slope * model.out.value.sum(1)
    expected = jnp.ones(zoo.IN)[:, None] * signal.sum(0)
    np.testing.assert_allclose(jax.grad(loss)(leaves[w]), expected, rtol=1e-12)


class Keeps(brainstate.ParamState):
    """A parameter that the model does not have."""


def refused_steps(learner: Any) -> dict[str, tuple[Any, str]]:
    model, mine = learner.model, Keeps(jnp.ones(2))
    count = brainstate.ShortTermState(jnp.zeros(2), name="count")

    def with_loss(act: Any, before: bool = True) -> Any:
        def step(x: Any) -> Any:
            if before:
                act()
            loss = learner(x).sum()
            if not before:
                act()
            return loss, None

        return step

    def set_(state: Any, value: Any) -> Any:
        return lambda: setattr(state, "value", value())

    return {
        "several steps": (
            lambda x: (learner(bt.MultiStepData(x[None])).sum(), None),
            "step_fn passes a MultiStepData; a sequence is taken step by step",
        ),
        "no call": (lambda x: (x.sum(), None), "exactly once per step; it called it 0 times"),
        "in a transformation": (
            lambda x: (jax.jit(lambda x: learner(x).sum())(x), None),
            "directly, not inside a transformation of its own",
        ),
        "hidden before": (
            with_loss(set_(model.h, lambda: 2 * model.h.value)),
            "step_fn writes the hidden state h",
        ),
        "hidden after": (
            with_loss(set_(model.h, lambda: 2 * model.h.value), before=False),
            "step_fn writes the hidden state h",
        ),
        "a parameter": (
            with_loss(set_(mine, lambda: 2 * mine.value)),
            "step_fn writes the parameter Keeps",
        ),
        "a type": (
            with_loss(set_(count, lambda: count.value[:1])),
            r"leaves the state count with shape \(1,\) and dtype float64; it was \(2,\)",
        ),
    }


CASES = ["several steps", "no call", "in a transformation", "hidden before", "hidden after",
         "a parameter", "a type"]  # fmt: skip


@pytest.mark.parametrize("downstream", ["step", "linear"])
@pytest.mark.parametrize("case", CASES)
def test_steps_that_are_refused(case: str, downstream: str) -> None:
    learner = compiled(downstream=downstream)
    steps = refused_steps(learner)
    assert [*steps] == CASES
    step_fn, text = steps[case]
    before = {s: s.value for s in brainstate.graph.states(learner.model).values()}
    with pytest.raises(ValueError, match=text):
        traced(learner, step_fn, X)
    assert all(state.value is value for state, value in before.items())


@pytest.mark.parametrize("options", [{}, {"vjp_method": "multi-step"}])
def test_weights_of_nobody_are_refused_and_those_of_the_loss_have_a_gradient(options: Any) -> None:
    learner, scale = compiled(**options), brainstate.ParamState(jnp.ones(2))
    others, xs = {"scale": scale}, jnp.stack([X, X])
    with pytest.raises(ValueError, match=r"1 of the weights, with shapes \(2,\), are not the"):
        learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), weights=others)
    learner.reset_state(2, model_states=True)
    loss = lambda x: (learner(x) * scale.value).sum()  # noqa: E731
    found = learner.etrace_grad(xs, step_fn=loss, weights=others, reduction="sum")
    learner.reset_state(2, model_states=True)
    outs = [learner(x) for x in xs]
    np.testing.assert_allclose(found["scale"], sum(out.sum(0) for out in outs))
