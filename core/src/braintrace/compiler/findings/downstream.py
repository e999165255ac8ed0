# SPDX-License-Identifier: Apache-2.0
"""Findings about credit that passes through the layers above, or stops there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

from ...base import versions
from ...base.diagnostics import CompilationRecord
from ...base.types import Path, show_path
from ...jaxprs.depends import marks_of
from ..exact.find import MOST_VALUES
from ..graph import ETraceGraph
from ..groups import HiddenGroup, groups_of_new
from ..module_info import DYNAMIC, CreditFilter, Marks
from .record import Kind, info, warning

Paths = tuple[Path, ...]

PASSES = info(
    Kind.UNIFORM_DYNAMICS,
    "the dynamics of {states} are linear and the same everywhere: credit passes through to what "
    "drives it ({filters})",
    "Nothing to do",
)
EXACT = info(
    Kind.EXACT_CREDIT,
    "what {lower} does to later values of {states} gets exact credit: each value, {count} in "
    "all, is one more state of {lower}, whose traces have {now} states in place of {before}, and "
    "each step makes a reverse sweep of the part above for each",
    "Nothing to do; downstream='linear' leaves that credit out, and costs less",
)
JOINED = info(
    Kind.HIDDEN_GROUP_MERGED,
    "{lower} and {states} depend on one another position by position: they are one group of the "
    "rule, and credit passes between them",
    "Nothing to do; downstream='step' keeps them apart",
)
STOPS = info(
    Kind.CREDIT_STOPS,
    "what {lower} does to later values of {states} gets no credit: {why}",
    "Make the leak above the same everywhere and detach its reset, ask for downstream='exact' if "
    "it has few values, or learn in windows (vjp_method='multi-step')",
)
UNHEARD = warning(
    Kind.CREDIT_STOPS,
    "the result of the model hears of {lower} through later values of {states} alone, and credit "
    "stops there: {why}. At single steps the gradient of {parameters} is zero",
    STOPS.remedy,
)
STAYS = info(
    Kind.CREDIT_STOPS,
    "the dynamics of {states} are linear and the same everywhere, but the leaks stay where they "
    "are, so that later values get no credit: {why}",
    "Nothing to do; downstream='step' asks for this rule",
)

WITHIN = info(
    Kind.CREDIT_STOPS,
    "what {lower} does to later values of {states} gets no credit: {why}{zero}",
    "Nothing to do where that is meant; with downstream='linear' it passes what is linear and the "
    "same everywhere",
)
AS_WRITTEN = info(
    Kind.CREDIT_STOPS,
    "credit is as with downstream='step', and kappa, if there is one, filters the traces: {why}",
    "Nothing to do; downstream='step' asks for this rule",
)


def as_written(graph: ETraceGraph, why: str) -> ETraceGraph:
    """The graph with the step as it is written, whose leaks do not move, with a record of why."""
    kept = (r for r in graph.diagnostics if r.kind is not Kind.UNIFORM_DYNAMICS)
    paths, told = tuple(graph.uniform), {"why": why}
    stays = STAYS(hidden_paths=paths, context=told) if paths else AS_WRITTEN(context=told)
    return replace(
        graph,
        filtered=None,
        moving=None,
        uniform={},
        not_uniform={**graph.not_uniform, **dict.fromkeys(graph.uniform, why)},
        diagnostics=(*kept, stays),
    )


def downstream_findings(graph: ETraceGraph) -> Iterator[CompilationRecord]:
    """Which states have filters in front of them, and at which layers credit stops all the same."""
    moved = {} if graph.moving is None else graph.moving.filters
    for path, state in graph.uniform.items():
        found = {one.key[0]: one.type.shape for one in moved.values() if one.of == path}
        shapes = [shape for atom, shape in found.items() if atom in state.sources]
        if shapes:
            groups = (g for g in graph.executed.hidden_groups if path in _filters(g))
            below = tuple(own for group in groups for own in _own(graph, group))
            filters = ", ".join(f"a filter {[*s]}" for s in shapes) + _of_kappa(graph, path)
            yield PASSES(hidden_paths=(path,), context={"filters": filters, "below": below})
    for below, above, count, before in () if graph.exact is None else graph.exact.costs():
        lower, told = ", ".join(map(show_path, below)), {"below": below, "count": count}
        told |= {"before": before, "now": before + count}
        yield EXACT(hidden_paths=above, context=told, lower=lower)
    yield from _joined(graph)
    if graph.uniform or graph.not_uniform:
        yield from _stops(graph)
    if graph.uniform:
        yield from _stops_in_groups(graph)
        yield from _loops(graph)


def _of_kappa(graph: ETraceGraph, path: Path) -> str:
    """What it means that kappa stands for a leak that changes in time."""
    atoms = (f.atom for factors in graph.uniform[path].leak for f in factors)
    if (
        graph.moving is None
        or graph.moving.kappa is None
        or not any(DYNAMIC in graph.module_info.behind(atom) for atom in atoms if atom is not None)
    ):
        return ""
    return (
        " with kappa in place of a leak that changes from step to step: credit passes also where "
        "that leak is zero, as at the end of an episode"
    )


def _joined(graph: ETraceGraph) -> Iterator[CompilationRecord]:
    """Groups of the model that are one group of the rule."""
    for group in () if graph.filtered is None else graph.executed.hidden_groups:
        members = [(path, graph.hid_path_to_group[path].index) for path in _own(graph, group)]
        first = tuple(path for path, index in members if index == members[0][1])
        if rest := tuple(path for path, index in members if index != members[0][1]):
            lower = ", ".join(map(show_path, first))
            yield JOINED(hidden_paths=rest, context={"below": first}, lower=lower)


def published_findings(graph: ETraceGraph) -> Iterator[CompilationRecord]:
    """Between which layers there is credit within a step alone, as ``downstream='step'`` asks.

    That is meant, so that no record of it is a warning.
    """
    for _, above, below, silent in _pairs(graph):
        names = ", ".join(sorted(map(show_path, silent)))
        zero = f". At single steps the gradient of {names} is zero" if silent else ""
        told = {"below": below, "why": "downstream='step' is the rule as it is published"}
        lower = ", ".join(map(show_path, below))
        yield WITHIN(hidden_paths=above, context=told, lower=lower, zero=zero)


def _stops(graph: ETraceGraph) -> Iterator[CompilationRecord]:
    for group, above, below, silent in _pairs(graph):
        yield (UNHEARD if silent else STOPS)(
            hidden_paths=above,
            context={"below": below, "why": _why(graph, group, above)},
            lower=", ".join(map(show_path, below)),
            parameters=", ".join(sorted(map(show_path, silent))),
        )


def _pairs(graph: ETraceGraph) -> Iterator[tuple[HiddenGroup, Paths, Paths, frozenset[Path]]]:
    """A group, its states, and those of one below to whose credit it does not pass later values.

    Last, the parameters of which the result of the model hears in no other way.
    """
    executed = graph.executed
    info = executed.module_info
    seeds: dict[Any, Marks] = {v: frozenset({p}) for (p, _), v in info.parameter_leaves.items()}
    seeds |= {v: frozenset({g.index}) for g in executed.hidden_groups for v in g.hidden_invars}
    behind = partial(marks_of, info.credit(seeds, emits=groups_of_new(executed.hidden_groups)))
    heard = behind(info.jaxpr.outvars[: info.num_out])
    heard |= {
        path
        for relation in executed.hidden_param_op_relations
        if heard.intersection(relation.group_alignments)
        for path in relation.parameter_paths
    }
    lower: dict[int, tuple[Paths, frozenset[Path]]] = {}
    for group in executed.hidden_groups:
        unheard = behind(group.hidden_outvars) - heard if group.index not in heard else ()
        silent = frozenset(p for p in unheard if isinstance(p, tuple)) - graph.frozen
        lower[group.index] = _shown(graph, group), silent
    for group in executed.hidden_groups:
        above = _shown(graph, group)
        if graph.moving and graph.moving.keeps_traces:  # to uniform ones, credit passes through
            above = tuple(path for path in above if path not in graph.uniform)
        for index in sorted(i for i in behind(group.hidden_outvars) if isinstance(i, int)):
            if index == group.index or not above:
                continue
            yield group, above, *lower[index]


def _stops_in_groups(graph: ETraceGraph) -> Iterator[CompilationRecord]:
    """Filters that read the states of their own group at other positions than their own."""
    executed = graph.executed
    for group, cone in zip(executed.hidden_groups, executed.cones, strict=True):
        own, filters = _own(graph, group), _filters(group)
        if not (own and filters and cone.offence is not None):
            continue
        if all(graph.cones[graph.hid_path_to_group[path].index].offence for path in own):
            continue  # it is so without the filters, and said
        why = f"positions are mixed by {versions.place_of(cone.offence)}"
        lower = ", ".join(map(show_path, own))
        yield STOPS(hidden_paths=filters, context={"below": own, "why": why}, lower=lower)


def _own(graph: ETraceGraph, group: HiddenGroup) -> tuple[Path, ...]:
    """The states of a group that are the model's own."""
    return tuple(path for path in group.hidden_paths if path in graph.hid_path_to_group)


