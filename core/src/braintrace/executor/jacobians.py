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
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.versions import JaxprEqn, Var
from ..compiler.groups import HiddenGroup
from ..compiler.reach import Cone, Pattern
from ..jaxprs.pull import converts
from ..jaxprs.run import holds, read, run_equations
from ..ops.traces.bands import Band, Bands
from ..ops.traces.base import UNROLL_STATES
from .above import Above
from .cascade import Cascade, composed
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
        with a function of signals; one with ``cascaded`` gives that of a group with filters as a
        :class:`Cascade`, and ``f`` [H, *E, *Y] of the links that lead to it.
    """

    x: tuple[Any, ...]
    f: tuple[jax.Array, ...]
    transition: tuple[Any, ...]

    def of(self, link: Link) -> tuple[Any, jax.Array, Any]:
        """``x``, ``f`` and ``D`` of a link."""
        return self.x[link.relation.index], self.f[link.index], self.transition[link.group.index]

    def composed(self, links: Sequence[Link]) -> StepJacobians:
        """With ``f`` and ``D`` of all states, of a single step."""

        def whole(link: Link, f: jax.Array) -> jax.Array:
            D = self.transition[link.group.index]
            return composed(f, link.to_y(D.between, 2)) if isinstance(D, Cascade) else f

        moving = (D.composed() if isinstance(D, Cascade) else D for D in self.transition)
        return self._replace(f=tuple(map(whole, links, self.f)), transition=tuple(moving))


@dataclass(frozen=True, eq=False)
class Pullback:
    """Reverse mode of a group's new values: ``pull(cotangents) -> (of old values, of each y)``."""

    group: HiddenGroup
    pull: Callable[[list[Any]], Any]

    @classmethod
    def of_program(
        cls, group: HiddenGroup, program: Any, held: Sequence[Any], olds: Sequence[Any]
    ) -> Pullback:
        """Of a transition that has a program of its own, in the old values."""
        call = versions.jaxpr_as_fun(program)
        return cls(group, jax.vjp(lambda olds: call(*held, *olds), [*olds])[1])

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
        where = jnp.reshape(chosen, (-1, *(1,) * mask.ndim))
        return Positions(self.group).members(jnp.where(where, mask, 0))

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

    def cascade(self, follows: Pattern) -> Cascade:
        """``D`` where the last states follow the first, from new values of these, too."""
        first, (_, _, news) = len(follows[0]), self.sums
        D, leak = self.olds(self.sums), (slice(1),) * (self.group.ndim - 1)
        between = jnp.stack(news, 1)[first:]
        last = D[first:, first:, :, *leak] if self.group.ndim else D[first:, first:]
        return Cascade(D[:first, :first], last, between, follows)

    def factor(self, link: Link) -> jax.Array:
        """``f`` [S, *E, *Y] of a link."""

        def of_y(rows: Any, _: Any = None) -> jax.Array:
            return rows[1][link.index]

        positions = link.group
        axes = (*positions.mixed, *(positions.kept[k] for k in link.alignment.extra))
        if not axes:
            return of_y(self.sums)
        found = jnp.moveaxis(self.each(axes, of_y), 0, 1)  # [S of the group, M E, *Y]
        states = self.group.num_state * positions.num_mixed
        return found.reshape(states, *link.extra, *found.shape[2:])


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


@dataclass(frozen=True, eq=False)
class GroupStep:
    """New values of a group's members, by the part of the step's equations that leads to it.

    It is a function of their old values, of shifts that are added to some ``y``, by link, and of
    ``news``: what takes the place of the new values of the first members.
    """

    eqns: Sequence[JaxprEqn]
    cone: Cone
    group: HiddenGroup
    links: Sequence[Link]
    values: Mapping[Var, Any]

    def __call__(
        self, olds: Sequence[Any], shifts: Mapping[int, Any], news: Sequence[Any] = ()
    ) -> list[Any]:
        ys = {k.index: k.relation.y_var for k in self.links}
        shift = {ys[i]: change for i, change in shifts.items()}
        given = dict(zip(self.group.hidden_outvars, news, strict=False))
        env = {**self.values, **dict(zip(self.group.hidden_invars, olds, strict=False))}
        inside = {var for i in self.cone.eqns for var in self.eqns[i].outvars}
        plain = {y: env[y] for y in shift if y not in inside}
        env |= {y: shifted(value, shift[y]) for y, value in plain.items()}
        for i in self.cone.eqns:
            eqn = self.eqns[i]
            if converts(eqn) and (y := eqn.invars[0]) in plain and widens(eqn, y):
                run_equations([eqn], own := {y: plain[y]})
                env[eqn.outvars[0]] = shifted(own[eqn.outvars[0]], shift[y])
            else:
                run_equations([eqn], env)
                for y in shift.keys() & eqn.outvars:
                    plain[y] = env[y]
                    env[y] = shifted(env[y], shift[y])
            env.update((new, given[new]) for new in given.keys() & eqn.outvars)
        return [env[var] for var in self.group.hidden_outvars]

    def first(
        self, count: int, olds: Sequence[Any], shifts: Mapping[int, Any], news: Sequence[Any] = ()
    ) -> list[Any]:
        """The new values of the first members, from old values of these."""
        own = [self.values[var] for var in self.group.hidden_invars[count:]]
        return self([*olds, *own], shifts, news)[:count]

    def in_turn(
        self, olds: Sequence[Any], shifts: Mapping[int, Any], news: Sequence[Any]
    ) -> list[Any]:
        """The new values, of which all but the first read ``news`` in place of these."""
        first = self(olds, shifts)[: len(news)]
        return [*first, *self(olds, {}, news)[len(news) :]]


