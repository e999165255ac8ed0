# SPDX-License-Identifier: Apache-2.0
"""What the inputs of a program reach in its results, walking backward from equation to equation.

Calls, branches and loops are programs, which are walked, too. A loop is walked until nothing
changes: the numbers of an element only go from nothing to one position and on to several. Where a
rule of differentiation is the user's, or another library's, it decides, and not the function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial, reduce
from operator import is_
from typing import Any

import jax

from ...base import versions
from ...base.versions import Atom, Jaxpr, JaxprEqn, Var, jaxp
from ..depends import Along, carries, depends
from .of_primitives import ALONG, MOVES, elementwise
from .places import Pairs, Places, axes_along, blank, merge, merge_axes, own_places, spread

Found = list[Places | None]


def reached(
    eqns: Sequence[JaxprEqn], sources: Sequence[Var], ends: Iterable[tuple[Atom, Places | None]]
) -> Found:
    """What the sources reach, ``None`` for nothing, when that of the ends is known."""
    start = {v: frozenset({0}) for v in sources if versions.is_float(v.aval)}
    moving = depends(eqns, start, along=Along.DERIVATIVES)
    found: dict[Var, Places | None] = {}
    for atom, places in ends:
        if versions.is_var(atom) and atom in moving:
            found[atom] = _merged(found.get(atom), places)
    for eqn in reversed(eqns):
        outs = list(map(found.get, eqn.outvars))
        known = next(filter(None, outs), None)
        if known is None:
            continue
        operands = [k for k, a in enumerate(eqn.invars) if versions.is_var(a) and a in moving]
        for k, places in zip(operands, _back(eqn, operands, outs, len(known)), strict=True):
            found[eqn.invars[k]] = _merged(found.get(eqn.invars[k]), places)
    return [found.get(v) for v in sources]


def _merged(a: Places | None, b: Places | None) -> Places | None:
    """What two readers reach together; ``a`` itself where ``b`` adds nothing."""
    if a is None or b is None:
        return b if a is None else a
    both = tuple(map(merge, a, b))
    return a if all(map(is_, a, both)) else both


def _back(eqn: JaxprEqn, operands: list[int], outs: Found, count: int) -> Found:
    """What some operands of one equation reach."""
    primitive = eqn.primitive
    if carries(eqn):
        return [outs[k] for k in operands]
    if primitive in CONTROL:
        return CONTROL[primitive](eqn, operands, outs)
    if primitive in MOVES:
        pairs = zip(eqn.outvars, outs, strict=True)
        columns = list(zip(*(o or (blank(v.aval.ndim),) * count for v, o in pairs), strict=True))
        return [tuple(MOVES[primitive](eqn, k, column) for column in columns) for k in operands]
    if primitive not in ALONG and (own := _tangents(eqn, operands)) is not None:
        program, dots, results = own
        with _following(primitive):
            return reached(program.eqns, dots, zip(results, outs, strict=True))
    rule = ALONG.get(primitive, lambda eqn, k: ())
    return [_spread(eqn, k, rule, outs) for k in operands]


def _spread(eqn: JaxprEqn, k: int, rule: Callable[[JaxprEqn, int], Pairs], outs: Found) -> Any:
    shape = eqn.invars[k].aval.shape
    if rule is elementwise and shape == eqn.outvars[0].aval.shape:
        return outs[0]
    pairs = tuple(rule(eqn, k))
    return reduce(_merged, map(partial(_along, pairs, shape), eqn.outvars, outs))


def _along(pairs: Pairs, shape: tuple[int, ...], v: Var, out: Places | None) -> Places | None:
    """What an operand of ``shape`` reaches through one result, when pairs of axes are kept."""
    return out and tuple(spread(numbers, pairs, shape, v.aval.shape) for numbers in out)


# --- calls, branches and loops --------------------------------------------------------------------


def through(jaxpr: Jaxpr, inputs: Iterable[int], outs: Found) -> Found:
    """What some inputs of a program reach."""
    ends = zip(jaxpr.outvars, outs, strict=True)
    return reached(jaxpr.eqns, [jaxpr.invars[i] for i in inputs], ends)


def _cond(eqn: JaxprEqn, operands: list[int], outs: Found) -> Found:
    """Any branch may have run."""
    inputs = [k - 1 for k in operands]
    each = [through(versions.close(b), inputs, outs) for b in eqn.params["branches"]]
    return [reduce(_merged, column) for column in zip(*each, strict=True)]


def _scan(eqn: JaxprEqn, operands: list[int], outs: Found) -> Found:
    consts, carried = versions.scan_counts(eqn)
    each = [o and tuple(merge_axes(c, (0,)) for c in o) for o in outs[carried:]]
    start: Found = outs[:carried]
    made: Found = [None] * len(eqn.invars)
    if eqn.params["length"] > 0:
        start, made = _settled(versions.sub_jaxpr(eqn), consts, start, each)
    rows = [o and tuple(c[None] for c in o) for o in made[consts + carried :]]
    found = [*made[:consts], *start, *rows]
    return [found[k] for k in operands]


def _while(eqn: JaxprEqn, operands: list[int], outs: Found) -> Found:
    skipped, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    start, made = _settled(versions.close(eqn.params["body_jaxpr"]), consts, outs, [])
    found = [*(None,) * skipped, *made[:consts], *start]
    return [found[k] for k in operands]


def _settled(body: Jaxpr, consts: int, ends: Found, each: Found) -> tuple[Found, Found]:
    """What the carried values reach when no further iteration changes it, and all inputs."""
    now = ends
    while True:
        made = through(body, range(len(body.invars)), [*now, *each])
        after = list(map(_merged, now, made[consts:]))
        if all(map(is_, after, now)):
            return now, made
        now = after


# --- rules of differentiation -------------------------------------------------------------------


#: Primitives whose rule of differentiation is being followed, from the outermost on.
_FOLLOWED: ContextVar[tuple[Any, ...]] = ContextVar("followed", default=())

#: How many functions with rules of their own are followed into one another; one may lead to itself.
DEEPEST = 8


@contextmanager
def _following(primitive: Any) -> Iterator[None]:
    """Inside, the rule of a primitive is being followed."""
    token = _FOLLOWED.set((*_FOLLOWED.get(), primitive))
    try:
        yield
    finally:
        _FOLLOWED.reset(token)


def _has_no_end(primitive: Any) -> bool:
    """Whether the rule of a primitive leads to itself, directly, through a call or another one."""
    own = primitive in (jaxp.custom_jvp_call_p, jaxp.custom_vjp_call_p)  # of all such functions
    return _FOLLOWED.get().count(primitive) >= (DEEPEST if own else 1)


def _tangents(eqn: JaxprEqn, operands: list[int]) -> versions.Tangents | None:
    """The program ``operands, tangents of some -> tangents of the results``.

    So is told what becomes of positions in an ETP operation, a function with a JVP rule of its own
    and a primitive of another library, such as a surrogate spike. ``None`` for a rule that is there
    to refuse, and where following it has no end.
    """
    custom = eqn.primitive is jaxp.custom_jvp_call_p
    if _has_no_end(eqn.primitive) or not (custom or eqn.primitive in versions.JVP_RULES):
        return None

    def run(*values: Any) -> list[Any]:
        return versions.bind_equation(eqn, values)

    def tangents(primals: list[Any], dots: list[Any]) -> Any:
        call = versions.partial_at(run, primals, operands)
        return jax.jvp(call, [primals[i] for i in operands], dots)[1]

    avals = [v.aval for v in eqn.invars]
    try:
        if custom and (kept := _kept_rule(eqn)) is not None:
            program, dots, results = kept
            return program, [dots[i] for i in operands], results
        program = versions.make_jaxpr(tangents, avals, [avals[i] for i in operands])
        return program, program.invars[len(avals) :], program.outvars
    except (TypeError, ValueError, NotImplementedError):
        return None


#: The rules that are kept, by what is the same of all calls of one function.
_KNOWN: ContextVar[dict[Any, versions.Tangents] | None] = ContextVar("known", default=None)


@contextmanager
def tracing_once() -> Iterator[None]:
    """Inside, the rule of a function is traced once for all its calls with the same types."""
    token = _KNOWN.set({})
    try:
        yield
    finally:
        _KNOWN.reset(token)


def _kept_rule(eqn: JaxprEqn) -> versions.Tangents | None:
    known = _KNOWN.get()
    same = None if known is None else versions.same_rule(eqn)
    if known is None or same is None:
        return versions.kept_rule(eqn)
    if same not in known and (kept := versions.kept_rule(eqn)) is not None:
        known[same] = kept
    return known.get(same)


def _custom_vjp(eqn: JaxprEqn, operands: list[int], outs: Found) -> Found:
    """Along the axes on which every cotangent keeps its position on the way back."""
    if _has_no_end(eqn.primitive):
        return [_spread(eqn, k, lambda eqn, k: (), outs) for k in operands]

    def cotangents(primals: list[Any], dots: list[Any]) -> Any:
        _, pull = jax.vjp(lambda *values: versions.bind_equation(eqn, values), *primals)
        found = pull(dots)
        return [found[i] for i in operands]

    avals = [v.aval for v in eqn.invars]
    program = versions.make_jaxpr(cotangents, avals, [v.aval for v in eqn.outvars])
    seeds = program.invars[len(avals) :]

    def one(cotangent: Atom, shape: tuple[int, ...]) -> Places | None:
        def turned(v: Var, back: Places | None, out: Places | None) -> Places | None:
            along = {} if back is None else axes_along(back, shape, v.aval.shape)
            return back and _along([(k, i) for i, k in along.items()], shape, v, out)

        back = reached(program.eqns, seeds, [(cotangent, own_places(shape))])
        return reduce(_merged, map(turned, seeds, back, outs))

    with _following(eqn.primitive):
        return [one(v, avals[k].shape) for v, k in zip(program.outvars, operands, strict=True)]


CONTROL: dict[Any, Callable[[JaxprEqn, list[int], Found], Found]] = {
    **dict.fromkeys(
        versions.CALL_PRIMITIVES,
        lambda eqn, operands, outs: through(versions.sub_jaxpr(eqn), operands, outs),
    ),
    jaxp.cond_p: _cond,
    jaxp.scan_p: _scan,
    jaxp.while_p: _while,
    jaxp.custom_vjp_call_p: _custom_vjp,
}
