# SPDX-License-Identifier: Apache-2.0
"""The compiled graph: all that is known of a model, questions about it, and what is shown of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import jax

from ..base import versions
from ..base.diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel
from ..base.errors import CompilationError
from ..base.types import Path, how_many, show_path, units_of
from ..base.versions import Var
from ..jaxprs.depends import Along, depends, marks_of, operands_behind
from ..jaxprs.positions.alignment import Alignment
from ..published import GraphViews
from ..show.facts import (
    CreditFacts,
    Flow,
    GroupFacts,
    Node,
    OperationFacts,
    ParameterFacts,
    Summary,
)
from ..show.records import Records
from .exact.record import ExactCredit
from .findings.record import warns
from .groups import HiddenGroup, member_of
from .module_info import ModuleInfo, StateKind, StateSlot
from .perturbation import HiddenPerturbation
from .reach import Cone, Reach
from .relation import HiddenParamOpRelation
from .uniform.moving import Moving
from .uniform.state import UniformState

if TYPE_CHECKING:
    from ..show.draw import Drawing


@dataclass(frozen=True, eq=False)
class ETraceGraph(GraphViews):
    """A compiled model.

    Attributes
    ----------
    module_info
        One step as a flat program.
    hidden_groups, hid_path_to_group
        The hidden groups, and the group of each hidden state.
    hidden_param_op_relations
        Which ETP operations drive which groups.
    hidden_perturb
        The perturbed step.
    diagnostics
        What the compiler has to say.
    cones
        Per group, the part of the step between its relations and its new values.
    recurrence_scope
        Which paths from old to new values are in ``D``: ``'diagonal'`` or ``'coupled'``.
    frozen
        Parameters that the caller named as frozen: learners do not train them.
    reach
        Per ETP operation, relation or not: its operands and the groups that it reaches.
    uniform, not_uniform
        With ``downstream='linear'``: the hidden states whose dynamics are linear and the same
        everywhere, and why each other one is not.
    moving
        Which filters there are in front of the uniform states; also of the filtered graph.
    filtered
        The graph of the step with filters in front of the uniform states, and with values of small
        groups as states of others; ``None`` without any.
    exact
        With ``downstream='exact'``: which small groups are above which.

    Examples
    --------
    >>> import braintrace as bt, jax.numpy as jnp
    >>> graph = bt.compile(bt.nn.GRUCell(3, 4), "d_rtrl", jnp.ones((2, 3)), batch_size=2).graph
    >>> [relation.weight_path for relation in graph.hidden_param_op_relations]
    [('Wz', 'weight'), ('Wh', 'weight')]
    >>> graph.coverage()[("Wr", "weight")]
    'direct'
    """

    module_info: ModuleInfo
    hidden_groups: tuple[HiddenGroup, ...]
    hid_path_to_group: dict[Path, HiddenGroup]
    hidden_param_op_relations: tuple[HiddenParamOpRelation, ...]
    hidden_perturb: HiddenPerturbation | None
    diagnostics: tuple[CompilationRecord, ...]
    cones: tuple[Cone, ...]
    recurrence_scope: str
    frozen: frozenset[Path]
    reach: tuple[Reach, ...]
    _coverage: Mapping[Path, str] = field(repr=False)
    uniform: Mapping[Path, UniformState] = field(default_factory=dict)
    not_uniform: Mapping[Path, str] = field(default_factory=dict)
    moving: Moving | None = field(default=None, repr=False)
    filtered: ETraceGraph | None = field(default=None, repr=False)
    exact: ExactCredit | None = field(default=None, repr=False)

    @property
    def executed(self) -> ETraceGraph:
        """The graph whose step is run: with filters in front of uniform states, if there are any.

        Its hidden groups hold the filters, too, and not the uniform states, unless these keep
        their traces.
        """
        return self if self.filtered is None else self.filtered

    @property
    def perturbed(self) -> HiddenPerturbation:
        """The perturbed step.

        Raises
        ------
        CompilationError
            When the graph was compiled with ``include_hidden_perturb=False``.
        """
        if self.hidden_perturb is None:
            raise CompilationError(
                "the graph holds no perturbed step; compile it with include_hidden_perturb=True"
            )
        return self.hidden_perturb

    def coverage(self) -> dict[Path, str]:
        """How the gradient of each parameter arises.

        ``'trace'`` (through the eligibility trace), ``'direct'`` (ordinary derivative of the
        current step), ``'trace+direct'``, ``'lost'`` (there is a trace, but what it drives reaches
        the result through states alone that carry no credit: the gradient is zero), or ``'none'``
        (only a frozen parameter may have none).
        """
        return dict(self._coverage)

    def explain(
        self,
        *,
        weight_path: Path | None = None,
        hidden_path: Path | None = None,
        kind: DiagnosticKind | str | None = None,
        level: DiagnosticLevel | str | None = None,
    ) -> tuple[CompilationRecord, ...]:
        """The diagnostics about a parameter, a hidden state, of a kind or of a level.

        Parameters
        ----------
        weight_path, hidden_path
            Paths such as ``("Wr", "weight")``.
        kind, level
            Members of their enumerations, or the values of these.

        Raises
        ------
        ValueError
            When there is no such kind or level.

        Examples
        --------
        >>> import braintrace as bt, jax.numpy as jnp
        >>> graph = bt.compile(bt.nn.GRUCell(3, 4), "d_rtrl", jnp.ones((2, 3)), batch_size=2).graph
        >>> [record.weight_path for record in graph.explain(kind="relation_included")]
        [('Wz', 'weight'), ('Wh', 'weight')]
        """
        kinds = DiagnosticKind if kind is None else [DiagnosticKind(kind)]
        levels = DiagnosticLevel if level is None else [DiagnosticLevel(level)]
        found = (r for r in self.diagnostics if r.kind in kinds and r.level in levels)
        of_weight = (r for r in found if weight_path in (None, r.weight_path))
        return Records(r for r in of_weight if hidden_path in (None, *r.hidden_paths))

    def report(self, width: int | None = None, fold: bool = True) -> str:
        """What the compiler found, as text for a terminal.

        Groups, relations, parameters, where credit passes through later values of other layers and
        where it stops, operations without a trace, warnings, notes on what is exact, and one line
        of totals.

        Parameters
        ----------
        width
            Columns of the text; ``None``: those of the terminal, 100 where there is none.
        fold
            Whether layers that are alike share a row, as ``layers[1-19]``.
        """
        from ..show.report import to_text  # slow to import, and seldom needed

        return to_text(summarize(self), width, fold)

    def draw(self, columns: int | None = None) -> Drawing:
        """An SVG drawing of groups, operations and what flows between them.

        Parameters
        ----------
        columns
            How many layers stand in a row; ``None``: as many as fit on a page.

        Returns
        -------
        Drawing
            ``str()`` of it is the SVG; ``.save(path)`` writes it; notebooks show it.

        Raises
        ------
        ValueError
            When ``columns`` is not positive.
        """
        from ..show.draw import draw

        return draw(summarize(self), columns)

    def _repr_html_(self, more: str = "") -> str:
        from ..show.report import to_html

        return to_html(summarize(self), str(self.draw()), more)


def summarize(graph: ETraceGraph) -> Summary:
    """The facts of a graph that are shown."""
    info = graph.module_info
    return Summary(
        inputs=tuple(v.aval.str_short() for v in info.jaxpr.invars[: info.num_args]),
        outputs=tuple(v.aval.str_short() for v in info.jaxpr.outvars[: info.num_out]),
        groups=tuple(map(_group, graph.hidden_groups, graph.cones)),
        operations=tuple(_operations(graph)),
        parameters=tuple(_parameters(graph)),
        paths={node: slot.path for node, slot in _stores(graph).items()},
        flows=_flows(graph),
        warnings=tuple(filter(warns, graph.diagnostics)),
        credit=tuple(_credit(graph)),
        notes=tuple(r for r in graph.explain(level=DiagnosticLevel.WARNING) if not warns(r)),
    )


def _credit(graph: ETraceGraph) -> Iterator[CreditFacts]:
    """Through which later values credit passes, and where it stops."""
    for record in graph.diagnostics:
        told = record.context
        if record.kind is DiagnosticKind.UNIFORM_DYNAMICS:
            yield CreditFacts(told["below"], record.hidden_paths, f"passes: {told['filters']}", "")
        elif record.kind is DiagnosticKind.EXACT_CREDIT:
            values, now, before = how_many(told["count"], "value"), told["now"], told["before"]
            how = f"passes: {values} as states, {now} for {before}"
            yield CreditFacts(told["below"], record.hidden_paths, how, "")
        elif record.kind is DiagnosticKind.HIDDEN_GROUP_MERGED and "below" in told:
            yield CreditFacts(told["below"], record.hidden_paths, "passes: one group", "")
        elif record.kind is DiagnosticKind.CREDIT_STOPS and record.hidden_paths:
            below, why = told.get("below", ()), f"stops: {told['why']}"
            yield CreditFacts(below, record.hidden_paths, why, record.remedy)


def _group(group: HiddenGroup, cone: Cone) -> GroupFacts:
    info, paths = group.module_info, group.hidden_paths
    return GroupFacts(
        index=group.index,
        eqn=max(info.producers[var] for var in group.hidden_outvars),
        states=paths,
        units=tuple(_units(slot)[0] for path in paths for slot in info.slots if slot.path == path),
        positions=group.varshape,
        num_state=group.num_state,
        transition=_transition(cone),
    )


def _transition(cone: Cone) -> str:
    """What ``D`` of a group is."""
    if not cone.driving:
        return "not needed"
    if cone.transition is None:
        return "zero"
    if cone.transition.program is not None:
        return "coupled diagonal" if cone.transition.mixed else "coupled"
    return "true diagonal" if cone.transition.mixed else "position-wise"


def _operations(graph: ETraceGraph) -> Iterator[OperationFacts]:
    """Relations and excluded operations, in the order of the program."""
    records = (r for r in graph.diagnostics if r.kind.value.startswith("relation_excluded_"))
    relations = iter(graph.hidden_param_op_relations)  # both in this order, too
    for reach in graph.reach:
        traced = [operand for operand in reach.operands if operand.leaves]
        relation = next(relations) if reach.traced else None
        record = None if relation else next(records, None)
        lies = relation.group_alignments if relation else {}
        yield OperationFacts(
            eqn=reach.eqn_index,
            relation=relation.index if relation else None,
            primitive=reach.eqn.primitive.name,
            parameters=tuple(dict.fromkeys(leaf[0] for o in traced for leaf in o.leaves)),
            shapes=tuple(tuple(o.atom.aval.shape) for o in traced),
            groups=tuple(lies),
            alignment=tuple(map(_lies, lies.values())),
            source=versions.source_of(reach.eqn),
            kind=record.kind.value if record else "",
            reason=record.message if record else "",
        )


def _lies(found: Alignment) -> str:
    """How the axes of ``y`` lie in the positions of a group."""
    if found.is_identity:
        return "axis by axis"
    if found.elements is not None:
        return "element by element"
    pairs = [f"{i}->{axis}" for i, axis in enumerate(found.axes) if axis is not None]
    mixed = [f"{i} mixed" for i in found.mixed]
    return ", ".join([*pairs, *mixed]) or "broadcast"


def _parameters(graph: ETraceGraph) -> Iterator[ParameterFacts]:
    info = graph.module_info
    leaves = {slot.path: _leaves(info, slot) for slot in info.slots_of(StateKind.PARAM)}
    traced = [(r.parameter_paths, r.index) for r in graph.hidden_param_op_relations]
    for path, how in graph.coverage().items():
        if path in graph.frozen:  # a frozen parameter may have a gradient all the same
            how = "frozen" if how == "none" else f"{how} (frozen)"
        indices = tuple(index for paths, index in traced if path in paths)
        yield ParameterFacts(path, leaves.get(path, ()), how, indices)


def _leaves(minfo: ModuleInfo, slot: StateSlot) -> tuple[str, ...]:
    """``weight: float32[3,4] mV`` for every leaf of a parameter."""
    tree = jax.tree.unflatten(slot.treedef, list(range(len(slot.leaves))))
    leaves = jax.tree.leaves_with_path(tree)
    found = []
    for (path, _), var, unit in zip(leaves, minfo.invars_of(slot), _units(slot), strict=True):
        keys = (getattr(part, "key", getattr(part, "idx", None)) for part in path)
        name = show_path(tuple(key for key in keys if key is not None))
        found.append(f"{name}: " * bool(name) + var.aval.str_short() + f" {unit}" * bool(unit))
    return tuple(found)


def _units(slot: StateSlot) -> tuple[str, ...]:
    """The unit of every leaf of a state; empty for plain numbers."""
    return tuple("" if unit.is_unitless else str(unit) for unit in units_of(slot.treedef)[0])


def _stores(graph: ETraceGraph) -> dict[Node, StateSlot]:
    """Parameters, and states that carry hidden values to the next step without being hidden."""
    info = graph.module_info
    records = graph.explain(kind=DiagnosticKind.CREDIT_THROUGH_OTHER_STATE)
    carriers = {path for record in records for path in record.hidden_paths}
    parameters = {("plain", k): slot for k, slot in enumerate(info.slots_of(StateKind.PARAM))}
    return parameters | {("state", k): s for k, s in enumerate(info.slots) if s.path in carriers}


def _flows(graph: ETraceGraph) -> tuple[Flow, ...]:
    every = _inflows(graph, Along.VALUES)
    credit = _inflows(graph, Along.DERIVATIVES)
    return tuple(
        Flow(source, target, source[0] == "input" or source in credit.get(target, ()))
        for target, sources in every.items()
        for source in sorted(sources)
        if not (target[0] == "group" and source in (("old", target[1]), ("new", target[1])))
    )


def _inflows(graph: ETraceGraph, along: Along) -> dict[Node, frozenset[Node]]:
    """Per operation, group, carrier and output: the nodes whose values enter it directly."""
    minfo, stores = graph.module_info, _stores(graph)
    sources: dict[Var, Node] = dict.fromkeys(minfo.jaxpr.invars[: minfo.num_args], ("input", 0))
    sources |= {v: ("old", g.index) for g in graph.hidden_groups for v in g.hidden_invars}
    sources |= {v: node for node, slot in stores.items() for v in minfo.invars_of(slot)}
    ops = {reach.eqn.outvars[0]: ("op", reach.eqn_index) for reach in graph.reach}
    nodes = ops | {v: ("new", g) for v, g in member_of(graph.hidden_groups).items()}
    marks = depends(
        minfo.eqns,
        {var: frozenset({node}) for var, node in sources.items()},
        emits=(own := {var: frozenset({node}) for var, node in nodes.items()}),
        through=own.get,
        along=along,
    )
    behind = partial(marks_of, marks)

    def into(var: Var) -> frozenset[Node]:
        if var in ops:
            return frozenset({ops[var]})
        eqn = minfo.eqns[minfo.producers[var]]
        return behind(eqn.invars[k] for k in operands_behind(eqn, [eqn.outvars.index(var)], along))

    found: dict[Node, frozenset[Node]] = {}
    for reach in graph.reach:
        weights = {operand.position for operand in reach.operands if operand.key}
        others = (atom for k, atom in enumerate(reach.eqn.invars) if k not in weights)
        computed = {m for m in behind(reach.eqn.invars[k] for k in weights) if m[0] != "plain"}
        found["op", reach.eqn_index] = behind(others) | computed
    for group in graph.hidden_groups:
        found["group", group.index] = frozenset().union(*map(into, group.hidden_outvars))
    carriers = ((node, slot) for node, slot in stores.items() if node[0] == "state")
    found |= {node: behind(minfo.outvars_of(slot)) - {node} for node, slot in carriers}
    found["output", 0] = behind(minfo.jaxpr.outvars[: minfo.num_out])
    return found
