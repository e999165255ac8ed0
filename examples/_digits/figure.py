# SPDX-License-Identifier: Apache-2.0
"""The picture of a comparison: learning curves above, the spikes of one digit below."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _shared.digits import SIDE
from _shared.figure import BLUE, ORANGE, STYLE
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator, StrMethodFormatter

from .held_out import Raster
from .results import Run

#: Told apart with any colour vision; dashes tell them apart in grey.
STYLES: dict[str, dict[str, Any]] = {
    "D-RTRL": {"color": BLUE, "linestyle": "-"},
    "BPTT": {"color": ORANGE, "linestyle": (0, (4, 2))},
}
ERROR_TICKS = (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
#: Where a network without errors is drawn on the logarithmic axis: about one digit of 450.
LEAST_ERROR = 0.2


def save(runs: Sequence[Run], path: Path) -> None:
    """Draw all trainings of one program run into ``path`` (.png, .pdf or .svg)."""
    with rc_context(STYLE):
        _save(runs, path)


def _save(runs: Sequence[Run], path: Path) -> None:
    spiking = [run for run in runs if run.rasters]
    picture = Figure(figsize=(9.0, 6.6 if spiking else 3.8), layout="constrained", dpi=150)
    parts = picture.subfigures(2 if spiking else 1, 1, squeeze=False, hspace=0.06).ravel()
    _curves(parts[0], runs)
    if spiking:
        _spikes(parts[1], spiking[0])
    picture.savefig(path)


def _curves(part: SubFigure, runs: Sequence[Run]) -> None:
    titles = list(dict.fromkeys(run.title for run in runs))
    panels = part.subplots(1, len(titles), sharey=True, squeeze=False).ravel()
    for axes, title in zip(panels, titles, strict=True):
        _error_curves(axes, [run for run in runs if run.title == title])
        axes.set_title(title, fontsize=11)
    panels[0].set_ylabel("held-out digits misread (%)")
    least = min(min(_misread(run)) for run in runs)
    _error_axis(panels[0], least if least < 1.0 else 1.0)


def _misread(run: Run) -> list[float]:
    """Per cent of the held-out digits, one value per epoch."""
    return [max(LEAST_ERROR, 100.0 * (1.0 - right)) for right in run.accuracies]


def _error_curves(axes: Axes, runs: Sequence[Run]) -> None:
    for run in runs:
        num_epochs = len(run.accuracies)
        axes.plot(
            range(1, num_epochs + 1),
            _misread(run),
            label=f"{run.rule}: {100.0 * (1.0 - run.accuracy):.1f} % at the end",
            marker="o" if num_epochs < 5 else None,
            linewidth=1.8,
            **STYLES[run.rule],
        )
        axes.set_xlim(0.0, 1.04 * num_epochs)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)


def _error_axis(axes: Axes, least: float) -> None:
    axes.set_yscale("log")
    axes.set_yticks([tick for tick in ERROR_TICKS if tick >= least])
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.minorticks_off()
    axes.set_ylim(least, 100.0)


def _spikes(part: SubFigure, run: Run) -> None:
    before, after = run.rasters
    panels = part.subplots(1, 3, width_ratios=(0.55, 1.0, 1.0))
    _digit(panels[0], before)
    _raster(panels[1], before)
    _raster(panels[2], after)
    panels[1].set_title(f"Before training: read as {before.answer}", fontsize=11)
    panels[2].set_title(f"After {run.rule}: read as {after.answer}", fontsize=11)
    panels[1].set_ylabel("neuron")
    panels[2].sharey(panels[1])
    panels[2].tick_params(labelleft=False)


def _digit(axes: Axes, raster: Raster) -> None:
    axes.imshow(raster.image.reshape(SIDE, SIDE), cmap="gray", vmin=0.0, vmax=1.0)
    axes.set_title(f"Held-out digit {raster.label}", fontsize=11)
    axes.set_xticks([])
    axes.set_yticks([])


def _raster(axes: Axes, raster: Raster) -> None:
    num_steps, num_units = raster.spikes.shape
    axes.imshow(
        raster.spikes.T,
        aspect="auto",
        cmap="gray",
        extent=(0.5, num_steps + 0.5, num_units - 0.5, -0.5),
        interpolation="nearest",
    )
    axes.set_xlabel("time step")
    axes.spines[["top", "right"]].set_visible(False)
