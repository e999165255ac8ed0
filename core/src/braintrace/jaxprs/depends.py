# SPDX-License-Identifier: Apache-2.0
"""What depends on what in a jaxpr: one propagation of marks, shared by all analyses."""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from ..base import versions
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var, jaxp

#: Their results are their operands, one by one: what they change is where or how these lie in
#: memory, what is computed with them, or what is kept for reverse mode, and no number.
CARRIES = frozenset(
    "copy device_put layout_constraint mesh_cast name optimization_barrier pcast pvary reshard "
    "shard_alike sharding_constraint xla_metadata_value".split()
)


def carries(eqn: JaxprEqn) -> bool:
    """Whether the results of an equation are its operands."""
    return eqn.primitive.name in CARRIES and len(eqn.invars) == len(eqn.outvars)


class Along(enum.Enum):
    """What is followed from an operand to a result.

    Along ``EQUATIONS``, which are run as a whole, all results of one depend on all its operands,
    even where one of them (of an inner loop, say) does not.
    """

    VALUES = "values"
    DERIVATIVES = "derivatives"
    EQUATIONS = "equations"


def depends(
    eqns: Sequence[JaxprEqn],
    seeds: dict[Var, frozenset[Any]],
    passes: Callable[[int, JaxprEqn, int], bool] | None = None,
    emits: Mapping[Var, frozenset[Any]] = MappingProxyType({}),
    through: Callable[[Var, frozenset[Any]], frozenset[Any]] | None = None,
    along: Along = Along.VALUES,
) -> dict[Var, frozenset[Any]]:
    """Forward dependence: which marks reach each variable, when ``seeds`` are on some of them.

    A result of an equation that holds programs (a branch, a loop) takes the marks of those
    operands that reach it in them; a result of any other equation takes the marks of all.

    ``passes(index, eqn, operand_position)`` says whether marks flow through that operand,
    ``emits`` has marks that all results of an equation get in addition, by any of its results, and
    ``through(variable, marks)`` says what becomes of the marks that reach a variable.
    """
    marks, empty = dict(seeds), frozenset[Any]()
    smooth = along is Along.DERIVATIVES
    still = {var for var in seeds if smooth and not versions.is_float(var.aval)}
    known, literal = marks.get, versions.Literal
    for i, eqn in enumerate(eqns):
        arriving = {}
        for k, atom in enumerate(eqn.invars):
            if (
                not isinstance(atom, literal)
                and (found := known(atom))
                and atom not in still
                and (passes is None or passes(i, eqn, k))
            ):
                arriving[k] = found
        emitted = empty
        for var in eqn.outvars if emits else ():
            if var in emits:
                emitted |= emits[var]
        if not (arriving or emitted) or (smooth and eqn.primitive is jaxp.stop_gradient_p):
            continue
        behind = influences(eqn, along)
        if len(arriving) == 1 and not emitted:
            (found,) = arriving.values()
        else:
            found = emitted.union(*arriving.values())
        for k, var in enumerate(eqn.outvars):
            if behind is not None:
                found = emitted.union(*(arriving.get(p, empty) for p in behind[k]))
            if found and not (smooth and not versions.is_float(var.aval)):
                marks[var] = found if through is None else through(var, found)
    return marks


def marks_of(marks: Mapping[Any, frozenset[Any]], atoms: Iterable[Atom]) -> frozenset[Any]:
    """All marks of some operands or results; a literal has none."""
    return frozenset[Any]().union(*(marks.get(a, ()) for a in atoms if versions.is_var(a)))


def differentiable(eqn: JaxprEqn) -> bool:
    """Whether a derivative can flow through an equation at all."""
    return eqn.primitive is not jaxp.stop_gradient_p and any(
        versions.is_float(var.aval) for var in eqn.outvars
    )


def slice_to(
    eqns: Sequence[JaxprEqn],
    targets: Iterable[Atom],
    follows: Callable[[int, JaxprEqn, int], bool] = lambda i, eqn, operand: True,
    along: Along = Along.VALUES,
    made: Mapping[Var, int] | None = None,
) -> list[int]:
    """Indices of the equations that compute ``targets``.

    ``follows(index, eqn, operand_position)``: whether to look behind that operand. With
    ``DERIVATIVES``, those through which a derivative reaches the targets; with ``EQUATIONS``, those
    that have to be run for the targets to be known. Where ``made``, the index of the equation that
    computes each variable, is given, no other equations are looked at.
    """
    if made is None:
        made = {var: i for i, eqn in enumerate(eqns) for var in eqn.outvars}
    kept, wanted = set[int](), set[Var]()
    todo = [atom for atom in targets if versions.is_var(atom)]
    while todo:
        i = made.get(var := todo.pop())
        if var in wanted or i is None:
            continue
        wanted.add(var)
        kept.add(i)
        eqn = eqns[i]
        behind = operands_behind(eqn, [eqn.outvars.index(var)], along)
        operands = ((k, eqn.invars[k]) for k in behind)
        todo += [a for k, a in operands if versions.is_var(a) and follows(i, eqn, k)]
    return sorted(kept)


