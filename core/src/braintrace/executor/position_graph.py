# SPDX-License-Identifier: Apache-2.0
"""Which positions of a hidden group can depend on which from one step to the next.

Reverse mode is run as a program whose values are of three kinds. *Linear* ones carry the
cotangent, which starts at one position. *Fixed* ones stem from constants and parameters alone:
constants (masks, the indices of a sparse matrix) have their own values, parameters random ones, so
that a weight which happens to be zero hides nothing, but a masked one is left out. *Moving* ones
stem from inputs and states. Where a moving number multiplies a linear one, a random number takes
its place, so that no saturated unit hides a dependency, and where a moving condition selects, all
cases are added up. What it reaches with a number other than zero can depend on its start.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.errors import CompilationWarning
from ..base.types import show_path
from ..base.versions import JaxprEqn, Var
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import ModuleInfo, StateKind
from ..compiler.reach import Transition
from ..jaxprs.depends import Along, depends
from ..jaxprs.run import read, run_equations, run_inlined
from .jacobians import Pullback
from .layout import Link, Positions, numbered

#: Linear in one operand, and selecting by the size of another.
SELECTING = frozenset({"select_and_scatter_add", "select_and_gather_add"})

LINEAR, MOVING = frozenset({"linear"}), frozenset({"moving"})


class Unknown(Exception):
    """The structure of an equation cannot be told."""


def places_of_y(link: Link) -> np.ndarray | None:
    """For each element of a link's ``y``, the mixed position that it drives.

    ``None`` when it drives several.
    """
    group, alignment = link.group, link.relation.group_alignments[link.group.index]
    if {*alignment.extra} & {*group.mixed}:
        return None
    near = Link(link.relation, Positions(group.group), alignment)
    with jax.ensure_compile_time_eval():
        places = jnp.asarray(numbered(group.group.varshape, group.mixed))
        laid = np.asarray(near.to_y(places))
    return laid[(0,) * len(near.extra)]


def position_graph(graph: ETraceGraph, positions: Positions) -> np.ndarray:
    """Which mixed positions of a group depend on which from one step to the next: [M, M].

    ``[p, q]`` says whether the derivative of a new value at ``p`` in an old one at ``q`` can be
    other than zero, in some state and example. Every edge is kept, with a warning, when that cannot
    be told.
    """
    transition = graph.cones[positions.index].transition
    if transition is None or not positions.mixed:
        return np.eye(positions.num_mixed, dtype=bool)
    try:
        with jax.ensure_compile_time_eval():
            signs = (values_of_parameters(graph.module_info, sign) for sign in (1, -1))
            one, other = (structure_of(transition, positions, fixed) for fixed in signs)
            return one | other
    except Unknown:
        names = ", ".join(map(show_path, positions.group.hidden_paths))
        warn_unknown(f"the position graph of {names}", "its transition")
        return np.ones((positions.num_mixed, positions.num_mixed), bool)


def warn_unknown(what: str, where: str) -> None:
    """Say that a graph cannot be told."""
    versions.warn(
        f"{what} cannot be told, because {where} holds a loop, a branch or an index "
        "that depends on inputs or states; every edge is kept, as in RTRL",
        CompilationWarning,
    )


def structure_of(
    transition: Transition, positions: Positions, fixed: Mapping[Var, Any]
) -> np.ndarray:
    """The position graph of a transition, from values of what stems from parameters alone.

    Raises ``Unknown`` where it cannot be told: the transition has no program of its own, or it has
    a loop, or an index that is computed from inputs or states.
    """
    if transition.program is None:
        raise Unknown
    group, held = positions.group, len(transition.free)
    places = numbered(group.varshape, positions.mixed)

    def reverse(inputs: Sequence[Any], cotangents: Sequence[Any]) -> list[jax.Array]:
        frees, olds = inputs[:held], inputs[held:]
        pullback = Pullback.of_program(group, transition.program, frees, olds)
        return [pullback.olds(pullback.rows(cotangents[0])).sum(0)]

    inputs = (*transition.free, *group.hidden_invars)
    ends = [jax.ShapeDtypeStruct(group.varshape, jnp.result_type(float))]
    (hit,) = reached(reverse, inputs, fixed, ends, [places])
    found = np.zeros((positions.num_mixed, positions.num_mixed), bool)
    for row, own in zip(found, hit, strict=True):
        row[np.unique(places[own.any(0)])] = True
    return found


def reached(
    reverse: Callable[[Sequence[Any], Sequence[Any]], Sequence[jax.Array]],
    inputs: Sequence[Var],
    fixed: Mapping[Var, Any],
    ends: Sequence[Any],
    places: Sequence[np.ndarray],
) -> list[np.ndarray]:
    """What cotangents that start at one place can reach: per result of ``reverse`` [N, \\*shape].

    Parameters
    ----------
    reverse
        ``reverse(values of the inputs, cotangents)``, linear in these.
    inputs, fixed
        Variables, and values of those that stem from parameters alone.
    ends, places
        The types of the cotangents, and the number of the place of each of their entries, from 0.
    """
    random = np.random.default_rng(0)
    values = [fixed[v] if v in fixed else _generic(v.aval, random) for v in inputs]
    zeros = [jnp.zeros(end.shape, end.dtype) for end in ends]
    calling = jax.make_jaxpr(lambda *both: reverse(both[: len(inputs)], both[len(inputs) :]))
    called = calling(*values, *zeros)
    program = jax.make_jaxpr(lambda *both: run_inlined(called, both))(*values, *zeros)
    others, cotangents = program.invars[: len(inputs)], program.invars[len(inputs) :]
    marks = {v: MOVING for v, given in zip(others, inputs, strict=True) if given not in fixed}
    marks |= dict.fromkeys(cotangents, LINEAR)
    marks = depends(program.eqns, marks, along=Along.EQUATIONS)
    linear = {var for var, found in marks.items() if found >= LINEAR}
    known = versions.start_env(program, [*values, *zeros])
    run_equations((eqn for eqn in program.eqns if linear.isdisjoint(eqn.outvars)), known)
    starts = [_generic(end, random) for end in ends]

    def of_place(number: jax.Array) -> list[jax.Array]:
        env, drawn = dict(known), np.random.default_rng(2)
        for var, start, own in zip(cotangents, starts, places, strict=True):
            env[var] = jnp.where(own == number, start, 0)
        for eqn in program.eqns:
            if not linear.isdisjoint(eqn.outvars):
                results = _linear(eqn, env, marks.keys() - linear, drawn)
                env.update(zip(eqn.outvars, results, strict=True))
        return [read(env, atom) != 0 for atom in program.outvars]

    count = 1 + max(int(own.max()) for own in places)
    return [np.asarray(v) for v in jax.jit(partial(jax.lax.map, of_place))(jnp.arange(count))]


def values_of_parameters(info: ModuleInfo, sign: int = 1) -> dict[Var, Any]:
    """Values of the constants, of parameters (random), and of what is computed from them alone.

    The parameters for one ``sign`` are the negative ones of the other, so that what is cut off on
    one side of zero is there with the other.
    """
    random = np.random.default_rng(1)
    env = versions.constants(info.jaxpr)
    for slot in info.slots_of(StateKind.PARAM):
        env |= {var: sign * _generic(var.aval, random) for var in info.invars_of(slot)}
    for eqn in info.eqns:
        if all(not versions.is_var(a) or a in env for a in eqn.invars):
            run_equations([eqn], env)
    return env


def _generic(aval: Any, random: np.random.Generator) -> jax.Array:
    """Random numbers for a floating-point type; zeros for others."""
    if not versions.is_float(aval):
        return jnp.zeros(aval.shape, aval.dtype)
    return jnp.asarray(random.normal(size=aval.shape), aval.dtype)


def _linear(
    eqn: JaxprEqn, env: dict[Var, Any], moving: Set[Var], random: np.random.Generator
) -> list[Any]:
    """The results of an equation with a linear operand."""
    values = [read(env, atom) for atom in eqn.invars]
    moves = [k for k, a in enumerate(eqn.invars) if versions.is_var(a) and a in moving]
    if eqn.primitive.name == "select_n" and 0 in moves:
        # weighted at random: plus one of a case and minus one of another do not cancel
        weighted = [value * _generic(jax.typeof(value), random) for value in values[1:]]
        return [sum(weighted[1:], weighted[0])]
    if moves and (versions.inner_jaxprs(eqn) or eqn.primitive.name in SELECTING):
        raise Unknown
    for k in moves:
        aval = jax.typeof(values[k])
        if not versions.is_float(aval):
            raise Unknown
        values[k] = _generic(aval, random)
    return versions.bind_equation(eqn, values)
