# SPDX-License-Identifier: Apache-2.0
"""A guarded call that raises leaves everything as it was; one that skips does so in its program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintrace as bt
from tests.unit.drivers.net import made, of_windows, summed

LEARNING = {"optimizer": optax.adam(0.1), "update_every": 2, "check": True}


class Stop(Exception):
    """Raised where a user's code may raise."""


def states_of(learner: Any, *more: Any) -> list[Any]:
    """All states: of the learner, of its optimizers, and that of random numbers."""
    holders = [learner, *learner._optimizers, *more]
    found = [s for holder in holders for s in brainstate.graph.states(holder).values()]
    return [*found, *learner.traces, *learner.filters, brainstate.random.DEFAULT]


def values_of(states: list[Any]) -> list[Any]:
    def plain(leaf: Any) -> Any:
        key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        return np.asarray(jax.random.key_data(leaf) if key else leaf)

    return jax.tree.map(plain, [state.value for state in states])


def everything(learner: Any) -> list[Any]:
    return values_of(states_of(learner))


@contextmanager
def as_before(learner: Any, error: Any, match: str | None = None) -> Iterator[None]:
    """The body raises, and no state changes."""
    states = states_of(learner)
    before = values_of(states)
    with pytest.raises(error, match=match):
        yield
    jax.tree.map(np.testing.assert_array_equal, before, values_of(states))


@pytest.fixture
def learner() -> Any:
    return made()


def moved(learner: Any, data: Any) -> None:
    """Traces and moments are not those of the start."""
    learner.etrace_update(*data, step_fn=summed(learner), **LEARNING)


@pytest.mark.parametrize("update", [True, False])
def test_a_number_that_is_not_finite_changes_nothing(learner: Any, data: Any, update: bool) -> None:
    xs, ys = data
    moved(learner, data)
    step, broken = summed(learner), xs.at[4].set(jnp.nan)

    def call(xs: Any) -> Any:
        if update:
            return learner.etrace_update(xs, ys, step_fn=step, **LEARNING)
        return learner.etrace_grad(xs, ys, step_fn=step, check=True)

    with as_before(learner, FloatingPointError, "^at step 4, .*the state cell"):
        call(broken)
    index = int(learner.running_index.value)
    call(xs)
    assert int(learner.running_index.value) == index + len(xs)


def test_windows_and_a_step_without_a_carried_trace(data: Any) -> None:
    xs, ys = data
    broken = xs.at[4].set(jnp.inf)
    learner = made(vjp_method="multi-step")
    learner.etrace_evolve(xs)
    with as_before(learner, FloatingPointError, "at steps 3 to 5, .*the state cell"):
        learner.etrace_grad(broken, ys, step_fn=of_windows(learner), chunk_size=3, check=True)
    learner = made()
    learner.etrace_evolve(xs)
    with as_before(learner, FloatingPointError):
        learner.etrace_grad(
            broken, ys, step_fn=summed(learner), carry_trace=False, block_size=3, check=True
        )


def test_an_optimizer_that_leaves_the_finite_numbers(learner: Any, data: Any) -> None:
    far = optax.sgd(float("inf"))
    with as_before(learner, FloatingPointError, r"at step 1, .*weight.* after its update"):
        learner.etrace_update(
            *data, step_fn=summed(learner), optimizer=far, update_every=2, check=True
        )


# --- what raises ----------------------------------------------------------------------------------


