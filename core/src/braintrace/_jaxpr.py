# SPDX-License-Identifier: Apache-2.0
"""Reading, slicing and running jaxprs.

Every derived program is made by *running* equations inside ``jax.make_jaxpr``, never by
assembling equations by hand: variables stay unique and each JAX release stays content.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import jax.numpy as jnp

from . import _jax
from ._jax import Atom, Jaxpr, JaxprEqn, Var, jaxp
from ._primitive import is_etp_primitive


def run_equations(eqns: Iterable[JaxprEqn], env: dict[Var, Any]) -> None:
    """Run ``eqns`` in order, reading from and writing to ``env``."""
    for eqn in eqns:
        values = _jax.bind_equation(eqn, [read(env, atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, values, strict=True))


def read(env: dict[Var, Any], atom: Atom) -> Any:
    """The value of a variable in ``env``, or of a literal."""
    return env[atom] if _jax.is_var(atom) else atom.val


def run_inlined(
    jaxpr: Jaxpr,
    inputs: Sequence[Any],
    call: str | None = None,
    note: Callable[[JaxprEqn], None] = lambda eqn: None,
) -> list[Any]:
    """Run a closed jaxpr with every call (``jit``, ``checkpoint``) run equation by equation.

    ``call`` is the name of the called function while inside a call (empty if it has none):
    equations that are not from its own lines, and no ETP equations, are attributed to the line of
    the call. ``note`` is called with every ETP equation inside a call. An ETP equation without a
    line of the user's, of a layer that is itself the body of a loop, gets that of what it is in.
    """
    env: dict[Var, Any] = dict(_jax.constants(jaxpr))
    env.update(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(env, atom) for atom in eqn.invars]
        etp = is_etp_primitive(eqn.primitive)
        own = _jax.has_source(eqn) if etp else not call or _jax.written_in(eqn, call)
        if eqn.primitive in _jax.CALL_PRIMITIVES:
            name = str(eqn.params.get("name", call or ""))
            with _jax.at_source(eqn) if own else nullcontext():
                values = run_inlined(_jax.sub_jaxpr(eqn), operands, name, note)
        else:
            if etp and call is not None:
                note(eqn)
            values = _jax.bind_equation(eqn, operands, own)
        env.update(zip(eqn.outvars, values, strict=True))
    return [read(env, atom) for atom in jaxpr.outvars]


def flatten(
    jaxpr: Jaxpr,
    inputs: Sequence[int],
    outputs: Sequence[int],
    own: Iterable[int],
    note: Callable[[JaxprEqn], None] = lambda eqn: None,
) -> Jaxpr:
    """``jaxpr`` with calls inlined, inputs and outputs permuted, and some outputs made distinct.

    Parameters
    ----------
    inputs, outputs
        The new input ``i`` is the old input ``inputs[i]``; likewise the outputs.
    own
        New outputs that must each be the result of an equation of their own: one that is an
        input, a constant or the same variable as an earlier one becomes a copy. Readers of the
        original keep reading the original.
    note
        Called with every ETP equation inside a call.
    """
    own = set(own)

    def run(*values: Any) -> list[Any]:
        original: list[Any] = [None] * len(values)
        for value, i in zip(values, inputs, strict=True):
            original[i] = value
        old = run_inlined(jaxpr, original, note=note)
        new = [old[i] for i in outputs]
        taken = list(values)
        for i in sorted(own):
            if not _jax.is_traced(new[i]) or any(new[i] is other for other in taken):
                new[i] = jnp.copy(new[i])
            taken.append(new[i])
        return new

    return _jax.make_jaxpr(run, *(jaxpr.in_avals[i] for i in inputs))


class Along(enum.Enum):
    """What is followed from an operand to a result."""

    VALUES = "values"
    DERIVATIVES = "derivatives"


def depends(
    eqns: Sequence[JaxprEqn],
    seeds: dict[Var, frozenset[Any]],
    passes: Callable[[int, JaxprEqn, int], bool] = lambda i, eqn, operand: True,
    emits: Callable[[int, JaxprEqn], frozenset[Any]] = lambda i, eqn: frozenset(),
    through: Callable[[Var, frozenset[Any]], frozenset[Any]] = lambda var, marks: marks,
    along: Along = Along.VALUES,
) -> dict[Var, frozenset[Any]]:
    """Forward dependence: which marks reach each variable.

    A result of an equation that holds programs (a branch, a loop) takes the marks of those
    operands that reach it in them; a result of any other equation takes the marks of all.

    Parameters
    ----------
    eqns
        Equations in order.
    seeds
        Marks on input variables.
    passes
        ``passes(index, eqn, operand_position)``: whether marks flow through that operand.
    emits
        ``emits(index, eqn)``: marks that the outputs of an equation get in addition.
    through
        ``through(variable, marks)``: what becomes of the marks that reach a variable.
    along
        ``DERIVATIVES``: marks flow only where a derivative does.
    """
    marks = dict(seeds)
    empty: frozenset[Any] = frozenset()
    smooth = along is Along.DERIVATIVES
    for i, eqn in enumerate(eqns):
        if smooth and eqn.primitive is _jax.STOP_GRADIENT:
            continue
        emitted = emits(i, eqn)
        arriving = {
            position: marks[atom]
            for position, atom in enumerate(eqn.invars)
            if _jax.is_var(atom)
            and marks.get(atom)
            and not (smooth and not _jax.is_float(atom.aval))
            and passes(i, eqn, position)
        }
        if not arriving and not emitted:
            continue
        behind = influences(eqn, along)
        everything = emitted.union(*arriving.values()) if behind is None else empty
        for k, var in enumerate(eqn.outvars):
            if smooth and not _jax.is_float(var.aval):
                continue
            if behind is not None:
                everything = emitted.union(*(arriving.get(p, empty) for p in behind[k]))
            if everything:
                marks[var] = through(var, everything)
    return marks


def differentiable(eqn: JaxprEqn, operand: int | None = None) -> bool:
    """Whether a derivative can flow through an equation at all, or from that operand."""
    if operand is not None and not _jax.is_float(eqn.invars[operand].aval):
        return False
    return eqn.primitive is not _jax.STOP_GRADIENT and any(
        _jax.is_float(var.aval) for var in eqn.outvars
    )


def reaches(jaxpr: Jaxpr, output: int) -> frozenset[int]:
    """The inputs (by index) on which an output depends differentiably."""
    return program_influences(jaxpr, Along.DERIVATIVES)[output]


def slice_to(
    eqns: Sequence[JaxprEqn],
    targets: Iterable[Atom],
    follows: Callable[[int, JaxprEqn, int], bool] = lambda i, eqn, operand: True,
    along: Along = Along.VALUES,
) -> list[int]:
    """Indices of the equations that compute ``targets``.

    ``follows(index, eqn, operand_position)``: whether to look behind that operand. With
    ``DERIVATIVES``, those through which a derivative reaches the targets.
    """
    wanted = {atom for atom in targets if _jax.is_var(atom)}
    kept: list[int] = []
    for i in range(len(eqns) - 1, -1, -1):
        eqn = eqns[i]
        results = [k for k, var in enumerate(eqn.outvars) if var in wanted]
        if results:
            kept.append(i)
            wanted.update(
                eqn.invars[k]
                for k in operands_behind(eqn, results, along)
                if _jax.is_var(eqn.invars[k]) and follows(i, eqn, k)
            )
    return kept[::-1]


# An equation is run as a whole. With one moving operand, all of its results move, therefore, even
# where one of them (of an inner loop, say) does not depend on that operand.


def moving_with(eqns: Iterable[JaxprEqn], variables: Iterable[Var]) -> set[Var]:
    """``variables``, and all results of equations that cannot be run without them.

    So are the results of equations with effects, such as a callback, which may differ each time.
    """
    moving = set(variables)
    for eqn in eqns:
        if eqn.effects or any(_jax.is_var(atom) and atom in moving for atom in eqn.invars):
            moving.update(eqn.outvars)
    return moving


def equations_behind(eqns: Sequence[JaxprEqn], targets: Iterable[Atom]) -> list[int]:
    """Indices of the equations that have to be run for the targets to be known."""
    wanted = {atom for atom in targets if _jax.is_var(atom)}
    kept = []
    for i in range(len(eqns) - 1, -1, -1):
        if wanted.intersection(eqns[i].outvars):
            kept.append(i)
            wanted.update(atom for atom in eqns[i].invars if _jax.is_var(atom))
    return kept[::-1]


# --- which operands a result of one equation depends on -----------------------------------------

Influences = tuple[frozenset[int], ...]
"""Per result, the positions of the operands it depends on."""


def operands_behind(eqn: JaxprEqn, results: Iterable[int], along: Along) -> Iterable[int]:
    """Positions of the operands on which some of the results (by position) depend."""
    if along is Along.DERIVATIVES:
        if eqn.primitive is _jax.STOP_GRADIENT:
            return ()
        results = [k for k in results if _jax.is_float(eqn.outvars[k].aval)]
        smooth = [k for k, a in enumerate(eqn.invars) if results and _jax.is_float(a.aval)]
    else:
        smooth = list(range(len(eqn.invars)))
    behind = influences(eqn, along)
    if behind is None:
        return smooth
    return sorted(frozenset().union(*(behind[k] for k in results)).intersection(smooth))


def influences(eqn: JaxprEqn, along: Along) -> Influences | None:
    """The operands behind each result of an equation; ``None``: all operands behind all results.

    Functions with a custom differentiation rule are not looked into: their derivative may flow
    otherwise than their values.
    """
    rule = _INFLUENCES.get(eqn.primitive)
    return None if rule is None else rule(eqn, along)


def program_influences(jaxpr: Jaxpr, along: Along) -> Influences:
    """The inputs behind each output of a closed jaxpr."""
    known = _KNOWN_INFLUENCES.setdefault(jaxpr, {})
    if along not in known:
        inputs = enumerate(jaxpr.invars)
        smooth = along is Along.DERIVATIVES
        marks = depends(
            jaxpr.eqns,
            {v: frozenset({i}) for i, v in inputs if not smooth or _jax.is_float(v.aval)},
            along=along,
        )
        known[along] = tuple(
            marks.get(atom, frozenset()) if _jax.is_var(atom) else frozenset()
            for atom in jaxpr.outvars
        )
    return known[along]


_KNOWN_INFLUENCES: weakref.WeakKeyDictionary[Jaxpr, dict[Along, Influences]] = (
    weakref.WeakKeyDictionary()
)


def _of_call(eqn: JaxprEqn, along: Along) -> Influences:
    return program_influences(_jax.sub_jaxpr(eqn), along)


def _of_cond(eqn: JaxprEqn, along: Along) -> Influences:
    """Any branch may have run; values also depend on which one, by the first operand."""
    branches = [program_influences(_jax.close(b), along) for b in eqn.params["branches"]]
    index = frozenset({0} if along is Along.VALUES else ())
    return tuple(
        index.union(*({k + 1 for k in found} for found in results))
        for results in zip(*branches, strict=True)
    )


def _of_scan(eqn: JaxprEqn, along: Along) -> Influences:
    """Operands and body inputs correspond; a carried value is also made of earlier ones."""
    consts, carried = _jax.scan_counts(eqn)
    body = program_influences(_jax.sub_jaxpr(eqn), along)
    own = [frozenset({consts + k}) for k in range(carried)]
    if eqn.params["length"] == 0:
        return (*own, *(frozenset() for _ in body[carried:]))
    before = _carried(own, body[:carried], consts)
    return tuple(_resolved(found, before, consts) for found in body)


def _of_while(eqn: JaxprEqn, along: Along) -> Influences:
    """Operands: constants of the condition, constants of the body, carried values."""
    skipped, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    body = program_influences(_jax.close(eqn.params["body_jaxpr"]), along)
    own = [frozenset({consts + k}) for k in range(len(body))]
    before = _carried(own, body, consts)
    shifted = [frozenset(skipped + k for k in found) for found in before]
    if along is Along.DERIVATIVES:
        return tuple(shifted)
    (predicate,) = program_influences(_jax.close(eqn.params["cond_jaxpr"]), along)
    steering = _resolved(predicate, shifted, skipped)
    return tuple(found | steering for found in shifted)


def _carried(
    own: Sequence[frozenset[int]], body: Sequence[frozenset[int]], consts: int
) -> list[frozenset[int]]:
    """Body inputs behind each carried value before any iteration: a least fixpoint."""
    before = list(own)
    while True:
        after = [a | _resolved(found, before, consts) for a, found in zip(own, body, strict=True)]
        if after == before:
            return before
        before = after


def _resolved(
    found: frozenset[int], carried: Sequence[frozenset[int]], consts: int
) -> frozenset[int]:
    """``found`` with each carried input replaced by what is behind it."""
    last = consts + len(carried)
    return frozenset().union(*(carried[k - consts] if consts <= k < last else {k} for k in found))


_INFLUENCES: dict[Any, Callable[[JaxprEqn, Along], Influences]] = {
    jaxp.cond_p: _of_cond,
    jaxp.scan_p: _of_scan,
    jaxp.while_p: _of_while,
    **dict.fromkeys(_jax.CALL_PRIMITIVES, _of_call),
}


# --- ETP operations -----------------------------------------------------------------------------


def etp_equations(eqns: Sequence[JaxprEqn]) -> list[int]:
    """Indices of the ETP equations."""
    return [i for i, eqn in enumerate(eqns) if is_etp_primitive(eqn.primitive)]


def holds(eqn: JaxprEqn, primitive: Any) -> bool:
    """Whether an equation is of a primitive, or holds one that is, at any depth."""
    return eqn.primitive is primitive or any(
        holds(sub, primitive) for inner in _jax.inner_jaxprs(eqn) for sub in inner.eqns
    )


def first_nested_operation(eqn: JaxprEqn) -> JaxprEqn | None:
    """The first ETP equation inside an equation that holds programs, at any depth."""
    return next(_nested_etp(eqn), None)


def _nested_etp(eqn: JaxprEqn) -> Iterator[JaxprEqn]:
    for inner in _jax.inner_jaxprs(eqn):
        for sub in inner.eqns:
            if is_etp_primitive(sub.primitive):
                yield sub
            yield from _nested_etp(sub)
