# SPDX-License-Identifier: Apache-2.0
"""What the compiler found, and what a learner's traces take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..algorithms.base import LearningRule
from ..algorithms.d_rtrl import ParamDimRule
from ..algorithms.delayed import DelayedDRTRLRule
from ..algorithms.influence import InfluenceRule
from ..base.diagnostics import CompilationRecord
from ..base.types import Path, bytes_of, how_many, show_path
from ..compiler.findings.record import warns
from ..compiler.graph import ETraceGraph
from ..compiler.groups import LAST
from ..compiler.module_info import StateKind
from ..drivers.block_size import auto_block_size
from ..drivers.in_stages import LEAST, Way, longest_stage

EXAMPLE_LENGTH = 100


class CompilationReport(str):
    """A report on a compiled graph: a text, and what published code asks of it.

    Parameters
    ----------
    graph
        The compiled graph.
    more
        What follows its text.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> report = braintrace.compile(cell, braintrace.D_RTRL, x, batch_size=2).report
    >>> report.hidden_groups, report.excluded_weights
    ([(0, [('h',)])], [(('Wr', 'weight'), 'relation_excluded_weight_to_weight')])
    """

    graph: ETraceGraph
    more: str

    def __new__(cls, graph: ETraceGraph, more: str = "") -> CompilationReport:
        report = super().__new__(cls, "\n\n".join(filter(None, (graph.report(), more))))
        report.graph, report.more = graph, more
        return report

    def _repr_html_(self) -> str:
        return self.graph._repr_html_(self.more)

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (str(self),)

    def __call__(self) -> str:
        """The text."""
        return str(self)

    def to_str(self, level: int = 1) -> str:
        """The report, and from level 2 on everything that the compiler has to say."""
        return "\n".join([self, *map(str, self.diagnostics if level > 1 else ())])

    def show(self, level: int = 1, *, file: Any = None) -> None:
        """Print :meth:`to_str`."""
        print(self.to_str(level), file=file)

    @property
    def diagnostics(self) -> tuple[CompilationRecord, ...]:
        """What the compiler has to say."""
        return self.graph.diagnostics

    @property
    def hidden_groups(self) -> list[tuple[int, list[Path]]]:
        """Number and members of each hidden group."""
        return [(group.index, [*group.hidden_paths]) for group in self.graph.hidden_groups]

    @property
    def dynamic_states(self) -> list[Path]:
        """States that are neither hidden nor parameters."""
        return [slot.path for slot in self.graph.module_info.slots_of(StateKind.OTHER)]

    @property
    def etrace_weights(self) -> list[tuple[Path, list[int]]]:
        """Of each trained operand, the path of its parameter and the groups of its traces."""
        return [
            (path, [group.index for group in relation.hidden_groups])
            for relation in self.graph.hidden_param_op_relations
            for path in relation.trainable_paths.values()
        ]

    @property
    def excluded_weights(self) -> list[tuple[Path, str | None]]:
        """Parameters without a trace, and the kind of the record of why their operation has none.

        It is ``None`` for those that are in no operation.
        """
        graph, why = self.graph, dict[Path | None, str]()
        for record in graph.diagnostics:
            if record.kind.value.startswith("relation_excluded"):
                why.setdefault(record.weight_path, record.kind.value)
        traced = {path for r in graph.hidden_param_op_relations for path in r.parameter_paths}
        return [(path, why.get(path)) for path in graph.coverage() if path not in traced]

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of hidden groups, weights with and without a trace, warnings and errors."""
        return {
            "hidden_groups": len(self.graph.hidden_groups),
            "etrace_weights": len(self.etrace_weights),
            "excluded_weights": len(self.excluded_weights),
            "warnings": sum(map(warns, self.diagnostics)),
            "errors": 0,  # they are raised
        }


def report_of(
    graph: ETraceGraph, rule: LearningRule, vjp_method: str, way: Way | None = None
) -> CompilationReport:
    """What ``learner.report`` is; ``way``: how the last gradient's blocks are run."""
    lines = [_traces(graph, rule, vjp_method), *(() if way is None else (shown_way(way),))]
    return CompilationReport(graph, "\n".join(lines))


def shown_way(way: Way) -> str:
    """How a block is run, and why not in stages."""
    head = f"the last gradient: a block of {how_many(way.steps, 'step')}, "
    if way.size:
        parts = "at once" if way.size == way.steps else f"in parts of {way.size}"
        return (
            f"{head}{parts}: the recurrence ({how_many(way.in_loops, 'equation')}) "
            f"step by step, {how_many(way.together, 'equation')} for all steps together"
        )
    longest, held = longest_stage(way.bytes_per_step), shown_bytes(way.bytes_per_step)
    if way.effect:
        why = f"a step has an effect ({way.effect})"
    elif way.steps < LEAST:
        why = f"fewer than {LEAST}"
    elif longest < LEAST:
        why = f"{held} a step is above {shown_bytes(longest_stage(1) // LEAST)}"
    else:
        why = f"no number of steps from {LEAST} to {longest} ({held} a step) divides the block"
    return f"{head}step by step: {why}"


