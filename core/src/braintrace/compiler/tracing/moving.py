# SPDX-License-Identifier: Apache-2.0
"""Weights that are chosen or masked by inputs or states, as part of the operation.

The trainable operand of an operation is constant over time, because its trace is. Where it is made
from parameters and from what moves (``w[i]``, ``w * mask``), the equations that do so are taken
into the operation, what moves joins its input, and the parameter, or several behind one another,
is the operand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp

from ...base import versions
from ...base.versions import Atom, Jaxpr, JaxprEqn, Var
from ...jaxprs.depends import Along, depends, slice_to
from ...jaxprs.positions.elements import reached
from ...jaxprs.positions.places import axes_along, own_places
from ...jaxprs.run import etp_equations, read, run_equations, with_replacements
from ...ops.moving import Made, moving, pack
from ...ops.operation import Operation
from ...ops.primitive import is_etp_primitive
from ...ops.traces import trace_rules
from ..control.branches import varying_variables


@dataclass(frozen=True, eq=False)
class Making:
    """The equations between parameters and an operand that also read what moves."""

    eqns: Sequence[JaxprEqn]
    weights: tuple[Var, ...]
    values: tuple[Var, ...]
    result: Var

    def run(self, *values: Any) -> Any:
        """The operand, from the weights and what moves."""
        env = dict(zip((*self.weights, *self.values), values, strict=True))
        run_equations(self.eqns, env)
        return read(env, self.result)

    @cached_property
    def extra(self) -> tuple[int, ...] | None:
        """Leading axes that the weight has more; ``None`` unless entries keep their places."""
        if len(self.weights) > 1:
            return None
        shape, result = self.weights[0].aval.shape, self.result.aval.shape
        more = len(shape) - len(result)
        if more < 0 or shape[more:] != result:
            return None
        ends = [(self.result, own_places(result))]
        (places,) = reached(self.eqns, self.weights, ends)
        along = {} if places is None else axes_along(places, result, shape)
        wanted = {more + k: k for k, n in enumerate(result) if n > 1}
        return shape[:more] if along.items() >= wanted.items() else None

    def weight(self, values: Sequence[Any]) -> Any:
        """The operand in the place of what is made: the weight, or all of them as a vector."""
        return values[0] if len(values) == 1 else pack(values)

    def _parted(self, weight: Any) -> list[Any]:
        """The weights in what :meth:`weight` gives, which rules may hold in a wider type."""
        avals = [var.aval for var in self.weights]
        if len(avals) == 1:
            return [weight.astype(avals[0].dtype)]
        sizes = [math.prod(aval.shape) for aval in avals]
        starts = accumulate(sizes, initial=0)
        return [
            weight[start : start + size].reshape(aval.shape).astype(aval.dtype)
            for start, size, aval in zip(starts, sizes, avals, strict=False)
        ]

    def made(self, numbers: Sequence[Var], axes: Mapping[int, int] | None) -> Made:
        """The same, of values by their number."""
        avals = [v.aval for v in (*self.weights, *self.values)]
        function = versions.jaxpr_as_fun(versions.make_jaxpr(lambda *a: [self.run(*a)], *avals))
        places = tuple(numbers.index(v) for v in self.values)

        def of(weight: Any, *values: Any) -> Any:
            return function(*self._parted(weight), *values)[0]

        return Made(of, places, self.result.aval, self.extra or (), axes)


@dataclass(frozen=True, eq=False)
class Moved:
    """An operation with moving weights: how its operands are made, by position.

    ``axes`` are the axes of its own trace that run along them, ``None`` where its trace does not
    fit: it is over positions and entries of the weights then.
    """

    eqn: JaxprEqn
    makings: Mapping[int, Making]
    axes: Mapping[int, dict[int, int]] | None

    @cached_property
    def numbers(self) -> list[Var]:
        """What moves, besides ``x``."""
        return [*dict.fromkeys(v for making in self.makings.values() for v in making.values)]

    @property
    def reads(self) -> list[Atom]:
        """Operands, weights and what moves, as :meth:`run` takes them."""
        weights = (v for making in self.makings.values() for v in making.weights)
        return [*self.eqn.invars, *weights, *self.numbers]

    def run(self, *given: Any) -> list[Any]:
        """The result of the operation."""
        eqn, values = self.eqn, iter(given)
        one, x_index = eqn.primitive, eqn.primitive.spec.x_invar_index
        operands = [next(values) for _ in eqn.invars]
        for k, making in self.makings.items():
            operands[k] = making.weight([next(values) for _ in making.weights])
        packed, types = [*values], [v.aval for v in self.numbers]
        if x_index is None:
            operands.append(pack(packed))
        else:
            types = [eqn.invars[x_index].aval, *types]
            operands[x_index] = pack([operands[x_index], *packed])
        made = {
            k: making.made(self.numbers, None if self.axes is None else self.axes[k])
            for k, making in self.makings.items()
        }
        primitive = moving(one, made, types, dense=self.axes is None)
        return [primitive.bind(*operands, **one.get_bind_params(eqn.params))]


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
    found: dict[int, Moved] = {}
    for i, operands in places.items():
        before, eqn = jaxpr.eqns[:i], jaxpr.eqns[i]
        atoms = {k: eqn.invars[k] for k in operands if eqn.invars[k] in led}
        tried = ((k, _making(before, atom, varying, led)) for k, atom in atoms.items())
        makings = {k: making for k, making in tried if making is not None}
        if makings and _can_move(eqn):
            found[i] = Moved(eqn, makings, _axes(eqn, makings))
    if not found:
        return jaxpr
    run = {i: moved.run for i, moved in found.items()}
    return with_replacements(jaxpr, run, {i: moved.reads for i, moved in found.items()})


def _trainable(eqn: JaxprEqn, varying: frozenset[Var]) -> list[int]:
    """Trainable operands of an ETP equation that depend on what is not fixed."""
    places = eqn.primitive.spec.resolve_trainable_invars(eqn.params).values()
    atoms = ((k, eqn.invars[k]) for k in places if k < len(eqn.invars))
    return [k for k, atom in atoms if versions.is_var(atom) and atom in varying]


def _making(
    eqns: Sequence[JaxprEqn], atom: Var, varying: frozenset[Var], led: frozenset[Var]
) -> Making | None:
    """How an operand is made, if it is made from weights and what moves.

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
    if not weights or any(e.effects for e in steps) or not all(map(_is_real, free)):
        return None
    values = tuple(var for var in free if var not in weights)
    return Making(steps, tuple(weights), values, atom)


