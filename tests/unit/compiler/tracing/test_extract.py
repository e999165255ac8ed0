# SPDX-License-Identifier: Apache-2.0
"""Calls, branches and loops in one another, in any order, change nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial, reduce
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import braintrace as bt
from braintrace.testing import assert_tree_close, d_rtrl_oracle
from tests import zoo
from tests.zoo import HIDDEN, IN, weight

Drive = Callable[[Any, Any], Any]
lax = jax.lax
BATCH, SHORT = 2, 4


def twice_scanned(drive: Drive, _: Any, x: Any, h: Any) -> Any:
    return lax.scan(lambda c, _: (c, drive(x, h)), 0, None, length=2)[1].mean(0)


def counted(drive: Drive, _: Any, x: Any, h: Any) -> Any:
    return lax.fori_loop(0, 2, lambda i, y: y + (i + 1.0) / 3.0 * drive(x, h), jnp.zeros_like(h))


def switched(drive: Drive, flag: Any, x: Any, h: Any) -> Any:
    def nothing(x: Any, h: Any) -> Any:
        return jnp.zeros_like(h)

    index = 2 - flag
    return lax.switch(index, [nothing, drive, drive], x, h)


#: name -> what is put around a drive; ``flag`` is an integer state, 0 or 1.
AROUND: dict[str, Callable[[Drive, Any, Any, Any], Any]] = {
    "jit": lambda drive, flag, x, h: jax.jit(drive)(x, h),
    "brainstate-jit": lambda drive, flag, x, h: brainstate.transform.jit(drive)(x, h),
    "checkpoint": lambda drive, flag, x, h: jax.checkpoint(drive)(x, h),
    "vmap": lambda drive, flag, x, h: jax.vmap(drive)(x, h) if x.ndim > 1 else drive(x, h),
    "cond": lambda drive, flag, x, h: lax.cond(flag > 0, drive, drive, x, h),
    "brainstate-cond": lambda drive, flag, x, h: brainstate.transform.cond(
        flag > 0, lambda: drive(x, h), lambda: drive(x, h)
    ),
    "switch": switched,
    "scan": twice_scanned,
    "fori": counted,
    "brainstate-loop": lambda drive, flag, x, h: brainstate.transform.for_loop(
        lambda i: drive(x, h) * (i + 0.5), jnp.arange(2)
    ).mean(0),
}


class Nest(zoo.Model):
    """A gated integrator whose drive is wrapped, the first name innermost."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names_around = names
        self.w = weight(IN, HIDDEN)
        self.r = weight(HIDDEN, HIDDEN)
        self.b = weight(HIDDEN)
        self.flag = brainstate.ShortTermState(jnp.zeros((), jnp.int32))

    def reset_state(self, batch_size: int | None = None) -> None:
        super().reset_state(batch_size)
        self.flag.value = jnp.zeros((), jnp.int32)

    def update(self, x: Any) -> Any:
        w, b, r = self.w.value, self.b.value, self.r.value

        def drive(x: Any, h: Any) -> Any:
            gate = jax.nn.sigmoid(bt.matmul(x, jnp.abs(w), b))
            return gate * zoo.spike(h - 0.1) + jnp.tanh(bt.matmul(h * gate, r))

        def wrapped(inner: Drive, name: str) -> Drive:
            return partial(AROUND[name], inner, self.flag.value)

        full = reduce(wrapped, self.names_around, drive)
        self.flag.value = 1 - self.flag.value
        self.h.value = 0.7 * self.h.value + full(x, self.h.value)
        return self.h.value


def case_of(names: Sequence[str]) -> zoo.Case:
    brainstate.random.seed(0)
    model = Nest(names)
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.normal(size=(SHORT, BATCH, IN)))
    return zoo.Case(model, xs, jnp.asarray(rng.normal(size=(SHORT, BATCH, HIDDEN))), BATCH)


@cache
def reference() -> Any:
    case = case_of([])
    return d_rtrl_oracle(case.model, (case.xs, case.ys), case.loss).grads