def _traces(graph: ETraceGraph, rule: LearningRule, vjp_method: str) -> str:
    """The rule, the memory of every trace, and the steps that a gradient evaluates together."""
    traces = jax.eval_shape(rule.init)
    size = shown_bytes(bytes_of(traces))
    lines = [f"learning rule: {rule.name}"]
    if credit := _credit(graph, rule):
        lines.append(f"credit over time: {credit}")
    if isinstance(rule, InfluenceRule):
        states = ", ".join(f"{show_path(s.path)} {[*s.aval.shape]}" for s in rule.carried)
        lines += [
            f"traces: influence of {rule.num_entries} parameter entries on {states}: {size}",
            f"a step of the traces runs the model {_passes(rule)}",
        ]
    else:
        lines.append(f"traces: {len(rule.links) if traces else 0}, {size}")
    for i, link in enumerate(rule.links if rule.from_blocks else ()):
        own = jax.eval_shape(lambda traces, i=i: rule.held_by(traces, i), traces)
        if own:
            names = ", ".join(map(show_path, link.relation.parameter_paths))
            shapes = ", ".join(f"{key} {[*leaf.shape]}" for key, leaf in own.items())
            size = shown_bytes(bytes_of(own))
            group = _shown_group(graph, link.group.group.hidden_paths)
            lines.append(f"  {names} -> {group}: {size} ({shapes})")
    lines += _delay_lines(rule)
    if graph.uniform:
        slots = (s for s in graph.executed.module_info.slots if s.is_filter)
        filters = [s.state.value for s in slots if s.state.of in graph.uniform]  # type: ignore[attr-defined]
        names = ", ".join(map(show_path, graph.uniform))
        size = shown_bytes(bytes_of(filters))
        lines.append(f"filters: {len(filters)}, {size}, in front of {names}")
    for below, above, count, before in () if graph.exact is None else graph.exact.costs():
        lower, upper = (", ".join(map(show_path, paths)) for paths in (below, above))
        lines.append(
            f"exact credit: {how_many(count, 'value')} of {upper} as states of {lower}, whose "
            f"traces have {before + count} in place of {before}; "
            f"{how_many(count, 'reverse sweep')} of what is above a step"
        )
    held = [slot.state.value for slot in graph.executed.module_info.slots]
    size = shown_bytes(bytes_of(held) + bytes_of(traces))
    lines.append(f"check=True: no copy; values from before a call, {size}, stay until it ends")
    if vjp_method == "multi-step":
        return "\n".join(
            [
                *lines,
                "windows: of chunk_size steps (default: 1), with reverse mode inside; credit stops "
                "at their borders alone",
            ]
        )
    if not rule.from_blocks:
        lines.append("blocks are run by reverse mode, step by step")
    block = 1 if rule.in_single_steps else auto_block_size(rule, EXAMPLE_LENGTH)
    lines.append(f"block_size='auto': {how_many(block, 'step')} for a sequence of {EXAMPLE_LENGTH}")
    return "\n".join(lines)


def _passes(rule: InfluenceRule) -> str:
    """What the traces cost at every step."""
    if rule.by_states is None:
        return f"forward {how_many(rule.num_entries, 'time')}"
    together = "" if rule.in_single_steps else ", all steps of a block together"
    return f"backward {how_many(rule.by_states.count, 'time')}{together}"


def _delay_lines(rule: LearningRule) -> list[str]:
    """What each delay line adds to its group, and what that costs."""
    found, executor = [], rule.executor
    for positions in executor.driven:
        group = positions.group
        pairs = zip(group.hidden_paths, group.state_counts, group.state_axes, strict=True)
        held = {path: count for path, count, axis in pairs if axis != LAST}
        own = _shown_group(executor.graph, group.hidden_paths)
        found += [
            f"delay line: {show_path(p)}, {how_many(n, 'step')}, states of {own}"
            for p, n in held.items()
        ]
        if held:
            entries = int(np.sum(executor.passing(positions.index)))
            found.append(f"  D of {own}: {entries} of {positions.num_state**2} entries")
    if isinstance(rule, DelayedDRTRLRule):
        plain = shown_bytes(bytes_of(jax.eval_shape(ParamDimRule(executor).init)))
        found.append(f"  the last {rule.lag} steps are kept in place of traces of {plain}")
    return found


def _credit(graph: ETraceGraph, rule: LearningRule) -> str:
    """How far credit goes, if the table of the graph does not say so."""
    if isinstance(rule, InfluenceRule):
        if rule.order is None:
            return "through all that a step carries"
        steps = how_many(rule.order, "step")
        return f"through all that a step carries, within {steps} between positions"
    if graph.uniform or graph.not_uniform or len(graph.hidden_groups) < 2:
        return ""
    return "within each hidden group alone (downstream='step')"


def _shown_group(graph: ETraceGraph, paths: Sequence[Path]) -> str:
    """A group by its number, or as one of filters alone."""
    own = (graph.hid_path_to_group[path].index for path in paths if path in graph.hid_path_to_group)
    index = next(own, None)
    return "filters" if index is None else f"group {index}"


def shown_bytes(count: int) -> str:
    """``count`` in a unit that suits it."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
