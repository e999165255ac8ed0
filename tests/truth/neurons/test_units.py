# SPDX-License-Identifier: Apache-2.0
"""Physical units on states, inputs, weights and outputs, and values of ``brainstate.environ``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle

IN, N, OUT, BATCH, STEPS = 3, 4, 2, 2, 5


def values(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


class Membrane(brainstate.nn.Module):
    """Currents [mA] through resistances [ohm] drive potentials [mV], read out without a unit."""

    def __init__(self) -> None:
        super().__init__()
        self.w = brainstate.ParamState(values(1, IN, N) * u.ohm)
        self.b = brainstate.ParamState(values(2, N) * 1e-3 * u.volt)
        self.r = brainstate.ParamState(values(3, N, N) / 1.0)
        self.k = brainstate.ParamState(values(4, N, OUT) / u.mV)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v = brainstate.HiddenState(self.start(batch_size))

    def reset_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v.value = self.start(batch_size)

    def start(self, batch_size: int | None) -> Any:
        lead = () if batch_size is None else (batch_size,)
        return jnp.full((*lead, N), 0.1) * u.mV

    def update(self, x: Any) -> Any:
        v = self.v.value
        kick = 0.2 * u.mV * bt.matmul(jnp.tanh(v / u.mV), self.r.value)
        drive = bt.matmul(x, self.w.value, self.b.value)
        self.v.value = (0.8 * v + 0.1 * v**2 / (1.0 * u.mV) + drive + kick).in_unit(u.mV)
        return bt.matmul(self.v.value, self.k.value)


def sequence(batch: int | None = BATCH, steps: int = STEPS) -> tuple[Any, Any]:
    lead = (steps,) if batch is None else (steps, batch)
    return 0.3 * values(5, *lead, IN) * u.mA, values(6, *lead, OUT)


def loss(out: Any, target: Any) -> Any:
    return jnp.sum((out - target) ** 2)


def compiled(model: Any, batch: int | None = BATCH) -> Any:
    brainstate.nn.init_all_states(model, batch_size=batch)
    learner = bt.D_RTRL(model, downstream="step")
    learner.compile_graph(sequence(batch)[0][0])
    return learner


def gradients(learner: Any, xs: Any, ys: Any, **options: Any) -> Any:
    return learner.etrace_grad(
        xs, ys, step_fn=lambda x, y: loss(learner(x), y), reduction="sum", **options
    )


def arrays(grads: Any) -> Any:
    return jax.tree.map(u.get_mantissa, grads, is_leaf=u.math.is_quantity)


@pytest.mark.parametrize("batch", [None, BATCH])
@pytest.mark.parametrize("block_size", [1, 3, "auto"])
def test_gradients_with_units_equal_the_oracle(batch: int | None, block_size: Any) -> None:
    learner = compiled(Membrane(), batch)
    oracle = d_rtrl_oracle(learner.model, sequence(batch), loss)
    grads = gradients(learner, *sequence(batch), block_size=block_size)
    for path, state in learner.param_states.items():
        assert u.get_unit(grads[path]) == u.get_unit(state.value)
    assert_tree_close(arrays(grads), arrays(oracle.grads))


def test_one_step_gives_what_brainstate_gives_for_the_plain_model() -> None:
    """The same pytree: keys, shapes and units."""
    learner, (xs, ys) = compiled(Membrane()), sequence(steps=1)
    parameters = learner.param_states
    plain = Membrane()
    brainstate.nn.init_all_states(plain, batch_size=BATCH)
    expected = brainstate.transform.grad(
        lambda: loss(plain(xs[0]), ys[0]), dict(brainstate.graph.states(plain, type(plain.w)))
    )()
    online = brainstate.transform.grad(lambda: loss(learner(xs[0]), ys[0]), parameters)()
    learner.reset_state(BATCH, model_states=True)
    whole = gradients(learner, xs, ys)
    for found in (online, whole):
        assert jax.tree.structure(found) == jax.tree.structure(expected)
        assert_tree_close(arrays(found), arrays(expected))


def test_a_loss_with_a_unit_is_refused() -> None:
    learner, (xs, ys) = compiled(Membrane()), sequence()
    with pytest.raises(TypeError, match=r"loss without a unit, got one in mV; divide it"):
        learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y) * u.mV)


def test_another_unit_of_the_same_dimension_is_converted() -> None:
    xs, ys = sequence()
    expected = gradients(compiled(Membrane()), xs, ys)
    found = gradients(compiled(Membrane()), xs.in_unit(u.uA), ys)
    assert_tree_close(arrays(found), arrays(expected))
    learners = compiled(Membrane()), compiled(Membrane())
    outs = learners[0](xs[0]), learners[1](xs[0].in_unit(u.amp))
    np.testing.assert_allclose(*outs, rtol=1e-12)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x: u.get_mantissa(x), "the arguments have no unit instead of the unit mA"),
        (lambda x: u.get_mantissa(x) * u.mV, "the unit mV instead of the unit mA"),
        (lambda x: (x, x), "the arguments have structure"),
    ],
)
def test_an_argument_of_another_dimension_is_refused(change: Any, says: str) -> None:
    learner, (xs, ys) = compiled(Membrane()), sequence()
    with pytest.raises(ValueError, match=says):
        learner(change(xs[0]))
    with pytest.raises(ValueError, match=says):
        gradients(learner, change(xs), ys)


@pytest.mark.parametrize(("name", "other"), [("v", u.volt), ("w", u.kohm), ("k", 1 / u.volt)])
def test_a_state_set_in_another_unit_is_refused(name: str, other: Any) -> None:
    learner = compiled(Membrane())
    state = getattr(learner.model, name)
    state.value = u.get_mantissa(state.value) * other
    with pytest.raises(ValueError, match=rf"the state {name} has the unit .* instead of the unit"):
        learner(sequence()[0][0])


class Rescaled(Membrane):
    """``convert`` is applied to the new value of the state."""

    def __init__(self, convert: Callable[[Any], Any]) -> None:
        super().__init__()
        self.convert = convert

    def update(self, x: Any) -> Any:
        super().update(x)
        self.v.value = self.convert(self.v.value)
        return jnp.sum(u.get_mantissa(self.v.value))


@pytest.mark.parametrize(
    ("convert", "says"),
    [
        (lambda v: v.in_unit(u.volt), "the unit V instead of the unit mV"),
        (lambda v: u.get_mantissa(v), "no unit instead of the unit mV"),
        (lambda v: v * u.ms, r"the unit .* instead of the unit mV"),
    ],
)
def test_a_step_that_changes_the_unit_of_a_state(convert: Any, says: str) -> None:
    model = Rescaled(convert)
    with pytest.raises(bt.CompilationError, match=rf"the state v has {says} after a step"):
        compiled(model)
    assert not isinstance(u.get_mantissa(model.v.value), jax.core.Tracer)
    assert u.get_unit(model.v.value) == u.mV


class Relaxing(Membrane):
    """An exponential Euler step, on a primitive that belongs to ``saiunit``."""

    def update(self, x: Any) -> Any:
        v = self.v.value
        rate = -0.1 - 0.05 * (v / u.mV) ** 2
        drift = rate * v + bt.matmul(x, self.w.value, self.b.value)
        self.v.value = v + u.math.exprel(rate) * drift
        return bt.matmul(self.v.value, self.k.value)


def test_a_primitive_of_another_library_is_followed_by_its_derivative() -> None:
    model = Relaxing()
    del model.r
    learner, (xs, ys) = compiled(model), sequence()
    _, reference = bptt(model, (xs, ys), loss)
    assert_tree_close(arrays(gradients(learner, xs, ys)), arrays(reference))


def test_units_are_in_the_report() -> None:
    report = compiled(Membrane()).report
    assert "mV" in report and "ohm" in report


# --- brainstate.environ: the time of a step may come from outside --------------------------------


class Clock(Membrane):
    """Reads the time, and how long a step is."""

    def update(self, x: Any) -> Any:
        t, dt = brainstate.environ.get("t"), brainstate.environ.get("dt")
        return super().update(x * jnp.cos(t / (2.0 * dt)))


class Timed(brainstate.nn.Module):
    """Takes the time as an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Clock()

    def update(self, inputs: Any) -> Any:
        t, x = inputs
        with brainstate.environ.context(t=t):
            return self.inner(x)


