# SPDX-License-Identifier: Apache-2.0
"""Real series that come inside of packages, as arrays [samples, features and target]."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np


def laser() -> np.ndarray:
    """The Santa Fe laser: the intensity now, and the next one.

    Raises
    ------
    ModuleNotFoundError
        When ``reservoirpy`` is not installed, whose data file is read and nothing else.
    """
    found = find_spec("reservoirpy")
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            "laser needs a data file: python -m pip install --no-deps reservoirpy"
        )
    values = np.load(Path(found.origin).parent / "datasets" / "santafe_laser.npy").ravel()
    values = values.astype(float)
    return np.stack([values[:-1], values[1:]], 1)


def water() -> np.ndarray:
    """The flow of an hour, its change, and the change to the next one.

    An error of the change is one of the next flow. The change is predicted because the flow itself
    is nearly that of an hour before.
    """
    from river import datasets

    values = np.array([y for _, y in datasets.WaterFlow()])
    changes = np.diff(values)
    return np.stack([values[1:-1], changes[:-1], changes[1:]], 1)


def shuttle() -> np.ndarray:
    """Nine sensors, and whether this is an anomaly."""
    from river import datasets

    return np.array([[*x.values(), y] for x, y in datasets.Shuttle()], float)


def samples(name: str, array: np.ndarray) -> Iterator[tuple[dict[str, float], Any]]:
    """Features by name, and the target: a number, or 0 and 1 for the shuttle."""
    kind = int if name == "shuttle" else float
    names = [f"x{k}" for k in range(array.shape[1] - 1)]
    for *x, y in array.tolist():
        yield dict(zip(names, x, strict=True)), kind(y)
