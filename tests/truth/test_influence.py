# SPDX-License-Identifier: Apache-2.0
"""RTRL is backpropagation through time, for every parameter of every model that compiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit as u

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt, influence_oracle
from tests.truth.table import DRIVERS, Case, losses, prepared
from tests.zoo import spike, weight

STEPS, BATCH, IN, UNITS = 6, 2, 3, 3


@jax.custom_vjp
def emitted(v: Any) -> Any:
    return (v > 0.0).astype(v.dtype)


emitted.defvjp(lambda v: (emitted(v), v), lambda v, g: (g / (1.0 + v**2),))


class Everything(brainstate.nn.Module):
    """Two layers with gates and resets, plain parameters, states that are not hidden."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.r, self.gate = weight(IN, UNITS), weight(UNITS, UNITS), weight(UNITS, UNITS)
        self.up, self.plain, self.scale = weight(UNITS, UNITS), weight(UNITS, UNITS), weight(UNITS)
        self.leak, self.unused = weight(), weight(2)

    def init_state(self, batch_size: int | None = None) -> None:
        """Membranes, a layer above, an average, an emitted value, a clock, and a pair."""
        head = () if batch_size is None else (batch_size,)
        start = jnp.full((*head, UNITS), 0.1)
        self.v, self.h = brainstate.HiddenState(start), brainstate.HiddenState(2 * start)
        self.mean = brainstate.ShortTermState({"of": start * 0.5, "n": jnp.zeros((), "int32")})
        self.emitted = brainstate.ShortTermState(start)
        self.clock = brainstate.ShortTermState(jnp.zeros(head))

    def update(self, x: Any) -> Any:
        """One step."""
        x, done = x[..., :IN], (x[..., :1] > 0.7).astype(x.dtype)
        mean = self.mean.value
        heard = jax.nn.sigmoid(bt.matmul(self.emitted.value, self.gate.value)) * self.emitted.value
        drive = bt.matmul(x, self.w.value) + bt.matmul(heard, self.r.value)
        old = self.v.value * (1 - done)
        self.v.value = (
            0.9 * old * (1 - spike(old)) + drive - jnp.tanh(mean["of"] @ self.plain.value)
        )
        self.emitted.value = emitted(self.v.value - 0.3)
        y = bt.matmul(jnp.sin(self.v.value), self.up.value)
        y = y / jnp.sqrt(1 + (y**2).sum(-1, keepdims=True))
        self.h.value = jnp.roll(self.h.value, 1, -1) * jax.nn.sigmoid(self.scale.value * old) + y
        leak = jax.nn.sigmoid(self.leak.value)
        of = leak * mean["of"] + (1 - leak) * jnp.roll(self.h.value, 1, -1)
        self.mean.value = {"of": of, "n": mean["n"] + 1}
        self.clock.value = 0.5 * self.clock.value + x[..., 0]
        return self.mean.value["of"] + 0.1 * self.emitted.value + self.clock.value[..., None]


def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    return (
        jnp.asarray(rng.normal(size=(STEPS, BATCH, IN))),
        jnp.asarray(rng.normal(size=(STEPS, BATCH, UNITS))),
    )


def loss_of(out: Any, y: Any) -> Any:
    return ((out - y) ** 2 * jnp.cos(out)).sum(-1)


def made(algorithm: Any = bt.RTRL, **options: Any) -> tuple[Any, Any, Any]:
    """A learner, and the loss of a step and of examples."""
    brainstate.random.seed(0)
    options = {"batch_size": BATCH, "frozen": ["unused"], **options}
    learner = bt.compile(Everything(), algorithm, data()[0][0], **options)
    return (
        learner,
        lambda x, y: loss_of(learner(x), y).sum(),
        lambda x, y: loss_of(learner(x), y),
    )


def reference(weights: Any = 1.0) -> Any:
    learner, *_ = made()
    xs, ys = data()
    many = jnp.broadcast_to(jnp.asarray(weights, float).reshape(-1, 1), (STEPS, BATCH))
    return bptt(learner.model, (xs, ys, many), lambda out, y, m: (m * loss_of(out, y)).sum())[1]


def equal(found: Any, wanted: Any) -> None:
    assert_tree_close(found, wanted, 1e-9, allow_zero=("unused",))


# --- everything ------------------------------------------------------------------------------


