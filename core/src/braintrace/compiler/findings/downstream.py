# SPDX-License-Identifier: Apache-2.0
"""Findings about credit that passes through the layers above, or stops there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ...base import versions
from ...base.diagnostics import CompilationRecord
from ...base.types import Path, show_path
from ..graph import ETraceGraph
from ..groups import HiddenGroup, member_of
from ..module_info import CreditFilter
from .record import Kind, info

PASSES = info(
    Kind.UNIFORM_DYNAMICS,
    "the dynamics of {states} are linear and the same everywhere: credit passes through to what "
    "drives it ({filters})",
    "Nothing to do",
)
STOPS = info(
    Kind.CREDIT_STOPS,
    "what {lower} does to later values of {states} gets no credit: {why}",
    "Make the leak above the same everywhere and detach its reset, or learn in windows "
    "(vjp_method='multi-step')",
)
STAYS = info(
    Kind.CREDIT_STOPS,
    "the dynamics of {states} are linear and the same everywhere, but the leaks stay where they "
    "are, so that later values get no credit: {why}",
    "Nothing to do; downstream='step' asks for this rule",
)


FILTERED_TRACES = info(
    Kind.CREDIT_STOPS,
    "kappa filters the traces, in front of the derivative of what layers emit: {why}",
    "Nothing to do; downstream='step' asks for this rule",
)


def as_written(graph: ETraceGraph, why: str) -> ETraceGraph:
    """The graph with the step as it is written, whose leaks do not move, with a record of why."""
    kept = (r for r in graph.diagnostics if r.kind is not Kind.UNIFORM_DYNAMICS)
    paths = tuple(graph.uniform)
    stays = STAYS(hidden_paths=paths, why=why) if paths else FILTERED_TRACES(why=why)
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
    own = {} if graph.moving is None else graph.moving.filters
    for path, state in graph.uniform.items():
        found = {one.key[0]: one.type.shape for one in own.values() if one.of == path}
        shapes = [shape for atom, shape in found.items() if atom in state.sources]
        if shapes:
            yield PASSES(
                hidden_paths=(path,), filters=", ".join(f"a filter {[*s]}" for s in shapes)
            )
    if graph.uniform or graph.not_uniform:
        yield from _stops(graph)
    if graph.uniform:
        yield from _stops_in_groups(graph)


def _stops(graph: ETraceGraph) -> Iterator[CompilationRecord]:
    executed = graph.executed
    info, member = executed.module_info, member_of(executed.hidden_groups)
    olds = {v: frozenset({g.index}) for g in executed.hidden_groups for v in g.hidden_invars}
    marks = info.credit(
        olds,
        emits=lambda i, eqn: frozenset(member[v] for v in eqn.outvars if v in member),
    )
    for group in executed.hidden_groups:
        above = _shown(graph, group)
        if graph.moving and graph.moving.keeps_traces:  # to uniform ones, credit passes through
            above = tuple(path for path in above if path not in graph.uniform)
        if not above:
            continue
        behind = frozenset().union(*(marks.get(v, frozenset()) for v in group.hidden_outvars))
        for index in sorted(behind - {group.index}):
            lower = _shown(graph, executed.hidden_groups[index])
            yield STOPS(
                hidden_paths=above,
                lower=", ".join(map(show_path, lower)),
                why=_why(graph, above),
            )


def _stops_in_groups(graph: ETraceGraph) -> Iterator[CompilationRecord]:
    """Filters that read the states of their own group at other positions than their own."""
    executed = graph.executed
    for group, cone in zip(executed.hidden_groups, executed.cones, strict=True):
        own = tuple(path for path in group.hidden_paths if path in graph.hid_path_to_group)
        filters = [s for s in group.hidden_states if isinstance(s, CreditFilter)]
        if not (own and filters and cone.offence is not None):
            continue
        if all(graph.cones[graph.hid_path_to_group[path].index].offence for path in own):
            continue  # it is so without the filters, and said
        yield STOPS(
            hidden_paths=tuple(dict.fromkeys(one.of for one in filters)),
            lower=", ".join(map(show_path, own)),
            why=f"positions are mixed at {versions.source_of(cone.offence)}",
        )


def _shown(graph: ETraceGraph, group: HiddenGroup) -> tuple[Path, ...]:
    """The states of a group; those that its filters stand for, if it has no other."""
    own = tuple(path for path in group.hidden_paths if path in graph.hid_path_to_group)
    filters = (s.of for s in group.hidden_states if isinstance(s, CreditFilter))
    return own or tuple(dict.fromkeys(filters))


def _why(graph: ETraceGraph, paths: tuple[Path, ...]) -> str:
    """Why the states of a group are not uniform: the first reason."""
    reasons = (graph.not_uniform[path] for path in paths if path in graph.not_uniform)
    return next(reasons, "what lies between is no linear map")
