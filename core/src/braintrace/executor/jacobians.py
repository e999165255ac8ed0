# SPDX-License-Identifier: Apache-2.0
"""The Jacobians of one step: what there are, what they are computed from, and how.

They come from reverse mode of the new values of a hidden group. A cotangent of ones at one state
sums, for every position of an input, over the positions that depend on it. Where that is a single
one, the sum is the derivative itself. Along axes where it is not, cotangents at one position at a
time are pulled back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.versions import JaxprEqn, Var
from ..compiler.groups import HiddenGroup
from ..compiler.reach import Cone
from ..jaxprs.pull import converts
from ..jaxprs.run import holds, read, run_equations
from ..ops.traces.bands import Band, Bands
from ..ops.traces.base import UNROLL_STATES
from .layout import Link, Positions, numbers_along
from .pulled import Pulled
from .sweeps import BandedTransition

#: What ``D`` and ``f`` may hold, and a learning rule may need.
JACOBIANS = {
    "near": "the entries between equal positions",
    "whole": "every entry within a hidden group",
}

#: How many positions are pulled back together where positions are mixed.
TOGETHER = 32


class StepJacobians(NamedTuple):
    """What a learning rule needs to know of one step.

    Attributes
    ----------
    x
        Per relation, the input of the operation (``None`` for one without).
    f
        Per link (relation and group), ``d h_g / d y`` laid out as ``y``: [S, *E, *Y].
    transition
        Per group, ``D[i, j] = d h_i / d h_j`` [S, S, *V]; ``None`` where structurally zero. An
        executor with ``banded`` gives ``D`` of a group with a delay line by its bands, together
        with a function of signals.
    """

    x: tuple[Any, ...]
    f: tuple[jax.Array, ...]
    transition: tuple[Any, ...]

    def of(self, link: Link) -> tuple[Any, jax.Array, Any]:
        """``x``, ``f`` and ``D`` of a link."""
        return self.x[link.relation.index], self.f[link.index], self.transition[link.group.index]


@dataclass(frozen=True, eq=False)
class Pullback:
    """Reverse mode of a group's new values: ``pull(cotangents) -> (of old values, of each y)``."""

    group: HiddenGroup
    news: Sequence[Any]
    pull: Callable[[list[Any]], Any]

    @classmethod
    def of_program(
        cls, group: HiddenGroup, program: Any, held: Sequence[Any], olds: Sequence[Any]
    ) -> Pullback:
        """Of a transition that has a program of its own, in the old values."""
        call = versions.jaxpr_as_fun(program)
        return cls(group, *jax.vjp(lambda olds: call(*held, *olds), [*olds]))

    def rows(self, mask: jax.Array) -> Any:
        """What is pulled back from ``mask`` [*V of the group] at each state: arrays [S, ..].

        Of few states, each by itself. A program for each of many would be large, so that these are
        pulled back together.
        """
        states = self.group.num_state
        if states > UNROLL_STATES:
            every = jnp.arange(states)
            return versions.mapped(lambda k: self.pull(self._at(mask, every == k)), every, states)
        rows = [self.pull(self._at(mask, np.arange(states) == k)) for k in range(states)]
        return jax.tree.map(lambda *row: jnp.stack(row), *rows)

    def _at(self, mask: jax.Array, chosen: Any) -> list[Any]:
        """Cotangents of the members that are ``mask`` at the chosen states [S], zero elsewhere."""
        first, found = 0, []
        counts, axes = self.group.state_counts, self.group.state_axes
        for new, count, axis in zip(self.news, counts, axes, strict=True):
            whole = jnp.where(chosen[first : first + count], mask[..., None], 0)
            single = new.shape == mask.shape
            own = whole[..., 0] if single else jnp.moveaxis(whole, -1, axis)
            found.append(own.astype(new.dtype))
            first += count
        return found

    @cached_property
    def sums(self) -> Any:
        """The rows of ones everywhere."""
        return self.rows(jnp.ones(self.group.varshape))

    def each(self, axes: Sequence[int], take: Callable[[Any, jax.Array], Any]) -> Any:
        """``take(rows, index)`` for each index of the flattened ``axes`` of positions, stacked.

        The rows belong to cotangents that are one at the positions with that index.
        """
        shape = self.group.varshape
        numbers, count = numbers_along(shape, axes), math.prod(shape[k] for k in axes)

        def one(index: jax.Array) -> Any:
            mask = jnp.broadcast_to(numbers == index, shape).astype(jnp.result_type(float))
            return take(self.rows(mask), index)

        return versions.mapped(one, jnp.arange(count), TOGETHER)

    def olds(self, rows: Any) -> jax.Array:
        """What rows hold of the old values: [S, S, *V of the group]."""
        return jax.vmap(Positions(self.group).stacked)(rows[0])

    def transition(self, mixed: tuple[int, ...], whole: bool) -> jax.Array:
        """``D``: every entry, as :class:`Positions` says, or the diagonal along mixed axes."""
        if not mixed:
            return self.olds(self.sums)
        wide, states = Positions(self.group, mixed), self.group.num_state

        def one(rows: Any, index: jax.Array) -> jax.Array:
            found = wide.joined(self.olds(rows), 1)  # [S, S M, *kept]
            if whole:
                return found
            return jnp.take(found.reshape(states, states, -1, *wide.varshape), index, axis=2)

        found = jnp.moveaxis(self.each(mixed, one), 0, 1 if whole else 2)
        if whole:
            return found.reshape(wide.num_state, wide.num_state, *wide.varshape)
        return wide.parted(found.reshape(states, wide.num_state, *wide.varshape), 1)

    def factor(self, link: Link) -> jax.Array:
        """``f`` [S, *E, *Y] of a link."""

        def of_y(rows: Any, _: Any = None) -> jax.Array:
            return rows[1][link.index]

        positions = link.group
        axes = (*positions.mixed, *(positions.kept[k] for k in link.alignment.extra))
        if not axes:
            return of_y(self.sums)
        found = jnp.moveaxis(self.each(axes, of_y), 0, 1)  # [S of the group, M E, *Y]
        return found.reshape(positions.num_state, *link.extra, *found.shape[2:])