class Descent:
    """An optimizer that raises while its program is made, or while it runs."""

    def __init__(self, learner: Any, error: type[BaseException] | None) -> None:
        self.learner, self.error = learner, error
        self.count = brainstate.ShortTermState(jnp.zeros(()))

    def update(self, grads: Any) -> None:
        self.count.value = self.count.value + 1.0
        for path, state in self.learner.param_states.items():
            state.value = jax.tree.map(lambda w, g: w - 0.1 * g, state.value, grads[path])
            if self.error:
                raise self.error


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
def test_what_raises_while_the_program_is_made(
    learner: Any, data: Any, error: type[BaseException]
) -> None:
    moved(learner, data)
    step = summed(learner)

    def raising(x: Any, y: Any) -> Any:
        brainstate.random.rand()
        step(x, y)
        raise error

    with as_before(learner, error):
        learner.etrace_grad(*data, step_fn=raising, check=True)
    with as_before(learner, error):
        learner.etrace_update(*data, step_fn=raising, **LEARNING)
    descent = Descent(learner, error)
    with as_before(learner, error):
        learner.etrace_update(*data, step_fn=step, **{**LEARNING, "optimizer": descent})
    assert float(descent.count.value) == 0.0
    descent.error = None
    learner.etrace_update(*data, step_fn=step, **{**LEARNING, "optimizer": descent})
    assert float(descent.count.value) > 0.0


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt])
@pytest.mark.filterwarnings("ignore")
def test_what_raises_in_a_callback(learner: Any, data: Any, error: type[BaseException]) -> None:
    moved(learner, data)
    step, left = summed(learner), [3]

    def count(_: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise error

    def watched(x: Any, y: Any) -> Any:
        jax.debug.callback(count, x)
        return step(x, y)

    with as_before(learner, jax.errors.JaxRuntimeError):
        learner.etrace_update(*data, step_fn=watched, **LEARNING)
    left[0] = 3
    with as_before(learner, jax.errors.JaxRuntimeError):
        learner.etrace_grad(*data, step_fn=watched, check=True)


#: Functions of brainstate that write what a program returns, state by state.
WRITING = ("assign_state_vals_v2", "restore_value")


def lines_of(call: Callable[[], Any], stop_at: int | None = None) -> list[Any]:
    """The lines of Python that a call runs in this package and brainstate.

    Each counts once; where states are written, each time. At one ``KeyboardInterrupt`` is raised.
    """
    seen: dict[Any, None] = {}

    def trace(frame: Any, event: str, _: Any) -> Any:
        name = frame.f_globals.get("__name__", "")
        if not name.startswith(("braintrace.", "brainstate.")):
            return None
        place = (frame.f_code.co_filename, frame.f_lineno)
        if frame.f_code.co_name in WRITING:
            place = (*place, len(seen))
        if event == "line" and place not in seen:
            seen[place] = None
            if len(seen) - 1 == stop_at:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return list(seen)


def test_an_interrupt_at_every_line(learner: Any, data: Any) -> None:
    """From the first line of a call to its last one, with the states written in between."""
    moved(learner, data)
    step = summed(learner)

    def call() -> Any:
        return learner.etrace_update(*data, step_fn=step, **LEARNING)

    call()
    states = states_of(learner)
    start = [state.value for state in states]
    lines = lines_of(call)
    assert any("undo" in name for name, *_ in lines)
    assert len([line for line in lines if len(line) > 2]) > len(states)
    for state, value in zip(states, start, strict=True):
        state.value = value
    before = everything(learner)
    for number in range(len(lines)):
        with pytest.raises(KeyboardInterrupt):
            lines_of(call, number)
        jax.tree.map(np.testing.assert_array_equal, before, everything(learner))
    call()  # and it still works


# --- skipping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitted", [True, False])
@pytest.mark.parametrize("at", [[2], [2, 3]])
def test_steps_that_are_skipped(learner: Any, data: Any, jitted: bool, at: list[int]) -> None:
    """As if they had not been there; without any of its steps, an update is left out."""
    xs, ys = (v[:6] for v in data)
    plain, learning = summed(learner), {**LEARNING, "check": "skip"}

    def step(x: Any, y: Any) -> Any:
        brainstate.random.rand()
        return plain(x, y)

    def call(*sequences: Any) -> Any:
        return learner.etrace_update(*sequences, step_fn=step, **learning)

    run = brainstate.transform.jit(call) if jitted else call
    moved(learner, data)
    states = states_of(learner)
    start = [state.value for state in states]
    for part in (slice(0, 2), slice(3, 4) if at == [2] else slice(0), slice(4, 6)):
        if len(xs[part]):
            run(xs[part], ys[part])
    want = everything(learner)
    for state, value in zip(states, start, strict=True):
        state.value = value
    says = f"at step 2, .* NaN or infinite; skipped, .*from before: {len(at)} of 6 steps"
    with pytest.warns(UserWarning, match=says):
        losses = run(xs.at[jnp.array(at)].set(jnp.nan), ys)
        jax.effects_barrier()
    bad = np.isnan(losses)
    assert bad[at].all() and not bad[[0, 1, 4, 5]].any()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12), everything(learner), want)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("kind", ["blocks", "reverse", "windows"])