def gradients(names: Sequence[str]) -> tuple[Any, Any]:
    case = case_of(names)
    learner = bt.D_RTRL(case.model, downstream="step")
    learner.compile_graph(case.xs[0])
    zoo.check_jaxpr(learner.graph.module_info.jaxpr)
    grads = learner.etrace_grad(
        case.xs, case.ys, step_fn=lambda x, y: case.loss(learner(x), y), reduction="sum"
    )
    return grads, learner


@pytest.mark.parametrize("name", AROUND)
def test_one_construction(name: str) -> None:
    assert_tree_close(gradients([name])[0], reference())


@settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(names=st.lists(st.sampled_from(sorted(AROUND)), min_size=2, max_size=3))
@example(names=["jit", "jit", "jit"])
@example(names=["cond", "cond", "switch"])
@example(names=["jit", "scan", "cond"])
@example(names=["switch", "checkpoint", "fori"])
def test_constructions_in_one_another(names: list[str]) -> None:
    assert_tree_close(gradients(names)[0], reference())


def test_every_occurrence_is_an_equation_of_its_own() -> None:
    _, learner = gradients(["scan", "cond"])
    relations = learner.graph.hidden_param_op_relations
    assert len(relations) == 8  # two operations, two iterations, two branches
    assert len({r.y_var for r in relations}) == 8


def test_operations_keep_their_lines() -> None:
    for names in (["jit", "checkpoint"], ["cond", "scan"], ["switch", "jit"]):
        _, learner = gradients(names)
        for relation in learner.graph.hidden_param_op_relations:
            assert "test_extract.py" in relation.source
            assert "drive" in relation.source


def test_a_jitted_function_that_is_called_twice_has_two_sets_of_variables() -> None:
    @jax.jit
    def shared(x: Any, w: Any) -> Any:
        return jnp.tanh(bt.matmul(x, w))

    class Twice(zoo.Model):
        def __init__(self) -> None:
            super().__init__()
            self.w = weight(IN, HIDDEN)
            self.u = weight(HIDDEN, HIDDEN)

        def update(self, x: Any) -> Any:
            y = shared(x, self.w.value)
            y = y + shared(x, jnp.cos(self.w.value))
            self.h.value = 0.5 * self.h.value + y + shared(self.h.value, self.u.value)
            return self.h.value

    model = Twice()
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    graph = bt.compile_etrace_graph(model, jnp.ones((BATCH, IN)))
    zoo.check_jaxpr(graph.module_info.jaxpr)
    assert len(graph.hidden_param_op_relations) == 3
    assert len(graph.module_info.rewrites) == 3
    results = [v for eqn in graph.module_info.eqns for v in eqn.outvars]
    assert len(results) == len(set(results))


def test_a_whole_cell_in_a_branch() -> None:
    """A layer that is skipped now and then; the layers in front and behind are not."""

    class Skipping(brainstate.nn.Module):
        def __init__(self, by_hand: bool) -> None:
            super().__init__()
            self.by_hand = by_hand
            self.layers = [bt.nn.GRUCell(IN, HIDDEN), bt.nn.LSTMCell(HIDDEN, HIDDEN)]

        def update(self, x: Any) -> Any:
            first, second = self.layers
            y = first(x)
            taken = x.sum() > 0.0
            if not self.by_hand:
                return brainstate.transform.cond(taken, lambda: second(y), lambda: y)
            h, c = second.h.value, second.c.value
            second.h.value = jnp.where(taken, h, 0.0)
            out = second(jnp.where(taken, y, 0.0))
            second.h.value = jnp.where(taken, second.h.value, h)
            second.c.value = jnp.where(taken, second.c.value, c)
            return jnp.where(taken, out, y)

    def case(by_hand: bool) -> zoo.Case:
        brainstate.random.seed(0)
        model = Skipping(by_hand)
        brainstate.nn.init_all_states(model, batch_size=BATCH)
        rng = np.random.default_rng(1)
        xs = jnp.asarray(rng.normal(size=(zoo.STEPS, BATCH, IN)))
        ys = jnp.asarray(rng.normal(size=(zoo.STEPS, BATCH, HIDDEN)))
        return zoo.Case(model, xs, ys, BATCH)

    by_hand, written = case(True), case(False)
    assert {True, False} == set((written.xs.sum((1, 2)) > 0.0).tolist())
    oracle = d_rtrl_oracle(by_hand.model, (by_hand.xs, by_hand.ys), by_hand.loss)
    learner = bt.D_RTRL(written.model, downstream="step")
    learner.compile_graph(written.xs[0])
    for block in (2, "auto"):
        written.reset()
        learner.reset_state()
        grads, losses = learner.etrace_grad(
            written.xs,
            written.ys,
            step_fn=lambda x, y: written.loss(learner(x), y),
            reduction="sum",
            return_value=True,
            block_size=block,
        )
        assert_tree_close(losses, oracle.loss)
        assert_tree_close(grads, oracle.grads)


