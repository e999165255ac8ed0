# SPDX-License-Identifier: Apache-2.0
"""How well a network reads digits it was not trained on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared import digits as data

#: The held-out image whose spikes are drawn.
DRAWN = 0


def parameters(model: brainstate.nn.Module) -> dict[Any, Any]:
    """The parameters of a model, by path."""
    return dict(brainstate.graph.states(model, brainstate.ParamState))


@dataclass(frozen=True)
class Raster:
    """Spikes ``[T, N]`` (0 or 1) on one held-out image ``[64]``, its label and the answer given."""

    spikes: np.ndarray
    image: np.ndarray
    label: int
    answer: int


class HeldOut:
    """Reads the held-out images with ``model``, a copy of the network that is being trained.

    Parameters
    ----------
    model
        The copy; its states are made here, its weights are overwritten at every reading.
    encode
        ``(key, images [450, 64]) -> xs [T, 450, in]``, called once with ``key``.
    step_weights
        How much the logits of each step count in the answer, ``[T]``.
    """

    def __init__(
        self,
        model: brainstate.nn.Module,
        encode: Callable[[jax.Array, jax.Array], jax.Array],
        step_weights: np.ndarray,
        key: jax.Array,
    ) -> None:
        self.model = model
        self.images = data.load().test_images
        self.labels = data.load().test_labels
        self.xs = encode(key, jnp.asarray(self.images))
        self.step_weights = step_weights
        brainstate.nn.init_all_states(model, batch_size=len(self.labels))

    def accuracy(self, trained: brainstate.nn.Module) -> jax.Array:
        """The fraction of held-out images that a network with these weights reads right."""
        logits = self._run(trained, self.model)
        return jnp.mean(self._answers(logits) == self.labels)

    def raster(
        self, trained: brainstate.nn.Module, spikes_of: Callable[[Any], jax.Array]
    ) -> Raster:
        """What the neurons do on one held-out image; ``spikes_of(model)`` is ``[450, N]``."""
        logits, spikes = self._run(trained, lambda x: (self.model(x), spikes_of(self.model)))
        return Raster(
            spikes=np.asarray(spikes[:, DRAWN]),
            image=self.images[DRAWN],
            label=int(self.labels[DRAWN]),
            answer=int(self._answers(logits)[DRAWN]),
        )

    def _run(self, trained: brainstate.nn.Module, step: Callable[[jax.Array], Any]) -> Any:
        brainstate.nn.reset_all_states(self.model, batch_size=len(self.labels))
        own = parameters(self.model)
        for path, weight in parameters(trained).items():
            own[path].value = weight.value
        return brainstate.transform.for_loop(step, self.xs)

    def _answers(self, logits: jax.Array) -> jax.Array:
        return jnp.einsum("t,tbc->bc", self.step_weights, logits).argmax(-1)
