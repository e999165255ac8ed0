# SPDX-License-Identifier: Apache-2.0
"""What a training gave, and the table that compares several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .held_out import Raster


@dataclass(frozen=True)
class Run:
    """One training.

    ``losses`` and ``accuracies`` (on the held-out images) have a value per epoch; ``rasters``
    holds the spikes on one held-out image before and after, or nothing for a network without.
    """

    title: str
    rule: str
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    seconds: float
    rasters: tuple[Raster, ...]

    @property
    def accuracy(self) -> float:
        """On the held-out images, after the last epoch."""
        return self.accuracies[-1]


def table(runs: Sequence[Run]) -> str:
    """Held-out accuracy and training time (compilation included), one line per training."""
    lines = [f"{'network':<32}{'rule':<8}{'held-out accuracy':>18}{'training time':>15}"]
    for run in runs:
        lines.append(f"{run.title:<32}{run.rule:<8}{run.accuracy:>18.3f}{run.seconds:>13.1f} s")
    return "\n".join(lines)


def shortfalls(runs: Sequence[Run], least: float) -> list[str]:
    """One line for every training whose held-out accuracy stayed below ``least``."""
    return [
        f"{run.title}, {run.rule}: held-out accuracy {run.accuracy:.3f} is below {least:.3f}"
        for run in runs
        if run.accuracy < least
    ]
