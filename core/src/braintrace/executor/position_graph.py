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

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.types import show_path
from ..base.versions import Jaxpr, JaxprEqn, Var
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import ModuleInfo, StateKind
from ..compiler.reach import Transition
from .layout import Link, Positions, join_states
from .pullback import Pullback

#: Linear in one operand, and selecting by the size of another.
SELECTING = frozenset({"select_and_scatter_add", "select_and_gather_add"})


class Unknown(Exception):
    """The structure of an equation cannot be told."""


class Traced(NamedTuple):
    """A value and its kind; neither ``linear`` nor ``moving``: fixed."""

    value: Any
    linear: bool = False
    moving: bool = False


def places_of_y(link: Link) -> np.ndarray | None:
    """For each element of a link's ``y``, the mixed position that it drives.

    ``None`` when it drives several.
    """
    group, alignment = link.group, link.relation.group_alignments[link.group.index]
    if {*alignment.extra} & {*group.mixed}:
        return None
    near = Link(link.relation, Positions(group.group), alignment)
    with jax.ensure_compile_time_eval():
        laid = np.asarray(near.to_y(jnp.asarray(group.places())))
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
        versions.warn(
            f"the position graph of {', '.join(map(show_path, positions.group.hidden_paths))} "
            "cannot be told, because its transition holds a loop, a branch or an index "
            "that depends on inputs or states; every edge is kept, as in RTRL"
        )
        return np.ones((positions.num_mixed, positions.num_mixed), bool)


def structure_of(
    transition: Transition, positions: Positions, fixed: Mapping[Var, Any]
) -> np.ndarray:
    """The position graph of a transition, from values of what stems from parameters alone.

    Raises
    ------
    Unknown
        When the structure cannot be told: the transition has no program of its own, or it has a
        loop, or an index that is computed from inputs or states.
    """
    if transition.program is None:
        raise Unknown
    group, held = positions.group, len(transition.free)
    count, places = positions.num_mixed, positions.places()
    random = np.random.default_rng(0)

    def reverse(*inputs: Any) -> jax.Array:
        frees, olds, cotangent = inputs[:held], inputs[held:-1], inputs[-1]
        rows = Pullback.of_program(positions, transition.program, frees, olds).rows(cotangent)
        return jnp.stack([join_states(group, row[0]) for row in rows]).sum(0)

    inputs = [
        Traced(fixed[v]) if v in fixed else Traced(_generic(v.aval, random), moving=True)
        for v in (*transition.free, *group.hidden_invars)
    ]
    start = jnp.zeros(group.varshape, jnp.result_type(float))
    program = jax.make_jaxpr(reverse)(*(i.value for i in inputs), start)
    found = np.zeros((count, count), bool)
    for p in range(count):
        cotangent = random.normal(size=places.shape) * (places == p)
        values = [*inputs, Traced(jnp.asarray(cotangent, start.dtype), linear=True)]
        (reached,) = _run(program, values, random)
        hit = (np.asarray(reached.value) != 0).any(0)
        found[p, np.unique(places[hit])] = True
    return found


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
            values = [env[a] if versions.is_var(a) else a.val for a in eqn.invars]
            env |= dict(zip(eqn.outvars, versions.bind_equation(eqn, values), strict=True))
    return env


def _generic(aval: Any, random: np.random.Generator) -> jax.Array:
    """Random numbers for a floating-point type; zeros for others."""
    if not versions.is_float(aval):
        return jnp.zeros(aval.shape, aval.dtype)
    return jnp.asarray(random.normal(size=aval.shape), aval.dtype)


def _run(program: Jaxpr, inputs: Sequence[Traced], random: np.random.Generator) -> list[Traced]:
    """Run a program on values of three kinds."""
    env = {var: Traced(value) for var, value in versions.constants(program).items()}
    env.update(zip(program.invars, inputs, strict=True))

    def read(atom: Any) -> Traced:
        return env[atom] if versions.is_var(atom) else Traced(atom.val)

    for eqn in program.eqns:
        found = _equation(eqn, [read(a) for a in eqn.invars], random)
        env.update(zip(eqn.outvars, found, strict=True))
    return [read(a) for a in program.outvars]


def _equation(
    eqn: JaxprEqn, operands: Sequence[Traced], random: np.random.Generator
) -> list[Traced]:
    moving, linear = any(o.moving for o in operands), any(o.linear for o in operands)
    if not linear:
        values = versions.bind_equation(eqn, [o.value for o in operands])
        return [Traced(value, moving=moving) for value in values]
    if eqn.primitive in versions.CALL_PRIMITIVES:
        return _run(versions.sub_jaxpr(eqn), operands, random)
    if eqn.primitive.name == "select_n" and operands[0].moving:
        # weighted at random: plus one of a case and minus one of another do not cancel
        weighted = [o.value * _generic(jax.typeof(o.value), random) for o in operands[1:]]
        return [Traced(sum(weighted[1:], weighted[0]), linear=True)]
    if moving and (versions.inner_jaxprs(eqn) or eqn.primitive.name in SELECTING):
        raise Unknown
    values = versions.bind_equation(eqn, [_seen(o, random) for o in operands])
    return [Traced(value, linear=True) for value in values]


def _seen(operand: Traced, random: np.random.Generator) -> Any:
    """A value as a linear equation sees it."""
    if operand.linear or not operand.moving:
        return operand.value
    aval = jax.typeof(operand.value)
    if not versions.is_float(aval):
        raise Unknown
    return _generic(aval, random)
