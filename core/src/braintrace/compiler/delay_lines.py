# SPDX-License-Identifier: Apache-2.0
"""Delay lines: states that keep the values of several steps, as a buffer of spikes does.

A line ``[n, *V]`` of what a position had in the last ``n`` steps is a shift of ``n`` states of that
position, however it is written: by ``roll``, by joining, at a counter, by ``brainstate.nn.Delay``.
So its steps are states of the hidden group whose values it takes up, and credit passes through it
as through any other state of the group: exactly. A state that is the value of the step before,
and no sum with its own old value, is a line of one step. A line along which positions are mixed, by
a product that is no ETP operation say, stays what it was, and so does one that has neither the
positions of another hidden state nor an operation that drives it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..base import versions
from ..base.versions import JaxprEqn, Var
from ..jaxprs.positions.alignment import align
from ..jaxprs.run import between, etp_equations, flatten, nested
from .groups import Groups, HiddenGroup, find_hidden_groups_from_minfo, member_of
from .module_info import ONE_STEP, Marks, ModuleInfo, StateKind, StateSlot, is_barrier
from .reach import find_reach

#: How primitives that write at an index are called.
WRITES = ("dynamic_update_slice", "scatter")

#: Primitives that make sums of several positions, which a shift does not.
SUMS = frozenset(
    "dot_general conv_general_dilated reduce_sum reduce_max reduce_min reduce_prod cumsum cumprod "
    "cummax cummin sort fft".split()
)


def with_delay_lines(minfo: ModuleInfo) -> ModuleInfo:
    """The step with its delay lines among the hidden states; itself where there are none."""
    operations = {*etp_equations(minfo.eqns)}
    known = {slot.varshape for slot in minfo.slots_of(StateKind.HIDDEN)}
    known |= {minfo.eqns[i].outvars[0].aval.shape for i in operations}
    others = [eqn for i, eqn in enumerate(minfo.eqns) if i not in operations]
    axes = {k: _axes_of(minfo, slot, known, others) for k, slot in enumerate(minfo.slots)}
    lines = {k: own for k, own in axes.items() if own and _carries(minfo, minfo.slots[k])}
    while lines:
        found = _with(minfo, {k: axes[0] for k, axes in lines.items()})
        wrong = {k for k in _wrong(found) if k in lines}
        if not wrong:
            return found
        lines = {k: axes[k in wrong :] for k, axes in lines.items()}  # the next axis, if any
        lines = {k: axes for k, axes in lines.items() if axes}
    return minfo


def _axes_of(
    minfo: ModuleInfo, slot: StateSlot, known: set[tuple[int, ...]], others: Sequence[JaxprEqn]
) -> list[int]:
    """The axes along which a state may be a line: it is shifted along one, or written at an index.

    Without them, it has the positions of another hidden state, or of the result of an operation,
    whose shapes are ``known``; or it tells itself along which it is written. ``ONE_STEP``: it holds
    one step. ``others`` are the equations that are no operations.
    """
    if slot.kind is StateKind.PARAM or slot.is_filter or len(slot.leaves) != 1:
        return []
    (old,), (new,) = minfo.invars_of(slot), minfo.outvars_of(slot)
    if new is old or not versions.is_float(old.aval) or not versions.is_var(new):
        return []
    shape, own = old.aval.shape, slot.kind is StateKind.HIDDEN
    if own and len(shape) != len(slot.varshape):
        return []  # it says itself which of its axes holds states
    axes = [k for k in range(len(shape)) if (*shape[:k], *shape[k + 1 :]) in known]
    if own and not axes:
        return []
    eqns = between(others, [old], [new]).eqns  # what an operation mixes is no shift
    news = {minfo.outvars_of(s)[0] for s in minfo.slots_of(StateKind.HIDDEN)}
    if not own and (new in news or not between(others, [old], [new], news).eqns):
        return [ONE_STEP]
    inside = [sub for eqn in eqns for sub in (eqn, *nested(eqn))]
    if SUMS.intersection(sub.primitive.name for sub in inside):
        return []
    if writes := [sub for sub in inside if sub.primitive.name.startswith(WRITES)]:
        return axes or _written_along(writes, shape)
    found = align(eqns, old, [new], len(shape), len(shape))
    if found is None or found.is_identity:
        return []
    return [k for k in axes or range(len(shape)) if k not in found.kept]


def _written_along(writes: Sequence[JaxprEqn], shape: tuple[int, ...]) -> list[int]:
    """The axes of a state along which one element of it is written at a time."""
    found: set[int] = set()
    for eqn in (eqn for eqn in writes if eqn.invars[0].aval.shape == shape):
        if eqn.primitive.name.startswith("scatter"):
            found |= {*eqn.params["dimension_numbers"].inserted_window_dims}
        else:
            sizes = zip(shape, eqn.invars[1].aval.shape, strict=True)
            found |= {k for k, (all_of, size) in enumerate(sizes) if size == 1 < all_of}
    return sorted(found)


def _wrong(minfo: ModuleInfo) -> set[int]:
    """The lines whose group mixes positions, or which have neither a state nor an operation.

    And those of one step that are heard by nothing but an operation that drives them: that is
    recurrence, of which the recurrence scope has its own to say.
    """
    groups, path_to_group = find_hidden_groups_from_minfo(minfo)
    driven = {g for r in find_reach(minfo, groups) for g in r.near}
    number = {s.path: k for k, s in enumerate(minfo.slots) if s.steps_along is not None}
    wrong: set[int] = set()
    for group in groups:
        own = {number[path] for path in group.hidden_paths if path in number}
        alone = len(own) == len(group.hidden_paths)
        if own and (group.mixed_axes or (alone and group.index not in driven)):
            wrong |= own
    lines = (s for s in minfo.slots if s.steps_along == ONE_STEP)
    recurs = {s.path for s in lines if _only_recurs(minfo, groups, path_to_group[s.path], s)}
    return wrong | {number[path] for path in recurs}


def _only_recurs(minfo: ModuleInfo, groups: Groups, own: HiddenGroup, line: StateSlot) -> bool:
    """Whether nothing hears of a line but its own group, behind an operation."""
    member = member_of(groups)
    crossed = {var for eqn in minfo.eqns if is_barrier(eqn) for var in eqn.outvars}

    def passes(i: int, eqn: JaxprEqn, operand: int) -> bool:
        return eqn.invars[operand] not in member

    def through(var: Var, marks: Marks) -> Marks:
        return frozenset({"crossed"}) if var in crossed else marks

    old = minfo.invars_of(line)[0]
    marks = minfo.credit({old: frozenset({"near"})}, passes, through=through)
    ends = {v: marks[v] for v in minfo.jaxpr.outvars if versions.is_var(v) and v in marks}
    return all(member.get(v) == own.index and "near" not in found for v, found in ends.items())


def _carries(minfo: ModuleInfo, slot: StateSlot) -> bool:
    """Whether a state takes up what has a derivative, and passes it on to something else."""
    old, new = minfo.invars_of(slot)[0], minfo.outvars_of(slot)[0]
    parameters = minfo.parameter_leaves.values()
    others = (v for s in minfo.slots if s.kind is not StateKind.PARAM for v in minfo.invars_of(s))
    seeds = {v: frozenset({"other"}) for v in (*others, *parameters)}
    marks = minfo.credit(seeds | {old: frozenset({"own"})})
    if "other" not in marks.get(new, ()):
        return False
    own = {minfo.num_out + i for i in slot.leaves}
    results = (v for i, v in enumerate(minfo.jaxpr.outvars) if i not in own)
    return any("own" in marks.get(v, ()) for v in results if versions.is_var(v))


def _with(minfo: ModuleInfo, lines: Mapping[int, int]) -> ModuleInfo:
    """The step with some states, by number, as delay lines along an axis."""
    slots = list(minfo.slots)
    for k, axis in lines.items():
        slots[k] = replace(slots[k], kind=StateKind.HIDDEN, steps_along=axis)
    own = [minfo.num_out + i for s in slots if s.kind is StateKind.HIDDEN for i in s.leaves]
    ins, outs = range(len(minfo.jaxpr.invars)), range(len(minfo.jaxpr.outvars))
    return replace(minfo, jaxpr=flatten(minfo.jaxpr, ins, outs, own), slots=tuple(slots))
