# SPDX-License-Identifier: Apache-2.0
"""What a run found, as text: tables, verdicts, a comparison with an older run, a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from .figures import base, figures, verdicts
from .settings import BPTT, PEER_DIFFERS, Contender, Sizes, model_of, reference

AGREE = 1e-3  # relative, float32

Run = Mapping[str, Any]
Row = Sequence[str]


def table(case: str, found: Run) -> list[Row]:
    """All contenders of a case, under a row of titles."""
    titles = (
        "",
        "/ BPTT",
        "CPU / BPTT",
        "/ limit",
        "wall ms",
        "min",
        "CPU ms",
        "compile s",
        "memory MiB",
    )
    rows: list[Row] = [(*titles, "equal", "runs")]
    limits = found["limits"]["seconds"]
    for name, one in found["results"].items():
        if "error" in one:
            rows.append((name, one["error"]))
            continue
        wall, cpu = ([1e3 * v for v in one[clock]] for clock in ("wall", "cpu"))
        seconds = median(wall) / 1e3
        gradient = one["work"] == "gradient"
        rows.append(
            (
                name,
                f"{seconds / base(found):.2f}" if gradient else "",
                f"{median(cpu) / 1e3 / base(found, 'cpu'):.2f}" if gradient else "",
                f"{seconds / limits[name]:.1f}" if name in limits else "",
                f"{median(wall):.1f}",
                f"{min(wall):.1f}",
                f"{median(cpu):.1f}",
                f"{one['trace_s'] + one['compile_s']:.2f}",
                f"{one['bytes'] / 2**20:.1f}",
                equal(one.get("distances")),
                str(len(wall)),
            )
        )
    return rows


def equal(distances: Sequence[float | None] | None) -> str:
    """How many arrays are those of the reference."""
    if distances is None:
        return ""
    return f"{sum(d is not None and d < AGREE for d in distances)}/{len(distances)}"


def title(case: str, found: Run) -> str:
    """Sizes of a case, and the rates that its limits are made of."""
    limits = found["limits"]
    counts = limits["counts"]
    return (
        f"{case}: {Sizes(**found['sizes'])}; online: {found['online_steps']} steps\n"
        f"  a step: {counts['forward'] / 1e6:.3g} MFLOP forward, as much for weights, "
        f"{counts['signals'] / 1e6:.3g} for signals, {counts['history'] / 1e6:.3g} more for BPTT; "
        f"traces {limits['trace_bytes'] / 2**20:.3g} MiB\n"
        f"  this machine: {limits['step_rate'] / 1e9:.3g} GFLOP/s step by step, "
        f"{limits['batched_rate'] / 1e9:.3g} for all steps at once, "
        f"{1e3 * limits['pass_s']:.3g} ms to read and write the traces"
    )


LEGEND = """\
/ BPTT: wall time over that of the faster BPTT; CPU / BPTT: time of the processor, which other
programs disturb less. / limit: over what this machine needs at least; _bench/roofline.py says what
is counted. memory: arguments, results and temporary arrays of the compiled program.
equal: arrays (gradients; for online learning, weights at the end) that are those of the first
contender with the same rule (of BPTT, for a model of which D-RTRL is BPTT; elsewhere BPTT is
another rule). The peer does not treat every parameter."""


def lines(rows: Sequence[Row]) -> Iterator[str]:
    """Rows as text, the first column to the left."""
    full = [row for row in rows if len(row) == len(rows[0])]
    widths = [max(len(row[i]) for row in full) for i in range(len(rows[0]))]
    for row in rows:
        if len(row) == len(rows[0]):
            cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            yield f"  {row[0]:{widths[0]}}  {'  '.join(cells)}"
        else:
            yield f"  {row[0]:{widths[0]}}  {row[1]}"


def text(case: str, found: Run) -> str:
    """A case for the terminal."""
    return "\n".join([title(case, found), *lines(table(case, found))])


# --- targets -------------------------------------------------------------------------------------


def judged(run: Run) -> list[Row]:
    """Every target, what was measured, and whether that is enough."""
    rows: list[Row] = [("", "target", "measured", "")]
    found = verdicts(run)
    for target, value in found:
        if value is not None:
            bound = f"{'>=' if target.least else '<='} {target.bound:g}"
            verdict = "met" if target.met(value) else "NOT MET"
            rows.append((target.figure, bound, f"{value:.3g}", verdict))
    missing = sum(value is None for _, value in found)
    return [*rows, (f"{missing} more were not measured", "", "", "")] if missing else rows


def others(run: Run) -> list[Row]:
    """The figures of the parts besides the cases."""
    chosen = {part: run[part] for part in ("compile", "import", "memory") if part in run}
    return [("", "measured"), *((k, f"{v:.4g}") for k, v in figures(chosen).items())]


def disagreements(case: str, found: Run, contenders: Sequence[Contender]) -> list[str]:
    """Contenders whose results differ by more than round-off from those of the same rule."""
    wrong = []
    for one in contenders:
        distances = found["results"].get(one.name, {}).get("distances")
        other = reference(one, case)
        if distances is None or other is None or not _must_agree(one, case):
            continue
        judged = [d for d in distances if not (d is None and (one.peer or one.traced))]
        if not all(d is not None and d < AGREE for d in judged):
            wrong.append(f"{case}: the results of {one.name!r} and {other.name!r} differ")
    return wrong


def _must_agree(one: Contender, case: str) -> bool:
    if not one.peer:
        return True
    return one.work == "gradient" and model_of(case) not in PEER_DIFFERS[one.rule]


def comparison(new: Run, old: Run) -> str:
    """Figures of two runs, where both measured the same."""
    same = {
        case: found
        for case, found in new.get("cases", {}).items()
        if old.get("cases", {}).get(case, {}).get("sizes") == found["sizes"]
    }
    before, now = figures(old), figures({**new, "cases": same})
    rows: list[Row] = [("", "before", "now", "change")]
    for name, value in now.items():
        if name in before and not name.endswith(f": {BPTT.name} / BPTT"):
            change = f"{100 * (value / before[name] - 1):+.0f} %" if before[name] else ""
            rows.append((name, f"{before[name]:.3g}", f"{value:.3g}", change))
    return "\n".join(lines(rows)) if len(rows) > 1 else "Nothing in common with the older run."


# --- a page --------------------------------------------------------------------------------------


def markdown(run: Run) -> str:
    """Verdicts and tables for a page of the documentation."""
    versions = [found["versions"]["ours"] for found in run.get("cases", {}).values()][:1]
    known = {**run["machine"], **(versions[0] if versions else {})}
    known["peer"] = run.get("peer", "left out")
    facts = ", ".join(f"{key} {value}" for key, value in known.items())
    parts = [f"Measured on: {facts}.", "### Targets", _markdown_table(judged(run))]
    for case, found in run.get("cases", {}).items():
        heading, *facts_of_case = title(case, found).splitlines()
        rows = [row if len(row) > 2 else (row[0], row[1]) for row in table(case, found)]
        parts += [f"### {heading}", "; ".join(map(str.strip, facts_of_case)) + "."]
        parts.append(_markdown_table(rows))
    if len(others(run)) > 1:
        parts += ["### Compiling, importing, memory", _markdown_table(others(run))]
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Sequence[Row]) -> str:
    width = len(rows[0])
    body = [f"| {' | '.join([*row, *[''] * (width - len(row))])} |" for row in rows]
    return "\n".join([body[0], "|---" + "|--:" * (width - 1) + "|", *body[1:]])


MARKS = ("<!-- measured -->", "<!-- end of measured -->")


def write_markdown(run: Run, path: Path) -> None:
    """Write the tables to a page, in one that is there already between its two marks.

    Raises
    ------
    RuntimeError
        When there is a page without them.
    """
    start, end = MARKS
    page = path.read_text() if path.exists() else f"{start}\n{end}\n"
    before, found, rest = page.partition(start)
    _, also_found, after = rest.partition(end)
    if not (found and also_found):
        raise RuntimeError(f"{path} exists and has no lines {start} and {end} to write between")
    path.write_text(f"{before}{start}\n\n{markdown(run)}\n{end}{after}")
