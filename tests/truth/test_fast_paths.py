# SPDX-License-Identifier: Apache-2.0
"""Each fast path gives the numbers of the composition that it stands for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

import braintrace as bt
from braintrace import algorithms
from braintrace.algorithms import config
from braintrace.algorithms.d_rtrl import ParamDimRule
from braintrace.algorithms.lagged import LaggedDRTRLRule
from braintrace.base.types import bytes_of
from braintrace.drivers import gradients
from braintrace.drivers.block_size import (
    LARGE,
    NEAR,
    WHOLE,
    auto_block_size,
    budget,
    equal_blocks,
    record_bytes,
)
from braintrace.drivers.loops import marked_scan
from braintrace.executor import direct
from braintrace.testing import assert_tree_close
from tests import zoo


def compiled(case: zoo.Case, **options: Any) -> Any:
    learner = bt.D_RTRL(case.model, **options)
    learner.compile_graph(case.xs[0])
    return learner


def gradient(case: zoo.Case, learner: Any, xs: Any, ys: Any, **options: Any) -> Any:
    return learner.etrace_grad(
        xs, ys, step_fn=lambda x, y: case.loss(learner(x), y), reduction="sum", **options
    )


# --- what is structurally zero -------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["diagonal", "coupled"])
@pytest.mark.parametrize("name", zoo.ALL)
def test_what_is_called_structurally_zero_is_zero(name: str, scope: str) -> None:
    case = zoo.case(name, 2)
    zoo.stir(case)
    executor = bt.ETraceVjpGraphExecutor(case.model, recurrence_scope=scope)
    executor.compile_graph(case.xs[0])
    *_, h2w, h2h = executor.solve_h2w_h2h_jacobian(case.xs[0])
    for i, found in enumerate(h2w):
        driven = np.any(np.asarray(found.f) != 0, axis=tuple(range(found.f.ndim - 1)))
        assert not np.any(driven & ~np.array(executor.compiled.driving(i)))
    for g, transition in h2h.items():
        if transition is not None:
            nonzero = np.any(np.asarray(transition) != 0, axis=tuple(range(transition.ndim - 2)))
            assert not np.any(nonzero & ~np.array(executor.compiled.passing(g)))


def test_the_structure_of_an_lstm() -> None:
    cell = bt.nn.LSTMCell(3, 4)
    brainstate.nn.init_all_states(cell, batch_size=2)
    executor = bt.ETraceGraphExecutor(cell)
    executor.compile_graph(jnp.ones((2, 3)))
    (group,) = executor.graph.hidden_groups
    h, c = (group.hidden_paths.index((name,)) for name in ("h", "c"))
    step = executor.compiled
    passing = np.array(step.passing(0))
    assert passing[[h, c], c].all() and not passing[:, h].any()
    driven = {link.relation.weight_path[0]: step.driving(i) for i, link in enumerate(step.links)}
    (output,) = (name for name, states in driven.items() if not states[c])
    assert output == "Wo" and driven[output][h]


# --- traces one step behind --------------------------------------------------------------------


class Integrator(zoo.Model):
    """``y`` is driven by ``v`` of the same step and is not read again; ``u`` is not either."""

    names = ("v", "y", "u")

    def __init__(self) -> None:
        super().__init__()
        self.w, self.q = zoo.weight(zoo.IN, zoo.HIDDEN), zoo.weight(zoo.IN, zoo.HIDDEN)

    def update(self, x: Any) -> Any:
        self.v.value = jnp.tanh(0.8 * self.v.value + bt.matmul(x, self.w.value))
        self.y.value = jnp.sin(self.v.value) + bt.matmul(x**2, self.q.value)
        self.u.value = self.y.value * self.v.value
        return self.u.value + self.y.value


class ReadsForgotten(Integrator):
    """The result of a step depends on old values that no new one depends on."""

    def update(self, x: Any) -> Any:
        late = self.y.value**2 + jnp.cos(self.u.value)
        return super().update(x) + late


LAGGING = {"lstm": zoo.CELLS["lstm-2"], "integrator": Integrator, "late": ReadsForgotten}


def lagging(name: str, steps: int = zoo.STEPS) -> zoo.Case:
    brainstate.random.seed(0)
    model = LAGGING[name]()
    brainstate.nn.init_all_states(model, batch_size=2)
    rng = np.random.default_rng(1)
    xs = jnp.asarray(rng.normal(size=(steps, 2, zoo.IN)))
    width = zoo.OUT if name == "lstm" else zoo.HIDDEN
    return zoo.Case(model, xs, jnp.asarray(rng.normal(size=(steps, 2, width))), 2)


def by_blocks(case: zoo.Case, learner: Any, size: int) -> Any:
    """Two sequences, the second with the trace of the first, and a step on its own."""
    found = []
    for part in (slice(0, 3), slice(3, 6)):
        found.append(gradient(case, learner, case.xs[part], case.ys[part], block_size=size))
    grad = brainstate.transform.grad(
        lambda: case.loss(learner(case.xs[6]), case.ys[6]), learner.param_states
    )
    return [*found, grad()]


def by_updates(case: zoo.Case, learner: Any, size: int) -> Any:
    weights = learner.param_states

    class Descent:
        def update(self, grads: Any) -> None:
            for path, grad in grads.items():
                weights[path].value = jax.tree.map(
                    lambda w, g: w - 0.01 * g, weights[path].value, grad
                )

    learner.etrace_update(
        case.xs,
        case.ys,
        step_fn=lambda x, y: case.loss(learner(x), y),
        optimizer=Descent(),
        update_every=size,
    )
    return {path: state.value for path, state in weights.items()}


def by_windows(case: zoo.Case, learner: Any, size: int) -> Any:
    def step_fn(x: Any, y: Any) -> Any:
        if size == 1:
            return case.loss(learner(x), y)
        return jax.vmap(case.loss)(learner(bt.MultiStepData(x)), y)

    return learner.etrace_grad(case.xs, case.ys, step_fn=step_fn, chunk_size=size)


WAYS = {"blocks": by_blocks, "updates": by_updates, "windows": by_windows}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LAGGING)
def test_lagging_traces_are_those_of_all_states(
    name: str, way: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"vjp_method": "multi-step"} if way == "windows" else {}
    found = {}
    for kind in (LaggedDRTRLRule, ParamDimRule):
        if kind is ParamDimRule:
            monkeypatch.setattr(config, "may_lag", lambda executor: False)
        case = lagging(name)
        learner = compiled(case, **options)
        assert type(learner.rule) is kind
        result = WAYS[way](case, learner, size)
        traces = [learner.get_etrace_of(path) for path in learned(learner)]
        found[kind] = result, traces
    assert_tree_close(found[LaggedDRTRLRule][0], found[ParamDimRule][0])
    assert_tree_close(found[LaggedDRTRLRule][1], found[ParamDimRule][1])


def learned(learner: Any) -> list[Any]:
    relations = learner.graph.hidden_param_op_relations
    return list(dict.fromkeys(path for r in relations for path in r.parameter_paths))


def test_a_lagging_trace_is_smaller() -> None:
    case = lagging("lstm")
    learner = compiled(case)
    lagged = sum(v.nbytes for state in learner.traces for v in jax.tree.leaves(state.value))
    full = sum(
        jnp.asarray(v).nbytes
        for path in learned(learner)
        for one in learner.get_etrace_of(path)
        for v in one.values()
    )
    assert lagged < 0.6 * full
    assert "D-RTRL" in learner.report


def test_a_trace_does_not_lag_when_its_increments_depend_on_weights() -> None:
    class LowRank(zoo.Model):
        names = ("v", "y")

        def __init__(self) -> None:
            super().__init__()
            self.lora = bt.nn.LoRA(zoo.IN, 2, zoo.HIDDEN)

        def update(self, x: Any) -> Any:
            self.v.value = 0.8 * self.v.value + self.lora(x)
            self.y.value = jnp.sin(self.v.value)
            return self.y.value

    model = LowRank()
    brainstate.nn.init_all_states(model, batch_size=2)
    learner = bt.D_RTRL(model)
    learner.compile_graph(jnp.ones((2, zoo.IN)))
    assert type(learner.rule) is ParamDimRule


def test_a_trace_does_not_lag_when_a_weight_behind_it_is_trained_elsewhere() -> None:
    """What a step adds to the trace of ``A`` depends on ``B``, of which it has no gradient."""

    class Shared(zoo.Model):
        names = ("v", "y")

        def __init__(self) -> None:
            super().__init__()
            rng = np.random.default_rng(0)
            self.b = brainstate.ParamState(jnp.asarray(rng.normal(size=(zoo.IN, 2))))
            self.a = brainstate.ParamState(jnp.asarray(rng.normal(size=(2, zoo.HIDDEN))))

        def update(self, x: Any) -> Any:
            held = jax.lax.stop_gradient(self.b.value)
            low = bt.lora_matmul(x, held, self.a.value)
            self.v.value = jnp.tanh(0.8 * self.v.value + low)
            self.y.value = jnp.sin(self.v.value)
            return self.y.value + jnp.sum(x @ self.b.value)

    model = Shared()
    brainstate.nn.init_all_states(model, batch_size=2)
    learner = bt.D_RTRL(model)
    learner.compile_graph(jnp.ones((2, zoo.IN)))
    assert type(learner.rule) is ParamDimRule


def test_operations_with_equal_parameters_of_other_types_are_not_taken_for_the_same() -> None:
    """``True == 1``: here one needs the weights, and the other does not."""
    moded = bt.register_primitive("test_moded", lambda x, w, *, mode: x @ w)

    @moded.register_xy_to_dw
    def xy_to_dw(x: Any, dy: Any, weights: Any, *, mode: Any) -> Any:
        factor = 1.0 if mode is True else weights["weight"]
        return {"weight": factor * jnp.outer(x, dy)}

    class Two(zoo.Model):
        names = ("v", "y")

        def __init__(self) -> None:
            super().__init__()
            self.u = brainstate.ParamState(jnp.ones((zoo.IN, zoo.HIDDEN)))
            self.w = brainstate.ParamState(jnp.ones((zoo.IN, zoo.HIDDEN)))

        def init_state(self, *args: Any, **kwargs: Any) -> None:
            self.v, self.y = (brainstate.HiddenState(jnp.zeros(zoo.HIDDEN)) for _ in range(2))

        def update(self, x: Any) -> Any:
            drive = moded.bind(x, self.u.value, mode=1) + moded.bind(x, self.w.value, mode=True)
            self.v.value = jnp.tanh(0.8 * self.v.value + drive)
            self.y.value = jnp.sin(self.v.value)
            return self.y.value

    model = Two()
    brainstate.nn.init_all_states(model)
    learner = bt.D_RTRL(model)
    learner.compile_graph(jnp.ones(zoo.IN))
    assert type(learner.rule) is ParamDimRule


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("name", zoo.ALL)
def test_jacobians_have_the_types_that_are_told(name: str, whole: bool) -> None:
    case = zoo.case(name, 2)
    kind = "whole" if whole else "near"
    made = bt.ETraceGraphExecutor(case.model, jacobians=kind, recurrence_scope="coupled")
    made.compile_graph(case.xs[0])
    executor = made.compiled
    inputs = [v.aval for v in executor.inputs_of_jacobians]
    types = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in inputs]
    found = jax.eval_shape(executor.jacobians_at, types)
    told = executor.jacobian_types
    assert jax.tree.structure(found) == jax.tree.structure(told)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(told), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


class Plain(bt.ETraceVjpAlgorithm):
    """D-RTRL without knowing the structure of ``D`` and ``f``, one step as any other block."""

    def make_rule(self, executor: Any) -> Any:
        return algorithms.ParamDimRule(executor, self.trace_dtype)


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["lstm-1", "gru-1", "vanilla-1", "direct", "lif"])
def test_known_structure_changes_no_number(
    name: str, way: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "may_lag", lambda executor: False)
    options = {"vjp_method": "multi-step"} if way == "windows" else {}
    found = []
    for kind in (bt.D_RTRL, Plain):
        brainstate.random.seed(0)
        case = zoo.case(name, 2)
        learner = kind(case.model, **options)
        learner.compile_graph(case.xs[0])
        found.append((WAYS[way](case, learner, size), learner.get_etrace_of(learned(learner)[0])))
    assert_tree_close(*found)


# --- rules that change the block -----------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class LeakyRule(algorithms.ParamDimRule):
    """D-RTRL with a number in place of ``D``, also where ``D`` is structurally zero."""

    def leaky(self, block: Any) -> Any:
        steps = block.jacobians.f[0].shape[0]

        def of_group(group: Any) -> Any:
            eye = 0.7 * jnp.eye(group.num_state)
            wide = eye.reshape(*eye.shape, *(1,) * group.ndim)
            return jnp.broadcast_to(wide, (steps, *eye.shape, *group.varshape))

        groups = self.executor.graph.hidden_groups
        jacobians = block.jacobians._replace(transition=tuple(map(of_group, groups)))
        return block._replace(jacobians=jacobians)

    def solve(self, traces: Any, block: Any, operands: Any) -> Any:
        return super().solve(traces, self.leaky(block), operands)

    def update(self, traces: Any, block: Any, operands: Any) -> Any:
        return super().update(traces, self.leaky(block), operands)


class Leaky(bt.ETraceVjpAlgorithm):
    def make_rule(self, executor: Any) -> Any:
        return LeakyRule(executor, self.trace_dtype)


def leaky_by_hand(case: zoo.Case) -> Any:
    """``sum_t <l^t, eps^t>`` of a tanh layer with ``eps^t = 0.7 eps^{t-1} + f^t x^t``."""
    cell = case.model.layers[0]
    weight, bias = (np.asarray(cell.W.weight.value[key]) for key in ("weight", "bias"))
    h, eps, total = np.asarray(cell.h.value), 0.0, 0.0
    for x, y in zip(np.asarray(case.xs), case.ys, strict=True):
        seen = np.concatenate([x, h], -1)
        h = np.tanh(seen @ weight + bias)
        eps = 0.7 * eps + seen[:, :, None] * (1 - h**2)[:, None, :]
        signal = jax.grad(lambda h, y=y: case.loss(case.model.out(h), y))(jnp.asarray(h))
        total = total + np.einsum("bo,bio->io", signal, eps)
    return total


@pytest.mark.parametrize("size", [1, 3, zoo.STEPS])
def test_a_rule_may_put_a_transition_where_the_model_has_none(size: int) -> None:
    case = zoo.case("vanilla-1", 2)
    wanted = leaky_by_hand(case)
    learner = Leaky(case.model)
    learner.compile_graph(case.xs[0])
    found = gradient(case, learner, case.xs, case.ys, block_size=size)
    (path,) = learned(learner)
    np.testing.assert_allclose(found[path]["weight"], wanted, rtol=1e-9)


@pytest.mark.parametrize("name", ["vanilla-1", "lstm-1", "gru-1"])
def test_a_rule_that_changes_the_block_sees_every_block(name: str) -> None:
    found = []
    for size in (1, 3):
        brainstate.random.seed(0)
        case = zoo.case(name, 2)
        learner = Leaky(case.model)
        learner.compile_graph(case.xs[0])
        found.append(by_blocks(case, learner, size))
    assert_tree_close(*found)


# --- direct gradients of a block -----------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("name", ["gru-1", "lstm-2", "direct", "plain-parameters", "used-twice"])
def test_direct_products_equal_reverse_mode_of_every_step(
    name: str, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    brainstate.random.seed(0)
    case = zoo.case(name, 2)
    learner = compiled(case)
    fast = gradient(case, learner, case.xs, case.ys, block_size=size, carry_trace=False)
    monkeypatch.setattr(direct, "_product", lambda *_: None)
    brainstate.random.seed(0)
    case = zoo.case(name, 2)
    learner = compiled(case)
    slow = gradient(case, learner, case.xs, case.ys, block_size=size, carry_trace=False)
    assert_tree_close(fast, slow)


def test_a_readout_outside_of_the_learner_is_taken_block_by_block() -> None:
    cell = bt.nn.GRUCell(zoo.IN, zoo.HIDDEN)
    inner, outer = bt.nn.Linear(zoo.HIDDEN, 3), brainstate.nn.Linear(3, zoo.OUT)
    brainstate.nn.init_all_states(cell, batch_size=2)
    learner = bt.D_RTRL(cell)
    rng = np.random.default_rng(0)
    xs = jnp.asarray(rng.normal(size=(5, 2, zoo.IN)))
    learner.compile_graph(xs[0])
    weights = {"inner": inner.weight, "outer": outer.weight}

    def loss(x: Any) -> Any:
        return jnp.sum(outer(jnp.tanh(inner(learner(x)))) ** 2)

    found = learner.etrace_grad(xs, step_fn=loss, weights=weights, reduction="sum")

    def total() -> Any:
        return brainstate.transform.for_loop(lambda x: loss_of(x), xs).sum()

    def loss_of(x: Any) -> Any:
        return jnp.sum(outer(jnp.tanh(inner(cell(x)))) ** 2)

    brainstate.nn.reset_all_states(cell, batch_size=2)
    expected = brainstate.transform.grad(total, weights)()
    assert_tree_close(dict(found), dict(expected))


@pytest.mark.parametrize("size", [1, 3])
def test_a_plain_convolution_of_the_states_is_taken_block_by_block(size: int) -> None:
    """An operation of JAX whose gradient is found by its own derivative, not by rules."""
    rng = np.random.default_rng(0)
    cell = bt.nn.GRUCell(zoo.IN, 12)
    brainstate.nn.init_all_states(cell, batch_size=2)
    learner = bt.D_RTRL(cell)
    xs = jnp.asarray(rng.normal(size=(5, 2, zoo.IN)))
    learner.compile_graph(xs[0])
    kernel = brainstate.ParamState(jnp.asarray(rng.normal(size=(3, 4, 2))))
    kinds: list[str] = []
    weights = {"kernel": kernel}

    def loss_of(run: Any) -> Any:
        def loss(x: Any) -> Any:
            image = run(x).reshape(2, 3, 4)
            y = jax.lax.conv_general_dilated(
                image, kernel.value**2, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
            )
            return jnp.sum(jnp.sin(y))

        return loss

    taken = direct.DirectProduct._pulled

    def counting(self: Any, *args: Any) -> Any:
        kinds.append(self.eqn.primitive.name)
        return taken(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(direct.DirectProduct, "_pulled", counting)
        found = learner.etrace_grad(
            xs, step_fn=loss_of(learner), weights=weights, reduction="sum", block_size=size
        )
    assert set(kinds) == {"conv_general_dilated"}
    brainstate.nn.reset_all_states(cell, batch_size=2)

    def total() -> Any:
        return brainstate.transform.for_loop(loss_of(cell), xs).sum()

    expected = brainstate.transform.grad(total, weights)()
    assert_tree_close(dict(found), dict(expected))


def test_a_direct_gradient_has_the_dtype_of_its_parameter() -> None:
    wide = bt.register_primitive("test_direct_of_two_dtypes", lambda x, w: x @ w.astype(x.dtype))

    @wide.register_xy_to_dw
    def xy_to_dw(x: Any, dy: Any, weights: Any) -> Any:
        return {"weight": jnp.outer(x, dy)}

    cell = bt.nn.GRUCell(zoo.IN, zoo.HIDDEN)
    brainstate.nn.init_all_states(cell)
    weight = brainstate.ParamState(jnp.ones((zoo.HIDDEN, 2), "bfloat16"))
    learner = bt.D_RTRL(cell)
    xs = jnp.ones((3, zoo.IN))
    learner.compile_graph(xs[0])
    found = learner.etrace_grad(
        xs, step_fn=lambda x: wide.bind(learner(x), weight.value).sum(), weights={"w": weight}
    )
    assert found["w"].dtype == jnp.bfloat16


# --- what is stacked -----------------------------------------------------------------------------


def test_a_callback_runs_once_per_step_in_a_marked_scan() -> None:
    counts: list[int] = []

    def count() -> Any:
        counts.append(len(counts))
        return np.int32(counts[-1])

    def body(carry: Any, now: Any) -> Any:
        k = io_callback(count, jax.ShapeDtypeStruct((), "int32"), ordered=True)
        return carry + now, (k, 2 * k)

    steps = jnp.arange(4.0)
    end, (found, twice) = jax.jit(lambda xs: marked_scan(body, jnp.zeros(()), xs)[:2])(steps)
    assert float(end) == 6.0
    np.testing.assert_array_equal(found, [0, 1, 2, 3])
    np.testing.assert_array_equal(twice, [0, 2, 4, 6])
    assert len(counts) == 4


# --- sums over examples --------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 4, 7])
@pytest.mark.parametrize("kind", ["leaky", "two-states"])
def test_large_traces_meet_signals_example_by_example(kind: str, batch: int) -> None:
    class Wide(zoo.Model):
        width = 128

        def __init__(self) -> None:
            super().__init__()
            self.layer = bt.nn.Linear(64, self.width)

        def update(self, x: Any) -> Any:
            self.h.value = 0.9 * self.h.value + self.layer(x)
            return self.h.value

    class WideTwo(Wide):
        names = ("h", "v")

        def update(self, x: Any) -> Any:
            h, v = self.h.value, self.v.value
            self.h.value = 0.9 * h + 0.2 * v + self.layer(x)
            self.v.value = 0.8 * v + 0.1 * h
            return self.h.value

    model = {"leaky": Wide, "two-states": WideTwo}[kind]()
    brainstate.nn.init_all_states(model, batch_size=batch)
    learner = bt.D_RTRL(model, downstream="step")
    learner.compile_graph(jnp.ones((batch, 64)))
    (rules,) = learner.rule.rules
    rng = np.random.default_rng(0)
    trace = {key: jnp.asarray(rng.normal(size=v.shape)) for key, v in rules.init().items()}
    states = trace["weight"].shape[0]
    signal = jnp.asarray(rng.normal(size=(states, batch, 128)))
    operands = [None, jnp.ones((64, 128)), jnp.ones(128)]
    wanted = {
        "weight": np.einsum("sbo,sbio->io", signal, trace["weight"]),
        "bias": np.einsum("sbo,sbo->o", signal, trace["bias"]),
    }
    assert_tree_close(jax.jit(rules.solve)(signal, trace, operands), wanted)
    many = jax.vmap(lambda s: rules.solve(s, trace, operands))(signal[None])
    assert_tree_close(jax.tree.map(lambda v: v[0], many), wanted)


def test_a_sum_over_many_examples_in_half_precision_does_not_stop_growing() -> None:
    rules = rule_of(64, 1).rules[0]
    trace = {key: jnp.ones((1, 1024, *v.shape[2:]), "bfloat16") for key, v in rules.init().items()}
    found = rules.solve(jnp.ones((1, 1024, 64), "bfloat16"), trace, [None] * 3)
    for leaf in found.values():
        assert leaf.dtype == "float64"  # as wide as the parameters
        np.testing.assert_allclose(leaf, 1024)


# --- how long blocks are -------------------------------------------------------------------------


def rule_of(units: int, batch: int) -> Any:
    cell = bt.nn.GRUCell(64, units)
    brainstate.nn.init_all_states(cell, batch_size=batch)
    learner = bt.D_RTRL(cell)
    learner.compile_graph(jnp.zeros((batch, 64), "float32"))
    return learner.rule


@pytest.mark.parametrize(("units", "batch", "steps"), [(16, 2, 10**6), (256, 8, 10**5)])
def test_a_record_is_as_long_as_makes_the_traces_cheap(units: int, batch: int, steps: int) -> None:
    rule = rule_of(units, batch)
    record, held = record_bytes(rule), bytes_of(jax.eval_shape(rule.init))
    block, most = auto_block_size(rule, steps), max(NEAR, 2.5 * held)
    assert steps % block == 0 and 0.8 * most <= record * block <= 1.25 * most
    assert auto_block_size(rule, 7) == 7


def test_a_trace_that_is_not_kept_is_avoided_where_the_whole_record_is_small() -> None:
    rule = rule_of(16, 2)
    longest = WHOLE // record_bytes(rule)
    assert auto_block_size(rule, longest, False) == longest > auto_block_size(rule, longest)
    beyond = 2 * longest
    assert auto_block_size(rule, beyond, False) == auto_block_size(rule, beyond)


def test_blocks_are_shorter_with_a_large_readout(monkeypatch: pytest.MonkeyPatch) -> None:
    cell, readout = bt.nn.GRUCell(8, 16), bt.nn.Linear(16, 4000)
    brainstate.nn.init_all_states(cell, batch_size=8)
    learner, xs = bt.D_RTRL(cell), jnp.ones((300, 8, 8), "float32")
    learner.compile_graph(xs[0])
    sizes = []

    def noted(*args: Any) -> int:
        sizes.append(auto_block_size(*args))
        return sizes[-1]

    monkeypatch.setattr(gradients, "auto_block_size", noted)
    learner.etrace_grad(
        xs, step_fn=lambda x: readout(learner(x)).sum(), weights={"readout": readout.weight}
    )
    logits = 8 * 4000 * 4
    assert 0.4 * NEAR <= sizes[0] * logits <= 1.25 * NEAR


def test_large_traces_have_records_as_large_as_they_are() -> None:
    assert budget(10**9) == budget(10**9, WHOLE) == 10**9
    assert budget(150 * 2**20) == LARGE


@pytest.mark.parametrize(
    ("steps", "longest", "block"),
    [
        (7, 30.5, 7),
        (100, 100.0, 100),
        (100, 90.0, 100),
        (100, 60.0, 50),
        (1000, 121.7, 125),
        (1000, 91.0, 100),
        (100, 13.5, 10),
        (1000, 34.0, 40),
        (1000, 32.5, 40),
        (1000, 15.9, 10),  # 20 is more than a quarter longer
        (997, 100.0, 100),  # a prime: nine blocks of 100, and 97 steps
        (1, 1.0, 1),
        (10**6, 1.0, 1),
        (3, 1.9, 1),
    ],
)
def test_blocks_divide_the_sequence_where_they_can(steps: int, longest: float, block: int) -> None:
    assert equal_blocks(steps, longest) == block
