# SPDX-License-Identifier: Apache-2.0
"""Options, masks and losses of a gradient over a sequence."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit
import saiunit as u

import braintrace as bt
from braintrace.drivers.options import (
    GradOptions,
    check_count,
    checked_losses,
    checked_mask,
    checked_weights,
    common_length,
    masked_step,
    scale_of,
    shown_losses,
    weighted_sum,
)
from braintrace.testing import assert_tree_close
from tests.unit.drivers.net import (
    B,
    T,
    made,
    per_example,
    summed,
)


@pytest.mark.parametrize("algorithm", ["d_rtrl", "pp_prop"])
def test_a_mask_makes_sequences_of_several_lengths(algorithm: str, data: Any) -> None:
    options = {"decay_or_rank": 0.8} if algorithm == "pp_prop" else {}
    xs, ys = data
    lengths = [7, 4, 1]
    total = None
    for b, length in enumerate(lengths):
        one = made(algorithm, batch=1, **options)
        part = [v[:length, b : b + 1] for v in (xs, ys)]
        grads = one.etrace_grad(*part, step_fn=summed(one), reduction="sum")
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    mask = np.arange(T)[:, None] < np.array(lengths)
    learner = made(algorithm, **options)
    grads, losses = learner.etrace_grad(
        xs, ys, step_fn=per_example(learner), mask=mask, return_value=True
    )
    assert_tree_close(grads, jax.tree.map(lambda v: v / sum(lengths), total))
    assert losses.shape == (T, B)
    learner.reset_state(B, model_states=True)
    _, mean = learner.etrace_grad(
        xs,
        ys,
        step_fn=per_example(learner),
        mask=mask,
        return_value=True,
        loss_output="scalar",
        block_size=2,
    )
    assert_tree_close(mean, (losses * mask).sum() / sum(lengths))


def test_a_masked_loss_that_is_not_finite_does_not_count(data: Any) -> None:
    xs, ys = data
    mask = jnp.ones(T).at[-1].set(0)
    learner, other = made(), made()

    def loss(x: Any, last: Any) -> Any:
        return jnp.where(last, jnp.inf, (learner(x) ** 2).sum())

    grads = learner.etrace_grad(xs, jnp.arange(T) == T - 1, step_fn=loss, mask=mask)
    expected = other.etrace_grad(xs, jnp.zeros_like(ys), step_fn=summed(other), mask=mask)
    assert_tree_close(grads, expected)


def test_nothing_is_left_when_all_is_masked(data: Any) -> None:
    learner = made()
    grads = learner.etrace_grad(*data, step_fn=summed(learner), mask=np.zeros(T, bool))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


REFUSED = {
    "mask_length": ({"mask": np.ones(T + 1)}, ValueError, r"mask must have shape \[T\].*T = 7"),
    "mask_shape": ({"mask": np.ones((T, B))}, TypeError, r"losses of shape \(3,\).*got shape \(\)"),
    "mask_unit": ({"mask": np.ones(T) * saiunit.ms}, TypeError, "mask must have no unit, got .*ms"),
    "loss_output": ({"loss_output": "all"}, ValueError, "loss_output must be one of"),
    "reduction": ({"reduction": "max"}, ValueError, "reduction must be 'mean' or 'sum'"),
    "chunk": ({"chunk_size": 2}, ValueError, "chunk_size=2 needs .* vjp_method='multi-step'"),
    "chunk_zero": ({"chunk_size": 0}, ValueError, "chunk_size must be None or a positive integer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_are_refused(case: str, data: Any) -> None:
    options, error, says = REFUSED[case]
    learner = made()
    with pytest.raises(error, match=says):
        learner.etrace_grad(*data, step_fn=summed(learner), **options)


LOSSES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no_pair": (lambda v: v, {"has_aux": True}, r"must return a pair \(loss, aux\)"),
    "pair": (lambda v: (v, v), {}, "got a tuple; is has_aux=True missing"),
    "unit": (lambda v: v * u.mV, {}, "without a unit, got one in mV"),
    "nothing": (lambda v: None, {}, "must return .*, got None"),
}


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("case", LOSSES)
def test_losses_that_are_refused(case: str, windows: bool, data: Any) -> None:
    """Under a mask and in windows as everywhere."""
    change, options, says = LOSSES[case]
    learner = made(vjp_method="multi-step" if windows else "single-step")
    options = {**options, **({"chunk_size": 2} if windows else {"mask": np.ones(T)})}

    def step_fn(x: Any, y: Any) -> Any:
        out = learner(bt.MultiStepData(x)) if windows else learner(x)
        return change(out.sum((-1, -2)))

    with pytest.raises(TypeError, match=says):
        learner.etrace_grad(*data, step_fn=step_fn, **options)


class Callable_:
    __hash__ = None  # type: ignore[assignment]

    def __call__(self) -> None: ...


@pytest.mark.parametrize(
    ("step_fn", "text"),
    [(3, "step_fn must be callable, got int"), (Callable_(), "hashable.*Callable_ is not")],
)
def test_what_is_no_step_function(step_fn: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        GradOptions(step_fn, ())


def test_weights_are_parameters_by_any_key() -> None:
    weight, hidden = brainstate.ParamState(1.0), brainstate.HiddenState(jnp.ones(1))
    assert checked_weights({("a", 0): weight}) == {("a", 0): weight}
    with pytest.raises(TypeError, match="must be a mapping from any key to ParamState, got list"):
        checked_weights([weight])
    with pytest.raises(TypeError, match=r"weights\['h'\] must be a ParamState, got HiddenState"):
        checked_weights({"h": hidden})


def test_options_of_two_functions_may_be_equal() -> None:
    a, b = (brainstate.ParamState(k) for k in (1.0, 2.0))
    one, two = (GradOptions(f, (("a", a), (3, b))) for f in (abs, max))
    assert one == two != GradOptions(abs, (("a", a),))
    assert one.names({("layer", 0): a}) == {a: "layer[0]", b: "3"}
    assert one.by_key(["ga", "gb"]) == {"a": "ga", 3: "gb"}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"reduction": "max"}, "reduction must be 'mean' or 'sum', got 'max'"),
        ({"block_size": 0}, "block_size must be 'auto' or a positive integer, got 0"),
        ({"chunk_size": True}, "chunk_size must be None or a positive integer, got True"),
    ],
)
def test_options_check_themselves(options: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        GradOptions(abs, (), **options)


def test_the_common_length() -> None:
    assert common_length((jnp.ones((3, 2)), {"a": np.ones(3)})) == 3
    for given, error, text in (
        ((), ValueError, "at least one sequence is needed"),
        ((jnp.ones(3), jnp.ones(2)), ValueError, r"one length T; got .*0\]': 3.*1\]': 2"),
        ((jnp.ones(0),), ValueError, "length zero"),
        (({"a": 1.0},), ValueError, r"sequences\[0\]\['a'\] is a scalar"),
        (("text",), TypeError, r"sequences\[0\] is a str"),
    ):
        with pytest.raises(error, match=text):
            common_length(given)


def test_counts() -> None:
    assert check_count("n", np.int32(3)) == 3 and type(check_count("n", np.int32(3))) is int
    for wrong in (0, -1, True, 1.0, "1"):
        with pytest.raises(ValueError, match="n must be a positive integer, got"):
            check_count("n", wrong)


def test_masks_become_numbers() -> None:
    assert checked_mask(None, 3) is None
    assert checked_mask(np.array([True, False]), 2).dtype == jnp.asarray(1.0).dtype
    assert checked_mask(np.ones((2, 5), "float32"), 2).dtype == "float32"
    with pytest.raises(TypeError, match="real numbers or booleans, got dtype complex"):
        checked_mask(np.ones(2, complex), 2)
    with pytest.raises(ValueError, match=r"T = 3, the length of the sequences; got \(\)"):
        checked_mask(1.0, 3)


def test_sums_of_losses_by_hand() -> None:
    losses, mask = jnp.array([1.0, jnp.nan, 4.0]), jnp.array([0.5, 0.0, 1.0])
    assert float(weighted_sum(losses, mask)) == 4.5
    assert float(weighted_sum(losses[::2], None)) == 5.0
    assert scale_of("sum", mask, 3) == 1.0 and scale_of("mean", None, 4) == 0.25
    assert float(scale_of("mean", mask, 3)) == pytest.approx(1 / 1.5)
    assert float(scale_of("mean", 0 * mask, 3)) == 0.0
    assert shown_losses(losses, mask, "per_step", "mean") is losses
    assert shown_losses(losses, mask, "masked", "mean").tolist() == [0.5, 0.0, 4.0]
    assert float(shown_losses(losses, mask, "scalar", "sum")) == 4.5
    assert float(shown_losses(losses, mask, "scalar", "mean")) == pytest.approx(3.0)


def test_a_step_with_its_mask() -> None:
    step = masked_step(lambda x: (x, "aux"), has_aux=True)
    weighted, (loss, aux) = step(jnp.array([1.0, 0.0]), jnp.array([2.0, 3.0]))
    assert (float(weighted), loss.tolist(), aux) == (2.0, [2.0, 3.0], "aux")
    with pytest.raises(TypeError, match=r"^with a mask \[T, 2\], step_fn must return losses of sh"):
        step(jnp.array([1.0, 0.0]), jnp.array(2.0))


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (jnp.ones(3), r"scalar loss in floating point, got shape \(3,\) .*with .mean\(\)"),
        (jnp.ones((), int), "dtype int"),
        ((1.0, 2.0), "got a tuple; is has_aux=True missing"),
        (1.0 * saiunit.mV, "loss without a unit, got one in mV"),
        ("text", "must return a scalar loss, got 'text'"),
    ],
)
def test_what_is_no_loss(result: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        checked_losses(result, False, ())
