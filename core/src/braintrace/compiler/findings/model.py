# SPDX-License-Identifier: Apache-2.0
"""Findings about parameters, states and control flow rather than about operations."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import brainstate

from ...base import versions
from ...base.diagnostics import CompilationRecord
from ...base.versions import Atom, JaxprEqn
from ...jaxprs.depends import Along, depends, slice_to
from ...ops.primitive import is_etp_primitive
from ..coverage import why_uncovered
from ..found import Found
from ..program import Marks, StateKind
from .record import Kind, info, warning

OUTSIDE = warning(
    Kind.PARAMETER_OUTSIDE_OPERATION,
    "the parameter {parameter} reaches a hidden state other than as the weight of an ETP "
    "operation: that part of its gradient covers the current step only",
    "Use braintrace.matmul for a product (its bias included) and braintrace.element_wise for a "
    "factor or an offset",
)
CARRIER = warning(
    Kind.CREDIT_THROUGH_OTHER_STATE,
    "the state {states} takes up hidden values and is read by the next step, but it is not a "
    "brainstate.HiddenState: no credit passes through it",
    "Make it a HiddenState if it should",
)
UNUSED = info(
    Kind.PARAMETER_UNUSED,
    "the frozen parameter {parameter} has no gradient: {why}",
    "Nothing to do; take it out of frozen to make that an error",
)
IDLE = warning(
    Kind.STATE_MISMATCH,
    "the step neither reads nor writes the hidden state {states} of the model",
    "Call the layer it belongs to, or take that layer out of the model",
)
STRANGE = warning(
    Kind.STATE_MISMATCH,
    "the step uses a {type} ({name}) that is not reachable from the model; it is carried along, "
    "but resetting the model leaves it as it is",
    "Make the module that owns it an attribute of the model",
)


def model_findings(found: Found) -> Iterator[CompilationRecord]:
    """Findings about the model as a whole."""
    yield from _rewritten(found)
    yield from _outside(found)
    yield from _carriers(found)
    for path, how in found.coverage().items():
        if how == "none":
            yield UNUSED(weight_path=path, why=why_uncovered(found.module_info, path))
    yield from _mismatches(found)


def _rewritten(found: Found) -> Iterator[CompilationRecord]:
    """What was found in calls, branches and loops, with the relations of the operations there."""
    relations = found.hidden_param_op_relations
    for record in dict.fromkeys(found.module_info.rewrites):
        place = (record.primitive, record.source)
        here = [r for r in relations if (r.primitive.name, r.source) == place]
        path = here[0].weight_path if here else record.weight_path
        states = dict.fromkeys(path for r in here for path in r.connected_hidden_paths)
        yield replace(record, weight_path=path, hidden_paths=tuple(states))


def _outside(found: Found) -> Iterator[CompilationRecord]:
    """Parameters that reach a hidden state other than as a trainable operand."""
    info = found.module_info

    def passes(i: int, eqn: JaxprEqn, operand: int) -> bool:
        etp = is_etp_primitive(eqn.primitive)
        return not etp or operand == eqn.primitive.spec.x_invar_index

    seeds = {var: frozenset({path}) for (path, _), var in info.parameter_leaves.items()}
    marks = depends(info.eqns, seeds, passes, along=Along.DERIVATIVES)
    news = [var for group in found.hidden_groups for var in group.hidden_outvars]
    reaching = {path for var in news for path in marks.get(var, ())}
    if not reaching:
        return
    readers = [info.eqns[i] for i in slice_to(info.eqns, news, passes, Along.DERIVATIVES)]
    for path, leaves in info.weight_path_to_invars.items():
        if path in reaching:
            reads = (eqn for eqn in readers if any(atom in leaves for atom in eqn.invars))
            yield OUTSIDE(next(reads, None), path)


def _carriers(found: Found) -> Iterator[CompilationRecord]:
    """Other states that take up hidden values and are read again by a later step."""
    info, groups = found.module_info, found.hidden_groups
    others = [s for s in info.slots_of(StateKind.OTHER) if s.leaves]
    seeds = {v: frozenset({s.path}) for s in others for v in info.invars_of(s)}
    seeds |= {v: frozenset({"hidden"}) for g in groups for v in g.hidden_invars}
    members = {v for g in groups for v in g.hidden_outvars}
    marks = depends(
        info.eqns,
        seeds,
        emits=lambda i, eqn: frozenset({"hidden"} if members & set(eqn.outvars) else ()),
        along=Along.DERIVATIVES,
    )

    def behind(atom: Atom) -> Marks:
        return marks.get(atom, frozenset()) if versions.is_var(atom) else frozenset()

    used = [*members, *info.jaxpr.outvars[: info.num_out]]
    read = {mark for atom in used for mark in behind(atom)}
    for slot in others:
        taking = [atom for atom in info.outvars_of(slot) if "hidden" in behind(atom)]
        if taking and slot.path in read:
            yield CARRIER(info.producer(taking[0]), hidden_paths=(slot.path,))


def _mismatches(found: Found) -> Iterator[CompilationRecord]:
    """States of the model that its step leaves alone, and states of the step that it lacks."""
    info = found.module_info
    used = {slot.path for slot in info.slots}
    for path, state in info.retrieved_model_states.items():
        if path not in used and isinstance(state, brainstate.HiddenState):
            direction = {"direction": "retrieved_not_in_compiled"}
            yield IDLE(hidden_paths=(path,), context=direction)
    for slot in info.slots:
        strange = slot.path not in info.retrieved_model_states
        if strange and not isinstance(slot.state, brainstate.random.RandomState):
            yield STRANGE(
                hidden_paths=(slot.path,),
                context={"direction": "compiled_not_in_retrieved"},
                type=type(slot.state).__name__,
                name=slot.state.name or "no name",
            )
