# SPDX-License-Identifier: Apache-2.0
"""A figure of a run: time over that of reverse mode, one panel per case."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from .figures import base
from .settings import Sizes


def draw(cases: Mapping[str, Any], path: Path) -> None:
    """Bars on a logarithmic axis; a tick on each bar says where this machine's limit is."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(2, len(cases))
    rows = math.ceil(len(cases) / columns)
    tallest = max(len(bars(found)) for found in cases.values())
    size = (5.8 * columns, (0.22 * tallest + 1.1) * rows)
    canvas, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, (case, found) in zip(axes.flat, cases.items(), strict=False):
        _panel(axis, case, found)
    for axis in axes.flat[len(cases) :]:
        axis.set_axis_off()
    canvas.savefig(path, dpi=130)
    plt.close(canvas)


def bars(found: Mapping[str, Any]) -> dict[str, tuple[float, float | None]]:
    """Time and limit over BPTT's time, by contender; online learning for as many steps."""
    scale, limits = base(found), found["limits"]["seconds"]
    part = {"gradient": 1.0, "online": found["online_steps"] / found["sizes"]["steps"]}
    return {
        name: (
            median(one["wall"]) / scale / part[one["work"]],
            limits[name] / scale / part[one["work"]] if name in limits else None,
        )
        for name, one in found["results"].items()
        if "error" not in one
    }


def colour(name: str) -> str:
    """Grey for reverse mode, red for the peer, orange for updates at every step."""
    if name.startswith("BPTT"):
        return "C7"
    return "C3" if name.startswith("peer") else "C1" if name.startswith("online") else "C0"


def _label(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"


def _panel(axis: Any, case: str, found: Mapping[str, Any]) -> None:
    shown = dict(reversed(bars(found).items()))
    names, times = list(shown), [time for time, _ in shown.values()]
    drawn = axis.barh(names, times, color=[colour(name) for name in names])
    axis.bar_label(drawn, fmt=_label, padding=2, fontsize=7)
    for height, (_, limit) in enumerate(shown.values()):
        if limit is not None:
            axis.plot([limit, limit], [height - 0.4, height + 0.4], color="black", linewidth=1.2)
    axis.axvline(1.0, color="C7", linewidth=0.8)
    axis.set(xscale="log", xlabel="time / BPTT (black: this machine's limit)")
    axis.set_title(f"{case}: {Sizes(**found['sizes'])}", fontsize=9)
    axis.tick_params(labelsize=7)
    axis.margins(x=0.15)
