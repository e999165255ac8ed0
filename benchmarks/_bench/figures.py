# SPDX-License-Identifier: Apache-2.0
"""The figures of a run, ratios by name, and the targets that they are held against."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any, NamedTuple

from .settings import (
    BPTT,
    DEFAULT,
    FRESH,
    PEER_PP,
    PEER_SCAN,
    PEER_SEQUENCE,
    PLAIN,
    PP,
    PP_TRACED,
    UPDATE,
)

Run = Mapping[str, Any]
Figures = dict[str, float]


def figures(run: Run) -> Figures:
    """All figures of a run."""
    found: Figures = {}
    for case, one in run.get("cases", {}).items():
        found |= {f"{case}: {name}": value for name, value in of_case(one).items()}
    for part, of in (("compile", of_compiling), ("import", of_importing), ("memory", of_memory)):
        if part in run:
            found |= of(run[part])
    return found


def seconds_of(one: Run, name: str, clock: str = "wall") -> float | None:
    """The median seconds of a contender that ran."""
    times = one["results"].get(name, {}).get(clock)
    return median(times) if times else None


def base(one: Run, clock: str = "wall") -> float:
    """Seconds of reverse mode through time: the faster of both networks."""
    times = [seconds_of(one, name, clock) for name in (BPTT.name, PLAIN.name)]
    return min(t for t in times if t is not None)


def of_case(one: Run) -> Figures:
    """Times over those of reverse mode, of a pass over the traces, and of the peer."""
    found: Figures = {}
    results, limits = one["results"], one["limits"]
    for name, result in results.items():
        seconds = seconds_of(one, name)
        if seconds is None:
            continue
        if result["work"] == "gradient":
            found[f"{name} / BPTT"] = seconds / base(one)
        else:
            found[f"{name} / pass"] = seconds / one["online_steps"] / limits["pass_s"]
    for name, of_ours in counterparts(results).items():
        peer, seconds = seconds_of(one, name), seconds_of(one, of_ours)
        if peer is not None and seconds is not None:
            found[f"{name} / ours"] = peer / seconds
    if DEFAULT.name in results:
        found["memory: D-RTRL / BPTT"] = (
            results[DEFAULT.name]["bytes"] / results[BPTT.name]["bytes"]
        )
        found["memory: D-RTRL, trace not kept / BPTT"] = (
            results.get(FRESH.name, results[DEFAULT.name])["bytes"] / results[BPTT.name]["bytes"]
        )
    return found


def counterparts(results: Run) -> dict[str, str]:
    """Which of ours each of the peer's is held against.

    For pp_prop that is the one for weights with a trace, where the peer gives no more weights a
    gradient (0.2.6 gives none to a readout), and otherwise the one for all weights.
    """
    given = {
        name: sum(distance is not None for distance in results[name].get("distances") or ())
        for name in (PEER_PP.name, PP_TRACED.name)
        if name in results
    }
    few = given.get(PEER_PP.name, 0) <= given.get(PP_TRACED.name, 0)
    return {
        PEER_SEQUENCE.name: DEFAULT.name,
        PEER_PP.name: (PP_TRACED if few else PP).name,
        PEER_SCAN.name: UPDATE.name,
    }


def of_compiling(part: Run) -> Figures:
    """Graph analysis over the peer's, tracing and compiling over BPTT's, and what comes again."""
    found: Figures = {}
    for cell, seconds in part["analysis"].items():
        found[f"graph analysis, {cell}: s"] = median(seconds["ours"])
        if "peer" in seconds:
            found[f"graph analysis, {cell}: ours / peer"] = median(seconds["ours"]) / median(
                seconds["peer"]
            )
    for model, by_contender in part["gradient"].items():
        total = {
            name: median(map(sum, zip(one["trace_s"], one["compile_s"], strict=True)))
            for name, one in by_contender.items()
        }
        found[f"compiling D-RTRL, {model} / BPTT"] = total[DEFAULT.name] / total[BPTT.name]
    found["programs compiled again"] = sum(part["again"].values())
    found["programs compiled in spite of a cache"] = part["cached"]["second"]
    return found


def of_importing(part: Run) -> Figures:
    """Milliseconds over bare Python, over the import of brainstate, and over its first product."""
    times = {name: 1e3 * median(seconds) for name, seconds in part.items()}
    found = {
        "import braintrace: ms": times["import braintrace"] - times["python"],
        "first operation over a first product: ms": times["first operation"]
        - times["first product"],
        "first operation over import brainstate: ms": times["first operation"]
        - times["import brainstate"],
        "import brainstate: ms": times["import brainstate"] - times["python"],
    }
    if "peer: import braintrace" in times:
        found["peer, import braintrace: ms"] = times["peer: import braintrace"] - times["python"]
    return found


def of_memory(part: Run) -> Figures:
    """Growth with the length of the sequence, and programs beside their largest array."""
    found: Figures = {}
    for model, lengths in part["growth"].items():
        short, long = (lengths[t] for t in sorted(lengths, key=int))
        for kind in ("program", "resident"):
            if short[kind]:
                found[f"memory of ten times the steps, {model}, {kind}"] = long[kind] / short[kind]
    for model, by_contender in part["space"].items():
        for kind in ("program", "resident"):
            reverse = by_contender[BPTT.name][kind]
            for name in (DEFAULT.name, FRESH.name):
                if reverse:
                    ratio = by_contender[name][kind] / reverse
                    found[f"memory, {model}, {name} / BPTT, {kind}"] = ratio
        few = by_contender["few"]
        found[f"memory, {model}, few steps / one trace"] = few["temporary"] / few["trace"]
    return found


# --- targets -------------------------------------------------------------------------------------


class Target(NamedTuple):
    """A figure and what it should be at most, or (``least``) at least."""

    figure: str
    bound: float
    least: bool = False

    def met(self, value: float) -> bool:
        """Whether a value reaches the target."""
        return value >= self.bound if self.least else value <= self.bound


GROWTH = "memory of ten times the steps, {}, program"
TARGETS = (
    Target("gru: D-RTRL / BPTT", 1.0),
    Target("gru: D-RTRL, trace not kept / BPTT", 0.7),
    Target("gru: peer D-RTRL / ours", 30, least=True),
    Target("lstm: D-RTRL / BPTT", 1.2),
    Target("lstm: peer D-RTRL / ours", 100, least=True),
    Target("lif: D-RTRL / BPTT", 1.2),
    Target("alif: D-RTRL / BPTT", 1.2),
    Target("stack: D-RTRL / BPTT", 1.2),
    Target(GROWTH.format("lif"), 1.05),
    Target(GROWTH.format("stack"), 1.05),
    Target("conv: D-RTRL / BPTT", 1.5),
    Target(f"memory, conv, {DEFAULT.name} / BPTT, program", 1.5),
    Target(f"memory, conv, {DEFAULT.name} / BPTT, resident", 1.5),
    Target("memory, conv, few steps / one trace", 0.5),
    Target("memory, lora, few steps / one trace", 0.5),
    Target("gru: pp_prop / BPTT", 0.4),
    *(
        Target(f"{case}: peer pp_prop / ours", 1.0, least=True)
        for case in ("gru lstm lru lif alif stack conv lora gru-small gru-wide lif-batch").split()
    ),
    Target("gru: online, etrace_update / pass", 2.5),
    Target("gru: online, a call per step / pass", 2.5),
    Target("gru: peer online, learner(x) / ours", 10, least=True),
    Target("graph analysis, gru: ours / peer", 1.0),
    Target("graph analysis, lstm: ours / peer", 1.0),
    Target("graph analysis, lif: ours / peer", 1.0),
    *(
        Target(f"compiling D-RTRL, {model} / BPTT", 1.5)
        for model in ("gru", "lstm", "lif", "stack")
    ),
    Target("programs compiled again", 0),
    Target("programs compiled in spite of a cache", 0),
    Target("import braintrace: ms", 20),
    Target("first operation over a first product: ms", 50),
    Target(GROWTH.format("gru"), 1.05),
    Target(GROWTH.format("gru").replace("program", "resident"), 1.05),
)


def verdicts(run: Run) -> list[tuple[Target, float | None]]:
    """Every target with its figure, ``None`` where it was not measured at these sizes."""
    found = {} if run["short"] else figures(run)
    return [(target, found.get(target.figure)) for target in TARGETS]
