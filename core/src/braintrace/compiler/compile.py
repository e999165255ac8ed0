# SPDX-License-Identifier: Apache-2.0
"""From a model to an :class:`ETraceGraph`: all passes in their order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import brainstate

from ..base import versions
from ..base.errors import CompilationError, CompilationWarning
from ..base.former import without_former_options
from ..base.types import Path
from ..jaxprs.positions.elements import tracing_once
from ..show.records import Records
from .control.rewrite import ControlFlowPolicy
from .coverage import Frozen, find_coverage, find_unheard, require_coverage, resolve_frozen
from .delay_lines import with_delay_lines
from .exact.find import find_above, states_that_stay
from .exact.step import exact_step
from .filters import check_downstream, move_leaks
from .findings.downstream import as_written, downstream_findings, published_findings
from .findings.foreign import foreign_findings
from .findings.model import group_findings, model_findings
from .findings.operations import operation_findings
from .findings.record import warns
from .graph import ETraceGraph
from .groups import HiddenGroup, find_hidden_groups_from_minfo
from .module_info import ModuleInfo, StateKind
from .perturbation import perturb_hidden
from .reach import check_scope
from .relation import analyse_operations
from .tracing.extract import extract_module_info
from .uniform.find import find_uniform
from .uniform.moving import Moving


@without_former_options
def compile_etrace_graph(
    model: brainstate.nn.Module,
    *args: Any,
    include_hidden_perturb: bool = True,
    frozen: Frozen = (),
    control_flow: ControlFlowPolicy | None = None,
    recurrence_scope: str = "diagonal",
    vmap: bool = False,
    downstream: str | None = None,
    keeps_traces: bool = False,
    kappa: float | None = None,
    delay_lines: bool = True,
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
        Parameters that stay as they are: paths (``('out', 'weight')``), their names
        (``'out.weight'``), prefixes of either, ``ParamState`` objects, or a predicate on the path.
        They may have no gradient, and learners give zero where they have one. ``etrace_update``
        changes none, whatever the optimizer does; in a loop of your own, differentiate with respect
        to ``learner.trained_states`` and give these to the optimizer.
    control_flow
        What to do with ETP operations in branches and loops; default: ``ControlFlowPolicy()``.
    recurrence_scope
        ``'diagonal'``: ``D`` is the derivative along paths that cross no ETP operation.
        ``'coupled'``: along those, too, at equal positions.
    vmap
        Whether the model is written for one example and run for a batch. The arguments and the
        states have a leading axis of examples; ``braintrace.compile`` initialises such a model. A
        branch that is taken example by example becomes a select, as everywhere under ``vmap``.
    downstream
        How far credit goes in the layers above that of a weight. ``'step'``: through what happens
        in the same step, with a record of each pair of layers between which it ends. ``None``: the
        same without these records. ``'linear'``: through later steps, too, where the dynamics above
        are linear and the same everywhere, as those of a leaky readout are; see :attr:`uniform
        <braintrace.ETraceGraph>`. And where a state above follows the layer position by position.
        ``'exact'``: so it is, and through all later steps of groups of few values above, whatever
        their dynamics: each of these values is one more state of each position below.
    keeps_traces
        With ``downstream='linear'``: whether these states stay hidden states, with the traces of
        the operations that drive them, and only pass on the credit of what is below.
    kappa
        With ``downstream='linear'``: the leak that credit has in place of those that are found
        above a layer, and where none is found, of a filter behind what the layer emits (e-prop).
    delay_lines
        Whether the steps of a buffer of past values are states of the group that writes to it, so
        that credit passes through it. With ``False`` it stops there, which a record says, and the
        group has no more states than without the buffer.

    Returns
    -------
    ETraceGraph
        The compiled graph. Its WARNING records are also issued as
        :class:`braintrace.CompilationWarning`, but for those about a gradient that is exact.

    Raises
    ------
    CompilationError
        When the model has no hidden state or no parameter, its states are inconsistent, or a
        parameter that is not frozen has no gradient.
    NotSupportedError
        When a gradient would not be right; the text names the line and a remedy.
    ValueError, TypeError
        When ``frozen`` names no parameter, or the recurrence scope or ``downstream`` is unknown.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
    >>> graph = braintrace.compile_etrace_graph(cell, jnp.ones((2, 3)))
    >>> graph.coverage()
    {('Wz', 'weight'): 'trace', ('Wr', 'weight'): 'direct', ('Wh', 'weight'): 'trace'}
    """
    check_scope(recurrence_scope)
    if downstream is not None:
        check_downstream(downstream)
    minfo = extract_module_info(model, *args, control_flow=control_flow, vmap=vmap)
    minfo = with_delay_lines(minfo) if delay_lines else minfo
    if not minfo.slots_of(StateKind.HIDDEN):
        raise CompilationError(
            "the model has no brainstate.HiddenState of a floating-point dtype, so there is "
            "nothing to trace. If it has one, initialise the states first: "
            "brainstate.nn.init_all_states(model, batch_size=...)"
        )
    if not minfo.slots_of(StateKind.PARAM):
        raise CompilationError("the model uses no brainstate.ParamState, so nothing is trainable")
    spared = resolve_frozen(minfo.model_parameters, frozen)
    own = find_hidden_groups_from_minfo(minfo)
    graph = _analysed(minfo, own, recurrence_scope, spared, include_hidden_perturb)
    require_coverage(minfo, graph.coverage(), spared)
    analysed = partial(
        _analysed, scope=recurrence_scope, spared=spared, with_perturbation=include_hidden_perturb
    )
    filtered = partial(_with_filters, analysed=analysed, keeps_traces=keeps_traces, kappa=kappa)
    if downstream in ("linear", "exact"):
        graph = filtered(graph)
    if downstream == "exact":
        graph = _with_exact_credit(graph, analysed, filtered)
    finders = [operation_findings, group_findings, model_findings, downstream_findings]
    if downstream == "step":
        finders.append(published_findings)
    records = (record for find in finders for record in find(graph))
    foreign = foreign_findings(model, graph)
    graph = replace(graph, diagnostics=Records((*records, *foreign, *graph.diagnostics)))
    for record in filter(warns, graph.diagnostics):
        versions.warn(str(record), CompilationWarning)
    return graph


