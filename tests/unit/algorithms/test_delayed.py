# SPDX-License-Identifier: Apache-2.0
"""Long delay lines: exact, and at a cost that grows with their length and not with its square."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms import ParamDimRule
from braintrace.algorithms.delayed import DelayedDRTRLRule, lag_of, reaching
from braintrace.base.types import bytes_of
from braintrace.testing import assert_tree_close, bptt

T, B, IN, UNITS, STEPS = 20, 2, 24, 4, 7
XS = np.random.default_rng(0).normal(size=(T, B, IN))


class Line(brainstate.nn.Module):
    """Units with two states, what they say some steps later, and a readout of it."""

    steps, ring, feedback, squared = STEPS, False, 0.0, False

    def __init__(self, **options: Any) -> None:
        super().__init__()
        vars(self).update(options)
        self.drive = bt.nn.Linear(IN, UNITS, key=1)
        self.gate, self.readout = bt.nn.Linear(IN, UNITS, key=2), bt.nn.Linear(UNITS, 2, key=3)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.h, self.v = (brainstate.HiddenState(jnp.zeros((B, UNITS))) for _ in range(2))
        self.line = brainstate.ShortTermState(jnp.zeros((self.steps, B, UNITS)))
        self.t = brainstate.ShortTermState(jnp.zeros((), int))

    def reset_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        for state in brainstate.graph.states(self, brainstate.ShortTermState).values():
            state.value = jnp.zeros_like(state.value)

    def update(self, x: Any) -> Any:
        old, k = self.line.value, self.t.value % self.steps
        late = old[k] if self.ring else old[-1]
        v = jax.nn.sigmoid(self.gate(x)) * self.v.value + 0.1 * self.h.value**2
        h = 0.9 * jnp.tanh(self.h.value + v) + self.drive(x)
        h = h + self.feedback * late if self.feedback else h
        z = jnp.tanh(h) + v
        self.h.value, self.v.value, self.t.value = h, v, self.t.value + 1
        joined = jnp.concatenate([z[None], jnp.sin(old[:-1]) if self.squared else old[:-1]])
        self.line.value = old.at[k].set(z) if self.ring else joined
        return self.readout(late + 0.1 * old[self.steps // 2])


def loss(y: Any) -> Any:
    return (jnp.sin(y) + y**2).sum()


def compiled(build: Any, **options: Any) -> Any:
    return bt.compile(build, "d_rtrl", jnp.asarray(XS[0]), batch_size=B, **options)


def gradient(learner: Any, xs: Any, **options: Any) -> Any:
    step = lambda x: loss(learner(x))  # noqa: E731
    return learner.etrace_grad(jnp.asarray(xs), step_fn=step, reduction="sum", **options)


def expected(**options: Any) -> Any:
    model = Line(**options)
    brainstate.nn.init_all_states(model, batch_size=B)
    return bptt(model, (jnp.asarray(XS),), loss)[1]


VARIANTS = (
    {},
    {"steps": 30},  # longer than the sequence
    {"squared": True},  # every step of it changes what is kept
    {"ring": True},
    {"feedback": 0.3},
    {"ring": True, "feedback": 0.3},  # what is read anywhere may be written anywhere
)


@pytest.mark.filterwarnings("ignore:the first gradient, of 12 steps")  # of a line of 30
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_blocks_and_carried_traces(options: Any) -> None:
    """Of any length; a sequence in two parts has the gradient of the whole."""
    exact, learner = expected(**options), compiled(Line(**options))
    assert bool(learner.rule.executor.bands) == (len(options) < 2)
    nilpotent = not options.keys() & {"ring", "feedback"}
    assert isinstance(learner.rule, DelayedDRTRLRule) == nilpotent
    assert_tree_close(gradient(learner, XS, carry_trace=False), exact, rtol=1e-9)
    for size in (1, 3, "auto"):
        learner.reset_state(B, model_states=True)
        first = gradient(learner, XS[:12], block_size=size)
        found = jax.tree.map(jnp.add, first, gradient(learner, XS[12:], block_size=T))
        assert_tree_close(found, exact, rtol=1e-9)


class Branches(Line):
    """Outputs of a product that are no units: one is a gate, of which others are left out; two are
    branches of a dendrite."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        del self.gate, self.drive
        self.both = bt.nn.Linear(IN, 3 * UNITS, key=4)

    def gate(self, x: Any) -> Any:
        return self.both(x)[:, UNITS : 2 * UNITS]

    def drive(self, x: Any) -> Any:
        return jnp.sin(self.both(x).reshape(B, UNITS, 3)).sum(-1)