def _filters(group: HiddenGroup) -> tuple[Path, ...]:
    """The uniform states that filters of a group stand for."""
    filters = (s.of for s in group.hidden_states if isinstance(s, CreditFilter))
    return tuple(dict.fromkeys(filters))


def _loops(graph: ETraceGraph) -> Iterator[CompilationRecord]:
    """Uniform states that one below them reads: that is a recurrent product of its group."""
    info = graph.module_info
    olds = {var: path for path, var in info.hidden_path_to_invar.items()}
    states = olds | dict(info.outvar_to_hidden_path)
    for path, uniform in graph.uniform.items():
        others = dict.fromkeys(states[v] for v, s in uniform.sources.items() if s.loop)
        for other in others:
            why = "the two drive one another, and recurrent products are cut"
            told = {"below": (other,), "why": why}
            yield STOPS(hidden_paths=(path,), context=told, lower=show_path(other))
    for group in graph.executed.hidden_groups:
        own = _own(graph, group)
        for path in sorted({*_filters(group)} & {*graph.uniform} - {*own}):
            marks = info.credit({info.hidden_path_to_invar[path]: frozenset({0})})
            read = [p for p in own if marks.get(info.hidden_path_to_outvar[p])]
            if read:
                why = "the layers recur together by that, and recurrent products are cut"
                told = {"below": (path,), "why": why}
                yield STOPS(hidden_paths=tuple(read), context=told, lower=show_path(path))


def _shown(graph: ETraceGraph, group: HiddenGroup) -> tuple[Path, ...]:
    """The states of a group; those that its filters stand for, if it has no other."""
    return _own(graph, group) or _filters(group)


def _why(graph: ETraceGraph, group: HiddenGroup, paths: tuple[Path, ...]) -> str:
    """Why credit to a group stops: it has too many values, or its states are not uniform."""
    large = {} if graph.exact is None else graph.exact.too_large
    sizes = (n for path, n in large.items() if path in group.hidden_paths)
    if count := next(sizes, None):
        return f"it has {count} values, and downstream='exact' takes {MOST_VALUES} at most"
    reasons = (graph.not_uniform[path] for path in paths if path in graph.not_uniform)
    return next(reasons, "what lies between is no linear map")