def _is_real(var: Var) -> bool:
    """Whether the values of a variable are numbers, and not complex."""
    kinds = (jnp.floating, jnp.integer, jnp.bool_)
    return any(jnp.issubdtype(var.aval.dtype, kind) for kind in kinds)


def _can_move(eqn: JaxprEqn) -> bool:
    """Whether what moves can join the input of an operation."""
    x_index = eqn.primitive.spec.x_invar_index
    return len(eqn.invars) == 1 if x_index is None else _is_real(eqn.invars[x_index])


def _axes(eqn: JaxprEqn, makings: Mapping[int, Making]) -> dict[int, dict[int, int]] | None:
    """By operand, which axes of the operation's own trace, from its end, run along its axes.

    ``None`` unless that trace has an entry for each entry of the operand, at whatever positions.
    """
    if any(making.extra is None for making in makings.values()):
        return None
    spec = eqn.primitive.spec
    keys = {k: key for key, k in spec.resolve_trainable_invars(eqn.params).items()}
    y, avals = eqn.outvars[0].aval, tuple(a.aval for a in eqn.invars)
    operation = Operation(spec, eqn.params, avals, y, tuple(keys.values()))
    operation = operation.of_one or operation  # a repeated one has the trace of one iteration
    if operation.spec.rows_drtrl is not None:  # entries of its trace are no entries of the weight
        return None
    try:
        types = trace_rules(operation, (), 1).types
        if operation.spec.solve_drtrl is not None:
            return _axes_in_solve(operation, types, {k: keys[k] for k in makings})
    except (AttributeError, TypeError):  # rules that ask for the hidden group
        return None
    ends = ((types[keys[k]].shape, avals[k].shape) for k in makings)
    if not all(found[len(found) - len(own) :] == own for found, own in ends):
        return None
    return {k: {i - n: i - n for i in range(n)} for k in makings for n in [len(avals[k].shape)]}


def _axes_in_solve(
    operation: Operation, types: Mapping[str, Any], keys: Mapping[int, str]
) -> dict[int, dict[int, int]] | None:
    """The same, told from the rule that turns a trace into cotangents of weights.

    ``None``, too, where that rule needs the operands that move.
    """
    avals, moved, first = operation.operand_avals, [*keys], 1 + len(keys)

    def solve(signal: Any, moving: Sequence[Any], trace: Sequence[Any]) -> list[Any]:
        operands: list[Any] = [jnp.zeros(aval.shape, aval.dtype) for aval in avals]
        for k, value in zip(moved, moving, strict=True):
            operands[k] = value
        rule = operation.written("solve_drtrl", operands)
        leaves = dict(zip(types, trace, strict=True))
        found = rule(signal, leaves, operation.weights(operands))
        return [found[name] for name in types]

    leaves = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in types.values()]
    program = versions.make_jaxpr(solve, operation.y_aval, [avals[k] for k in moved], leaves)
    seeds = {v: frozenset({0}) for v in program.invars[1:first]}
    read_at_end = depends(program.eqns, seeds)
    if any(versions.is_var(a) and read_at_end.get(a) for a in program.outvars):
        return None
    axes: dict[int, dict[int, int]] = {}
    for k, key in keys.items():
        place, shape = [*types].index(key), avals[k].shape
        end = [(program.outvars[place], own_places(shape))]
        (places,) = reached(program.eqns, [program.invars[first + place]], end)
        leaf = leaves[place].shape
        along = {} if places is None else axes_along(places, shape, leaf)
        axes[k] = {k - len(shape): i - len(leaf) for i, k in along.items()}
        if {axis + len(shape) for axis in axes[k]} != {i for i, n in enumerate(shape) if n > 1}:
            return None
    return axes
