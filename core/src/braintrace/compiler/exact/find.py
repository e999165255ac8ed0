# SPDX-License-Identifier: Apache-2.0
"""Which groups of few values are above which groups and operations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from ...base import versions
from ...base.errors import NotSupportedError
from ...base.types import Path, show_path
from ...base.versions import Var
from ...jaxprs.depends import marks_of
from ...jaxprs.positions.alignment import align
from ..groups import Groups, member_of
from ..module_info import CreditFilter, ModuleInfo
from ..reach import Reach
from ..uniform.state import UniformState
from .record import ExactCredit, Key, Member, members_of, values_of, way_to

#: How many values, of an example, the small groups above a group may have together.
MOST_VALUES = 64


def find_above(minfo: ModuleInfo, groups: Groups, reach: Sequence[Reach]) -> ExactCredit:
    """The small groups above each group, and above operations that reach none near.

    A group is above another one, or an operation, if a new or old value of that leads to its new
    values in a step, past those of no third group, and if anything reads its old values. Operations
    near a group, or with input from it, are its own, and not below it.
    """
    own, drive = _drive(minfo, groups, reach)
    lasting = _lasting(minfo, groups, drive)
    keys: list[Key] = [*drive, *own]

    def found(by_example: bool) -> ExactCredit:
        sizes = {k: values_of(members_of(groups[k]), by_example) for k in lasting}
        large = {k: n for k, n in sizes.items() if n > MOST_VALUES}
        few = [k for k in lasting if k not in large]
        if large and not few:
            raise NotSupportedError(_refusal(groups, large))
        above = _reached(drive, few, keys)
        for small in above.values():
            if sum(sizes[k] for k in small) > MOST_VALUES:
                raise NotSupportedError(_refusal(groups, {k: sizes[k] for k in small}))
        too_large = {groups[k].hidden_paths[0]: n for k, n in large.items()}
        return ExactCredit(minfo, tuple(groups), above, by_example, too_large, own)

    credit = found(by_example=True)
    mixing = {key for key, m in credit.pairs() if not _keeps_examples(credit, key, m)}
    if mixing & {*drive}:
        return found(by_example=False)
    return replace(credit, above={k: v for k, v in credit.above.items() if k not in mixing})


def states_that_stay(
    minfo: ModuleInfo, groups: Groups, reach: Sequence[Reach], uniform: Mapping[Path, UniformState]
) -> dict[Path, str]:
    """Uniform states with fewer values than the filters in front of them, which are above a group.

    A map with a nonlinearity between ends the credit at these filters, which would be states of
    what is below. They are worse than the states that they stand for.
    """
    found: dict[Path, str] = {}
    for k in _lasting(minfo, groups, _drive(minfo, groups, reach)[1]):
        states = groups[k].hidden_states
        of = {state.of for state in states if isinstance(state, CreditFilter)}
        count = sum(math.prod(uniform[path].type.shape) for path in of)
        filters = all(isinstance(state, CreditFilter) for state in states)
        if filters and count < values_of(members_of(groups[k]), by_example=False):
            found |= dict.fromkeys(of, "with downstream='exact', its few values are states below")
    return found


def _refusal(groups: Groups, sizes: Mapping[int, int]) -> str:
    names = (
        f"{', '.join(map(show_path, groups[k].hidden_paths))} ({n} values)"
        for k, n in sizes.items()
    )
    return (
        "downstream='exact' makes every value of the layers above one more state of each position "
        f"below, and {' and '.join(names)} {'have' if len(sizes) > 1 else 'has'} more than "
        f"{MOST_VALUES}. Learn with downstream='linear', or in windows (vjp_method='multi-step'); "
        "a layer above whose leak is the same everywhere, with its reset detached, needs neither"
    )


def _lasting(minfo: ModuleInfo, groups: Groups, drive: Mapping[int, frozenset[Key]]) -> list[int]:
    """The groups above something whose old values anything reads."""
    read = {atom for eqn in minfo.eqns for atom in eqn.invars if versions.is_var(atom)}
    return [k for k in drive if drive[k] and not read.isdisjoint(groups[k].hidden_invars)]


def _drive(
    minfo: ModuleInfo, groups: Groups, reach: Sequence[Reach]
) -> tuple[dict[Var, Reach], dict[int, frozenset[Key]]]:
    """The trained operations by result; what leads to each group past new values of no other."""
    traced = (r for r in reach if any(operand.leaves for operand in r.operands))
    operations = {r.eqn.outvars[0]: r for r in traced}
    member, arriving = member_of(groups), dict[Var, frozenset[Key]]()
    olds = {v: g.index for g in groups for v in g.hidden_invars}

    emits = {v: frozenset[Key]({member.get(v, v)}) for v in (*member, *operations)}

    def through(var: Var, marks: frozenset[Key]) -> frozenset[Key]:
        if var not in member:
            return marks
        arriving[var] = marks
        return frozenset({member[var]})

    seeds = {v: frozenset[Key]({g}) for v, g in olds.items()}
    minfo.credit(seeds, emits=emits, through=through)
    behind = minfo.credit(seeds, emits=emits)

    def owns(k: int, key: Key) -> bool:
        if isinstance(key, int):
            return key == k
        return k in operations[key].near or k in marks_of(behind, operations[key].eqn.invars)

    found: dict[int, frozenset[Key]] = {}
    for g in groups:
        marks = marks_of(arriving, g.hidden_outvars)
        found[g.index] = frozenset(key for key in marks if not owns(g.index, key))
    return operations, found


def _reached(
    drive: Mapping[int, frozenset[Key]], chosen: Sequence[int], keys: Sequence[Key]
) -> dict[Key, tuple[int, ...]]:
    """The chosen groups that each group or operation leads to, over any number of steps."""
    found = {}
    for key in keys:
        reached: set[int] = set()
        while new := {k for k in chosen if drive[k] & {key, *reached}} - reached - {key}:
            reached |= new
        if reached:
            found[key] = tuple(sorted(reached))
    return found


def _keeps_examples(credit: ExactCredit, key: Key, member: Member) -> bool:
    """Whether examples along the first axis stay apart on the way to a value above."""
    way, result, below = way_to(credit, key, member), member.group, credit.values_below(key)
    above = {m.old: m for m in credit.members_above(key)}
    lines = result.state_axes_of(result.hidden_outvars)

    def kept(var: Var) -> bool:
        source = above.get(var, below.get(var))
        shape = tuple(var.aval.shape) if source is None else source.group.varshape
        if not shape or not result.ndim or shape[0] != result.varshape[0]:
            return False
        own = {}
        if source is not None:
            of = source.group
            own = of.state_axes_of(of.hidden_invars) | of.state_axes_of(of.hidden_outvars)
        found = align(way.eqns, var, [member.new], result.ndim, len(shape), {**own, **lines})
        return found is None or shape[0] == 1 or found.axes[0] == 0

    return all(map(kept, way.ins))
