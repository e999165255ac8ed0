# SPDX-License-Identifier: Apache-2.0
"""What a run found: a table, a comparison with an older run, a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from _bench.settings import BPTT, OURS, PEER, Sizes

AGREE = 1e-3  # relative, float32


def ratio(results: Mapping[str, Any], name: str) -> float:
    """Median wall time over that of BPTT."""
    return median(results[name]["wall"]) / median(results[BPTT.name]["wall"])


def table(case: str, found: Mapping[str, Any]) -> str:
    """All contenders of a case."""
    results = found["results"]
    lines = [
        f"{case}: {Sizes(**found['sizes'])}",
        f"{'':26}{'/ BPTT':>8}{'wall ms':>10}{'min':>10}{'CPU ms':>10}{'compile s':>11}"
        f"{'memory MiB':>12}{'equal':>7}{'runs':>6}",
    ]
    for name, one in results.items():
        wall, cpu = ([1e3 * v for v in one[clock]] for clock in ("wall", "cpu"))
        away = one["distances"]
        same = f"{sum(d < AGREE for d in away)}/{len(away)}"
        lines.append(
            f"  {name:24}{ratio(results, name):8.2f}{median(wall):10.1f}{min(wall):10.1f}"
            f"{median(cpu):10.1f}{one['graph_s'] + one['compile_s']:11.2f}"
            f"{one['bytes'] / 2**20:12.1f}{same:>7}{len(wall):6}"
        )
    return "\n".join(lines)


LEGEND = f"""\
equal: parameter arrays whose gradient is that of {OURS[0].name!r}. BPTT follows another rule,
and the peer does not treat every parameter; all others must agree. memory: arguments, results and
temporary arrays of the compiled program."""


def disagreements(case: str, found: Mapping[str, Any]) -> list[str]:
    """This library's contenders whose gradients differ by more than round-off."""
    ours = [contender.name for contender in OURS if contender.name in found["results"]]
    return [
        f"{case}: gradients of {name!r} and {OURS[0].name!r} differ"
        for name in ours
        if not all(away < AGREE for away in found["results"][name]["distances"])
    ]


def comparison(new: Mapping[str, Any], old: Mapping[str, Any]) -> str:
    """Ratios to BPTT of two runs, where both measured the same."""
    lines = [f"{'ratio to BPTT':38}{'before':>8}{'now':>8}{'change':>9}"]
    for case, found in new["cases"].items():
        before = old["cases"].get(case)
        if before is None or before["sizes"] != found["sizes"]:
            continue
        for name in found["results"]:
            if name in before["results"] and name != BPTT.name:
                a, b = ratio(before["results"], name), ratio(found["results"], name)
                lines.append(f"  {case:10}{name:26}{a:8.2f}{b:8.2f}{100 * (b / a - 1):+8.0f}%")
    return "\n".join(lines) if len(lines) > 1 else "Nothing in common with the older run."


def figure(cases: Mapping[str, Any], path: Path) -> None:
    """Bars of the time over BPTT's, one group per case, on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = math.ceil(len(cases) / 2)
    size = (11.0 if len(cases) > 1 else 6.0, 2.8 * rows)
    columns = min(2, len(cases))
    canvas, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    for axis, (case, found) in zip(axes.flat, cases.items(), strict=False):
        names: Sequence[str] = list(found["results"])[::-1]
        bars = axis.barh(
            names,
            [ratio(found["results"], name) for name in names],
            color=["C7" if n == BPTT.name else "C3" if n == PEER.name else "C0" for n in names],
        )
        axis.bar_label(bars, fmt="%.2g", padding=2, fontsize=8)
        axis.axvline(1.0, color="C7", linewidth=0.8)
        axis.set(xscale="log", title=f"{case}: {Sizes(**found['sizes'])}", xlabel="time / BPTT")
        axis.margins(x=0.15)
    for axis in axes.flat[len(cases) :]:
        axis.set_axis_off()
    canvas.savefig(path, dpi=150)
    plt.close(canvas)
