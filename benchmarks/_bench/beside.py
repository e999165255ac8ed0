# SPDX-License-Identifier: Apache-2.0
"""The picture at the head of the page of benchmarks, drawn from the page's own table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"
PICTURE = PAGE.parent / "pictures" / "benchmarks.svg"
HEAD = "| case | D-RTRL / BPTT |"
#: Columns of the table, and what the bars of each are called.
BARS = {3: "D-RTRL", 7: "an update at every step", 5: "pp_prop, all weights"}
COLOURS = ("#2f6fb2", "#e08a1e", "#7a7f87")


def ratios(text: str) -> dict[str, dict[str, float]]:
    """Per case the peer's time over ours, by what was done; cases without a peer are left out."""
    _, found, rest = text.partition(HEAD)
    if not found:
        raise ValueError(f"the page has no table that begins with {HEAD!r}")
    rows: dict[str, dict[str, float]] = {}
    for line in rest.partition("\n##")[0].splitlines()[2:]:
        cells = [cell.strip() for cell in line.strip("| ").split("|")]
        if line.startswith("|") and len(cells) > max(BARS):
            numbers = {what: cells[i] for i, what in BARS.items()}
            rows[cells[0]] = {w: float(n) for w, n in numbers.items() if re.fullmatch(r"[\d.]+", n)}
    return {case: found for case, found in rows.items() if found}


def draw(cases: dict[str, dict[str, float]], path: Path) -> None:
    """Bars on a logarithmic axis: right of the line this library is faster."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"})
    import matplotlib.pyplot as plt

    canvas, axis = plt.subplots(figsize=(9, 0.62 * len(cases) + 0.9), layout="constrained")
    for height, found in enumerate(reversed(cases.values())):
        for k, (what, colour) in enumerate(zip(BARS.values(), COLOURS, strict=True)):
            if what in found:
                _bar(axis, height + 0.26 * (1 - k), found[what], colour)
    for what, colour in zip(BARS.values(), COLOURS, strict=True):
        axis.barh([0], [0], color=colour, label=what)
    axis.axvline(1.0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(cases)), [*reversed(cases)])
    axis.set(xscale="log", xlim=(0.3, 400), ylim=(-0.6, len(cases) - 0.4))
    axis.set_xticks([1, 10, 100], ["1", "10", "100"])
    axis.set_xlabel("time of the peer / time of this library")
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(BARS), frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    canvas.savefig(path, metadata={"Date": None})
    plt.close(canvas)


def _bar(axis: Any, height: float, ratio: float, colour: str) -> None:
    drawn = axis.barh([height], [ratio - 1], left=1, height=0.24, color=colour)
    axis.bar_label(drawn, [f"{ratio:g}"], padding=2, fontsize=8)


if __name__ == "__main__":
    draw(ratios(PAGE.read_text(encoding="utf-8")), PICTURE)
