# SPDX-License-Identifier: Apache-2.0
"""scikit-learn's handwritten digits, split, and turned into sequences."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SIDE = 8
PIXELS = SIDE * SIDE
CLASSES = 10
SPLIT_SEED = 0
MAX_RATE = 0.5
SPIKE_STEPS = 32
SHOWN_STEPS = 8


@dataclass(frozen=True)
class Digits:
    """1797 images of 8 x 8 pixels: 75 % to train on, 25 % held out, the same split always.

    Images are float32 ``[N, 64]`` in [0, 1], labels int32 ``[N]``.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray


@cache
def load() -> Digits:
    """The digits, with a stratified 75/25 split that no option changes."""
    images, labels = load_digits(return_X_y=True)
    images = (images / 16.0).astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        images, labels.astype(np.int32), test_size=0.25, stratify=labels, random_state=SPLIT_SEED
    )
    return Digits(train_x, train_y, test_x, test_y)


def rows(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each image ``[B, 64]`` as its eight rows, top to bottom: ``[8, B, 8]``. No randomness."""
    del key
    return jnp.moveaxis(images.reshape(-1, SIDE, SIDE), 1, 0)


def pixels(key: jax.Array, images: jax.Array) -> jax.Array:
    """One pixel at a time, ``[64, B, 1]``. No randomness."""
    del key
    return images.T[:, :, None]


@partial(jax.jit, static_argnames="num_steps")
def poisson_spikes(key: jax.Array, images: jax.Array, num_steps: int = SPIKE_STEPS) -> jax.Array:
    """Spike trains ``[num_steps, B, 64]`` of 0 and 1; a pixel spikes with rate 0.5 x brightness."""
    rates = jnp.broadcast_to(MAX_RATE * images, (num_steps, *images.shape))
    return jax.random.bernoulli(key, rates).astype(images.dtype)


def shown(key: jax.Array, images: jax.Array, num_steps: int = SHOWN_STEPS) -> jax.Array:
    """Spike trains like those of :func:`poisson_spikes`, silent after ``num_steps``."""
    spikes = poisson_spikes(key, images)
    return spikes.at[num_steps:].set(0)


def epochs(
    key: jax.Array, num_epochs: int, batch_size: int
) -> Iterator[tuple[jax.Array, jax.Array]]:
    """For every epoch a random order of the training images and the keys of its encodings.

    Yields indices ``[num_batches, batch_size]`` (full batches only) and keys ``[num_batches]``.
    """
    num_images = len(load().train_labels)
    num_batches = num_images // batch_size
    for epoch_key in jax.random.split(key, num_epochs):
        order = jax.random.permutation(epoch_key, num_images)[: num_batches * batch_size]
        yield order.reshape(num_batches, batch_size), jax.random.split(epoch_key, num_batches)
