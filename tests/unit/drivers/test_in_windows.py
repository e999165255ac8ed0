# SPDX-License-Identifier: Apache-2.0
"""Sequences that are learned in windows."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import optax
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt
from tests.unit.drivers.net import (
    IN,
    B,
    T,
    made,
    of_windows,
    per_example,
    summed,
    weights_of,
)


@pytest.mark.parametrize("chunk", [1, 3, 7, 20])
def test_windows_of_rtrl_are_bptt(chunk: int, data: Any) -> None:
    xs, ys = data
    model = bt.nn.ValinaRNNCell(IN, IN, key=1)
    learner = made("rtrl", model=model, vjp_method="multi-step")
    _, reference = bptt(model, (xs, ys), lambda out, y: ((out - y) ** 2).sum())
    step_fn = summed(learner) if chunk == 1 else of_windows(learner)
    options = {"step_fn": step_fn, "chunk_size": chunk, "reduction": "sum"}
    assert_tree_close(learner.etrace_grad(xs, ys, **options), reference)


@pytest.mark.parametrize("how", ["grad", "update"])
@pytest.mark.parametrize("algorithm", ["d_rtrl", "pp_prop", "uoro", "dni"])
def test_without_a_length_windows_have_one_step(algorithm: str, how: str, data: Any) -> None:
    """As such windows by hand, one gradient per call; ``step_fn`` gets steps, and may wrap them."""
    xs, ys = data
    options = {"decay_or_rank": 0.8} if algorithm == "pp_prop" else {}
    by_hand, one, wrapped = (made(algorithm, vjp_method="multi-step", **options) for _ in range(3))
    grad = brainstate.transform.grad(
        lambda x, y: summed(by_hand)(bt.MultiStepData(x[None]), y), by_hand.param_states
    )
    total = None
    for x, y in zip(xs[:3], ys, strict=False):
        found = grad(x, y)
        total = found if total is None else jax.tree.map(jnp.add, total, found)
        if how == "update":
            for path, state in by_hand.param_states.items():
                state.value = jax.tree.map(lambda w, g: w - 0.1 * g, state.value, found[path])
    as_window = lambda x, y: summed(wrapped)(bt.MultiStepData(x[None]), y)  # noqa: E731
    for learner, step_fn in ((one, summed(one)), (wrapped, as_window)):
        if how == "grad":
            how_much = {"reduction": "sum", "chunk_size": None if learner is one else 1}
            found = learner.etrace_grad(xs[:3], ys[:3], step_fn=step_fn, **how_much)
            assert_tree_close(found, total)
        else:
            learner.etrace_update(xs[:3], ys[:3], step_fn=step_fn, optimizer=optax.sgd(0.1))
            assert_tree_close(weights_of(learner), weights_of(by_hand))


def test_losses_and_aux_of_windows_of_one_step(data: Any) -> None:
    """A mask for steps or examples; what ``step_fn`` returns besides, stacked."""
    xs, ys = data
    mask = jnp.arange(T * B).reshape(T, B) % 3
    learner, other = (made(vjp_method="multi-step") for _ in range(2))

    def step_fn(x: Any, y: Any) -> Any:
        loss = per_example(learner)(x, y)
        return loss, {"sum": loss.sum(), "shape": jnp.zeros(7)}

    options = {"mask": mask, "return_value": True, "reduction": "sum"}
    grads, losses, aux = learner.etrace_grad(xs, ys, step_fn=step_fn, has_aux=True, **options)
    weighted = lambda x, y, m: (per_example(other)(x, y) * m).sum()  # noqa: E731
    expected, sums = other.etrace_grad(
        xs, ys, mask, step_fn=weighted, return_value=True, reduction="sum"
    )
    assert_tree_close(grads, expected)
    assert_tree_close((losses * mask).sum(1), sums)
    assert_tree_close(losses.sum(1), aux["sum"])
    assert losses.shape == (T, B) and aux["shape"].shape == (T, 7)


def test_aux_has_an_entry_for_each_window(data: Any) -> None:
    xs, ys = data

    def step_fn(x: Any, y: Any) -> Any:
        out = learner(bt.MultiStepData(x))
        return ((out - y) ** 2).sum((1, 2)), {"out": out, "sum": out.sum()}

    learner, plain = (made(vjp_method="multi-step") for _ in range(2))
    options = {"step_fn": step_fn, "has_aux": True, "chunk_size": 3}
    _, aux = learner.etrace_grad(xs[:6], ys[:6], **options)
    outputs = plain(bt.MultiStepData(xs))
    assert_tree_close(aux["out"], outputs[:6].reshape(2, 3, B, IN))
    assert_tree_close(aux["sum"], aux["out"].sum((1, 2, 3)))
    learner.reset_state(B, model_states=True)
    zero = {"optimizer": optax.sgd(0.0), "update_every": 3}
    _, again = learner.etrace_update(xs[:6], ys[:6], **zero, **options)
    assert_tree_close(again, aux)
    with pytest.raises(
        ValueError, match=r"has shape \(1, 3, 2\) where .* \(3, 3, 2\).*update_every"
    ):
        learner.etrace_update(xs, ys, **zero, **options)
    learner.reset_state(B, model_states=True)
    with pytest.raises(ValueError, match=r"has shape \(1, 3, 2\) where .* \(3, 3, 2\).*chunk_size"):
        learner.etrace_grad(xs, ys, **options)


def test_aux_of_one_shape_goes_with_a_shorter_last_window(data: Any) -> None:
    learner = made(vjp_method="multi-step")

    def step_fn(x: Any, y: Any) -> Any:
        losses = of_windows(learner)(x, y)
        return losses, losses.sum()

    options = {"step_fn": step_fn, "has_aux": True, "return_value": True}
    _, losses, sums = learner.etrace_grad(*data, chunk_size=3, **options)
    assert_tree_close(sums, jnp.stack([losses[:3].sum(), losses[3:6].sum(), losses[6]]))
    learner.reset_state(B, model_states=True)
    _, whole, sums = learner.etrace_grad(*data, chunk_size=20, **options)
    assert_tree_close((whole, sums), (losses, losses.sum()[None]))


def test_a_window_moves_states_and_traces_like_its_steps(data: Any) -> None:
    xs, _ = data
    a, b = made(vjp_method="multi-step"), made()
    outputs = a(bt.MultiStepData(xs))
    assert_tree_close(outputs, b(bt.MultiStepData(xs)))
    assert_tree_close([t.value for t in a.traces], [t.value for t in b.traces])
    assert a.running_index.value == b.running_index.value == T
    assert a(xs[0]).shape == (B, IN)


def test_an_argument_that_is_not_wrapped_is_the_same_at_every_step(data: Any) -> None:
    xs, _ = data
    a, b, c = (made(vjp_method="multi-step") for _ in range(3))
    both = bt.MultiStepData(jnp.stack([xs[0], xs[0]]))
    a.etrace_evolve(xs[:1])
    assert_tree_close(b(both)[0], c(bt.SingleStepData(xs[0])))


def test_windows_add_up_in_more_than_half_precision() -> None:
    """One is nothing to 256 in bfloat16."""

    class Product(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = brainstate.ParamState(jnp.ones((1, 1), jnp.bfloat16))

        def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, 1), jnp.bfloat16))

        def update(self, x: Any) -> Any:
            self.h.value = bt.matmul(x, self.weight.value)
            return self.h.value

    xs = jnp.ones((600, 1, 1), jnp.bfloat16)
    learner = bt.compile(Product(), "rtrl", xs[0], batch_size=1, vjp_method="multi-step")
    grads = learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), reduction="sum")
    assert grads["weight",].dtype == jnp.bfloat16
    assert float(grads["weight",][0, 0]) == 600


def test_a_weight_that_no_window_reads_is_refused(data: Any) -> None:
    learner, unused = made(vjp_method="multi-step"), brainstate.ParamState(jnp.ones(2))
    options = {"step_fn": of_windows(learner), "chunk_size": 3, "weights": {"unused": unused}}
    with pytest.raises(ValueError, match="nor does step_fn read them"):
        learner.etrace_grad(*data, **options)


def test_windows_that_are_refused(data: Any) -> None:
    learner = made(vjp_method="multi-step")
    with pytest.raises(TypeError, match=r"losses of shape \(2,\)"):
        learner.etrace_grad(
            *data, step_fn=lambda x, y: learner(bt.MultiStepData(x)).sum(), chunk_size=2
        )
    for step_fn, chunk, text in (
        (of_windows(learner), None, "a MultiStepData of 3 steps for a step; chunk_size says"),
        (of_windows(learner), 1, r"steps for a step; .* \(1, or none: single steps, as they are"),
        (lambda x, y: of_windows(learner)(x[:1], y), 2, "of 1 step for a window of 2 steps"),
        (lambda x, y: summed(learner)(x[0], y), 2, "one step for a window of 2 steps: wrap"),
        (lambda x, y: (x**2).sum(), None, "exactly once per step; it called it 0 times"),
    ):
        with pytest.raises(ValueError, match=text):
            learner.etrace_grad(*data, step_fn=step_fn, chunk_size=chunk)
    with pytest.raises(ValueError, match="exactly once per window; it called it 0 times"):
        learner.etrace_grad(*data, step_fn=lambda x, y: x.sum((1, 2)), chunk_size=2)
    with pytest.raises(ValueError, match="one length of at least one"):
        learner(bt.MultiStepData(jnp.zeros((0, B, IN))))


@pytest.mark.parametrize("algorithm", ["d_rtrl", "dni"])
def test_windows_without_jit_are_those_with_it(algorithm: str, data: Any) -> None:
    """``brainstate.transform.grad`` of what writes states needs jit."""
    xs, ys = data

    def found() -> Any:
        learner = made(algorithm, vjp_method="multi-step")
        options = {"step_fn": of_windows(learner), "chunk_size": 3, "reduction": "sum"}
        grads = learner.etrace_grad(xs, ys, **options)
        learner.etrace_update(xs[:3], ys[:3], optimizer=optax.sgd(0.1), update_every=3, **options)
        return grads, weights_of(learner)

    expected = found()
    with jax.disable_jit():
        assert_tree_close(found(), expected)
