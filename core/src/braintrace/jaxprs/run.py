# SPDX-License-Identifier: Apache-2.0
"""Running jaxprs and parts of them, and finding ETP operations in them.

Every derived program is made by *running* equations inside ``jax.make_jaxpr``, never by
assembling equations by hand: variables stay unique and each JAX release stays content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..ops.primitive import is_etp_primitive
from .depends import Along, carries, depends, slice_to

#: What carries several operands and may as well carry one after the other.
SEPARABLE = frozenset({"device_put", "optimization_barrier"})


def run_equations(eqns: Iterable[JaxprEqn], env: dict[Var, Any]) -> None:
    """Run ``eqns`` in order, reading from and writing to ``env``."""
    for eqn in eqns:
        values = versions.bind_equation(eqn, [read(env, atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, values, strict=True))


def read(env: dict[Var, Any], atom: Atom) -> Any:
    """The value of a variable in ``env``, or of a literal."""
    return env[atom] if versions.is_var(atom) else atom.val


def with_replacements(
    jaxpr: Jaxpr,
    replacements: Mapping[int, Callable[..., Any]],
    reads: Mapping[int, Sequence[Atom]] = MappingProxyType({}),
) -> Jaxpr:
    """The program in which functions of their operands stand for some equations, by index.

    One that is in ``reads`` gets the values of these atoms in place of the equation's operands.
    """

    def run(*values: Any) -> list[Any]:
        env = versions.start_env(jaxpr, values)
        for i, eqn in enumerate(jaxpr.eqns):
            if i not in replacements:
                run_equations([eqn], env)
                continue
            with versions.at_source(eqn):
                atoms = reads.get(i, eqn.invars)
                results = replacements[i](*(read(env, atom) for atom in atoms))
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(env, atom) for atom in jaxpr.outvars]

    return versions.make_jaxpr(run, *jaxpr.in_avals)


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
    env = versions.start_env(jaxpr, inputs)
    for eqn in jaxpr.eqns:
        operands = [read(env, atom) for atom in eqn.invars]
        etp = is_etp_primitive(eqn.primitive)
        own = bool(versions.source_of(eqn)) if etp else not call or versions.written_in(eqn, call)
        if eqn.primitive in versions.CALL_PRIMITIVES:
            name = str(eqn.params.get("name", call or ""))
            with versions.at_source(eqn) if own else nullcontext():
                values = run_inlined(versions.sub_jaxpr(eqn), operands, name, note)
        elif carries(eqn) and len(operands) > 1:
            values = _one_by_one(eqn, operands, own)
        else:
            if etp and call is not None:
                note(eqn)
            values = versions.bind_equation(eqn, operands, own)
        env.update(zip(eqn.outvars, values, strict=True))
    return [read(env, atom) for atom in jaxpr.outvars]


def _one_by_one(eqn: JaxprEqn, operands: Sequence[Any], own_source: bool) -> list[Any]:
    """The results of an equation that carries several operands, each carried by itself.

    A parameter that is moved to a device together with an input does not depend on it so. What
    can only be done with all operands together is, by the equation itself.
    """
    count = len(operands)

    def of(k: int) -> JaxprEqn:
        params = {
            name: type(value)([value[k]])
            if isinstance(value, list | tuple) and len(value) == count
            else value
            for name, value in eqn.params.items()
        }
        return eqn.replace(invars=[eqn.invars[k]], outvars=[eqn.outvars[k]], params=params)

    if eqn.primitive.name not in SEPARABLE:
        return versions.bind_equation(eqn, operands, own_source)
    found = (versions.bind_equation(of(k), [v], own_source) for k, v in enumerate(operands))
    return [value for (value,) in found]


def flatten(
    jaxpr: Jaxpr,
    inputs: Sequence[int],
    outputs: Sequence[int],
    own: Iterable[int],
    note: Callable[[JaxprEqn], None] = lambda eqn: None,
) -> Jaxpr:
    """``jaxpr`` with calls inlined, inputs and outputs permuted, and some outputs made distinct.

    The new input ``i`` is the old input ``inputs[i]``; likewise the outputs. Inputs that nothing
    reads may be left out. The new outputs ``own`` must each be the result of an equation of their
    own: one that is an input, a constant or the same variable as an earlier one becomes a copy,
    and readers of the original keep reading it. ``note`` is called as by :func:`run_inlined`.
    """
    own = set(own)

    def run(*values: Any) -> list[Any]:
        given = dict(zip(inputs, values, strict=True))
        old = run_inlined(jaxpr, [given.get(i) for i in range(len(jaxpr.invars))], note=note)
        new = [old[i] for i in outputs]
        taken = list(values)
        for i in sorted(own):
            if not versions.is_traced(new[i]) or any(new[i] is other for other in taken):
                new[i] = jnp.copy(new[i])
            taken.append(new[i])
        return new

    return versions.make_jaxpr(run, *(jaxpr.in_avals[i] for i in inputs))


def etp_equations(eqns: Sequence[JaxprEqn]) -> list[int]:
    """Indices of the ETP equations."""
    return [i for i, eqn in enumerate(eqns) if is_etp_primitive(eqn.primitive)]


def nested(eqn: JaxprEqn) -> Iterator[JaxprEqn]:
    """The equations of the programs that an equation holds, at any depth."""
    for inner in versions.inner_jaxprs(eqn):
        for sub in inner.eqns:
            yield sub
            yield from nested(sub)


def holds(eqn: JaxprEqn, primitive: Any) -> bool:
    """Whether an equation is of a primitive, or holds one that is, at any depth."""
    return any(sub.primitive is primitive for sub in (eqn, *nested(eqn)))


def first_nested_operation(eqn: JaxprEqn) -> JaxprEqn | None:
    """The first ETP equation inside an equation that holds programs, at any depth."""
    return next((sub for sub in nested(eqn) if is_etp_primitive(sub.primitive)), None)


@dataclass(frozen=True, eq=False)
class Slice:
    """The equations on the way from ``ins`` to ``outs``; everything else they read is ``free``.

    ``held`` are variables at which the way ends: they are free even where an equation of the
    slice computes them, too.
    """

    eqns: tuple[JaxprEqn, ...]
    ins: tuple[Var, ...]
    outs: tuple[Atom, ...]
    free: tuple[Var, ...]
    held: frozenset[Var]

    def published(self) -> Jaxpr:
        """The slice in the program's own variables, ``free`` its constants; in JAX from 0.11 on,
        which has none, and where a held variable is computed, it is :meth:`jaxpr`.
        """
        held = any(var in self.held for eqn in self.eqns for var in eqn.outvars)
        opened = None if held else versions.open_jaxpr(self.free, self.ins, self.outs, self.eqns)
        return self.jaxpr() if opened is None else opened

    def run(self, *values: Any, cut: Callable[[JaxprEqn], bool] = lambda eqn: False) -> list[Any]:
        """Values of ``outs`` for those of ``[*free, *ins]``.

        ``cut(eqn)``: whether no derivative passes an equation.
        """
        env = dict(zip((*self.free, *self.ins), values, strict=True))
        for eqn in self.eqns:
            results = versions.bind_equation(eqn, [read(env, atom) for atom in eqn.invars])
            if cut(eqn):
                results = [jax.lax.stop_gradient(value) for value in results]
            env |= {v: r for v, r in zip(eqn.outvars, results, strict=True) if v not in self.held}
        return [read(env, atom) for atom in self.outs]

    def jaxpr(self) -> Jaxpr:
        """The slice as a jaxpr ``[*free, *ins] -> outs`` without constants."""
        avals = [var.aval for var in (*self.free, *self.ins)]
        with versions.types_of(avals):
            return versions.make_jaxpr(self.run, *avals)


def between(
    eqns: Sequence[JaxprEqn],
    ins: Iterable[Var],
    outs: Iterable[Atom],
    held: Iterable[Var] = (),
    follows: Callable[[int, JaxprEqn, int], bool] = lambda i, eqn, operand: True,
    along: Along = Along.VALUES,
) -> Slice:
    """The slice of a program on the ways of values, or derivatives, from ``ins`` to ``outs``.

    No way leads through the variables ``held``, or through an operand that
    ``follows(index, eqn, operand_position)`` does not accept.
    """
    ins, outs, held = tuple(ins), tuple(outs), frozenset(held)

    def enters(i: int, eqn: JaxprEqn, operand: int) -> bool:
        atom = eqn.invars[operand]
        return follows(i, eqn, operand) and not (versions.is_var(atom) and atom in held)

    marks = depends(eqns, {var: frozenset({0}) for var in ins}, enters, along=along)
    inside = tuple(
        eqns[i]
        for i in slice_to(eqns, outs, enters, along)
        if any(marks.get(var) for var in eqns[i].outvars) and not set(ins) & set(eqns[i].outvars)
    )
    known = ({var for eqn in inside for var in eqn.outvars} | set(ins)) - held
    wanted = (*(atom for eqn in inside for atom in eqn.invars), *outs)
    free = dict.fromkeys(a for a in wanted if versions.is_var(a) and a not in known)
    return Slice(inside, ins, outs, tuple(free), held)
