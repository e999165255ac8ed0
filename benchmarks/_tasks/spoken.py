# SPDX-License-Identifier: Apache-2.0
"""Task J, synthetic spoken digits as spikes; ``benchmarks/spoken_digits.py`` made the file."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from _shared.problem import Examples, Split
from sklearn.linear_model import LogisticRegression

FILE = Path(__file__).with_name("spoken_digits.npz")
STEPS, CHANNELS, CLASSES = 112, 70, 20
STEP = 5.0  # ms
HEARD = 8  # voices to train on; those behind them are held out


def split() -> Split:
    """640 words of eight voices to train on, 320 of four others; every step counts the same."""
    with np.load(FILE) as found:
        spikes = np.unpackbits(found["spikes"], axis=1, count=STEPS * CHANNELS)
        labels, voices = found["labels"].astype(np.int32), found["voices"]
    spikes = spikes.reshape(-1, STEPS, CHANNELS).astype(np.float32)
    weights = np.ones((len(labels), STEPS), np.float32)
    parts = (voices < HEARD, voices >= HEARD)
    return Split(*(Examples(spikes[part], weights[part], labels[part]) for part in parts))


def steps_first(key: jax.Array, spikes: jax.Array) -> jax.Array:
    """[B, T, 70] as [T, B, 70]."""
    del key
    return jnp.moveaxis(spikes, 1, 0)


def of_counts() -> float:
    """Held-out accuracy of a linear classifier that sees how often each channel fired."""
    found = split()
    model = LogisticRegression(max_iter=2000).fit(found.train.inputs.sum(1), found.train.labels)
    return float(model.score(found.test.inputs.sum(1), found.test.labels))
