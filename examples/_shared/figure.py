# SPDX-License-Identifier: Apache-2.0
"""Pictures that can be read on a light page and on a dark one: nothing behind, grey letters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

GREY = "#808080"
BLUE, ORANGE, GREEN, PINK, GOLD = "#3a8fd0", "#e0681a", "#1f9e77", "#c46aa8", "#b88a00"
COLOURS = (BLUE, ORANGE, GREEN, PINK, GOLD)

STYLE: dict[Any, Any] = {
    **dict.fromkeys(["text.color", "axes.labelcolor", "axes.edgecolor"], GREY),
    **dict.fromkeys(["xtick.color", "ytick.color", "legend.labelcolor"], GREY),
    **dict.fromkeys(["figure.facecolor", "axes.facecolor"], "none"),
    **dict.fromkeys(["axes.spines.top", "axes.spines.right", "legend.frameon"], False),
    "axes.titlesize": 10.5,
    "font.size": 9.5,
    "lines.linewidth": 1.6,
    "font.sans-serif": ["DejaVu Sans", "Verdana", "sans-serif"],
    "svg.fonttype": "none",  # letters stay letters
    "svg.hashsalt": "braintrace",  # the same picture is the same file
}


@contextmanager
def drawing(path: Path, *widths: float, height: float = 2.7) -> Iterator[Any]:
    """Axes side by side, of these relative widths, that are saved to ``path`` in the end."""
    with rc_context(STYLE):
        picture = Figure(figsize=(8.4, height), layout="constrained")
        yield picture.subplots(1, len(widths), width_ratios=widths, squeeze=False)[0]
        dateless = {"Date": None} if path.suffix == ".svg" else {}
        picture.savefig(path, dpi=120, metadata=dateless)
    print(f"figure: {path}")


def curve(axes: Axes, values: list[float], label: str, per: str = "epoch", **how: Any) -> None:
    """A learning curve; the first value is that after the first epoch."""
    marker = "o" if len(values) < 3 else None
    axes.plot(range(1, len(values) + 1), values, color=BLUE, marker=marker, **how)
    axes.set_xlabel(per)
    axes.set_ylabel(label)


def picture(axes: Axes, values: Any, title: str, **how: Any) -> None:
    """Numbers as colours, without ticks."""
    axes.imshow(values, aspect="auto", interpolation="nearest", **how)
    axes.set_title(title)
    axes.set_xticks([])
    axes.set_yticks([])
