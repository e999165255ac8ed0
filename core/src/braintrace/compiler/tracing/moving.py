# SPDX-License-Identifier: Apache-2.0
"""Weights that are chosen or masked by inputs or states, as part of the operation.

The trainable operand of an operation is constant over time, because its trace is. Where it is made
from a parameter and from what moves (``w[i]``, ``w * mask``), the equations that do so are taken
into the operation, what moves joins its input, and the parameter is the operand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax.numpy as jnp

from ...base import versions
from ...base.versions import Jaxpr, JaxprEqn, Var
from ...jaxprs.depends import Along, depends, slice_to
from ...jaxprs.positions.elements import reached
from ...jaxprs.positions.places import axes_along, own_places
from ...jaxprs.run import etp_equations, read, run_equations
from ...ops.moving import Made, moving, pack
from ...ops.operation import Operation
from ...ops.primitive import is_etp_primitive
from ...ops.repeated import RepeatedSpec
from ...ops.traces import trace_rules
from ..control.branches import varying_variables


@dataclass(frozen=True, eq=False)
class Making:
    """The equations between a parameter and an operand that also read what moves."""

    eqns: Sequence[JaxprEqn]
    weight: Var
    values: tuple[Var, ...]
    result: Var

    def run(self, weight: Any, *values: Any) -> Any:
        """The operand."""
        env = dict(zip((self.weight, *self.values), (weight, *values), strict=True))
        run_equations(self.eqns, env)
        return read(env, self.result)

    @cached_property
    def extra(self) -> tuple[int, ...] | None:
        """Leading axes that the weight has more; ``None`` unless entries keep their places."""
        shape, result = self.weight.aval.shape, self.result.aval.shape
        more = len(shape) - len(result)
        if more < 0 or shape[more:] != result:
            return None
        ends = [(self.result, own_places(result))]
        (places,) = reached(self.eqns, [self.weight], ends)
        along = {} if places is None else axes_along(places, result, shape)
        wanted = {more + k: k for k, n in enumerate(result) if n > 1}
        return shape[:more] if along.items() >= wanted.items() else None

    def made(self, numbers: Sequence[Var]) -> Made:
        """The same, of values by their number."""
        avals = [v.aval for v in (self.weight, *self.values)]
        function = versions.jaxpr_as_fun(versions.make_jaxpr(lambda *a: [self.run(*a)], *avals))
        places = tuple(numbers.index(v) for v in self.values)

        def of(weight: Any, *values: Any) -> Any:  # rules hold the weight in a wider type
            return function(weight.astype(self.weight.aval.dtype), *values)[0]

        return Made(of, places, self.result.aval, self.extra or ())


def with_constant_weights(jaxpr: Jaxpr, fixed: Sequence[bool]) -> Jaxpr:
    """A program in which the trainable operands of its ETP operations are constant, where they can.

    ``fixed`` says of each input whether it is made of parameters and constants. Without such an
    operation it is the same program.
    """
    varying = varying_variables(jaxpr, fixed)
    places = {i: _trainable(jaxpr.eqns[i], varying) for i in etp_equations(jaxpr.eqns)}
    if not any(places.values()):
        return jaxpr
    inputs = zip(jaxpr.invars, fixed, strict=True)
    seeds = {v: frozenset({True}) for v, known in inputs if known and versions.is_float(v.aval)}
    led = frozenset(depends(jaxpr.eqns, seeds, along=Along.DERIVATIVES))
    found: dict[int, dict[int, Making]] = {}
    for i, operands in places.items():
        before, atoms = jaxpr.eqns[:i], jaxpr.eqns[i].invars
        tried = ((k, _making(before, atoms[k], varying, led)) for k in operands if atoms[k] in led)
        makings = {k: making for k, making in tried if making is not None}
        if makings and _fits(jaxpr.eqns[i], makings):
            found[i] = makings
    if not found:
        return jaxpr

    def run(*values: Any) -> list[Any]:
        env = versions.start_env(jaxpr, values)
        for i, eqn in enumerate(jaxpr.eqns):
            if i in found:
                with versions.at_source(eqn):
                    env[eqn.outvars[0]] = _bound(eqn, found[i], env)
            else:
                run_equations([eqn], env)
        return [read(env, atom) for atom in jaxpr.outvars]

    return versions.make_jaxpr(run, *jaxpr.in_avals)


def _trainable(eqn: JaxprEqn, varying: frozenset[Var]) -> list[int]:
    """Trainable operands of an ETP equation that depend on what is not fixed."""
    places = eqn.primitive.spec.resolve_trainable_invars(eqn.params).values()
    atoms = ((k, eqn.invars[k]) for k in places if k < len(eqn.invars))
    return [k for k, atom in atoms if versions.is_var(atom) and atom in varying]


def _making(
    eqns: Sequence[JaxprEqn], atom: Var, varying: frozenset[Var], led: frozenset[Var]
) -> Making | None:
    """How an operand is made, if it is made from one weight, entry by entry.

    What an ETP operation gives moves like an input, whatever parameters are behind it.
    """
    given = {var for e in eqns if is_etp_primitive(e.primitive) for var in e.outvars}

    def followed(i: int, eqn: JaxprEqn, k: int) -> bool:
        a = eqn.invars[k]
        return versions.is_var(a) and a in led and a in varying and a not in given

    if atom in given:
        return None
    steps = [eqns[i] for i in slice_to(eqns, [atom], followed, Along.EQUATIONS)]
    made = {var for e in steps for var in e.outvars}
    operands = dict.fromkeys(a for e in steps for a in e.invars if versions.is_var(a))
    free = [var for var in operands if var not in made]
    weights = [var for var in free if var in led and var not in varying]
    if len(weights) != 1 or any(e.effects for e in steps) or not all(map(_is_real, free)):
        return None
    values = tuple(var for var in free if var is not weights[0])
    making = Making(steps, weights[0], values, atom)
    return None if making.extra is None else making


def _is_real(var: Var) -> bool:
    """Whether the values of a variable are numbers, and not complex."""
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    return any(jnp.issubdtype(var.aval.dtype, kind) for kind in kinds)


def _fits(eqn: JaxprEqn, makings: Mapping[int, Making]) -> bool:
    """Whether the trace of an operation has the axes of its weights last, for these operands."""
    spec, x_index = eqn.primitive.spec, eqn.primitive.spec.x_invar_index
    if isinstance(spec, RepeatedSpec) or spec.solve_drtrl is not None:
        return False
    if len(eqn.invars) != 1 if x_index is None else not _is_real(eqn.invars[x_index]):
        return False
    keys = {k: key for key, k in spec.resolve_trainable_invars(eqn.params).items()}
    y, avals = eqn.outvars[0].aval, tuple(a.aval for a in eqn.invars)
    operation = Operation(spec, eqn.params, avals, y, tuple(keys[k] for k in makings))
    try:
        types = trace_rules(operation, (), 1).types
    except (AttributeError, TypeError):  # rules that ask for the hidden group
        return False
    ends = ((types[keys[k]].shape, avals[k].shape) for k in makings)
    return all(found[len(found) - len(own) :] == own for found, own in ends)


def _bound(eqn: JaxprEqn, makings: Mapping[int, Making], env: Any) -> Any:
    """The result of an operation with its moving weights."""
    one, x_index = eqn.primitive, eqn.primitive.spec.x_invar_index
    numbers = [*dict.fromkeys(v for making in makings.values() for v in making.values)]
    operands = [read(env, atom) for atom in eqn.invars]
    for k, making in makings.items():
        operands[k] = read(env, making.weight)
    packed = [read(env, v) for v in numbers]
    types = [v.aval for v in numbers]
    made = {k: making.made(numbers) for k, making in makings.items()}
    if x_index is None:
        operands.append(pack(packed))
    else:
        types = [eqn.invars[x_index].aval, *types]
        operands[x_index] = pack([operands[x_index], *packed])
    primitive = moving(one, made, types)
    return primitive.bind(*operands, **one.get_bind_params(eqn.params))
