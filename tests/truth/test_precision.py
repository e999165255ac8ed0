# SPDX-License-Identifier: Apache-2.0
"""Products in half precision between parameters and states that are wider, under every rule."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from tests import zoo
from tests.zoo import HIDDEN, IN

B, T = 2, 60
RULES: dict[str, dict[str, Any]] = {
    "d_rtrl": {"downstream": "step"},
    "pp_prop": {"decay_or_rank": 0.9, "downstream": "step"},
    "eprop": {"kappa_filter_decay": 0.9, "downstream": "step"},
    "snap": {"n": 2},
    "rtrl": {},
    "uoro": {"vjp_method": "single-step", "downstream": "step"},
}


class Mixed(zoo.Model):
    """Slow leaks in float32 of products in another dtype, with large and small currents."""

    def __init__(self, product: str, size: float = 1.0, processed: bool = False) -> None:
        super().__init__()
        self.product, self.size, self.processed = product, size, processed
        brainstate.random.seed(0)
        self.w = brainstate.ParamState(zoo.weight(IN, HIDDEN).value.astype("float32"))
        self.out = brainstate.ParamState(zoo.weight(HIDDEN, 2).value.astype("float32"))

    def start(self, batch_size: int | None) -> Any:
        return jnp.zeros((batch_size, HIDDEN), "float32")

    def update(self, x: Any) -> Any:
        w, out = (p.value.astype(self.product) for p in (self.w, self.out))
        w = jnp.asarray(2, w.dtype) * w if self.processed else w
        current = bt.matmul(x.astype(self.product), w).astype("float32")
        self.h.value = jnp.float32(0.999) * self.h.value + jnp.float32(self.size) * current
        scaled = self.h.value / jnp.float32(self.size)
        return (scaled.astype(self.product) @ out).astype("float32")


def inputs(dtype: str = "float32") -> Any:
    """Exact in bfloat16, so that products alone are rounded."""
    return jax.random.normal(jax.random.key(2), (T, B, IN), "bfloat16").astype(dtype)


def grads_of(model: Any, rule: str, block: Any = 1, weight: float = 1.0, **options: Any) -> Any:
    learner = bt.compile(model, rule, inputs()[0], batch_size=B, **RULES[rule], **options)

    def loss(x: Any) -> Any:
        return weight * learner(x).sum()

    found = learner.etrace_grad(inputs(), step_fn=loss, reduction="sum", block_size=block)
    return found, learner


def error(found: Any, want: Any) -> float:
    pairs = ((found[k].astype("float64"), want[k].astype("float64")) for k in want)
    return max(float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)) for a, b in pairs)


@pytest.mark.parametrize("rule", RULES)
def test_traces_and_sums_are_as_wide_as_parameters_and_states(rule: str) -> None:
    """Gradients above 65504, the end of float16, and traces that grow for 60 steps."""
    want, _ = grads_of(Mixed("float32"), rule, weight=5e2)
    for block in (1, 16):
        found, learner = grads_of(Mixed("float16"), rule, block, weight=5e2)
        assert error(found, want) < 5e-3 and all(jnp.abs(v).max() > 65504 for v in want.values())
        floats = [v for v in jax.tree.leaves(learner.read_traces()) if v.dtype.kind == "f"]
        assert {str(v.dtype) for v in floats} == {"float32"}


@pytest.mark.parametrize("processed", [False, True])
@pytest.mark.parametrize("size", [1e-9, 1e7])
def test_a_factor_out_of_the_range_of_half_precision(size: float, processed: bool) -> None:
    """Of a current in other units: ``d h / d y`` is that size. Weights doubled in half precision
    pass cotangents that float16 does not hold, either."""
    want, _ = grads_of(Mixed("float32", size, processed), "d_rtrl", 16, weight=1e4)
    found, _ = grads_of(Mixed("float16", size, processed), "d_rtrl", 16, weight=1e4)
    assert error(found, want) < 5e-3


def test_wide_parameters_and_states_have_wide_traces() -> None:
    """Float64 around a product in float32."""
    model = Mixed("float32")
    model.w.value = model.w.value.astype("float64")
    brainstate.nn.init_all_states(model, batch_size=B)
    learner = bt.D_RTRL(model, downstream="step")
    learner.compile_graph(inputs()[0])
    assert {str(v.dtype) for v in jax.tree.leaves(learner.read_traces())} == {"float64"}
    learner = bt.D_RTRL(model, trace_dtype="bfloat16", downstream="step")
    learner.compile_graph(inputs()[0])
    assert {str(v.dtype) for v in jax.tree.leaves(learner.read_traces())} == {"bfloat16"}


def test_windows_add_up_their_steps_in_more_than_half_precision() -> None:
    """Reverse mode through one window of 3000 steps: one is nothing to 2048 in float16."""

    class Counting(zoo.Model):
        def __init__(self) -> None:
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones((1, 1), "float16"))

        def start(self, batch_size: int | None) -> Any:
            return jnp.zeros((batch_size, 1), "float16")

        def update(self, x: Any) -> Any:
            self.h.value = bt.matmul(x, self.w.value)
            return self.h.value

    xs = jnp.ones((3000, 1, 1), "float16")
    learner = bt.compile(Counting(), "d_rtrl", xs[0], batch_size=1, vjp_method="multi-step")

    def losses(x: Any) -> Any:
        return learner(bt.MultiStepData(x)).sum((1, 2)).astype("float32")

    found = learner.etrace_grad(xs, step_fn=losses, reduction="sum", chunk_size=3000)
    assert float(found["w",][0, 0]) == 3000


def test_the_step_that_is_held_back_belongs_to_the_trace() -> None:
    """That of an LSTM, whose traces lag behind: in half precision throughout."""
    with brainstate.environ.context(precision="bf16"):
        cell, xs = bt.nn.LSTMCell(IN, HIDDEN, key=0), inputs("bfloat16")
        learner = bt.compile(cell, "d_rtrl", xs[0], batch_size=B)
        before = jax.tree.map(jnp.result_type, learner.read_traces())
        for block in (1, 7):
            learner.etrace_grad(xs, step_fn=lambda x: learner(x).mean(), block_size=block)
    after = jax.tree.map(jnp.result_type, learner.read_traces())
    assert before == after and {str(dtype) for dtype in jax.tree.leaves(after)} == {"float32"}


def test_filters_of_credit_are_no_narrower_either() -> None:
    """Of a leak whose state is in half precision."""

    class Half(Mixed):
        def start(self, batch_size: int | None) -> Any:
            return jnp.zeros((batch_size, HIDDEN), "bfloat16")

        def update(self, x: Any) -> Any:
            current = bt.matmul(x, self.w.value).astype("bfloat16")
            self.h.value = jnp.bfloat16(0.75) * self.h.value + current
            return self.h.value

    learner = bt.compile(Half("float32"), "d_rtrl", inputs()[0], batch_size=B, frozen=["out"])
    learner.etrace_grad(inputs(), step_fn=lambda x: learner(x).astype("float32").mean())
    filters = [leaf for state in learner.filters for leaf in jax.tree.leaves(state.value)]
    assert filters and {str(leaf.dtype) for leaf in filters} == {"float32"}


@pytest.mark.parametrize("rule", RULES)
def test_states_in_half_precision(rule: str) -> None:
    """What is summed over steps from states in half precision: derivatives are no values.

    The leak and all numbers are exact in bfloat16, and the step is linear, so that its gradient is
    the same in every dtype. In bfloat16 the sum of 180 steps is some percent off.
    """

    class Half(zoo.Model):
        def __init__(self, dtype: str) -> None:
            super().__init__()
            self.dtype = dtype
            brainstate.random.seed(0)
            self.w = brainstate.ParamState(zoo.weight(IN, HIDDEN).value.astype("float32"))

        def start(self, batch_size: int | None) -> Any:
            return jnp.zeros((batch_size, HIDDEN), self.dtype)

        def update(self, x: Any) -> Any:
            current = bt.matmul(x.astype(self.dtype), self.w.value.astype(self.dtype))
            self.h.value = jnp.asarray(0.984375, self.dtype) * self.h.value + current
            return self.h.value.astype("float32")

    def grads(dtype: str, block: int) -> Any:
        xs = jnp.abs(inputs().repeat(3, 0))
        learner = bt.compile(Half(dtype), rule, xs[0], batch_size=B, **RULES[rule])
        return learner.etrace_grad(
            xs, step_fn=lambda x: learner(x).sum(), reduction="sum", block_size=block
        )

    for block in (1, 60):
        assert error(grads("bfloat16", block), grads("float32", block)) < 1e-3


def test_sums_of_products_are_as_wide_as_states() -> None:
    """Float32 weights of a readout below a state in float64, in several blocks."""

    class Wide(Mixed):
        def start(self, batch_size: int | None) -> Any:
            return jnp.zeros((batch_size, HIDDEN))

        def update(self, x: Any) -> Any:
            self.h.value = 0.9 * self.h.value + bt.matmul(x.astype(float), self.w.value)
            return bt.matmul(self.h.value, self.out.value)

    assert jnp.zeros(()).dtype == "float64"
    (a, _), (b, _) = (grads_of(Wide("float32"), "d_rtrl", block) for block in (T, 7))
    assert {v.dtype for v in b.values()} == {jnp.dtype("float32")} and error(b, a) < 1e-7


@pytest.mark.parametrize("rule", ["d_rtrl", "pp_prop"])
def test_filters_that_float16_does_not_hold(rule: str) -> None:
    """A leak sums up inputs to some million, while its state is small."""

    class Large(zoo.Model):
        def __init__(self, dtype: str) -> None:
            super().__init__()
            self.dtype = dtype
            self.w = brainstate.ParamState(jnp.full((IN, HIDDEN), 2.0**-14, "float32"))

        def start(self, batch_size: int | None) -> Any:
            return jnp.zeros((batch_size, HIDDEN), self.dtype)

        def update(self, x: Any) -> Any:
            current = bt.matmul(x.astype(self.dtype), self.w.value.astype(self.dtype))
            self.h.value = jnp.asarray(0.984375, self.dtype) * self.h.value + current
            return self.h.value.astype("float32")

    def grads(dtype: str) -> Any:
        xs = jnp.full((T, B, IN), 2.0**15, "float32")
        options = {"decay_or_rank": 0.9} if rule == "pp_prop" else {}
        learner = bt.compile(Large(dtype), rule, xs[0], batch_size=B, **options)
        return learner.etrace_grad(
            xs, step_fn=lambda x: 2.0**-10 * learner(x).sum(), reduction="sum", block_size=7
        )

    found, want = grads("float16"), grads("float32")
    assert error(found, want) < 5e-3
