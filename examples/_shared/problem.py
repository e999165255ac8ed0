# SPDX-License-Identifier: Apache-2.0
"""Labelled sequences, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Examples:
    """``N`` labelled sequences.

    ``inputs`` [N, ...] is what is turned into a sequence, ``weights`` [N, T] says how much each
    step counts in the loss and in the answer (0 behind the end of a sequence; the mean over a row
    is 1), ``labels`` [N] are whole numbers.
    """

    inputs: np.ndarray
    weights: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Split:
    """Examples to train on, and held-out ones."""

    train: Examples
    test: Examples
