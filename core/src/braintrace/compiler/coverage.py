# SPDX-License-Identifier: Apache-2.0
"""How the gradient of each parameter arises, and which parameters stay as they are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import brainstate

from ..base import versions
from ..base.errors import CompilationError
from ..base.types import Path, how_many, show_path
from ..base.versions import Var
from ..jaxprs.depends import marks_of, slice_to
from .groups import Groups, groups_of_new
from .module_info import Marks, ModuleInfo, StateKind
from .relation import Relations

Frozen = Callable[[Path], bool] | Iterable[Path | str | brainstate.State[Any]]
"""Which parameters are frozen: a predicate on the path, or paths, prefixes of paths, states."""


def find_coverage(
    minfo: ModuleInfo,
    relations: Relations,
    direct_leaves: frozenset[Var],
    unheard: frozenset[int] = frozenset(),
) -> dict[Path, str]:
    """Per parameter: ``'trace'``, ``'direct'``, ``'trace+direct'``, ``'lost'`` or ``'none'``.

    It is lost where there is a trace, and all that it drives is unheard.
    """
    leaves = minfo.weight_path_to_invars
    direct = {path for path, own in leaves.items() if not direct_leaves.isdisjoint(own)}
    traced = {p for r in relations for p in r.parameter_paths}
    heard = {p for r in relations if {*r.group_alignments} - unheard for p in r.parameter_paths}
    ways = {"trace": heard, "direct": direct, "lost": traced - heard - direct}
    paths = dict.fromkeys((*leaves, *minfo.model_parameters))
    return {p: "+".join(way for way, of in ways.items() if p in of) or "none" for p in paths}


def find_unheard(minfo: ModuleInfo, groups: Groups) -> frozenset[int]:
    """Groups that reach the result of a step through states alone that carry no credit.

    Such a state takes up values of the group, and the next step reads it. (A group of which nothing
    is read at all may be read by the loss, which is no part of the step.)
    """
    slots = minfo.slots_of(StateKind.OTHER)
    others = [s for s in slots if any(versions.is_float(v.aval) for v in minfo.invars_of(s))]
    olds: dict[Var, Marks] = {v: frozenset({g.index}) for g in groups for v in g.hidden_invars}
    olds |= {v: frozenset({slot.path}) for slot in others for v in minfo.invars_of(slot)}
    marks = minfo.credit(olds, emits=groups_of_new(groups)) if others else {}
    by_group = {group.index: marks_of(marks, group.hidden_outvars) for group in groups}
    heard = marks_of(marks, minfo.jaxpr.outvars[: minfo.num_out])
    read = heard.union(*by_group.values())
    for _ in groups:
        heard = heard.union(*(found for g, found in by_group.items() if g in heard))
    taken = {slot.path: marks_of(marks, minfo.outvars_of(slot)) for slot in others}
    carried = behind_states(read, taken)
    return frozenset(g for g in by_group if g in carried and g not in heard)


def behind_states(read: Marks, taken: Mapping[Any, Marks]) -> Marks:
    """What states take up that are read, or that a state takes up which is read, and so on."""
    found: Marks = frozenset()
    for _ in taken:
        found = found.union(*(marks for path, marks in taken.items() if path in read | found))
    return found


def require_coverage(
    minfo: ModuleInfo, coverage: Mapping[Path, str], frozen: frozenset[Path]
) -> None:
    """Refuse parameters without a gradient that are not frozen, with the reason for each."""
    lost = [path for path, how in coverage.items() if how == "none" and path not in frozen]
    if not lost:
        return
    lines = [f"  {show_path(path)}: {why_uncovered(minfo, path)}" for path in lost]
    names = ", ".join(repr(show_path(path)) for path in lost)
    of = how_many(len(coverage), "parameter")
    raise CompilationError(
        f"no gradient can reach {len(lost)} of the model's {of}:\n"
        + "\n".join(lines)
        + "\nLet the step use them, take them out of the model, or say that they are meant to stay "
        f"as they are: frozen=[{names}]"
    )


def why_uncovered(minfo: ModuleInfo, path: Path) -> str:
    """Why no derivative leads from a parameter to the result or to a state."""
    leaves = minfo.weight_path_to_invars.get(path)
    if leaves is None:
        return "the step does not read it"
    if not any(versions.is_float(leaf.aval) for leaf in leaves):
        return f"it is of dtype {leaves[0].aval.dtype}, which has no derivative"
    own = {*leaves}
    targets = [atom for atom in minfo.jaxpr.outvars if versions.is_var(atom) and atom not in own]
    needed = [minfo.eqns[i] for i in slice_to(minfo.eqns, targets)]
    if not any(versions.is_var(a) and a in own for eqn in needed for a in eqn.invars):
        return "its value reaches neither the result nor a state"
    moving = minfo.credit(dict.fromkeys(leaves, frozenset({0})))
    ends = [eqn for eqn in needed if moving.keys().isdisjoint(eqn.outvars)]
    blocks = [e for e in ends if any(versions.is_var(a) and a in moving for a in e.invars)]
    where = f", at {versions.source_of(blocks[0])}" if blocks else ""
    return f"it is used only behind stop_gradient or in integers and booleans{where}"


def resolve_frozen(states: Mapping[Path, brainstate.State[Any]], frozen: Frozen) -> frozenset[Path]:
    """The paths of those parameters of a model that ``frozen`` names."""
    if callable(frozen):
        return frozenset(path for path in states if frozen(path))
    if isinstance(frozen, str | brainstate.State):
        frozen = (frozen,)
    return frozenset(path for entry in frozen for path in _named(entry, states))


def by_path(states: Mapping[Path, brainstate.State[Any]], frozen: Frozen) -> Frozen:
    """``frozen`` for copies of a model as well: its states by their paths."""
    if callable(frozen) or isinstance(frozen, str):
        return frozen
    entries = (frozen,) if isinstance(frozen, brainstate.State) else tuple(frozen)
    if not any(isinstance(entry, brainstate.State) for entry in entries):
        return frozen
    return tuple(path for entry in entries for path in _named(entry, states))


def _named(entry: Any, states: Mapping[Path, brainstate.State[Any]]) -> list[Path]:
    if isinstance(entry, brainstate.State):
        found = [path for path, state in states.items() if state is entry]
    elif isinstance(entry, tuple):
        found = [path for path in states if path[: len(entry)] == entry]
    elif isinstance(entry, str):
        longer = (f"{entry}.", f"{entry}[")
        shown = {path: show_path(path) for path in states}
        found = [p for p, name in shown.items() if name == entry or name.startswith(longer)]
    else:
        raise TypeError(
            "an entry of frozen must be a path, the name of one ('out.weight'), a prefix of one or "
            f"a ParamState, got {type(entry).__name__}"
        )
    if found:
        return found
    if isinstance(entry, brainstate.State):
        held = type(entry).__name__
        raise ValueError(f"frozen holds a {held} that is not a parameter of the model")
    name = entry if isinstance(entry, str) else show_path(entry)
    prefixes = dict.fromkeys(show_path(p[:n]) for p in states for n in range(len(p), 0, -1))
    near = difflib.get_close_matches(name, prefixes, n=3, cutoff=0.5) or [*prefixes][:3]
    raise ValueError(f"frozen names no parameter: {entry!r}; similar names are {near}")
