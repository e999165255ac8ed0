# SPDX-License-Identifier: Apache-2.0
"""Reading, slicing and running jaxprs.

Every derived program is made by *running* equations inside ``jax.make_jaxpr``, never by
assembling equations by hand: variables stay unique and each JAX release stays content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import jax.numpy as jnp

from . import _jax
from ._errors import NotSupportedError
from ._jax import Atom, Jaxpr, JaxprEqn, Var
from ._primitive import is_etp_primitive


def run_equations(eqns: Iterable[JaxprEqn], env: dict[Var, Any]) -> None:
    """Run ``eqns`` in order, reading from and writing to ``env``."""
    for eqn in eqns:
        values = _jax.bind_equation(eqn, [read(env, atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, values, strict=True))


def read(env: dict[Var, Any], atom: Atom) -> Any:
    """The value of a variable in ``env``, or of a literal."""
    return env[atom] if _jax.is_var(atom) else atom.val


def run_inlined(jaxpr: Jaxpr, inputs: Sequence[Any], call: str | None = None) -> list[Any]:
    """Run a closed jaxpr with every call (``jit``, ``checkpoint``) run equation by equation.

    ``call`` is the name of the called function while inside a call: equations that are not from
    its own lines are attributed to the line of the call.
    """
    env: dict[Var, Any] = dict(_jax.constants(jaxpr))
    env.update(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        operands = [read(env, atom) for atom in eqn.invars]
        own = call is None or _jax.written_in(eqn, call)
        if eqn.primitive in _jax.CALL_PRIMITIVES:
            name = str(eqn.params.get("name", call or ""))
            with _jax.at_source(eqn) if own else nullcontext():
                values = run_inlined(_jax.sub_jaxpr(eqn), operands, name)
        else:
            values = _jax.bind_equation(eqn, operands, own)
        env.update(zip(eqn.outvars, values, strict=True))
    return [read(env, atom) for atom in jaxpr.outvars]


def flatten(
    jaxpr: Jaxpr, inputs: Sequence[int], outputs: Sequence[int], own: Iterable[int]
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
    """
    own = set(own)

    def run(*values: Any) -> list[Any]:
        original: list[Any] = [None] * len(values)
        for value, i in zip(values, inputs, strict=True):
            original[i] = value
        old = run_inlined(jaxpr, original)
        new = [old[i] for i in outputs]
        taken = list(values)
        for i in sorted(own):
            if not _jax.is_traced(new[i]) or any(new[i] is other for other in taken):
                new[i] = jnp.copy(new[i])
            taken.append(new[i])
        return new

    return _jax.make_jaxpr(run, *(jaxpr.in_avals[i] for i in inputs))


def depends(
    eqns: Sequence[JaxprEqn],
    seeds: dict[Var, frozenset[Any]],
    passes: Callable[[int, JaxprEqn, int], bool] = lambda i, eqn, operand: True,
    emits: Callable[[int, JaxprEqn], frozenset[Any]] = lambda i, eqn: frozenset(),
    through: Callable[[Var, frozenset[Any]], frozenset[Any]] = lambda var, marks: marks,
) -> dict[Var, frozenset[Any]]:
    """Forward dependence: which marks reach each variable.

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
    """
    marks = dict(seeds)
    empty: frozenset[Any] = frozenset()
    for i, eqn in enumerate(eqns):
        found = emits(i, eqn)
        for position, atom in enumerate(eqn.invars):
            if _jax.is_var(atom) and passes(i, eqn, position):
                found |= marks.get(atom, empty)
        if found:
            for var in eqn.outvars:
                marks[var] = through(var, found)
    return marks


def differentiable(eqn: JaxprEqn) -> bool:
    """Whether a derivative can flow through an equation at all."""
    return eqn.primitive is not _jax.STOP_GRADIENT and any(
        _jax.is_float(var.aval) for var in eqn.outvars
    )


def reaches(jaxpr: Jaxpr, output: int) -> frozenset[int]:
    """The inputs (by index) on which an output depends differentiably."""
    marks = depends(
        jaxpr.eqns,
        {var: frozenset({i}) for i, var in enumerate(jaxpr.invars) if _jax.is_float(var.aval)},
        passes=lambda i, eqn, operand: differentiable(eqn),
    )
    atom = jaxpr.outvars[output]
    return marks.get(atom, frozenset()) if _jax.is_var(atom) else frozenset()


def slice_to(
    eqns: Sequence[JaxprEqn],
    targets: Iterable[Atom],
    follows: Callable[[int, JaxprEqn, int], bool] = lambda i, eqn, operand: True,
) -> list[int]:
    """Indices of the equations that compute ``targets``.

    ``follows(index, eqn, operand_position)``: whether to look behind that operand.
    """
    wanted = {atom for atom in targets if _jax.is_var(atom)}
    kept: list[int] = []
    for i in range(len(eqns) - 1, -1, -1):
        eqn = eqns[i]
        if any(var in wanted for var in eqn.outvars):
            kept.append(i)
            wanted.update(
                a for k, a in enumerate(eqn.invars) if _jax.is_var(a) and follows(i, eqn, k)
            )
    return kept[::-1]


def etp_equations(eqns: Sequence[JaxprEqn]) -> list[int]:
    """Indices of the ETP equations."""
    return [i for i, eqn in enumerate(eqns) if is_etp_primitive(eqn.primitive)]


def refuse_nested_operations(jaxpr: Jaxpr) -> None:
    """Raise when an ETP operation stands inside control flow or a custom differentiation rule.

    Raises
    ------
    NotSupportedError
        With the source line of the construction that encloses the operation.
    """
    for eqn in jaxpr.eqns:
        hidden = next(_nested_etp(eqn), None)
        if hidden is not None:
            raise NotSupportedError(
                f"the ETP operation {hidden.primitive.name!r} at {_jax.source_of(hidden)} stands "
                f"inside {eqn.primitive.name!r} at {_jax.source_of(eqn)}, where its parameters "
                "cannot be traced. Call the operation outside of it, or use a plain JAX operation "
                "there"
            )


def _nested_etp(eqn: JaxprEqn) -> Iterator[JaxprEqn]:
    for inner in _jax.inner_jaxprs(eqn):
        for sub in inner.eqns:
            if is_etp_primitive(sub.primitive):
                yield sub
            yield from _nested_etp(sub)
