# SPDX-License-Identifier: Apache-2.0
"""Delay lines: states that keep the values of several steps, as a buffer of spikes does.

A line ``[n, *V]`` of what a position had in the last ``n`` steps is a shift of ``n`` states of that
position, however it is written: by ``roll``, by joining, at a counter, by ``brainstate.nn.Delay``.
So its steps are states of the hidden group whose values it takes up, and credit passes through it
as through any other state of the group: exactly. A line along which positions are mixed, by a
product that is no ETP operation say, stays what it was, and so does one that has the positions
neither of another hidden state nor of an operation that drives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..base import versions
from ..jaxprs.positions.alignment import align
from ..jaxprs.run import between, etp_equations, flatten, nested
from .groups import find_hidden_groups_from_minfo
from .module_info import ModuleInfo, StateKind, StateSlot
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
    axes = {k: _axes_of(minfo, slot) for k, slot in enumerate(minfo.slots)}
    lines = {k: own for k, own in axes.items() if own and _carries(minfo, minfo.slots[k])}
    while lines:
        found = _with(minfo, {k: axes[0] for k, axes in lines.items()})
        wrong = {k for k in _wrong(found) if k in lines}
        if not wrong:
            return found
        lines = {k: axes[k in wrong :] for k, axes in lines.items()}  # the next axis, if any
        lines = {k: axes for k, axes in lines.items() if axes}
    return minfo


def _axes_of(minfo: ModuleInfo, slot: StateSlot) -> list[int]:
    """The axes along which a state may be a line: it is shifted along one, or written at an index.

    Without them, it has the positions of another hidden state, or of the result of an operation.
    """
    if slot.kind is StateKind.PARAM or slot.is_filter or len(slot.leaves) != 1:
        return []
    (old,), (new,) = minfo.invars_of(slot), minfo.outvars_of(slot)
    shape = old.aval.shape
    known = {s.varshape for s in minfo.slots_of(StateKind.HIDDEN) if s is not slot}
    operations = {*etp_equations(minfo.eqns)}
    known |= {minfo.eqns[i].outvars[0].aval.shape for i in operations}
    axes = [k for k in range(len(shape)) if (*shape[:k], *shape[k + 1 :]) in known]
    if not axes or new is old or not versions.is_float(old.aval) or not versions.is_var(new):
        return []
    if slot.kind is StateKind.HIDDEN and len(shape) != len(slot.varshape):
        return []  # it says itself which of its axes holds states
    others = [eqn for i, eqn in enumerate(minfo.eqns) if i not in operations]
    eqns = between(others, [old], [new]).eqns  # what an operation mixes is no shift
    inside = {sub.primitive.name for eqn in eqns for sub in (eqn, *nested(eqn))}
    if inside & SUMS:
        return []
    if any(name.startswith(WRITES) for name in inside):
        return axes
    found = align(eqns, old, [new], len(shape), len(shape))
    mixed = found is not None and not found.is_identity
    return [k for k in axes if mixed and found is not None and k not in found.kept]


def _wrong(minfo: ModuleInfo) -> set[int]:
    """The lines whose group mixes positions, or which have neither a state nor an operation."""
    groups, _ = find_hidden_groups_from_minfo(minfo)
    reach = find_reach(minfo, groups)
    driven = {(g, r.eqn.outvars[0].aval.shape) for r in reach for g in r.near}
    number = {s.path: k for k, s in enumerate(minfo.slots) if s.steps_along is not None}
    wrong: set[int] = set()
    for group in groups:
        own = {number[path] for path in group.hidden_paths if path in number}
        alone = len(own) == len(group.hidden_paths)
        if own and (group.mixed_axes or (alone and (group.index, group.varshape) not in driven)):
            wrong |= own
    return wrong


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