def shifted(value: Any, change: Any) -> Any:
    """A value and what is added to it, in the value's dtype."""
    return value + change.astype(value.dtype)


def jacobians_of_group(
    eqns: Sequence[JaxprEqn],
    cone: Cone,
    positions: Positions,
    links: Sequence[Link],
    values: dict[Var, Any],
    banded: tuple[Band, ...] = (),
    follows: Pattern | Above | None = None,
) -> tuple[Any, dict[int, jax.Array]]:
    """``D`` of a group, and ``f`` of the links that lead to it, by number.

    Where it is ``banded``, ``D`` is given by these bands, from as many derivatives as
    :mod:`.sweeps` needs. Where its last states only follow the first, as ``follows`` says, it is a
    :class:`Cascade`. Of values of small groups above, it is known already but for the first states.

    They are computed from the ``values`` of variables.

    While positions are apart, one pull-back of ones per state gives ``D[p, i, :]`` and
    ``f_r[p, i]`` of all relations at once. A relation whose ``y`` is broadcast over positions
    takes forward mode instead, because a pull-back would sum. Along axes where positions are
    mixed, there is a pull-back for each of them.
    """
    if not links:
        return None, {}
    transition = cone.transition
    step: Any = GroupStep(eqns, cone, positions.group, links, values)
    if isinstance(follows, Above):
        above, positions = follows, Positions(follows.first)
        step, follows = partial(step.first, len(above.first.hidden_paths)), None
    else:
        above = None
    group = positions.group
    zeros = {
        k.index: jnp.zeros(k.relation.y_var.aval.shape, shift_dtype(eqns, cone, k)) for k in links
    }
    own = [values[var] for var in group.hidden_invars]
    olds = own if cone.old_reaches else []
    news = [values[var] for var in group.hidden_outvars[: len(follows[0])]] if follows else []

    def pushed(link: Link) -> jax.Array:
        """``f`` from the forward derivative along ones in ``y``."""
        i = link.index
        along = (zeros[i],), (jnp.ones_like(zeros[i]),)
        _, moved = jax.jvp(lambda y: step(olds, {i: y}), *along)
        return link.to_y(positions.stacked(moved), 1)

    forward = {link.index for link in links if takes_forward_mode(eqns, cone, link, bool(banded))}
    reverse = {i: zero for i, zero in zeros.items() if i not in forward}
    pulled = jax.vjp(step.in_turn if follows else step, olds, reverse, news)
    pullback = Pullback(group, jax.lax.optimization_barrier(pulled)[1])
    factors = {
        link.index: pushed(link) if link.index in forward else pullback.factor(link)
        for link in links
    }
    if transition is None:
        return None, factors
    if above:
        return above.cascade(pullback.olds(pullback.sums), partial(read, values)), factors
    if follows:
        return pullback.cascade(follows), {i: f[: len(news)] for i, f in factors.items()}
    held = [read(values, var) for var in transition.free]
    if banded:
        return _by_bands(step, cone, positions, held, (olds, own, zeros), banded), factors
    if transition.program is not None:
        pullback = Pullback.of_program(group, transition.program, held, own)
    return pullback.transition(transition.mixed, bool(positions.mixed)), factors


def _by_bands(
    step: GroupStep,
    cone: Cone,
    positions: Positions,
    held: Sequence[Any],
    at: tuple[Any, Any, Any],
    bands: tuple[Band, ...],
) -> Bands:
    """``D`` by its bands, and as a function of signals where these have the dtype of the states."""
    (olds, own, zeros), program = at, cone.transition and cone.transition.program
    call = program and versions.jaxpr_as_fun(program)

    def transition(olds: list[Any]) -> list[Any]:
        return call(*held, *olds) if call else step(olds, {})

    matrix = BandedTransition(positions, cone.passing, bands, transition, own).matrix()
    members = (*step.group.hidden_invars, *step.group.hidden_outvars)
    if any(var.aval.dtype != positions.wide for var in members):
        return matrix
    of_olds = jax.vjp(transition, own)[1] if program else None
    _, pull = jax.vjp(step, olds, zeros)
    return replace(matrix, pulled=Pulled(pull, of_olds, jnp.ones((), bool), positions))