def test_a_gradient_without_what_is_skipped(data: Any, kind: str, masked: bool) -> None:
    """It is the mean over the other steps, in each driver."""
    xs, ys = data
    options: dict[str, Any] = {"check": "skip"}
    if kind == "windows":
        learner = made(vjp_method="multi-step")
        step, options["chunk_size"] = of_windows(learner), 2
    else:
        learner = made(bt.RTRL) if kind == "reverse" else made()
        step, options["block_size"] = summed(learner), 2
    mask = jnp.asarray([1.0, 0.5, 1.0, 1.0, 0.0, 1.0, *[1.0] * (len(xs) - 6)]) if masked else None
    kept = np.array([k for k in range(len(xs)) if k not in (2, 3)])
    states = states_of(learner)
    start = [state.value for state in states]
    chosen = {"mask": mask[kept]} if masked else {}
    want = learner.etrace_grad(xs[kept], ys[kept], step_fn=step, **options, **chosen)
    after = everything(learner)
    for state, value in zip(states, start, strict=True):
        state.value = value
    chosen = {"mask": mask} if masked else {}
    with pytest.warns(UserWarning, match=r"at steps 2 to 3, .*: 1 of \d+ times 2 steps"):
        found = learner.etrace_grad(xs.at[2].set(jnp.nan), ys, step_fn=step, **options, **chosen)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12), found, want)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12), everything(learner), after)


def test_a_gradient_of_nothing(learner: Any, data: Any) -> None:
    xs, ys = data
    moved(learner, data)
    before = everything(learner)
    with pytest.warns(UserWarning, match=f"at step 0, .*: {len(xs)} of {len(xs)} steps"):
        grads, losses = learner.etrace_grad(
            jnp.nan * xs, ys, step_fn=summed(learner), return_value=True, check="skip"
        )
    assert not any(leaf.any() for leaf in jax.tree.leaves(grads)) and np.isnan(losses).all()
    jax.tree.map(np.testing.assert_array_equal, before, everything(learner))
    with pytest.raises(ValueError, match="check must be True, False or 'skip', got 'raise'"):
        learner.etrace_grad(xs, ys, step_fn=summed(learner), check="raise")


def test_an_update_to_what_is_not_finite_is_skipped(learner: Any, data: Any) -> None:
    """States go on; weights and the moments of the optimizer stay."""
    xs, ys = (v[:4] for v in data)
    (weight, *_) = learner.param_states.values()
    before = jax.tree.map(jnp.asarray, weight.value)
    index = int(learner.running_index.value)
    with pytest.warns(UserWarning, match=r"at step 0, .* after its update.*: 4 of 4 steps"):
        learner.etrace_update(
            xs, ys, step_fn=summed(learner), optimizer=optax.sgd(jnp.inf), check="skip"
        )
    jax.tree.map(np.testing.assert_array_equal, before, weight.value)
    assert int(learner.running_index.value) == index + 4


def test_a_check_inside_of_a_jit_leaves_the_states(learner: Any, data: Any) -> None:
    xs, ys = data
    moved(learner, data)
    step = summed(learner)

    @brainstate.transform.jit
    def run(xs: Any) -> Any:
        return learner.etrace_update(xs, ys, step_fn=step, **LEARNING)

    with as_before(learner, jax.errors.JaxRuntimeError, "became NaN or infinite"):
        run(xs.at[4].set(jnp.nan))