def takes_forward_mode(
    eqns: Sequence[JaxprEqn], cone: Cone, link: Link, banded: bool = False
) -> bool:
    """Whether forward mode gives ``f`` at once, and nothing forbids it.

    It does where ``y`` is broadcast, and where the ``D`` of the group is kept by its bands: then
    there are many states to pull back from. Where several elements of ``y`` may lead to one
    position, as the gates of a cell do, it would add up what is of each.
    """
    alignment = link.alignment
    if not (link.extra or banded) or alignment.mixed or link.group.mixed:
        return False
    if alignment.elements is not None:
        return False
    return has_forward_mode(eqns[i] for i in cone.eqns)


def has_forward_mode(eqns: Iterable[JaxprEqn]) -> bool:
    """Whether no equation forbids forward mode, as ``jax.custom_vjp`` functions do."""
    return not any(holds(eqn, versions.jaxp.custom_vjp_call_p) for eqn in eqns)


def shift_dtype(eqns: Sequence[JaxprEqn], cone: Cone, link: Link) -> Any:
    """The dtype of a shift of ``y``, and so of ``f``: the widest one that ``y`` is converted to.

    A step in half precision whose states are wider converts ``y`` first of all. What is shifted is
    the result of the conversion, so that the derivative is not rounded to half precision.
    """
    y = link.relation.y_var
    wider = (eqns[i].outvars[0].aval.dtype for i in cone.eqns if widens(eqns[i], y))
    return max([y.aval.dtype, *wider], key=lambda dtype: dtype.itemsize)


def widens(eqn: JaxprEqn, y: Var) -> bool:
    """Whether an equation converts ``y`` to a wider dtype."""
    if not converts(eqn) or eqn.invars[0] is not y:
        return False
    return bool(eqn.outvars[0].aval.dtype.itemsize > y.aval.dtype.itemsize)