def test_blocks_calls_masks_and_single_steps() -> None:
    (learner, step, of_examples), (xs, ys) = made(), data()
    every, last = reference(), np.arange(STEPS) == STEPS - 1
    of_last = reference(last)
    masks = (None, every), (np.repeat(last[:, None], BATCH, 1), of_last)
    for k, size in enumerate((1, 1, 4, STEPS, STEPS, "auto")):
        mask, wanted = masks[k % 2]
        again(learner)
        found = learner.etrace_grad(
            xs,
            ys,
            step_fn=step if mask is None else of_examples,
            mask=mask,
            reduction="sum",
            block_size=size,
            carry_trace=size != STEPS,
        )
        equal(found, wanted)
    again(learner)
    calls = [
        learner.etrace_grad(xs[own], ys[own], step_fn=step, reduction="sum", block_size=2)
        for own in (slice(2), slice(2, None))
    ]
    equal(jax.tree.map(jnp.add, *calls), every)
    again(learner)

    @brainstate.transform.jit
    def of_calls(xs: Any, ys: Any) -> Any:
        return brainstate.transform.grad(
            lambda: sum(step(x, y) for x, y in zip(xs, ys, strict=True)), learner.trained_states
        )()

    assert_tree_close(of_calls(xs, ys), {path: every[path] for path in learner.trained_states})
    learner.reset_state()
    assert not any(np.any(trace) for trace in learner.read_traces())


def again(learner: Any) -> None:
    """States and traces as at the start."""
    learner.reset_state()
    fresh, *_ = made()
    before = brainstate.graph.states(fresh.model)
    for path, state in brainstate.graph.states(learner.model).items():
        state.value = before[path].value


def test_vmap_one_example_and_windows() -> None:
    xs, ys = data()
    learner, step, _ = made(vmap=True)
    equal(learner.etrace_grad(xs, ys, step_fn=step, reduction="sum", block_size=4), reference())
    learner, _, _ = made(vjp_method="multi-step")

    def window(x: Any, y: Any) -> Any:
        return loss_of(learner(bt.MultiStepData(x)), y).sum(-1)

    found = learner.etrace_grad(xs, ys, step_fn=window, reduction="sum", chunk_size=4)
    equal(found, reference())
    learner = bt.compile(Everything(), bt.RTRL, xs[0, 0], frozen=["unused"])
    _, wanted = bptt(learner.model, (xs[:, 0], ys[:, 0]), loss_of)
    found = learner.etrace_grad(
        xs[:, 0], ys[:, 0], step_fn=lambda x, y: loss_of(learner(x), y), reduction="sum"
    )
    equal(found, wanted)


def test_updates_and_files(tmp_path: Path) -> None:
    """An update at every step is that of the influence with old weights, by hand."""
    (learner, step, _), (xs, ys) = made(), data()
    sgd = optax.sgd(0.1)
    learner.etrace_update(xs[:3], ys[:3], step_fn=step, optimizer=sgd)
    learner.save(tmp_path / "learner.npz")
    first = learner.etrace_update(xs[3:], ys[3:], step_fn=step, optimizer=sgd)
    other, step, _ = made()
    other.restore(tmp_path / "learner.npz")
    second = other.etrace_update(xs[3:], ys[3:], step_fn=step, optimizer=sgd)
    np.testing.assert_array_equal(first, second)
    by_hand, step, _ = made()
    for x, y in zip(xs, ys, strict=True):
        grads = by_hand.etrace_grad(x[None], y[None], step_fn=step, reduction="sum")
        for path, state in by_hand.trained_states.items():
            state.value = jax.tree.map(lambda w, g: w - 0.1 * g, state.value, grads[path])
    found = [{p: s.value for p, s in one.param_states.items()} for one in (learner, by_hand)]
    equal(*found)


def test_what_there_is() -> None:
    learner, step, _ = made()
    rule, report = learner.rule, str(learner.report)
    assert [s.path for s in rule.carried] == [("h",), ("v",), ("emitted",), ("mean",)]
    count = 2 * UNITS + 4 * UNITS**2 + IN * UNITS - UNITS + 1
    assert f"influence of {rule.num_entries} parameter entries on" in report, report
    assert rule.num_entries == count and "learning rule: RTRL\n" in report
    xs, ys = data()
    learner.etrace_grad(xs, ys, step_fn=step, reduction="sum")
    oracle = influence_oracle(made()[0].model, (xs, ys), lambda out, y: loss_of(out, y).sum())
    for path in rule.traced_paths:
        for of_state in learner.get_etrace_of(path):
            assert all(np.isfinite(v).all() for v in of_state.values()), path
    assert np.linalg.norm(oracle.influences[-1]) > 0
    norm = np.sqrt(sum(float((trace**2).sum()) for trace in learner.read_traces()))
    np.testing.assert_allclose(norm, np.linalg.norm(oracle.influences[-1]), rtol=1e-10)
    with pytest.raises(KeyError, match="unused has no trace; parameters with one are"):
        learner.get_etrace_of(("unused",))


