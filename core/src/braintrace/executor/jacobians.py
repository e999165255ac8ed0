# SPDX-License-Identifier: Apache-2.0
"""The Jacobians of one step: the record, and how it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.versions import Var
from ..compiler.graph import ETraceGraph
from ..jaxprs.sites import holds
from .layout import Link


class StepJacobians(NamedTuple):
    """What a learning rule needs to know of one step.

    Attributes
    ----------
    x
        Per relation, the input of the operation (``None`` for one without).
    f
        Per link (relation and group), ``d h_g / d y`` laid out as ``y``: [S, *E, *Y].
    transition
        Per group, ``D[i, j] = d h_i / d h_j`` [S, S, *V]; ``None`` where structurally zero.
    """

    x: tuple[Any, ...]
    f: tuple[jax.Array, ...]
    transition: tuple[jax.Array | None, ...]


def zeros_of(links: Mapping[int, Link]) -> dict[int, jax.Array]:
    """Zeros like the ``y`` of every link."""
    ys = {i: link.relation.y_var.aval for i, link in links.items()}
    return {i: jnp.zeros(y.shape, y.dtype) for i, y in ys.items()}


def boundary_of(graph: ETraceGraph) -> tuple[Var, ...]:
    """Variables whose values determine the Jacobians of a step."""
    relations = graph.hidden_param_op_relations
    driven = {g for r in relations for g in r.group_alignments}
    produced = {var for eqn in graph.module_info.eqns for var in eqn.outvars}
    known = produced | set(graph.module_info.jaxpr.invars)
    wanted: dict[Any, None] = {}
    for group, cone in zip(graph.hidden_groups, graph.cones, strict=True):
        if group.index in driven:
            held = () if cone.transition is None else cone.transition.free
            wanted.update(dict.fromkeys((*group.hidden_invars, *cone.free, *held)))
    for relation in relations:
        wanted[relation.y_var] = None
        if relation.x_var is not None:
            wanted[relation.x_var] = None
    return tuple(var for var in wanted if versions.is_var(var) and var in known)


def takes_forward_mode(graph: ETraceGraph, link: Link) -> bool:
    """Whether one forward sweep gives ``f``: ``y`` is broadcast and nothing on its way forbids it.

    ``jax.custom_vjp`` functions have no forward mode.
    """
    cone = graph.cones[link.group.index]
    eqns = graph.module_info.eqns
    custom = any(holds(eqns[i], versions.jaxp.custom_vjp_call_p) for i in cone.eqns)
    return bool(link.extra) and not link.alignment.mixed and not custom