def test_the_time_around_a_call_is_the_time_of_the_step() -> None:
    """What ``brainstate.environ`` holds when the step is compiled is not kept as a constant."""
    (xs, ys), times = sequence(), jnp.arange(STEPS) * u.ms
    timed = Timed()
    brainstate.nn.init_all_states(timed, batch_size=BATCH)
    losses, _ = bptt(timed, ((times, xs), ys), loss)
    oracle = d_rtrl_oracle(timed, ((times, xs), ys), loss)
    with brainstate.environ.context(t=0.0 * u.ms):
        learner, called = compiled(Clock()), compiled(Clock())

    def step(t: Any, x: Any, y: Any) -> Any:
        with brainstate.environ.context(t=t):
            return loss(learner(x), y)

    grads, online = learner.etrace_grad(
        times, xs, ys, step_fn=step, reduction="sum", return_value=True
    )
    assert_tree_close(online, losses)
    assert_tree_close(arrays(grads), arrays({p[1:]: g for p, g in oracle.grads.items()}))
    for k in range(STEPS):
        with brainstate.environ.context(t=k * 1e-3 * u.second):
            np.testing.assert_allclose(loss(called(xs[k]), ys[k]), losses[k], rtol=1e-9)


def test_a_missing_time_and_another_time_step_are_refused() -> None:
    (xs, _), t = sequence(), 0.0 * u.ms
    with brainstate.environ.context(t=t):
        learner = compiled(Clock())
    with pytest.raises(bt.CompilationError, match=r"compiled with 't' in brainstate.environ"):
        learner(xs[0])
    with (
        brainstate.environ.context(t=t, dt=0.1 * u.ms),
        pytest.raises(bt.CompilationError, match=r"reads 'dt' .* was 0.5 ms .* is 0.1 ms now"),
    ):
        learner(xs[0])
