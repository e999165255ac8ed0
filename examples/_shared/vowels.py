# SPDX-License-Identifier: Apache-2.0
"""JapaneseVowels: nine speakers, 12 features, 7 to 29 steps; a data file of the package aeon.

The file is read here, so that aeon's own dependencies are not needed. M. Kudo, J. Toyama and
M. Shimbo, "Multidimensional curve classification using passing-through regions", Pattern
Recognition Letters 20 (1999) 1103-1111.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from .problem import Examples, Split

CHANNELS = 12
SPEAKERS = 9
LONGEST = 29
MISSING = (
    "JapaneseVowels (task D) is read from the data files of the package aeon, which is not "
    "installed; its dependencies are not needed: python -m pip install --no-deps aeon"
)


def folder() -> Path | None:
    """Where the two files are, or ``None``."""
    package = find_spec("aeon")
    for place in (package and package.submodule_search_locations) or ():
        found = Path(place) / "datasets" / "data" / "JapaneseVowels"
        if found.is_dir():
            return found
    return None


def split() -> Split:
    """270 sequences to train on and 370 held-out ones, in units of the training set's deviation.

    Raises
    ------
    RuntimeError
        When the files are not there; the message says how to get them.
    """
    place = folder()
    if place is None:
        raise RuntimeError(MISSING)
    train, test = (_read(place / f"JapaneseVowels_{part}.ts") for part in ("TRAIN", "TEST"))
    steps = np.concatenate([sequence for sequence, _ in train])
    mean, deviation = steps.mean(0), steps.std(0)
    return Split(*(_examples(part, mean, deviation) for part in (train, test)))


def _read(path: Path) -> list[tuple[np.ndarray, int]]:
    """Sequences [T, 12] and speakers from 0; a line is ``v,v,..:v,v,..: .. :speaker``."""
    lines = path.read_text(encoding="utf-8").splitlines()
    found = []
    for line in lines[lines.index("@data") + 1 :]:
        *channels, speaker = line.split(":")
        values = np.array([[float(v) for v in channel.split(",")] for channel in channels])
        found.append((values.T, int(speaker) - 1))
    return found


def _examples(
    sequences: list[tuple[np.ndarray, int]], mean: np.ndarray, deviation: np.ndarray
) -> Examples:
    inputs = np.zeros((len(sequences), LONGEST, CHANNELS), np.float32)
    weights = np.zeros((len(sequences), LONGEST), np.float32)
    for i, (sequence, _) in enumerate(sequences):
        steps = len(sequence)
        inputs[i, :steps] = (sequence - mean) / deviation
        weights[i, :steps] = LONGEST / steps
    return Examples(inputs, weights, np.array([speaker for _, speaker in sequences], np.int32))


def steps_first(key: jax.Array, sequences: jax.Array) -> jax.Array:
    """[B, T, 12] as [T, B, 12]."""
    del key
    return jnp.moveaxis(sequences, 1, 0)
