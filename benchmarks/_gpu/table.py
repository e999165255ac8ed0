# SPDX-License-Identifier: Apache-2.0
"""What a run found, as tables of a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

from _bench.report import AGREE, equal
from _bench.settings import BPTT, PLAIN, Sizes

Run = Mapping[str, Any]
Row = Sequence[str]
MIB = 2**20

LEGEND = """\
/ BPTT: median time over that of the faster BPTT of the same run. us/step: median time of a step.
/ pass: time of a step of online learning over that of reading and writing all traces once, at the
bandwidth above. memory: arguments, results and temporary arrays of the compiled program, without
the sequences. peak: how far the allocator's peak grew, where it did. kernels/step: instructions of
the compiled program that start something on the device. equal: arrays that are those of the first
contender with the same rule. Without a note, products are in float32 without TF32."""


def text(run: Run) -> str:
    """The whole page."""
    facts = run.get("versions", {}).get("ours", {})
    bandwidth = run.get("bandwidth", {}).get("bytes_per_s", 0)
    parts = ["# Measured on a GPU"]
    parts.append(", ".join(f"{k} {v}" for k, v in facts.items()))
    parts.append(f"Reading and writing: {bandwidth / 1e9:.0f} GB/s. {run['seconds']:.0f} s in all.")
    parts += ["## Errors against the CPU's float64", *checks(run.get("checks", {}))]
    for name, case in run.get("cases", {}).items():
        parts += [heading(name, case), markdown(rows(case, bandwidth))]
    for name, case in run.get("profiles", {}).items():
        parts += [heading(name, case), markdown(profile_rows(case))]
    parts += [f"{name} failed: {why}" for name, why in run.get("failed", {}).items()]
    if run.get("left_out"):
        parts.append(f"No time was left for: {', '.join(run['left_out'])}.")
    return "\n\n".join([*parts, LEGEND]) + "\n"


def heading(name: str, case: Run) -> str:
    """The title of a case."""
    note = "" if case["precision"] == "float32" else ", products in JAX's default precision"
    return f"## {name}: {Sizes(**case['sizes'])}{note}"


def checks(found: Run) -> Iterator[str]:
    """The largest error of an array, by model and contender."""
    titles = ("model", "products", "contender", "largest error", f"below {AGREE:g}")
    table: list[Row] = [titles]
    for model, precision, name, one in each_check(found):
        if "error" in one:
            table.append((model, precision, name, one["error"], ""))
        else:
            arrays = one["distances"]
            table.append((model, precision, name, f"{largest(arrays):.1e}", equal(arrays)))
    yield markdown(table)


def each_check(found: Run) -> Iterator[tuple[str, str, str, Any]]:
    """Model, precision, contender and what was found."""
    for model, by_precision in found.items():
        for precision, by_name in by_precision.items():
            for name, one in by_name.items():
                yield model, precision, name, one


def largest(arrays: Sequence[float | None]) -> float:
    """The largest distance; that of an array of zeros is one."""
    return max(1.0 if one is None else one for one in arrays)


def disagreements(found: Run) -> list[str]:
    """Checks in float32 that failed."""
    return [
        f"{model}: {name} {'was not compared: ' + one['error'] if 'error' in one else 'is wrong'}"
        for model, precision, name, one in each_check(found)
        if precision == "float32" and not ("error" not in one and largest(one["distances"]) < AGREE)
    ]


def rows(case: Run, bandwidth: float) -> list[Row]:
    """All contenders of a case, under a row of titles."""
    titles = ("/ BPTT", "ms", "min", "us/step", "/ pass", "compile s", "memory MiB", "peak MiB")
    table: list[Row] = [("", *titles, "kernels/step", "equal", "runs")]
    for name, one in case["results"].items():
        if not one.get("wall"):
            table.append((name, one.get("error", "no time was left")))
            continue
        seconds = median(one["wall"])
        table.append(
            (
                name + (f" ({one['error']})" if "error" in one else ""),
                _over(seconds, base(case)) if one["work"] == "gradient" else "",
                f"{1e3 * seconds:.2f}",
                f"{1e3 * min(one['wall']):.2f}",
                f"{1e6 * seconds / one['steps']:.1f}",
                _passes(one, seconds, bandwidth),
                f"{one['trace_s'] + one['compile_s']:.1f}",
                f"{one['bytes'] / MIB:.1f}",
                "" if one["peak"] is None else f"{one['peak'] / MIB:.0f}",
                f"{one['kernels_per_step']:.2f}",
                equal(one.get("distances")),
                str(len(one["wall"])),
            )
        )
    return table


def base(case: Run) -> float | None:
    """Seconds of the faster BPTT, if one ran."""
    walls = [case["results"].get(one.name, {}).get("wall") for one in (BPTT, PLAIN)]
    return min((median(wall) for wall in walls if wall), default=None)


def _over(seconds: float, other: float | None) -> str:
    return "" if other is None else f"{seconds / other:.2f}"


def _passes(one: Run, seconds: float, bandwidth: float) -> str:
    if one["work"] != "online" or not one["trace_bytes"] or not bandwidth:
        return ""
    return f"{seconds / one['steps'] * bandwidth / (2 * one['trace_bytes']):.2f}"


def profile_rows(case: Run) -> list[Row]:
    """Kernels, copies and busy time that the profiler saw."""
    table: list[Row] = [("profiled", "kernels/step", "copies/step", "busy ms", "busy us/step")]
    for name, one in case["results"].items():
        if "kernels" not in one:
            table.append((name, one.get("error", "")))
            continue
        steps, busy = one["steps"], one["busy_s"]
        per_step = [f"{one[key] / steps:.2f}" for key in ("kernels", "copies")]
        table.append((name, *per_step, f"{1e3 * busy:.2f}", f"{1e6 * busy / steps:.1f}"))
    return table


def markdown(table: Sequence[Row]) -> str:
    """Rows, the first of them titles, as a table of Markdown."""
    width = len(table[0])
    body = [f"| {' | '.join([*row, *[''] * (width - len(row))])} |" for row in table]
    return "\n".join([body[0], "|---" + "|--:" * (width - 1) + "|", *body[1:]])