def moving_with(eqns: Sequence[JaxprEqn], variables: Iterable[Var]) -> set[Var]:
    """``variables``, and all results of equations that cannot be run without them.

    So are the results of equations with effects, such as a callback, which may differ each time.
    """
    mark: frozenset[Any] = frozenset({0})
    effects = dict.fromkeys((var for eqn in eqns if eqn.effects for var in eqn.outvars), mark)
    return set(depends(eqns, dict.fromkeys(variables, mark), emits=effects, along=Along.EQUATIONS))


# --- which operands a result of one equation depends on -----------------------------------------

Influences = tuple[frozenset[int], ...]
"""Per result, the positions of the operands it depends on."""


def operands_behind(eqn: JaxprEqn, results: Iterable[int], along: Along) -> Iterable[int]:
    """Positions of the operands on which some of the results (by position) depend."""
    operands: Iterable[int] = range(len(eqn.invars))
    if along is Along.DERIVATIVES:
        results = [k for k in results if versions.is_float(eqn.outvars[k].aval)]
        operands = [k for k in operands if results and versions.is_float(eqn.invars[k].aval)]
    behind = influences(eqn, along)
    return operands if behind is None else sorted(_together(results, behind).intersection(operands))


def influences(eqn: JaxprEqn, along: Along) -> Influences | None:
    """The operands behind each result of an equation; ``None``: all operands behind all results.

    Functions with a custom differentiation rule are not looked into: their derivative may flow
    otherwise than their values.
    """
    rule = _INFLUENCES.get(eqn.primitive)
    if rule is None and len(eqn.outvars) > 1 and carries(eqn):
        rule = _one_by_one
    return None if rule is None or along is Along.EQUATIONS else rule(eqn, along)


def program_influences(jaxpr: Jaxpr, along: Along) -> Influences:
    """The inputs behind each output of a closed jaxpr."""
    known = _KNOWN_INFLUENCES.setdefault(jaxpr, {})
    if along not in known:
        inputs = enumerate(jaxpr.invars)
        smooth = along is Along.DERIVATIVES
        own = {v: frozenset({i}) for i, v in inputs if not smooth or versions.is_float(v.aval)}
        marks = depends(jaxpr.eqns, own, along=along)
        outs = (marks.get(a) if versions.is_var(a) else None for a in jaxpr.outvars)
        known[along] = tuple(found or frozenset() for found in outs)
    return known[along]


_KNOWN_INFLUENCES: weakref.WeakKeyDictionary[Jaxpr, dict[Along, Influences]] = (
    weakref.WeakKeyDictionary()
)


def _one_by_one(eqn: JaxprEqn, along: Along) -> Influences:
    return tuple(frozenset({k}) for k in range(len(eqn.invars)))


def _of_cond(eqn: JaxprEqn, along: Along) -> Influences:
    """Any branch may have run; values also depend on which one, by the first operand."""
    branches = [program_influences(versions.close(b), along) for b in eqn.params["branches"]]
    index = frozenset({0} if along is Along.VALUES else ())
    return tuple(
        index.union(*({k + 1 for k in found} for found in results))
        for results in zip(*branches, strict=True)
    )


def _of_scan(eqn: JaxprEqn, along: Along) -> Influences:
    """Operands and body inputs correspond; a carried value is also made of earlier ones."""
    consts, carried = versions.scan_counts(eqn)
    body = program_influences(versions.sub_jaxpr(eqn), along)
    own = [frozenset({k}) for k in range(len(eqn.invars))]
    if eqn.params["length"] == 0:
        return (*own[consts : consts + carried], *(frozenset() for _ in body[carried:]))
    behind = _settled(body[:carried], own, consts)
    return tuple(_together(found, behind) for found in body)


def _of_while(eqn: JaxprEqn, along: Along) -> Influences:
    """Operands: constants of the condition, constants of the body, carried values."""
    skipped, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
    own = [frozenset({k}) for k in range(len(eqn.invars))]
    body = program_influences(versions.close(eqn.params["body_jaxpr"]), along)
    carried = _settled(body, own[skipped:], consts)[consts:]
    if along is Along.DERIVATIVES:
        return tuple(carried)
    (predicate,) = program_influences(versions.close(eqn.params["cond_jaxpr"]), along)
    steering = _together(predicate, [*own[:skipped], *carried])
    return tuple(found | steering for found in carried)


def _settled(body: Influences, inputs: list[frozenset[int]], consts: int) -> list[frozenset[int]]:
    """What is behind the inputs of a loop's body in any iteration: a least fixpoint.

    ``body`` are the influences of the carried values, which follow the constants.
    """
    while True:
        after = list(inputs)
        for k, found in enumerate(body, consts):
            after[k] |= _together(found, inputs)
        if after == inputs:
            return inputs
        inputs = after


def _together(found: Iterable[int], behind: Sequence[frozenset[int]]) -> frozenset[int]:
    return frozenset().union(*(behind[k] for k in found))


_INFLUENCES: dict[Any, Callable[[JaxprEqn, Along], Influences]] = {
    jaxp.stop_gradient_p: lambda eqn, along: (
        frozenset() if along is Along.DERIVATIVES else frozenset({0}),
    ),
    jaxp.cond_p: _of_cond,
    jaxp.scan_p: _of_scan,
    jaxp.while_p: _of_while,
    **dict.fromkeys(
        versions.CALL_PRIMITIVES,
        lambda eqn, along: program_influences(versions.sub_jaxpr(eqn), along),
    ),
}
