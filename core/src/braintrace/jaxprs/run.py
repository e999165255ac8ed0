# SPDX-License-Identifier: Apache-2.0
"""Running jaxprs and parts of them, and finding ETP operations in them.

Derived programs are made by *running* equations inside ``jax.make_jaxpr``: variables stay unique
and each JAX release stays content. Only calls are inlined without it, which is most of a program
that is large, and changes no equation but for its variables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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

#: Off a CPU, as many steps of a loop are written out as have so many equations; and at most.
WRITTEN_OUT, MOST_STEPS = 128, 16


def scan(step: Callable[..., Any], start: Any, rows: Any, **how: Any) -> Any:
    """``jax.lax.scan`` of small steps; off a CPU, each turn of the loop takes several of them.

    On a GPU a turn starts kernels to count, cut and place, each as long as a small step.
    """
    if jax.default_backend() != "cpu":
        first = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), rows)
        eqns = jax.make_jaxpr(step)(start, first).eqns
        number = sum(1 + len([*nested(eqn)]) for eqn in eqns)
        how["unroll"] = max(1, min(MOST_STEPS, WRITTEN_OUT // max(1, number)))
    return jax.lax.scan(step, start, rows, **how)


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


def run_inlined(jaxpr: Jaxpr, inputs: Sequence[Any]) -> list[Any]:
    """Run a closed jaxpr with every call run equation by equation."""
    flat = inlined(jaxpr, here=versions.current_place())
    run_equations(flat.eqns, env := versions.start_env(flat, inputs))
    return [read(env, atom) for atom in flat.outvars]


def inlined(
    jaxpr: Jaxpr, note: Callable[[JaxprEqn], None] = lambda eqn: None, here: Any = None
) -> Jaxpr:
    """``jaxpr`` with every call (``jit``, ``checkpoint``) written out equation by equation.

    Equations in a call that are not from the lines of the called function, and no ETP equations,
    are attributed to the line of the call. ``note`` is called with every ETP equation inside a
    call. An ETP equation without a line of the user's, of a layer that is itself the body of a
    loop, gets that of what it is in; what the whole program is in is ``here``. What is not in a
    call keeps its variables.
    """
    constants, eqns = versions.constants(jaxpr), list[JaxprEqn]()

    def write(inner: Jaxpr, env: dict[Var, Atom], here: Any, call: str | None) -> list[Atom]:
        """Write the equations of a program, a call if it has a name, in other variables."""

        def of(atom: Atom) -> Atom:
            return env.get(atom, atom) if versions.is_var(atom) else atom

        for eqn in inner.eqns:
            etp = is_etp_primitive(eqn.primitive)
            if etp and here is not None:
                own = bool(versions.source_of(eqn))
            else:
                own = not call or versions.written_in(eqn, call)
            place, operands = eqn.source_info if own else here, [of(atom) for atom in eqn.invars]
            if eqn.primitive in versions.CALL_PRIMITIVES:
                program = versions.sub_jaxpr(eqn)
                constants.update(versions.constants(program))
                given = dict(zip(program.invars, operands, strict=True))
                name = str(eqn.params.get("name", call or ""))
                env.update(zip(eqn.outvars, write(program, given, place, name), strict=True))
                continue
            if etp and call is not None:
                note(eqn)
            outs = eqn.outvars
            if call is not None:  # whose program may be called again
                outs = [type(var)(var.aval) for var in outs]
                env.update(zip(eqn.outvars, outs, strict=True))
            eqns.extend(_one_by_one(versions.rewritten(eqn, operands, outs, place)))
        return [of(atom) for atom in inner.outvars]

    results = write(jaxpr, {}, here, None)
    return versions.assembled(jaxpr, constants, jaxpr.invars, results, eqns)


def _one_by_one(eqn: JaxprEqn) -> list[JaxprEqn]:
    """An equation that carries several operands as equations that each carry one.

    A parameter that is moved to a device together with an input does not depend on it so. What
    can only be done with all operands together is, by the equation itself.
    """
    count = len(eqn.invars)
    if count == 1 or eqn.primitive.name not in SEPARABLE or not carries(eqn):
        return [eqn]

    def of(k: int) -> JaxprEqn:
        params = {
            name: type(value)([value[k]])
            if isinstance(value, list | tuple) and len(value) == count
            else value
            for name, value in eqn.params.items()
        }
        return eqn.replace(invars=[eqn.invars[k]], outvars=[eqn.outvars[k]], params=params)

    return [of(k) for k in range(count)]


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
    and readers of the original keep reading it. ``note`` is called as by :func:`inlined`.
    """
    flat = inlined(jaxpr, note)
    given, new = [flat.invars[i] for i in inputs], [flat.outvars[i] for i in outputs]
    eqns, taken = [*flat.eqns], {*given, *flat.constvars}
    for i in sorted(set(own)):
        if not versions.is_var(new[i]) or new[i] in taken:
            (copy,) = versions.make_jaxpr(jnp.copy, new[i].aval).eqns
            out = versions.Var(copy.outvars[0].aval)
            eqns.append(versions.rewritten(copy, [new[i]], [out], copy.source_info))
            new[i] = out
        taken.add(new[i])
    return versions.assembled(flat, versions.constants(flat), given, new, eqns)


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
