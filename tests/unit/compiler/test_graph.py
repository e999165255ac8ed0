# SPDX-License-Identifier: Apache-2.0
"""The records of the compiler: each entry point alone, and every derived program."""

from __future__ import annotations

import gc
import time
import warnings
from functools import cache, partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

import braintrace as bt
from braintrace.base import versions
from braintrace.testing import assert_tree_close, d_rtrl_oracle
from tests import zoo
from tests.unit.compiler.reference import RNN1, RNN2, X
from tests.zoo import HIDDEN, IN, weight

Kind = bt.DiagnosticKind


# --- entry points, with the reference values --------------------------------------------------


def test_a_graph_without_the_perturbed_step(model: Any) -> None:
    graph = bt.compile_etrace_graph(model, X, include_hidden_perturb=False)
    assert graph.hidden_perturb is None
    assert graph.coverage() == {RNN1: "trace", RNN2: "trace", ("out", "weight"): "direct"}
    with pytest.raises(bt.CompilationError, match="include_hidden_perturb=True"):
        graph.perturbed  # noqa: B018


def test_the_first_fields_of_a_graph(model: Any) -> None:
    graph = bt.compile_etrace_graph(model, X)
    assert [*graph.__dataclass_fields__][:6] == [
        "module_info",
        "hidden_groups",
        "hid_path_to_group",
        "hidden_param_op_relations",
        "hidden_perturb",
        "diagnostics",
    ]
    assert graph.recurrence_scope == "diagonal"
    with pytest.raises(ValueError, match="recurrence_scope must be one of"):
        bt.compile_etrace_graph(model, X, recurrence_scope="full")


# --- structures: what users write and the zoo does not have ------------------------------------


class Tree(brainstate.nn.Module):
    """Named states of one array, written one at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def init_state(self, batch_size: int | None = None) -> None:
        head = () if batch_size is None else (batch_size,)
        start = jnp.full((*head, HIDDEN), 0.1)
        self.s = brainstate.HiddenTreeState({"v": start * saiunit.mV, "a": start})

    def update(self, x: Any) -> Any:
        v, a = self.s.get_value("v").to_decimal(saiunit.mV), self.s.get_value("a")
        y = bt.matmul(x, self.w.value)
        self.s.set_value({"v": (0.8 * v - a + y) * saiunit.mV})
        self.s.set_value({"a": 0.9 * a + 0.1 * jnp.tanh(v)})
        return self.s.get_value("v").to_decimal(saiunit.mV) * jnp.cos(self.s.get_value("a"))


class GroupByAt(brainstate.nn.Module):
    """Columns of a ``HiddenGroupState`` written with ``.at``."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def init_state(self, batch_size: int | None = None) -> None:
        head = () if batch_size is None else (batch_size,)
        self.s = brainstate.HiddenGroupState(jnp.full((*head, HIDDEN, 3), 0.1))

    def update(self, x: Any) -> Any:
        old = self.s.value
        y = bt.matmul(x, self.w.value)
        new = old.at[..., 0].set(0.7 * old[..., 0] + y)
        new = new.at[..., 1].add(0.1 * jnp.tanh(new[..., 0]) - 0.2 * old[..., 1])
        self.s.value = new.at[..., 2].multiply(0.5)
        return self.s.value.sum(-1)


class SeveralRaw(zoo.Model):
    """Equations that read several old values at once."""

    names = ("v", "a")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        v, a = self.v.value, self.a.value
        both = jnp.stack([v - a, v * a], -1)
        self.v.value = both[..., 0] * 0.5 + jnp.maximum(v, a) + bt.matmul(x, self.w.value)
        self.a.value = 0.9 * a + 0.1 * both[..., 1]
        return self.v.value - self.a.value


class RawIntoOperation(zoo.Model):
    """Two old values and the input, concatenated in front of one operation."""

    names = ("v", "a")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN + 2 * HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        v, a = self.v.value, self.a.value
        drive = bt.matmul(jnp.concatenate([x, v, a], -1), self.w.value)
        self.v.value = 0.8 * v - a + drive
        self.a.value = 0.9 * a + 0.2 * v
        return jnp.tanh(self.v.value)