def _with_filters(
    graph: ETraceGraph,
    analysed: Callable[..., ETraceGraph],
    keeps_traces: bool,
    kappa: float | None,
    stay: Mapping[Path, str] = MappingProxyType({}),
) -> ETraceGraph:
    """The graph with filters in front of uniform states, but for those that ``stay``."""
    info, groups = graph.module_info, graph.hid_path_to_group
    if keeps_traces:  # what follows by position is in the trace of its group, in any module
        groups = find_hidden_groups_from_minfo(info, across_layers=True)[1]
    uniform, why_not = find_uniform(info, groups, graph.recurrence_scope, stay)
    graph = replace(graph, uniform=uniform, not_uniform=why_not, moving=None, filtered=None)
    try:
        moving = Moving(info, uniform, keeps_traces)
        if kappa is not None:
            moving = moving.with_kappa(kappa, groups)
        graph = replace(graph, uniform=uniform if moving.filters else {})
        step = move_leaks(moving) if moving.filters else info
        found = find_hidden_groups_from_minfo(step, across_layers=True)
        if moving.filters or len(found[0]) < len(graph.hidden_groups):
            run, own = analysed(step, found), moving if moving.filters else None
            graph = replace(graph, moving=own, filtered=replace(run, moving=own))
    except CompilationError as why:
        graph = as_written(graph, str(why))
    return graph


def _with_exact_credit(
    graph: ETraceGraph, analysed: Callable[..., ETraceGraph], filtered: Callable[..., ETraceGraph]
) -> ETraceGraph:
    """The graph with values of small groups as states of what is below them."""
    below = graph.executed
    if stay := states_that_stay(below.module_info, below.hidden_groups, below.reach, graph.uniform):
        below = (graph := filtered(graph, stay=stay)).executed
    exact = find_above(below.module_info, below.hidden_groups, below.reach)
    if exact.above:
        step, exact = exact_step(exact)
        run = analysed(step, find_hidden_groups_from_minfo(step, across_layers=True))
        graph = replace(graph, filtered=replace(run, moving=graph.moving, exact=exact))
    return replace(graph, exact=exact)


def _analysed(
    minfo: ModuleInfo,
    found: tuple[tuple[HiddenGroup, ...], dict[Path, HiddenGroup]],
    scope: str,
    spared: frozenset[Path],
    with_perturbation: bool,
) -> ETraceGraph:
    """The graph of a traced step and its groups, without findings."""
    groups, path_to_group = found
    with tracing_once():
        reach, cones, relations = analyse_operations(minfo, groups, scope)
    perturbed = perturb_hidden(minfo, groups, relations)
    return ETraceGraph(
        module_info=minfo,
        hidden_groups=groups,
        hid_path_to_group=path_to_group,
        hidden_param_op_relations=relations,
        hidden_perturb=perturbed if with_perturbation else None,
        diagnostics=(),
        cones=cones,
        recurrence_scope=scope,
        frozen=spared,
        reach=reach,
        _coverage=find_coverage(
            minfo, relations, perturbed.direct_leaves, find_unheard(minfo, groups)
        ),
    )
