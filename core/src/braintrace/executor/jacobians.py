# SPDX-License-Identifier: Apache-2.0
"""The Jacobians of one step: what there are, what they are computed from, and how."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.versions import JaxprEqn, Var
from ..compiler.reach import Cone
from ..jaxprs.run import read, run_equations
from ..jaxprs.sites import holds
from .layout import Link, Positions
from .pullback import Pullback

#: What ``D`` and ``f`` may hold, and a learning rule may need.
JACOBIANS = {
    "near": "the entries between equal positions",
    "whole": "every entry within a hidden group",
}


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


def takes_forward_mode(eqns: Sequence[JaxprEqn], cone: Cone, link: Link) -> bool:
    """Whether forward mode gives ``f`` at once: ``y`` is broadcast, and nothing forbids it.

    ``jax.custom_vjp`` functions have no forward mode.
    """
    if not link.extra or link.alignment.mixed or link.group.mixed:
        return False
    return not any(holds(eqns[i], versions.jaxp.custom_vjp_call_p) for i in cone.eqns)


@dataclass(frozen=True, eq=False)
class GroupAtStep:
    """A hidden group at one step: its new values as a function of old ones and of each ``y``.

    Attributes
    ----------
    eqns
        The equations of the step.
    positions, cone
        The group, and the part of the step that leads to it.
    links
        The links that lead to it, by number.
    values
        Values of the variables that determine its Jacobians.
    """

    eqns: Sequence[JaxprEqn]
    positions: Positions
    cone: Cone
    links: Mapping[int, Link]
    values: dict[Var, Any]

    def jacobians(self) -> tuple[jax.Array | None, dict[int, jax.Array]]:
        """``D`` of the group, and ``f`` of its links.

        While positions are apart, one pull-back of ones per state gives ``D[p, i, :]`` and
        ``f_r[p, i]`` of all relations at once. A relation whose ``y`` is broadcast over positions
        takes forward mode instead, because a pull-back would sum. Along axes where positions are
        mixed, there is a pull-back for each of them.
        """
        if not self.links:
            return None, {}
        pairs = self.links.items()
        forward = [i for i, k in pairs if takes_forward_mode(self.eqns, self.cone, k)]
        pullback = self._pullback([i for i in self.links if i not in forward])
        factors = {
            i: self._pushed(link) if i in forward else pullback.factor(link, i) for i, link in pairs
        }
        transition = self.cone.transition
        if transition is None:
            return None, factors
        if transition.program is not None:
            held = [read(self.values, var) for var in transition.free]
            pullback = Pullback.of_program(self.positions, transition.program, held, self._olds())
        return pullback.transition(transition.mixed), factors

    def _olds(self) -> list[Any]:
        return [self.values[var] for var in self.positions.group.hidden_invars]

    def _new_values(self, olds: Sequence[Any], shift: Mapping[Var, Any]) -> list[Any]:
        """New values from old ones, with ``shift`` added to some ``y``."""
        group = self.positions.group
        env = {**self.values, **dict(zip(group.hidden_invars, olds, strict=False))}
        inside = {var for i in self.cone.eqns for var in self.eqns[i].outvars}
        env.update({y: env[y] + change for y, change in shift.items() if y not in inside})
        for i in self.cone.eqns:
            run_equations([self.eqns[i]], env)
            for var in shift.keys() & self.eqns[i].outvars:
                env[var] = env[var] + shift[var]
        return [env[var] for var in group.hidden_outvars]

    def _pullback(self, chosen: Sequence[int]) -> Pullback:
        """Reverse mode in the old values and the ``y`` of chosen links."""
        olds = self._olds() if self.cone.old_reaches else []
        zeros = {i: _zeros(self.links[i]) for i in chosen}

        def new_values(olds: list[Any], shifts: dict[int, Any]) -> list[Any]:
            by_y = {self.links[i].relation.y_var: shift for i, shift in shifts.items()}
            return self._new_values(olds, by_y)

        news, pull = jax.lax.optimization_barrier(jax.vjp(new_values, olds, zeros))
        return Pullback(self.positions, news, pull)

    def _pushed(self, link: Link) -> jax.Array:
        """``f`` of a link from the forward derivative along ones in its ``y``."""
        zeros, olds = _zeros(link), self._olds() if self.cone.old_reaches else []
        _, moved = jax.jvp(
            lambda y: self._new_values(olds, {link.relation.y_var: y}),
            (zeros,),
            (jnp.ones_like(zeros),),
        )
        return link.to_y(self.positions.stacked(moved), 1)


def _zeros(link: Link) -> jax.Array:
    """Zeros like the ``y`` of a link."""
    y = link.operation.y_aval
    return jnp.zeros(y.shape, y.dtype)
