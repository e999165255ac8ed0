# SPDX-License-Identifier: Apache-2.0
"""scikit-learn's handwritten digits (1797 images of 8 x 8 pixels), as sequences of three kinds."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split

from _tasks.problem import Examples, Split

SIDE = 8
PIXELS = SIDE * SIDE
SPIKE_STEPS = 32


def images() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training images [1347, 64] in [0, 1], held-out ones [450, 64], and the labels of both."""
    found, labels = load_digits(return_X_y=True)
    train, test, train_labels, test_labels = train_test_split(
        (found / 16.0).astype(np.float32),
        labels.astype(np.int32),
        test_size=0.25,
        stratify=labels,
        random_state=0,
    )
    return train, test, train_labels, test_labels


def split(step_weights: np.ndarray) -> Callable[[], Split]:
    """The digits with one weight per step [T], the same for every image."""

    def load() -> Split:
        train, test, train_labels, test_labels = images()
        return Split(
            Examples(train, np.tile(step_weights, (len(train), 1)), train_labels),
            Examples(test, np.tile(step_weights, (len(test), 1)), test_labels),
        )

    return load


def every_step(steps: int) -> np.ndarray:
    """Every step counts."""
    return np.ones(steps, np.float32)


def last_step(steps: int) -> np.ndarray:
    """The last step counts alone."""
    return steps * np.eye(steps, dtype=np.float32)[-1]


def poisson_spikes(key: jax.Array, images: jax.Array) -> jax.Array:
    """Spike trains [32, B, 64] of 0 and 1; a pixel spikes at half its brightness."""
    rates = jnp.broadcast_to(0.5 * images, (SPIKE_STEPS, *images.shape))
    return jax.random.bernoulli(key, rates).astype(images.dtype)


def rows(key: jax.Array, images: jax.Array) -> jax.Array:
    """Eight rows from top to bottom, [8, B, 8]."""
    del key
    return jnp.moveaxis(images.reshape(-1, SIDE, SIDE), 1, 0)


def pixels(key: jax.Array, images: jax.Array) -> jax.Array:
    """One pixel at a time, [64, B, 1]."""
    del key
    return images.T[:, :, None]


def logistic_regression() -> float:
    """Held-out accuracy of a linear classifier that sees all pixels at once."""
    train, test, train_labels, test_labels = images()
    return float(
        LogisticRegression(max_iter=2000).fit(train, train_labels).score(test, test_labels)
    )