def test_snap_masks_all_positions() -> None:
    (learner, step, _), (xs, ys) = made(bt.SnAp, n=1), data()
    found = learner.etrace_grad(xs, ys, step_fn=step, reduction="sum", block_size=4)
    model = made()[0].model
    oracle = influence_oracle(model, (xs, ys), lambda out, y: loss_of(out, y).sum(), 1)
    equal(found, oracle.grads)
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(found, reference(), 1e-3, allow_zero=("unused",))


def test_saturated_snap_is_rtrl() -> None:
    (learner, step, _), (xs, ys) = made(bt.SnAp, n=5), data()
    equal(learner.etrace_grad(xs, ys, step_fn=step, reduction="sum"), reference())


# --- models of the table -----------------------------------------------------------------------

NAMES = ["lru", "shared", "conv", "spiking-layers", "neurons-alif", "turned", "branches", "mixed"]


@pytest.mark.parametrize("name", [*NAMES, "own", "two-groups"])
def test_equals_backpropagation(name: str) -> None:
    with brainstate.environ.context(dt=0.5 * u.ms):
        job = prepared(Case(name, "rtrl"))
        of_step = (job.xs, job.ys), lambda out, y: losses(out, y).sum()
        _, wanted = bptt(job.learner.model, *of_step)
        found = DRIVERS["block-3"](job)()["grads"]
    assert_tree_close(found, wanted, 1e-9)


# --- a loop of unknown length, units, plain parameters alone, dtypes --------------------------


class Odd(brainstate.nn.Module):
    """Parameters without any operation, in units, behind a loop of unknown length."""

    def __init__(self, dtype: Any = "float64") -> None:
        super().__init__()
        self.w = brainstate.ParamState(
            jnp.asarray(brainstate.random.randn(IN, UNITS), dtype) * u.mV
        )
        self.tau = brainstate.ParamState(jnp.asarray(0.8, dtype))

    def init_state(self, batch_size: int) -> None:
        """A membrane."""
        start = jnp.zeros((batch_size, UNITS), self.tau.value.dtype)
        self.v = brainstate.HiddenState(start * u.mV)

    def update(self, x: Any) -> Any:
        """One step."""
        new = self.v.value + x.astype(self.tau.value.dtype) @ self.w.value
        bound = (jnp.abs(x).sum() > 2) + 2
        value = jax.lax.while_loop(
            lambda state: state[0] < bound,
            lambda state: (state[0] + 1, jnp.tanh(self.tau.value * state[1])),
            (0, (new / u.mV).astype(self.tau.value.dtype)),
        )[1]
        self.v.value = value * u.mV
        return value


def test_a_loop_with_units_and_no_operation() -> None:
    xs, ys = data()
    learner = bt.compile(Odd(), bt.RTRL, xs[0], batch_size=BATCH)

    def step(x: Any, y: Any) -> Any:
        return loss_of(learner(x), y).sum()

    found = learner.etrace_grad(xs, ys, step_fn=step, reduction="sum", block_size=4)
    w, tau = learner.model.w.value / u.mV, learner.model.tau.value

    def plain(w: Any, tau: Any) -> Any:
        v, total = jnp.zeros((BATCH, UNITS)), 0.0
        for x, y in zip(xs, ys, strict=True):
            v = v + x @ w
            for _ in range(2 + int(jnp.abs(x).sum() > 2)):
                v = jnp.tanh(tau * v)
            total = total + loss_of(v, y).sum()
        return total

    wanted = jax.grad(plain, (0, 1))(w, tau)
    assert_tree_close(jax.tree.leaves((found["w",], found["tau",])), [*wanted], 1e-9)


def test_dtypes() -> None:
    xs, ys = (v.astype("float32") for v in data())
    found = []
    for dtype, kept in (("float32", None), ("bfloat16", None), ("bfloat16", "bfloat16")):
        brainstate.random.seed(0)
        learner = bt.compile(Odd(dtype), bt.RTRL, xs[0], batch_size=BATCH, trace_dtype=kept)
        assert {trace.dtype.name for trace in learner.rule.init()} == {kept or "float32"}

        def step(x: Any, y: Any, learner: Any = learner) -> Any:
            return loss_of(learner(x).astype("float32"), y).sum()

        grads = learner.etrace_grad(xs, ys, step_fn=step, reduction="sum", block_size=4)
        assert {g.dtype.name for g in jax.tree.leaves(grads)} == {dtype}
        found.append([leaf.astype("float32") for leaf in jax.tree.leaves(grads)])
    for other in found[1:]:
        assert_tree_close(other, found[0], 0.1)
