# SPDX-License-Identifier: Apache-2.0
"""Effects of a step, in a form that a differentiated step keeps, in order and once.

Two kinds have such a form. A reference that is made and used within a step
(``jax.new_ref``) is a value that changes from equation to equation. A call of
``jax.experimental.io_callback`` that returns nothing is one of ``jax.debug.callback``, which JAX
keeps where it drops the former: in a loop that is differentiated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ...base import versions
from ...base.versions import Jaxpr, JaxprEqn, Var
from ...jaxprs.run import nested, read, run_equations

#: Equations that make, read, write and end a reference.
MAKES, READS, WRITES, ADDS, ENDS = "new_ref", "get", "swap", "addupdate", "freeze"
REFERENCES = frozenset({MAKES, READS, WRITES, ADDS, ENDS})


def with_kept_effects(jaxpr: Jaxpr) -> Jaxpr:
    """A program without references of its own and callbacks that would not happen.

    Effects that have no such form stay. Without any that has, it is the same program.
    """
    local = _local_references(jaxpr)
    if not local and not any(map(_is_call, jaxpr.eqns)):
        return jaxpr

    def run(*values: Any) -> list[Any]:
        env = versions.start_env(jaxpr, values)
        for eqn in jaxpr.eqns:
            with versions.at_source(eqn):
                if eqn.primitive.name in REFERENCES and _reference(eqn) in local:
                    _run_reference(eqn, env)
                elif _is_call(eqn):
                    _call(eqn, [read(env, atom) for atom in eqn.invars])
                else:
                    run_equations([eqn], env)
        return [read(env, atom) for atom in jaxpr.outvars]

    return versions.make_jaxpr(run, *jaxpr.in_avals)


def _is_call(eqn: JaxprEqn) -> bool:
    return eqn.primitive.name == "io_callback" and not eqn.outvars


def _call(eqn: JaxprEqn, operands: Sequence[Any]) -> None:
    """The same call, of the host's function on the same values."""
    function = eqn.params["callback"]

    def told(*values: Any) -> None:
        function(*values)

    jax.debug.callback(told, *operands, ordered=bool(eqn.params["ordered"]))


# --- references ----------------------------------------------------------------------------------


def _reference(eqn: JaxprEqn) -> Var:
    """The reference that an equation makes, reads, writes or ends."""
    return eqn.outvars[0] if eqn.primitive.name == MAKES else eqn.invars[0]


def _local_references(jaxpr: Jaxpr) -> frozenset[Var]:
    """The references that the program makes, and that only equations of its own use, all of which
    say statically what part they use.
    """
    made = {eqn.outvars[0] for eqn in jaxpr.eqns if eqn.primitive.name == MAKES}
    for eqn in jaxpr.eqns:
        known = eqn.primitive.name in REFERENCES
        others = eqn.invars[1:] if known and eqn.primitive.name != MAKES else eqn.invars
        made -= {atom for atom in others if versions.is_var(atom)}
        if known and eqn.primitive.name not in (MAKES, ENDS) and _index(eqn, eqn.invars) is None:
            made.discard(_reference(eqn))
    return frozenset(made) - {atom for atom in jaxpr.outvars if versions.is_var(atom)}


def _run_reference(eqn: JaxprEqn, env: dict[Var, Any]) -> None:
    """Do with the value of a reference, in ``env`` in its place, what an equation does with it."""
    name, ref = eqn.primitive.name, _reference(eqn)
    if name == MAKES:
        env[ref] = read(env, eqn.invars[0])
        return
    value = env[ref]
    if name == ENDS:
        env[eqn.outvars[0]] = value
        return
    index: Any = _index(eqn, [ref, *(read(env, atom) for atom in eqn.invars[1:])])
    part = value[index]
    if name in (READS, WRITES):
        env[eqn.outvars[0]] = part
    if name != READS:
        new = read(env, eqn.invars[1])
        env[ref] = value.at[index].set(new) if name == WRITES else value.at[index].add(new)


def _index(eqn: JaxprEqn, operands: Sequence[Any]) -> tuple[Any, ...] | None:
    """What an equation indexes a reference with: slices and single numbers; ``None`` for others."""
    first = 1 if eqn.primitive.name == READS else 2
    views = jax.tree.unflatten(eqn.params["tree"], operands[first:])
    if not views:
        return (...,)
    entries = getattr(views[0], "indices", None)
    if len(views) > 1 or entries is None:
        return None
    found = [_entry(entry) for entry in entries]
    return None if None in found else tuple(e for (e,) in found)  # type: ignore[misc]


def _entry(entry: Any) -> tuple[Any] | None:
    """One entry of an index in a tuple."""
    if hasattr(entry, "stride"):
        start, size, stride = entry.start, entry.size, entry.stride
        if not (isinstance(start, int) and isinstance(size, int) and isinstance(stride, int)):
            return None
        return (slice(start, start + size * stride, stride),)
    shape = entry.aval.shape if hasattr(entry, "aval") else jnp.shape(entry)
    return (entry,) if shape == () else None


def holds_a_reference(eqn: JaxprEqn) -> bool:
    """Whether an equation, or one inside of it, uses a reference."""
    return any(sub.primitive.name in REFERENCES for sub in (eqn, *nested(eqn)))