def jacobians_of_group(
    eqns: Sequence[JaxprEqn],
    cone: Cone,
    positions: Positions,
    links: Sequence[Link],
    values: dict[Var, Any],
    banded: tuple[Band, ...] = (),
) -> tuple[jax.Array | Bands | None, dict[int, jax.Array]]:
    """``D`` of a group, and ``f`` of the links that lead to it, by number.

    Where it is ``banded``, ``D`` is given by these bands, from as many derivatives as
    :mod:`.sweeps` needs.

    They are computed from the ``values`` of variables, by the part of the step's equations that
    leads to the group, as a function of its old values and of each ``y``.

    While positions are apart, one pull-back of ones per state gives ``D[p, i, :]`` and
    ``f_r[p, i]`` of all relations at once. A relation whose ``y`` is broadcast over positions
    takes forward mode instead, because a pull-back would sum. Along axes where positions are
    mixed, there is a pull-back for each of them.
    """
    if not links:
        return None, {}
    group, transition = positions.group, cone.transition
    ys = {link.index: link.relation.y_var for link in links}
    dtypes = {link.index: shift_dtype(eqns, cone, link) for link in links}
    zeros = {i: jnp.zeros(y.aval.shape, dtypes[i]) for i, y in ys.items()}
    own = [values[var] for var in group.hidden_invars]
    olds = own if cone.old_reaches else []
    inside = {var for i in cone.eqns for var in eqns[i].outvars}

    def new_values(olds: Sequence[Any], shifts: Mapping[int, Any]) -> list[Any]:
        """New values from old ones, with ``shifts`` added to some ``y``."""
        shift = {ys[i]: change for i, change in shifts.items()}
        env = {**values, **dict(zip(group.hidden_invars, olds, strict=False))}
        plain = {y: env[y] for y in shift if y not in inside}
        env |= {y: shifted(value, shift[y]) for y, value in plain.items()}
        for i in cone.eqns:
            eqn = eqns[i]
            if converts(eqn) and (y := eqn.invars[0]) in plain and widens(eqn, y):
                run_equations([eqn], own := {y: plain[y]})
                env[eqn.outvars[0]] = shifted(own[eqn.outvars[0]], shift[y])
                continue
            run_equations([eqn], env)
            for y in shift.keys() & eqn.outvars:
                plain[y] = env[y]
                env[y] = shifted(env[y], shift[y])
        return [env[var] for var in group.hidden_outvars]

    def shifted(value: Any, change: Any) -> Any:
        return value + change.astype(value.dtype)

    def pushed(link: Link) -> jax.Array:
        """``f`` from the forward derivative along ones in ``y``."""
        i = link.index
        along = (zeros[i],), (jnp.ones_like(zeros[i]),)
        _, moved = jax.jvp(lambda y: new_values(olds, {i: y}), *along)
        return link.to_y(positions.stacked(moved), 1)

    def pulled() -> Pulled | None:
        """Where signals have the dtype of the states."""
        members = (*group.hidden_invars, *group.hidden_outvars)
        if any(var.aval.dtype != positions.wide for var in members):
            return None
        of_olds = None
        if transition is not None and transition.program is not None:
            _, of_olds = jax.vjp(step, own)
        _, pull = jax.vjp(new_values, olds, zeros)
        return Pulled(pull, of_olds, jnp.ones((), bool), positions)

    forward = {link.index for link in links if takes_forward_mode(eqns, cone, link, bool(banded))}
    reverse = {i: zero for i, zero in zeros.items() if i not in forward}
    pullback = Pullback(group, *jax.lax.optimization_barrier(jax.vjp(new_values, olds, reverse)))
    factors = {
        link.index: pushed(link) if link.index in forward else pullback.factor(link)
        for link in links
    }
    if transition is None:
        return None, factors
    held = [read(values, var) for var in transition.free]
    if banded:
        call = transition.program and versions.jaxpr_as_fun(transition.program)

        def step(olds: list[Any]) -> list[Any]:
            return call(*held, *olds) if call else new_values(olds, {})

        matrix = BandedTransition(positions, cone.passing, banded, step, own).matrix()
        return replace(matrix, pulled=pulled()), factors
    if transition.program is not None:
        pullback = Pullback.of_program(group, transition.program, held, own)
    return pullback.transition(transition.mixed, bool(positions.mixed)), factors
