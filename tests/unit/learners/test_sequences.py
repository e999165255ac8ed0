# SPDX-License-Identifier: Apache-2.0
"""Whole sequences: what a learner's methods take, and wrong use that is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from braintrace.testing import assert_tree_close
from tests.unit.drivers.net import T, made, summed, weights_of
from tests.unit.learners.bench import COMPILED, Bench, refused

pytestmark = pytest.mark.filterwarnings("ignore:step_fn .* is a new function:UserWarning")


@pytest.mark.parametrize(
    ("sequences", "says"),
    [
        (lambda b: (b.xs, b.ys[:2]), r"one length T; got .*3.*2"),
        (lambda b: (b.xs[:0], b.ys[:0]), r"length zero"),
        (
            lambda b: (b.xs, 1.0),
            r"sequences\[1\] is a (scalar|float); expected an array \[T, ...\]",
        ),
        (lambda b: (b.xs, {"a": b.ys, "b": jnp.ones(())}), r"sequences\[1\]\['b'\] is a scalar"),
        (lambda b: (None, {}), r"at least one sequence is needed"),
        (lambda b: (b.xs[:, :1], b.ys), rf"argument\[0\] has shape \(1, 3\).*{COMPILED}"),
        (lambda b: (b.xs[0], b.ys[0]), rf"argument\[0\] has shape \(3,\).*{COMPILED}"),
        (lambda b: (b.xs.astype(jnp.float32), b.ys), rf"dtype float32.*{COMPILED}"),
    ],
)
def test_bad_sequences(bench: Bench, sequences: Callable[..., Any], says: str) -> None:
    with refused(bench, (ValueError, TypeError), says):
        bench.grad(*sequences(bench))
    with refused(bench, (ValueError, TypeError), says):
        bench.learner.etrace_evolve(*sequences(bench), step_fn=bench.loss)


def test_no_sequence_at_all(bench: Bench) -> None:
    with refused(bench, ValueError, "at least one sequence is needed"):
        bench.learner.etrace_grad(step_fn=bench.loss)
    with refused(bench, ValueError, "at least one sequence is needed"):
        bench.learner.etrace_evolve()


@pytest.mark.parametrize("sequence", ["text", object()])
def test_a_sequence_that_is_no_array(bench: Bench, sequence: Any) -> None:
    with refused(bench, (TypeError, ValueError), r"sequences\[1\]"):
        bench.grad(bench.xs, sequence)


@pytest.mark.parametrize("size", [0, -1, True, False, 1.5, "x", None, "", (1,)])
def test_bad_block_sizes(bench: Bench, size: Any) -> None:
    says = f"block_size must be 'auto' or a positive integer, got {re.escape(repr(size))}"
    with refused(bench, (ValueError, TypeError), says):
        bench.grad(block_size=size)


def test_an_integer_of_numpy_is_a_block_size(bench: Bench) -> None:
    (reference, _), _ = bench.reference
    assert_tree_close(bench.grad(block_size=np.int64(2)), reference, 1e-12)
    bench.restore()


@pytest.mark.parametrize("reduction", ["none", "Mean", None, 1, ["mean"]])
def test_bad_reductions(bench: Bench, reduction: Any) -> None:
    says = f"reduction must be 'mean' or 'sum', got {re.escape(repr(reduction))}"
    with refused(bench, (ValueError, TypeError), says):
        bench.grad(reduction=reduction)


def test_unknown_options_of_the_drivers(bench: Bench) -> None:
    with refused(bench, TypeError, "blocksize"):
        bench.grad(blocksize=3)
    with refused(bench, TypeError, "outputs"):
        bench.learner.etrace_evolve(bench.xs, outputs=True)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"a": 3}, r"weights\['a'\].*(ParamState|State)"),
        ([1], r"weights must be"),
        (3, r"weights must be"),
    ],
)
def test_bad_weights(bench: Bench, weights: Any, says: str) -> None:
    with refused(bench, (TypeError, ValueError), says):
        bench.grad(weights=weights)


def test_step_fn_is_required_and_callable(bench: Bench) -> None:
    with refused(bench, TypeError, "step_fn"):
        bench.learner.etrace_grad(bench.xs, bench.ys)
    with refused(bench, TypeError, "step_fn must be callable|step_fn must be a function"):
        bench.grad(step_fn=3)
    with refused(bench, TypeError, "step_fn must be callable|step_fn must be a function"):
        bench.learner.etrace_evolve(bench.xs, step_fn=3)


def _broken(bench: Bench, x: Any, y: Any) -> Any:
    bench.learner(x)
    bench.model.h.value = bench.model.h.value + 1.0
    bench.model.count.value = bench.model.count.value + 1
    raise KeyError("in the middle of step_fn")


STEP_FNS: dict[str, tuple[Callable[..., Any], Any, str]] = {
    "no call": (lambda b, x, y: jnp.sum(x * x), ValueError, "exactly once per step.* 0 times"),
    "a call in jit": (
        lambda b, x, y: brainstate.transform.jit(lambda x: b.loss(x, y))(x),
        ValueError,
        "directly, not inside a transformation",
    ),
    "a call in a loop": (
        lambda b, x, y: brainstate.transform.for_loop(lambda k: b.loss(x, y), jnp.arange(1)).sum(),
        ValueError,
        "directly, not inside a transformation",
    ),
    "two calls": (
        lambda b, x, y: b.loss(x, y) + b.loss(x, y),
        ValueError,
        "exactly once.* 2 times",
    ),
    "the model": (lambda b, x, y: b.model(x).sum(), ValueError, "exactly once per step.* 0 times"),
    "a vector": (lambda b, x, y: b.learner(x)[:, 0], TypeError, r"scalar .*shape \(2,\).*mean\(\)"),
    "shape (1,)": (lambda b, x, y: b.loss(x, y)[None], TypeError, r"scalar .*shape \(1,\)"),
    "an int": (lambda b, x, y: b.loss(x, y).astype(int), TypeError, "scalar.*dtype int64"),
    "a bool": (lambda b, x, y: b.loss(x, y) > 0, TypeError, "scalar.*dtype bool"),
    "complex": (lambda b, x, y: b.loss(x, y) + 0j, TypeError, "scalar.*dtype complex128"),
    "a tuple": (lambda b, x, y: (b.loss(x, y), x), TypeError, "scalar loss.*has_aux"),
    "a dict": (lambda b, x, y: {"loss": b.loss(x, y)}, TypeError, "scalar loss"),
    "nothing": (lambda b, x, y: (b.loss(x, y), None)[1], TypeError, "scalar loss.*None"),
    "text": (lambda b, x, y: (b.loss(x, y), "loss")[1], TypeError, "step_fn must return a scalar"),
    "an error": (_broken, KeyError, "in the middle of step_fn"),
    "other shape": (lambda b, x, y: b.loss(x[:1], y), ValueError, COMPILED),
    "too many arguments": (lambda b, x: b.loss(x, x), TypeError, "argument"),
}


@pytest.mark.parametrize("name", STEP_FNS)
def test_bad_step_fns(bench: Bench, name: str) -> None:
    function, error, says = STEP_FNS[name]
    with refused(bench, error, f"(?s){says}"):
        bench.grad(step_fn=lambda *args: function(bench, *args))


@pytest.mark.parametrize(
    "result",
    [lambda v: v, lambda v: (v,), lambda v: (v, v, v), lambda v: [v, v], lambda v: {"a": v}],
)
def test_has_aux_needs_a_pair(bench: Bench, result: Callable[..., Any]) -> None:
    with refused(bench, TypeError, r"has_aux=True, step_fn must return a pair \(loss, aux\)"):
        bench.grad(step_fn=lambda x, y: result(bench.loss(x, y)), has_aux=True)


def test_step_fn_may_not_change_a_state(bench: Bench) -> None:
    """A state that shrinks in a step cannot be carried over a sequence."""
    counts = brainstate.ShortTermState(jnp.zeros((2, 4)), name="counts")

    def step_fn(x: Any, y: Any) -> Any:
        counts.value = counts.value[:, :2]
        return bench.loss(x, y)

    with refused(bench, ValueError, r"the state counts with shape \(2, 2\).*was \(2, 4\)"):
        bench.grad(step_fn=step_fn)


def test_a_failing_step_of_evolve(bench: Bench) -> None:
    with refused(bench, KeyError, "in the middle of step_fn"):
        bench.learner.etrace_evolve(bench.xs, bench.ys, step_fn=lambda x, y: _broken(bench, x, y))


def test_an_error_under_jit_leaves_no_tracers(bench: Bench) -> None:
    """The whole update is compiled by the user, and fails."""

    @brainstate.transform.jit
    def update() -> Any:
        bench.grad()
        raise KeyError("in the middle of an update")

    with refused(bench, KeyError, "in the middle of an update"):
        update()


def test_an_error_in_a_loss_under_grad_leaves_no_tracers(bench: Bench) -> None:
    def loss() -> Any:
        bench.learner(bench.xs[0])
        raise KeyError("in the middle of a loss")

    with refused(bench, KeyError, "in the middle of a loss"):
        brainstate.transform.grad(loss, bench.learner.param_states)()


@pytest.mark.parametrize("every", [1, 3])
def test_updates_are_those_of_a_loop(every: int, data: Any) -> None:
    xs, ys = data
    rate = optax.sgd(0.05)
    learner, other = made(), made()
    losses = learner.etrace_update(
        xs, ys, step_fn=summed(learner), optimizer=rate, update_every=every
    )
    expected = []
    for start in range(0, T, every):
        total = None
        for t in range(start, min(start + every, T)):
            run = brainstate.transform.grad(summed(other), other.param_states, return_value=True)
            grads, loss = run(xs[t], ys[t])
            expected.append(loss)
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        count = min(every, T - start)
        for path, state in other.param_states.items():
            change = total[path]
            state.value = jax.tree.map(lambda w, g: w - 0.05 * g / count, state.value, change)  # noqa: B023
    assert_tree_close(losses, jnp.stack(expected))
    assert_tree_close(weights_of(learner), weights_of(other))


def test_updates_under_jit(data: Any) -> None:
    adam = optax.adam(1e-2)
    a, b = made(), made()
    run = brainstate.transform.jit(
        lambda xs, ys: a.etrace_update(xs, ys, step_fn=summed(a), optimizer=adam)
    )
    with pytest.raises(ValueError, match=r"call learner.optimizer\(transformation\) once before"):
        run(*data)
    a.optimizer(adam)
    run(*data)
    b.etrace_update(*data, step_fn=summed(b), optimizer=adam)
    assert_tree_close(weights_of(a), weights_of(b))


def test_what_a_gradient_returns(bench: Bench) -> None:
    def with_aux(x: Any, y: Any) -> Any:
        return bench.loss(x, y), {"x": x[0]}

    options = {"step_fn": with_aux, "has_aux": True}
    grads, losses, aux = bench.grad(return_value=True, **options)
    bench.restore()
    again, other = bench.grad(**options)
    bench.restore()
    assert losses.shape == (3,) and jnp.array_equal(aux["x"], bench.xs[:, 0])
    assert_tree_close((again, other), (grads, aux))
    one = {"mine": bench.model.w}
    found, total = bench.grad(weights=one, return_value=True, loss_output="scalar")
    bench.restore()
    assert [*found] == ["mine"] and float(total) == pytest.approx(float(losses.mean()))
    with refused(bench, ValueError, "loss_output must be one of .*got 'all'"):
        bench.grad(loss_output="all")


def test_states_move_on_without_gradients(bench: Bench) -> None:
    outputs = bench.learner.etrace_evolve(bench.xs, return_outputs=True)
    assert outputs.shape == (3, 2, 2)
    moved = bench.states()
    bench.restore()
    assert bench.learner.etrace_evolve(bench.xs) is None
    assert all(jnp.array_equal(moved["v",], v) for v in [bench.model.v.value])
    bench.restore()
    assert_tree_close(jnp.stack([bench.learner(x) for x in bench.xs]), outputs, 1e-12)
    bench.restore()