@pytest.mark.parametrize("block", [1, 6])
def test_several_outputs_of_a_product_lead_to_one_unit(block: int) -> None:
    model = Branches()
    brainstate.nn.init_all_states(model, batch_size=B)
    exact = bptt(model, (jnp.asarray(XS),), loss)[1]
    learner = compiled(Branches())
    assert learner.rule.executor.bands
    assert_tree_close(gradient(learner, XS, block_size=block), exact, 1e-9)


class Leaky(Line):
    """A ring that is read at its counter, below a leaky readout."""

    ring = True

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        super().init_state(batch_size)
        self.y = brainstate.HiddenState(jnp.zeros((B, 2)))

    def update(self, x: Any) -> Any:
        late = self.line.value[self.t.value % self.steps]
        super().update(x)
        self.y.value = 0.8 * self.y.value + self.readout(late)
        return self.y.value


def test_credit_passes_a_ring_below_a_leak() -> None:
    model = Leaky()
    brainstate.nn.init_all_states(model, batch_size=B)
    exact = bptt(model, (jnp.asarray(XS),), loss)[1]
    learner = compiled(Leaky())
    assert not [*learner.graph.explain(kind="credit_stops")]
    assert_tree_close(gradient(learner, XS, block_size=6), exact, 1e-9)


@pytest.mark.parametrize("options", [VARIANTS[0], VARIANTS[3]], ids=str)
def test_single_steps_and_the_trace_of_all_states(options: Any) -> None:
    exact, learner = expected(**options), compiled(Line(**options))
    weights = learner.param_states
    step = brainstate.transform.grad(lambda x: loss(learner(x)), grad_states=weights)
    run = brainstate.transform.jit(step)
    total = jax.tree.map(lambda *found: sum(found), *(run(jnp.asarray(x)) for x in XS))
    assert_tree_close(total, exact, rtol=1e-9)
    plain = ParamDimRule(learner.rule.executor)
    known = compiled(Line(**options))
    gradient(known, XS, block_size=T)
    group = learner.rule.links[0].group
    assert plain.links[0].group.num_state == group.num_state == STEPS + 2
    for k in range(len(learner.rule.links)):
        a, b = (x.rule.of_link(x.read_traces(), k) for x in (learner, known))
        assert_tree_close(a, b, rtol=1e-9)
        assert all(leaf.shape[-1] == STEPS + 2 for leaf in a.values())


def counted(program: Any) -> tuple[int, int]:
    """Equations of a program, and the numbers in its largest array, those inside included."""
    equations, largest = 0, 0
    for eqn in program.eqns:
        equations += 1
        sizes = [v.aval.size for v in eqn.outvars if hasattr(v.aval, "size")]
        largest = max([largest, *sizes])
        for sub in jax.tree.leaves(
            list(eqn.params.values()), is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")
        ):
            if hasattr(sub, "jaxpr") or hasattr(sub, "eqns"):
                more, size = counted(getattr(sub, "jaxpr", sub))
                equations, largest = equations + more, max(largest, size)
    return equations, largest


@pytest.mark.parametrize("ring", [False, True])
def test_the_cost_grows_with_the_length_and_not_with_its_square(ring: bool) -> None:
    found, traces = [], []
    for steps in (20, 40, 80):
        learner = compiled(Line(steps=steps, ring=ring))
        rule = learner.rule

        def jacobians(*values: Any, rule: Any = rule) -> Any:
            return rule.executor.jacobians_at(values)

        avals = [v.aval for v in rule.executor.inputs_of_jacobians]
        found.append(counted(jax.make_jaxpr(jacobians)(*avals).jaxpr))
        traces.append(bytes_of(jax.eval_shape(rule.init)))
    equations, sizes = zip(*found, strict=True)
    assert len({*equations}) == 1
    assert sizes[2] < 2.1 * sizes[1] < 4.3 * sizes[0]
    assert traces[2] - traces[1] <= 2.1 * (traces[1] - traces[0])


def test_what_is_kept_of_a_line() -> None:
    """Activity, and the traces of the units."""
    learner = compiled(Line(steps=30))
    traces = jax.eval_shape(learner.rule.init)
    assert lag_of(learner.rule.executor) == learner.rule.lag == 30
    for link, trace in zip(learner.rule.links, traces, strict=False):
        assert all(leaf.shape[0] == 2 for leaf in trace.values()) and link.group.num_state == 32
    report = str(learner.report)
    assert "delay line: line, 30 steps, states of group 0" in report
    assert "D of group 0: 35 of 1024 entries" in report
    assert "the last 30 steps are kept in place of traces of " in report
    records = traces[-1]
    assert sorted(f.shape[1] for f in records.f) == [2, 3]  # drive does not reach v
    every = ((True, False, False), (True, False, False), (False, True, False))
    assert [reaching(every, k)[0] for k in (0, 1, 2, 3)] == [(0, 1, 2), (0, 1), (0,), (0,)]
