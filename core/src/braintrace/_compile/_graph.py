# SPDX-License-Identifier: Apache-2.0
"""The compiled graph: everything the executor and the algorithms need to know of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import brainstate

from .. import _jax
from .._errors import CompilationError
from ._cones import Cone
from ._control import ControlFlowPolicy
from ._coverage import Frozen, find_coverage, require_coverage, resolve_frozen
from ._diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel, Path
from ._findings import model_records
from ._groups import HiddenGroup, find_hidden_groups_from_minfo
from ._module_info import ModuleInfo, StateKind, extract_module_info
from ._operations import HiddenParamOpRelation
from ._perturb import HiddenPerturbation, perturb_hidden
from ._relations import analyse_operations
from ._transitions import check_scope

if TYPE_CHECKING:
    from ._show import Drawing


@dataclass(frozen=True, eq=False)
class ETraceGraph:
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
        Parameters that the caller named as frozen.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> graph = braintrace.compile_etrace_graph(cell, jnp.ones((2, 3)))
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
    _coverage: Mapping[Path, str] = field(repr=False)

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
        current step), ``'trace+direct'``, or ``'none'`` (only a frozen parameter may have none;
        one that has a gradient keeps it).
        """
        return dict(self._coverage)

    def explain(
        self,
        *,
        weight_path: Path | None = None,
        hidden_path: Path | None = None,
        kind: DiagnosticKind | str | None = None,
        level: DiagnosticLevel | str | None = None,
    ) -> list[CompilationRecord]:
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
        >>> import brainstate, braintrace, jax.numpy as jnp
        >>> cell = braintrace.nn.GRUCell(3, 4)
        >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
        >>> graph = braintrace.compile_etrace_graph(cell, jnp.ones((2, 3)))
        >>> [record.weight_path for record in graph.explain(kind="relation_included")]
        [('Wz', 'weight'), ('Wh', 'weight')]
        """
        kind = None if kind is None else DiagnosticKind(kind)
        level = None if level is None else DiagnosticLevel(level)
        return [
            record
            for record in self.diagnostics
            if (weight_path is None or record.weight_path == weight_path)
            and (hidden_path is None or hidden_path in record.hidden_paths)
            and (kind is None or record.kind is kind)
            and (level is None or record.level is level)
        ]

    def report(self, width: int | None = None, fold: bool = True) -> str:
        """What the compiler found, as text for a terminal.

        Groups, relations, parameters, operations without a trace, warnings, and one line of
        totals.

        Parameters
        ----------
        width
            Columns of the text; ``None``: those of the terminal, 100 where there is none.
        fold
            Whether layers that are alike share a row, as ``layers[1-19]``.
        """
        from ._show import summarize, to_text

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
        from ._show import draw, summarize

        return draw(summarize(self), columns)

    def _repr_html_(self) -> str:
        from ._show import summarize, to_html

        return to_html(summarize(self))


def compile_etrace_graph(
    model: brainstate.nn.Module,
    *args: Any,
    include_hidden_perturb: bool = True,
    frozen: Frozen = (),
    control_flow: ControlFlowPolicy | None = None,
    recurrence_scope: str = "diagonal",
    vmap: bool = False,
) -> ETraceGraph:
    """Compile one step of a model.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` whose states are initialised.
    *args
        Example arguments of one step.
    include_hidden_perturb
        Whether the graph holds the perturbed step, which an executor needs.
    frozen
        Parameters that may have no gradient: paths (``('out', 'weight')``), their names
        (``'out.weight'``), prefixes of either, ``ParamState`` objects, or a predicate on the path.
        One that does have a gradient keeps it: leave it out of the optimizer.
    control_flow
        What to do with ETP operations in branches and loops; default: ``ControlFlowPolicy()``.
    recurrence_scope
        ``'diagonal'``: ``D`` is the derivative along paths that cross no ETP operation.
        ``'coupled'``: along those, too, at equal positions.
    vmap
        Whether the model is written for one example and run for a batch. The arguments and the
        states have a leading axis of examples; ``braintrace.compile`` initialises such a model. A
        branch that is taken example by example becomes a select, as everywhere under ``vmap``.

    Returns
    -------
    ETraceGraph
        The compiled graph. Its WARNING records are also issued as ``UserWarning``.

    Raises
    ------
    CompilationError
        When the model has no hidden state or no parameter, its states are inconsistent, or a
        parameter that is not frozen has no gradient.
    NotSupportedError
        When a gradient would not be right; the text names the line and a remedy.
    ValueError, TypeError
        When ``frozen`` names no parameter or the recurrence scope is unknown.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> graph = braintrace.compile_etrace_graph(cell, jnp.ones((2, 3)))
    >>> graph.coverage()
    {('Wh', 'weight'): 'trace', ('Wr', 'weight'): 'direct', ('Wz', 'weight'): 'trace'}
    """
    check_scope(recurrence_scope)
    minfo = extract_module_info(model, *args, control_flow=control_flow, vmap=vmap)
    _require(minfo)
    spared = resolve_frozen(minfo, frozen)
    groups, path_to_group = find_hidden_groups_from_minfo(minfo)
    relations, cones, records = analyse_operations(minfo, groups, recurrence_scope)
    perturbed = perturb_hidden(minfo, groups, relations)
    coverage = find_coverage(minfo, relations, perturbed.direct_leaves)
    require_coverage(minfo, coverage, spared)
    graph = ETraceGraph(
        minfo,
        groups,
        path_to_group,
        relations,
        perturbed if include_hidden_perturb else None,
        (*records, *model_records(minfo, groups, relations, coverage)),
        cones,
        recurrence_scope,
        spared,
        coverage,
    )
    for record in graph.explain(level=DiagnosticLevel.WARNING):
        _jax.warn(str(record))
    return graph


def _require(minfo: ModuleInfo) -> None:
    if not minfo.slots_of(StateKind.HIDDEN):
        raise CompilationError(
            "the model has no brainstate.HiddenState of a floating-point dtype, so there is "
            "nothing to trace. If it has one, initialise the states first: "
            "brainstate.nn.init_all_states(model, batch_size=...)"
        )
    if not minfo.slots_of(StateKind.PARAM):
        raise CompilationError("the model uses no brainstate.ParamState, so nothing is trainable")
