# SPDX-License-Identifier: Apache-2.0
"""What the first gradient of a silent network says."""

from __future__ import annotations

import warnings
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.learners.silence import LEAST

STEPS, BATCH = LEAST + 2, 2
SAYS = r"of 12 steps, has an array of zeros in {}, although .* never fire"


class Spiking(brainstate.nn.Module):
    """Neurons that fire above a threshold, and a readout with a bias."""

    def __init__(self, threshold: float, width: float) -> None:
        super().__init__()
        self.inputs, self.readout = bt.nn.Linear(3, 4, key=0), bt.nn.Linear(4, 2, key=1)
        self.threshold, self.width = threshold, width

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, 4)))

    def reset_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v.value = jnp.zeros((batch_size, 4))

    def update(self, x: Any) -> Any:
        self.v.value = 0.8 * self.v.value + self.inputs(x)
        return self.readout(self.spike(self.v.value - self.threshold))

    def spike(self, v: Any) -> Any:
        near = jnp.clip(v, -self.width, self.width)
        return near + jax.lax.stop_gradient((v > 0) - near)


def first_gradient(model: Any, steps: int = STEPS, scale: float = 1.0) -> bt.D_RTRL:
    xs = scale * jax.random.normal(jax.random.key(0), (steps, BATCH, 3))
    learner = bt.compile(model, "d_rtrl", xs[0], batch_size=BATCH)
    learner.etrace_grad(xs, step_fn=loss_of(learner))
    return learner


def loss_of(learner: Any) -> Any:
    return lambda x: ((learner(x) - 1.0) ** 2).mean()


@pytest.mark.parametrize(
    ("width", "names"),
    [(1e3, "readout.weight"), (0.1, "inputs.weight, readout.weight")],
)
def test_neurons_that_never_fire_are_told_once(width: float, names: str) -> None:
    """The bias of the readout learns; a wide surrogate derivative lets the inputs learn, too."""
    with pytest.warns(UserWarning, match=SAYS.format(names)):
        learner = first_gradient(Spiking(1e2 if width < 1 else 20.0, width), scale=0.1)
    with warnings.catch_warnings(action="error"):
        learner.etrace_grad(jnp.zeros((STEPS, BATCH, 3)), step_fn=loss_of(learner))


def test_what_is_no_silence_is_not_told() -> None:
    """Neurons that fire; weights that start at zero; a few steps; a factor behind one; tracers."""

    class Adapted(Spiking):
        def __init__(self) -> None:
            super().__init__(0.1, 1.0)
            self.adapter = bt.nn.LoRA(3, 2, 4)

        def update(self, x: Any) -> Any:
            self.v.value = 0.8 * self.v.value + self.inputs(x) + self.adapter(x)
            return self.readout(self.spike(self.v.value - self.threshold))

    begun = Spiking(0.1, 1.0)  # a readout that starts at zero hides what is below
    weight = begun.readout.weight.value
    begun.readout.weight.value = jax.tree.map(jnp.zeros_like, weight)
    with warnings.catch_warnings(action="error"):
        learner = first_gradient(begun)
        assert learner._drivers.looks_left == 1
        begun.readout.weight.value = weight
        learner.etrace_grad(jnp.ones((STEPS, BATCH, 3)), step_fn=loss_of(learner))
        assert learner._drivers.looks_left == 0
        first_gradient(Spiking(0.1, 1.0))
        first_gradient(Adapted())
        learner = first_gradient(Spiking(1e2, 0.1), steps=LEAST - 1)
        still = jnp.zeros((STEPS, BATCH, 3))
        brainstate.transform.jit(lambda: learner.etrace_grad(still, step_fn=loss_of(learner)))()