class Idle(zoo.Model):
    """A state that is never written, one that is never read, one that is kept as it is."""

    names = ("h", "constant", "sink", "kept")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value * self.constant.value + bt.matmul(x, self.w.value)
        self.sink.value = jnp.sin(self.h.value)
        self.kept.value = self.kept.value
        return self.h.value


class InDicts(brainstate.nn.Module):
    """Layers of equal width in a dict and in nested lists, the first fed back to itself."""

    def __init__(self) -> None:
        super().__init__()
        self.named = {"low": zoo.Leaky(), "high": bt.nn.GRUCell(HIDDEN, HIDDEN)}
        self.nested = [[bt.nn.GRUCell(HIDDEN, HIDDEN)], [zoo.Leaky(), zoo.Leaky()]]
        for layer in self.nested[1]:
            layer.w = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        x = self.named["high"](self.named["low"](x))
        x = self.nested[0][0](x)
        for layer in self.nested[1]:
            x = layer(x)
        return x


class TiedCells(brainstate.nn.Module):
    """Two layers with one weight, and a third use of it in the result."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [zoo.Leaky(), zoo.Leaky()]
        self.inward = weight(IN, HIDDEN)
        shared = weight(HIDDEN, HIDDEN)
        for layer in self.layers:
            layer.w = shared

    def update(self, x: Any) -> Any:
        y = jnp.tanh(bt.matmul(x, self.inward.value))
        for layer in self.layers:
            y = layer(y)
        return y @ self.layers[0].w.value


class SeveralUses(zoo.Model):
    """One layer is called three times in a step, twice on the way to the same state."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = bt.nn.Linear(IN, HIDDEN)
        self.lin = bt.nn.Linear(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        h, y = self.h.value, self.inward(x)
        gate = jax.nn.sigmoid(self.lin(h))
        self.h.value = gate * h + (1 - gate) * jnp.tanh(self.lin(y))
        return self.lin(self.h.value)


class Literals(zoo.Model):
    """Literals and constants as operands of operations and of the path."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        leak = bt.element_wise(0.5)
        drive = bt.matmul(x, self.w.value, np.full(HIDDEN, 0.25))
        constant = bt.matmul(np.ones(IN) if x.ndim == 1 else np.ones((len(x), IN)), self.w.value)
        self.h.value = leak * self.h.value + drive + 0.1 * constant - 1.0
        return self.h.value


class Leaves(zoo.Model):
    """Two leaves of one parameter make one operand."""

    def __init__(self) -> None:
        super().__init__()
        scale = brainstate.random.randn(HIDDEN)
        self.p = brainstate.ParamState({"w": weight(IN, HIDDEN).value, "scale": scale})

    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.p.value["w"] * self.p.value["scale"])
        self.h.value = 0.8 * self.h.value + drive
        return jnp.sin(self.h.value)


STRUCTURES = {
    "tree-state": Tree,
    "group-by-at": GroupByAt,
    "several-raw": SeveralRaw,
    "raw-into-operation": RawIntoOperation,
    "idle": Idle,
    "in-dicts": InDicts,
    "tied-cells": TiedCells,
    "several-uses": SeveralUses,
    "literals": Literals,
    "leaves": Leaves,
}

GROUPS = {
    "tree-state": [{"s"}],
    "group-by-at": [{"s"}],
    "several-raw": [{"v", "a"}],
    "raw-into-operation": [{"v", "a"}],
    "idle": [{"h", "constant", "sink"}, {"kept"}],
    "in-dicts": [
        {"named.low.h"},
        {"named.high.h"},
        {"nested.0.0.h"},
        {"nested.1.0.h"},
        {"nested.1.1.h"},
    ],
    "tied-cells": [{"layers.0.h"}, {"layers.1.h"}],
    "several-uses": [{"h"}],
    "literals": [{"h"}],
    "leaves": [{"h"}],
}

RELATIONS = {"in-dicts": 7, "several-uses": 2, "tied-cells": 2, "literals": 2}


def structure(name: str, batch: int | None, steps: int = zoo.STEPS) -> zoo.Case:
    if name in zoo.ALL:
        return zoo.case(name, batch, steps)
    model = STRUCTURES[name]()
    brainstate.nn.init_all_states(model, batch_size=batch)
    rng = np.random.default_rng(1)
    head = () if batch is None else (batch,)
    xs = jnp.asarray(rng.normal(size=(steps, *head, IN)))
    shape = brainstate.transform.StatefulFunction(model).get_out_shapes(xs[0])[0].shape
    return zoo.Case(model, xs, jnp.asarray(rng.normal(size=(steps, *shape))), batch)


def named(path: Any) -> str:
    return ".".join(map(str, path))


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("name", STRUCTURES)
def test_groups_and_relations_of_structures(name: str, batch: int | None) -> None:
    case = structure(name, batch, steps=1)
    graph = bt.compile_etrace_graph(case.model, case.xs[0])
    found = [{named(path) for path in group.hidden_paths} for group in graph.hidden_groups]
    assert sorted(map(sorted, found)) == sorted(map(sorted, GROUPS[name]))
    assert len(graph.hidden_param_op_relations) == RELATIONS.get(name, 1)


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("name", STRUCTURES)
def test_gradients_of_structures_equal_the_oracle(name: str, batch: int | None) -> None:
    case = structure(name, batch)
    oracle = d_rtrl_oracle(case.model, (case.xs, case.ys), case.loss)
    learner = bt.D_RTRL(case.model, downstream="step")
    learner.compile_graph(case.xs[0])
    grads = learner.etrace_grad(
        case.xs,
        case.ys,
        step_fn=lambda x, y: case.loss(learner(x), y),
        reduction="sum",
    )
    assert_tree_close(grads, oracle.grads)


# --- derived programs -------------------------------------------------------------------------

DERIVED = [
    *((name, 2) for name in (*zoo.ALL, *STRUCTURES)),
    *((name, None) for name in ("leaky", "lstm-1", "tree-state", "learned-leak")),
]


def assert_same(found: Any, expected: Any) -> None:
    """Equal to round-off, zeros included."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-12), found, expected)


class Stepped:
    """A compiled model at a random state, and the values of a step's variables."""

    def __init__(self, name: str, batch: int | None) -> None:
        self.case = structure(name, batch, steps=1)
        zoo.stir(self.case)
        self.graph = bt.compile_etrace_graph(self.case.model, self.case.xs[0])
        self.info = self.graph.module_info
        self.oracle = d_rtrl_oracle(self.case.model, (self.case.xs, self.case.ys), self.case.loss)
        self.order = {members: g for g, members in enumerate(self.oracle.groups)}

    def inputs(self) -> list[Any]:
        states = [leaf for s in self.info.slots for leaf in jax.tree.leaves(s.state.value)]
        return [*jax.tree.leaves((self.case.xs[0],)), *states]

    def values(self, variables: Any) -> list[Any]:
        """Values of variables of the step."""
        known = dict(versions.constants(self.info.jaxpr))
        known |= dict(zip(self.info.jaxpr.invars, self.inputs(), strict=True))
        for eqn in self.info.eqns:
            operands = [known[a] if versions.is_var(a) else a.val for a in eqn.invars]
            known |= dict(zip(eqn.outvars, versions.bind_equation(eqn, operands), strict=True))
        return [known[var] for var in variables]


@cache
def stepped(name: str, batch: int | None) -> Stepped:
    brainstate.random.seed(0)
    return Stepped(name, batch)


def run_part(jaxpr: Any, free: list[Any], *ins: Any) -> list[Any]:
    """A part of the step. What it reads besides is its constants; JAX from 0.11 on has none."""
    assert len([*jaxpr.constvars, *jaxpr.invars]) == len([*free, *ins])
    if jaxpr.constvars:
        assert len(jaxpr.constvars) == len(free)
        return jax.core.eval_jaxpr(jaxpr, free, *ins)
    zoo.check_jaxpr(versions.close(jaxpr))
    return list(versions.jaxpr_as_fun(versions.close(jaxpr))(*free, *ins))


@pytest.mark.parametrize(("name", "batch"), DERIVED)
def test_transitions(name: str, batch: int | None) -> None:
    """The transition is well formed and gives the new values."""
    step = stepped(name, batch)
    for group in step.graph.hidden_groups:
        free, old = group.transition_jaxpr_constvars, group.hidden_invars
        assert not set(free) & set(old)
        new = step.values(group.hidden_outvars)
        found = group.transition(step.values(old), step.values(free))
        assert_same(found, new)
        found = run_part(group.transition_jaxpr, step.values(free), *step.values(old))
        assert_same(found, new)
        stacked = group.concat_hidden(new)
        assert stacked.shape == (*group.varshape, group.num_state)
        assert_same(group.split_hidden(stacked), new)


@pytest.mark.parametrize(("name", "batch"), DERIVED)
def test_diagonal_jacobians_equal_the_oracle(name: str, batch: int | None) -> None:
    step = stepped(name, batch)
    assert step.order.keys() == {group.hidden_paths for group in step.graph.hidden_groups}
    for group in step.graph.hidden_groups:
        values = step.values(group.hidden_invars), step.values(group.transition_jaxpr_constvars)
        blocks = np.asarray(group.diagonal_jacobian(*values))
        assert blocks.shape == (*group.varshape, group.num_state, group.num_state)
        dense = step.oracle.steps[0].D[step.order[group.hidden_paths]]
        assert_same(unstacked(group, blocks), dense)


def unstacked(group: Any, blocks: np.ndarray) -> np.ndarray:
    """Blocks [*V, S, S] as a matrix over the entries of the members, one after the other."""
    rows = np.asarray(group.concat_hidden(numbers(group)), int).reshape(-1, group.num_state)
    matrix = np.zeros((rows.size, rows.size))
    for entries, block in zip(rows, blocks.reshape(-1, *blocks.shape[-2:]), strict=True):
        matrix[np.ix_(entries, entries)] = block
    return matrix


def numbers(group: Any) -> list[np.ndarray]:
    """The entries of the members, numbered one member after the other."""
    shapes = [var.aval.shape for var in group.hidden_outvars]
    starts = np.cumsum([0, *(int(np.prod(shape)) for shape in shapes)])
    return [
        np.arange(a, b).reshape(shape)
        for a, b, shape in zip(starts, starts[1:], shapes, strict=False)
    ]


@pytest.mark.parametrize(("name", "batch"), DERIVED)
def test_tails(name: str, batch: int | None) -> None:
    """Well formed, with the right value and, by the oracle, the right derivative."""
    step = stepped(name, batch)
    equations = sorted({r for r, _ in step.oracle.relations})
    for r, relation in zip(equations, step.graph.hidden_param_op_relations, strict=True):
        (y,) = step.values([relation.y_var])
        free = {v for tail in relation.y_to_hidden_group_constvars for v in tail}
        values = dict(zip(free, step.values(free), strict=True))
        found = relation.y_to_hidden_groups(y, values, concat_hidden_vals=False)
        assert_same(found, [step.values(g.hidden_outvars) for g in relation.hidden_groups])
        stacked = relation.y_to_hidden_groups(y, values)
        assert_same(
            stacked,
            [g.concat_hidden(v) for g, v in zip(relation.hidden_groups, found, strict=True)],
        )
        for k, group in enumerate(relation.hidden_groups):
            jaxpr, held = (
                relation.y_to_hidden_group_jaxprs[k],
                relation.y_to_hidden_group_constvars[k],
            )
            dense = jacobian(jaxpr, [values[v] for v in held], y)
            assert_same(dense, step.oracle.steps[0].F[r, step.order[group.hidden_paths]])


def jacobian(jaxpr: Any, free: list[Any], y: Any) -> np.ndarray:
    """Derivative of all results in ``y``, as a matrix."""
    parts = jax.jacrev(lambda y: run_part(jaxpr, free, y))(y)
    return np.concatenate([np.asarray(part).reshape(-1, y.size) for part in parts])


@pytest.mark.parametrize(("name", "batch"), DERIVED)
def test_the_perturbed_program(name: str, batch: int | None) -> None:
    step = stepped(name, batch)
    plan = step.graph.perturbed
    zoo.check_jaxpr(plan.perturb_jaxpr)
    zoo.check_jaxpr(step.info.jaxpr)
    rng = np.random.default_rng(0)
    perturb = [jnp.asarray(rng.normal(size=v.aval.shape)) for v in plan.perturb_vars]
    found = list(versions.jaxpr_as_fun(plan.perturb_jaxpr)(*step.inputs(), *perturb))
    expected = plan.eval_jaxpr(step.inputs(), perturb)
    assert_same(found, expected)


def test_mixing_transitions_have_their_true_diagonal() -> None:
    class Mixing(zoo.Model):
        names = ("h", "v")

        def __init__(self) -> None:
            super().__init__()
            self.w = weight(IN, HIDDEN)

        def update(self, x: Any) -> Any:
            h, v = self.h.value, self.v.value
            mean = jnp.tanh(h).mean(-1, keepdims=True)
            self.h.value = jnp.sin(h) * mean + v[..., ::-1] + bt.matmul(x, self.w.value)
            self.v.value = jnp.cumsum(h * v, -1)
            return self.h.value

    model = Mixing()
    brainstate.nn.init_all_states(model, batch_size=2)
    (group,), _ = bt.find_hidden_groups_from_module(model, jnp.ones((2, IN)))
    rng = np.random.default_rng(0)
    old = [jnp.asarray(rng.normal(size=(2, HIDDEN))) for _ in range(2)]
    free = [jnp.asarray(rng.normal(size=v.aval.shape)) for v in group.transition_jaxpr_constvars]

    def step(stacked: Any) -> Any:
        return group.concat_hidden(group.transition(group.split_hidden(stacked), free))

    dense = jax.jacobian(step)(group.concat_hidden(old)).reshape(2 * HIDDEN, 2, 2 * HIDDEN, 2)
    expected = jnp.einsum("pipj->pij", dense).reshape(2, HIDDEN, 2, 2)
    found = jax.jit(group.diagonal_jacobian)(old, free)
    assert_same(found, expected)


def test_derived_programs_outlive_the_environment() -> None:
    """They are made when they are asked for, which may be under another precision."""
    case = zoo.case("two-states", 2, steps=1)
    graph = bt.compile_etrace_graph(case.model, case.xs[0])
    with brainstate.environ.context(precision=32):
        (group,) = graph.hidden_groups
        assert {var.aval.dtype.name for var in group.transition_jaxpr.invars} == {"float64"}
        assert {var.aval.dtype.name for var in graph.perturbed.perturb_vars} == {"float64"}


# --- compile time -----------------------------------------------------------------------------


def stacked(cell: Any, depth: int) -> Any:
    class Deep(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = [cell(8, 8) for _ in range(depth)]
            self.out = bt.nn.Linear(8, 2)

        def update(self, x: Any) -> Any:
            for layer in self.layers:
                x = layer(x)
            return self.out(x)

    model = Deep()
    brainstate.nn.init_all_states(model, batch_size=2)
    return model


def seconds_to_compile(models: list[Any], runs: int = 7) -> list[float]:
    """Processor time of this process, the best of several runs: other load does not count."""
    found = np.full((runs, len(models)), np.inf)
    gc.collect()
    gc.disable()
    try:
        for run, k in np.ndindex(found.shape):
            start = time.process_time()
            bt.compile_etrace_graph(models[k], np.ones((2, 8)))
            found[run, k] = time.process_time() - start
    finally:
        gc.enable()
    return list(found.min(axis=0))


@pytest.mark.parametrize("cell", ["GRUCell", "LSTMCell"])
def test_compiling_is_fast_and_linear_in_depth(cell: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bt.CompilationWarning)
        shallow, deep = seconds_to_compile(
            [stacked(getattr(bt.nn, cell), depth) for depth in (12, 24)]
        )
    assert shallow <= 0.3
    assert deep <= 2.6 * shallow