class FusedGates(zoo.Model):
    """One product cut into gates inside a branch, with results of several shapes."""

    names = ("h", "c")

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.w = weight(IN + HIDDEN, 3 * HIDDEN)

    def update(self, x: Any) -> Any:
        h, c = self.h.value, self.c.value
        taken = x.sum() > -0.5

        def cell(x: Any, h: Any) -> Any:
            y = bt.matmul(jnp.concatenate([x, h], -1), self.w.value)
            i, f, g = jnp.split(y, 3, axis=-1)
            new = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            return jnp.tanh(new), new, new.sum()

        def skip(x: Any, h: Any) -> Any:
            return 0.9 * h, c, jnp.float64(1.0)

        if self.by_hand:
            pairs = zip(
                cell(jnp.where(taken, x, 0.0), jnp.where(taken, h, 0.0)), skip(x, h), strict=True
            )
            results = [jnp.where(taken, a, b) for a, b in pairs]
        else:
            results = lax.cond(taken, cell, skip, x, h)
        self.h.value, self.c.value, total = results
        return self.h.value * jnp.sin(total)


def test_gates_cut_from_one_product_inside_a_branch() -> None:
    def case(by_hand: bool) -> zoo.Case:
        brainstate.random.seed(0)
        model = FusedGates(by_hand)
        brainstate.nn.init_all_states(model, batch_size=BATCH)
        rng = np.random.default_rng(1)
        xs = jnp.asarray(rng.normal(size=(SHORT, BATCH, IN)))
        return zoo.Case(model, xs, jnp.asarray(rng.normal(size=(SHORT, BATCH, HIDDEN))), BATCH)

    by_hand, written = case(True), case(False)
    oracle = d_rtrl_oracle(by_hand.model, (by_hand.xs, by_hand.ys), by_hand.loss)
    learner = bt.D_RTRL(written.model, downstream="step")
    learner.compile_graph(written.xs[0])
    grads = learner.etrace_grad(
        written.xs,
        written.ys,
        step_fn=lambda x, y: written.loss(learner(x), y),
        reduction="sum",
    )
    assert_tree_close(grads, oracle.grads)


class AsksForTheTime(zoo.Leaky):
    """What a step does depends on whether there is a time, not on which."""

    def update(self, x: Any) -> Any:
        out = super().update(x)
        return out if brainstate.environ.get("t", None) is None else 2.0 * out


def test_a_setting_that_is_only_asked_for_must_be_there_again() -> None:
    model, x = AsksForTheTime(), jnp.ones((BATCH, IN))
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    learner = bt.D_RTRL(model)
    with brainstate.environ.context(t=0.0):
        learner.compile_graph(x)
        first = learner(x)
    with brainstate.environ.context(t=1.0):
        assert np.abs(learner(x)).sum() > np.abs(first).sum() / 2
    with pytest.raises(Exception, match="'t'"):
        learner(x)
