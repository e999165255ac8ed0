# SPDX-License-Identifier: Apache-2.0
"""Reading, slicing and running jaxprs.

Every derived program is made by *running* equations inside ``jax.make_jaxpr``, never by
assembling equations by hand: variables stay unique and each JAX release stays content.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import jax.numpy as jnp

from ..base import versions
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..ops.primitive import is_etp_primitive


def run_equations(eqns: Iterable[JaxprEqn], env: dict[Var, Any]) -> None:
    """Run ``eqns`` in order, reading from and writing to ``env``."""
    for eqn in eqns:
        values = versions.bind_equation(eqn, [read(env, atom) for atom in eqn.invars])
        env.update(zip(eqn.outvars, values, strict=True))


def read(env: dict[Var, Any], atom: Atom) -> Any:
    """The value of a variable in ``env``, or of a literal."""
    return env[atom] if versions.is_var(atom) else atom.val


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
        else:
            if etp and call is not None:
                note(eqn)
            values = versions.bind_equation(eqn, operands, own)
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
        The new input ``i`` is the old input ``inputs[i]``; likewise the outputs. Inputs that
        nothing reads may be left out.
    own
        New outputs that must each be the result of an equation of their own: one that is an
        input, a constant or the same variable as an earlier one becomes a copy. Readers of the
        original keep reading the original.
    note
        Called with every ETP equation inside a call.
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
