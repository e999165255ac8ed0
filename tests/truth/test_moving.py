# SPDX-License-Identifier: Apache-2.0
"""Weights that are chosen or masked by inputs or states, against BPTT."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt
from tests import zoo

BATCH, IN, WIDTH, STEPS = 2, 3, 4, 6


class Moving(zoo.Model):
    """A leaky state, driven by an operation whose weight moves; one more weight that does not."""

    width = WIDTH

    def __init__(self, drive: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.drive = drive
        self.w, self.b = zoo.weight(3, IN, WIDTH), zoo.weight(3, WIDTH)
        self.v = zoo.weight(IN, WIDTH)
        self.time = brainstate.ShortTermState(jnp.zeros((), jnp.int32))
        self.key = brainstate.random.RandomState(0)

    def reset_state(self, batch_size: int | None = None) -> None:
        super().reset_state(batch_size)
        self.time.value = jnp.zeros((), jnp.int32)
        self.key.seed(0)

    def update(self, x: Any) -> Any:
        y = self.drive(self, x)
        self.h.value = 0.8 * self.h.value + jnp.tanh(y) + bt.matmul(x, self.v.value)
        self.time.value = self.time.value + 1
        return jnp.sin(self.h.value)


def chosen(m: Any, x: Any) -> Any:
    """One of three weights, and of three biases another one."""
    k = m.time.value
    return bt.matmul(x, jnp.abs(m.w.value)[k % 3], m.b.value[(k + 1) % 3])


def chosen_by_input(m: Any, x: Any) -> Any:
    """By a one-hot vector: a mixture of weights is the same kind."""
    k = jnp.argmax(x.sum(0))
    w = jnp.einsum("k,kio->io", jax.nn.one_hot(k, 3) + 0.1, m.w.value)
    return bt.matmul(jnp.cos(x), w, m.b.value.take(k, axis=0))


def dropped(m: Any, x: Any) -> Any:
    """DropConnect."""
    kept = m.key.bernoulli(0.5, (IN, WIDTH))
    w = jnp.where(kept, jnp.tanh(m.w.value[0]) / 0.5, 0.0)
    return bt.matmul(x, w) + bt.matmul(x, m.w.value[1], m.b.value.sum(0))


def masked_by_counter(m: Any, x: Any) -> Any:
    rows = (jnp.arange(IN * WIDTH).reshape(IN, WIDTH) + m.time.value) % 3 > 0
    bias = m.b.value[0] * (1.0 + 0.1 * x.mean())
    return bt.matmul(x, m.w.value[0] * rows, bias) + bt.matmul(x, m.w.value[2] + 0.1 * rows)


def masked_by_state(m: Any, x: Any) -> Any:
    """By what a state does, without a derivative."""
    active = m.h.value.mean(0) > 0.1
    factor = bt.element_wise(m.b.value[0] * active, jnp.sin)
    return bt.matmul(x, m.w.value[m.time.value % 3] * active) * (1.0 + factor)


def of_one_example(m: Any, x: Any) -> Any:
    """A mask, a part and a factor that depend on the example."""
    mask = jnp.sin(7.0 * x)[:, None] * jnp.cos(jnp.arange(4.0)) > 0
    w = m.w.value[jnp.argmax(x)] * mask
    return bt.matmul(x, w, m.b.value[jnp.argmin(x)] * x.mean())


DRIVES = [chosen, chosen_by_input, dropped, masked_by_counter, masked_by_state]


def case(drive: Any, model: Any = Moving) -> zoo.Case:
    brainstate.random.seed(0)
    module = model(drive)
    brainstate.nn.init_all_states(module, batch_size=BATCH)
    rng = np.random.default_rng(1)
    xs, ys = (jnp.asarray(rng.normal(size=(STEPS, BATCH, n))) for n in (IN, WIDTH))
    return zoo.Case(module, xs, ys, BATCH)


def gradients(of: zoo.Case, learner: Any, **options: Any) -> Any:
    of.reset()
    learner.reset_state(BATCH)
    return learner.etrace_grad(
        of.xs, of.ys, step_fn=lambda x, y: of.loss(learner(x), y), reduction="sum", **options
    )


def compiled(of: zoo.Case, rule: Any, **options: Any) -> Any:
    of.reset()
    return bt.compile(of.model, rule, of.xs[0], batch_size=BATCH, **options)


@pytest.mark.parametrize("drive", DRIVES)
def test_the_gradient_is_that_of_bptt(drive: Any) -> None:
    of = case(drive)
    of.reset()
    _, exact = bptt(of.model, (of.xs, of.ys), of.loss)
    learner = compiled(of, "d_rtrl")
    for block in (1, "auto"):
        assert_tree_close(gradients(of, learner, block_size=block), exact)
    assert "direct" not in learner.graph.coverage()[("w",)]


def test_other_rules() -> None:
    """SnAp is exact where no positions are mixed; an unfiltered pp_prop follows its definition."""
    of = case(masked_by_counter)
    of.reset()
    _, exact = bptt(of.model, (of.xs, of.ys), of.loss)
    assert_tree_close(gradients(of, compiled(of, "snap")), exact)
    assert_tree_close(gradients(of, compiled(of, bt.RTRL)), exact)
    with pytest.raises(
        bt.NotSupportedError, match="weight of etp_mm_moving at .*is chosen or masked by"
    ):
        compiled(of, "pp_prop", decay_or_rank=0.9)
    found = gradients(of, compiled(of, "pp_prop", decay_or_rank=(0.0, 0.9)))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


def test_the_trace_is_that_of_the_whole_weight() -> None:
    learner = compiled(case(chosen), "d_rtrl")
    ((trace),) = learner.get_etrace_of(("w",))
    shapes = {key: leaf.shape for key, leaf in trace.items()}
    assert shapes == {"weight": (BATCH, 3, IN, WIDTH, 1), "bias": (BATCH, 3, WIDTH, 1)}


def rolled(m: Any, x: Any) -> Any:
    """Entries change their places."""
    return bt.matmul(x, jnp.roll(m.w.value[0], m.time.value, 0), m.b.value.sum(0))


def of_two_weights(m: Any, x: Any) -> Any:
    w = m.w.value[0] * x.mean() - m.w.value[1] * m.v.value
    return bt.matmul(x, w, m.b.value.sum(0))


def chosen_factors(m: Any, x: Any) -> Any:
    """Of two low-rank products, one factor each is chosen."""
    k = m.time.value
    first = bt.lora_matmul(x, m.w.value[k % 3], m.factors.value[0], bias=m.b.value[0])
    return first + bt.lora_matmul(jnp.sin(x), m.v.value, m.factors.value[k % 2])


def chosen_low_rank_bias(m: Any, x: Any) -> Any:
    return bt.lora_matmul(x, m.v.value, m.factors.value[0], bias=m.b.value[m.time.value % 3])


def chosen_kernel(m: Any, x: Any) -> Any:
    """One of two kernels, of which a tap is left out."""
    kept = jnp.arange(3)[:, None, None] != m.time.value % 3
    kernel, image = m.kernel.value[m.time.value % 2] * kept, jnp.stack([x, jnp.cos(x)], -1)
    layout = ("NWC", "WIO", "NWC")
    bias = m.b.value[m.time.value % 3, :1]
    y = bt.conv(image, kernel, bias, padding=[(1, 2)], dimension_numbers=layout)
    return y[..., 0]


def turned_kernel(m: Any, x: Any) -> Any:
    kernel = jnp.roll(m.kernel.value[0], m.time.value, 0)
    image = jnp.stack([x, jnp.cos(x)], -1)
    y = bt.conv(image, kernel, padding=[(1, 2)], dimension_numbers=("NWC", "WIO", "NWC"))
    return y[..., 0]


def in_a_loop(m: Any, x: Any) -> Any:
    """A product in each iteration of a loop, with a weight that is chosen once per step."""
    w = m.w.value[m.time.value % 3]
    return jax.lax.scan(lambda y, k: (y + bt.matmul(jnp.sin(k * x), w), None), 0.0 * m.h.value,
                        jnp.arange(1.0, 41.0))[0] / 40  # fmt: skip


def chosen_table(m: Any, x: Any) -> Any:
    """A table whose trace has the rows that were read, in their order."""
    kept = (jnp.arange(IN)[:, None] + m.time.value) % 3 > 0
    return bt.embedding(jnp.argmax(x, -1), m.w.value[m.time.value % 3] * kept)


def of_a_third_party(m: Any, x: Any) -> Any:
    return scaled().bind(x, m.w.value[m.time.value % 3] * (x.mean() > 0))


@cache
def scaled() -> Any:
    """A primitive without rules."""
    return bt.register_primitive("test_moving_scaled", lambda x, w: jnp.sin(x) @ w, batched=True)


class OfMany(Moving):
    """The same with weights of other operations."""

    def __init__(self, drive: Callable[[Any, Any], Any]) -> None:
        super().__init__(drive)
        self.factors, self.kernel = zoo.weight(2, WIDTH, WIDTH), zoo.weight(2, 3, 2, 1)


#: How a weight is made, and the shapes of its traces behind the batch axis.
OTHERWISE: dict[Any, tuple[str, dict[str, tuple[int, ...]]]] = {
    rolled: ("w", {"weight": (WIDTH, 2 * IN, WIDTH), "bias": (WIDTH, WIDTH)}),
    of_two_weights: ("v", {"weight": (WIDTH, 2 * IN * WIDTH), "bias": (WIDTH, WIDTH)}),
    chosen_factors: ("w", {
        "lora_b": (WIDTH, 3, IN, WIDTH), "lora_a": (WIDTH, WIDTH, WIDTH), "bias": (WIDTH, WIDTH),
    }),
    chosen_low_rank_bias: ("b", {
        "lora_b": (IN, WIDTH), "lora_a": (WIDTH, WIDTH), "bias": (3, WIDTH),
    }),
    chosen_kernel: ("kernel", {"weight": (WIDTH, 1, 2, 3, 2, 1), "bias": (WIDTH, 1, 3, WIDTH)}),
    turned_kernel: ("kernel", {"weight": (WIDTH, 1, 6, 2, 1)}),
    in_a_loop: ("w", {"weight": (3, IN, WIDTH)}),
    chosen_table: ("w", {"weight": (WIDTH, 3, IN, WIDTH)}),
    of_a_third_party: ("w", {"weight": (WIDTH, 3, IN, WIDTH)}),
}  # fmt: skip


@pytest.mark.parametrize("drive", OTHERWISE)
def test_what_is_made_or_used_otherwise(drive: Any) -> None:
    """Then there is an entry for each position and weight, unless the operation has fewer."""
    of = case(drive, OfMany)
    of.reset()
    _, exact = bptt(of.model, (of.xs, of.ys), of.loss)
    unused = [path for path, leaf in exact.items() if not np.any(leaf)]
    learner = compiled(of, "d_rtrl", frozen=unused)
    for block in (1, 4):
        assert_tree_close(gradients(of, learner, block_size=block), exact, allow_zero=unused)
    path, shapes = OTHERWISE[drive]
    first = learner.get_etrace_of((path,))[0]
    assert {key: leaf.shape[1:-1] for key, leaf in first.items()} == shapes


@pytest.mark.parametrize("drive", [of_one_example, chosen])
def test_each_example_has_weights_of_its_own(drive: Any) -> None:
    """A model of one example under ``vmap`` equals the sum of models of one example."""
    of = case(drive)
    learner = bt.compile(of.model, "d_rtrl", of.xs[0], batch_size=BATCH, vmap=True)
    for block in (1, "auto"):
        learner.reset_state(BATCH, model_states=True)
        found = learner.etrace_grad(
            of.xs,
            of.ys,
            step_fn=lambda x, y: of.loss(learner(x), y),
            reduction="sum",
            block_size=block,
        )
        assert_tree_close(found, sum_of_examples(drive))


def sum_of_examples(drive: Any) -> Any:
    grads = []
    for b in range(BATCH):
        of = case(drive)
        module = Moving(drive)
        for name in ("w", "b", "v"):
            getattr(module, name).value = getattr(of.model, name).value
        brainstate.nn.init_all_states(module)
        grads.append(bptt(module, (of.xs[:, b], of.ys[:, b]), of.loss)[1])
    return jax.tree.map(lambda *each: sum(each), *grads)


@pytest.mark.parametrize("drive", [chosen, masked_by_counter])
def test_weights_in_bfloat16(drive: Any) -> None:
    """Entries that are made by arithmetic, too, while traces are wider than the weights."""
    of = case(drive)
    weights = of.model.states(brainstate.ParamState)
    for state in (*weights.values(), of.model.h):
        state.value = state.value.astype(jnp.bfloat16)
    xs, ys = of.xs.astype(jnp.bfloat16), of.ys
    learner = bt.D_RTRL(of.model)
    learner.compile_graph(xs[0])
    found = learner.etrace_grad(
        xs, ys, step_fn=lambda x, y: of.loss(learner(x), y), reduction="sum"
    )
    _, exact = bptt((again := case(drive)).model, (again.xs, again.ys), again.loss)
    for path, grad in found.items():
        a, b = (jnp.asarray(v, jnp.float32) for v in (grad, exact[path]))
        assert grad.dtype == jnp.bfloat16 and jnp.linalg.norm(a - b) < 0.1 * jnp.linalg.norm(b)
