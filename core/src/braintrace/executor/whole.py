# SPDX-License-Identifier: Apache-2.0
"""Jacobians with every entry of a hidden group: for rules that follow influence between positions.

Where a transition mixes positions along some axes, ``D`` is not its diagonal along them here but
all of it. Positions along mixed axes are counted as states: a group with ``S`` states at positions
[*V], of which ``M`` are mixed, becomes one with ``S M`` states at the positions that are left
(usually the examples of a batch). Everything that holds for ``D`` and ``f`` of a few states then
holds for the whole Jacobian, so that learning rules and families need nothing new.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.types import Path, show_path
from ..base.versions import Var
from ..compiler.cones import Cone, Pattern
from ..compiler.graph import ETraceGraph
from ..compiler.groups import HiddenGroup
from ..jaxprs.positions.alignment import Alignment
from .layout import Link, join_states
from .position_graph import structure_of, values_of_parameters
from .step import ETraceGraphExecutor
from .sweeps import Reverse


@dataclass(frozen=True, eq=False)
class WholeGroup:
    """A hidden group whose positions along the ``mixed`` axes count as states.

    A state of it is a pair of a state and of an index of the flattened mixed axes.
    """

    group: HiddenGroup
    mixed: tuple[int, ...]

    @property
    def index(self) -> int:
        """Number of the group."""
        return self.group.index

    @cached_property
    def kept(self) -> tuple[int, ...]:
        """Axes of the group that are not mixed."""
        return tuple(k for k in range(self.group.ndim) if k not in self.mixed)

    @property
    def varshape(self) -> tuple[int, ...]:
        """Sizes of the kept axes."""
        return tuple(self.group.varshape[k] for k in self.kept)

    @property
    def ndim(self) -> int:
        """Number of kept axes."""
        return len(self.kept)

    @property
    def num_mixed(self) -> int:
        """Number ``M`` of mixed positions."""
        return math.prod(self.group.varshape[k] for k in self.mixed)

    @property
    def num_state(self) -> int:
        """``S M``."""
        return self.group.num_state * self.num_mixed

    def joined(self, array: jax.Array, lead: int = 0) -> jax.Array:
        """[*lead, S, *V] as [*lead, S M, *kept]."""
        first = lead + 1
        order = (*range(first), *(first + k for k in (*self.mixed, *self.kept)))
        array = array.transpose(order)
        return array.reshape(*array.shape[:lead], self.num_state, *self.varshape)

    def parted(self, array: jax.Array, lead: int = 0) -> jax.Array:
        """The inverse of :meth:`joined`: [*lead, S M, *kept] as [*lead, S, *V]."""
        sizes = [self.group.varshape[k] for k in self.mixed]
        head = array.shape[:lead]
        array = array.reshape(*head, self.group.num_state, *sizes, *self.varshape)
        first = lead + 1
        order = np.argsort((*self.mixed, *self.kept))
        return array.transpose(*range(first), *(first + int(k) for k in order))

    def places(self) -> np.ndarray:
        """For each position [*V], its index along the flattened mixed axes."""
        sizes = [n if k in self.mixed else 1 for k, n in enumerate(self.group.varshape)]
        return np.broadcast_to(np.arange(self.num_mixed).reshape(sizes), self.group.varshape)

    def alignment(self, found: Alignment) -> Alignment:
        """How ``y`` lies along the kept axes."""
        number = {axis: i for i, axis in enumerate(self.kept)}
        axes = tuple(None if k is None else number.get(k) for k in found.axes)
        elements = found.elements
        if elements is not None and len(self.kept) > 0:
            where = np.unravel_index(np.maximum(elements, 0), self.group.varshape)
            flat = np.ravel_multi_index([where[k] for k in self.kept], self.varshape)
            elements = np.where(elements < 0, elements, flat)
        covered = {k for k in axes if k is not None}
        if elements is not None and all(
            n == 1 or k in covered for k, n in enumerate(self.varshape)
        ):
            elements = None
        return replace(found, result=self.varshape, axes=axes, elements=elements)


class WholeGroupsExecutor(ETraceGraphExecutor):
    """An executor whose ``D`` and ``f`` hold every entry of the Jacobian within a group.

    Its ``D`` is [S M, S M, *kept], its ``f`` [S M, *E, *Y] and its signals [S M, *kept]; see
    :class:`WholeGroup`. A reverse sweep is made for every position of a layer at every step.
    """

    def arranged(self, graph: ETraceGraph, links: tuple[Link, ...]) -> tuple[Link, ...]:
        """The links in whole groups."""
        self.whole = tuple(
            WholeGroup(group, () if cone.transition is None else cone.transition.mixed)
            for group, cone in zip(graph.hidden_groups, graph.cones, strict=True)
        )
        return tuple(
            Link(link.relation, whole, whole.alignment(link.alignment))
            for link, whole in ((k, self.whole[k.group.index]) for k in links)
        )

    def passing(self, index: int) -> Pattern:
        """Any entry of a group's ``D`` may be other than zero [S M][S M]."""
        states = self.whole[index].num_state
        return ((True,) * states,) * states

    def driving(self, index: int) -> tuple[bool, ...]:
        """A link may drive any state [S M]."""
        return (True,) * self.links[index].group.num_state

    def _group_jacobians(
        self, group: HiddenGroup, cone: Cone, links: Mapping[int, Link], env: dict[Var, Any]
    ) -> tuple[jax.Array | None, dict[int, jax.Array]]:
        if cone.transition is None or not cone.transition.mixed or not links:
            return super()._group_jacobians(group, cone, links, env)
        whole = self.whole[group.index]
        near = self._cone_sweep(group, cone, links, env, list(links))
        factors = {i: _factor(near, whole, self.links[i], i) for i in links}
        return _jacobian(self._transition_sweep(group, cone.transition, near, env), whole), factors

    def signals(self, perturb: Sequence[Any]) -> tuple[jax.Array, ...]:
        """Gradients of the perturbations, per group: ``l`` [S M, *kept]."""
        found = super().signals(perturb)
        return tuple(w.joined(array) for w, array in zip(self.whole, found, strict=True))

    def late_signals(
        self, gradients: Mapping[Path, Any], groups: Container[int]
    ) -> tuple[jax.Array | None, ...]:
        """Gradients of old hidden values: ``e`` [S M, *kept], ``None`` outside ``groups``."""
        found = super().late_signals(gradients, groups)
        return tuple(
            None if array is None else w.joined(array)
            for w, array in zip(self.whole, found, strict=True)
        )

    def places_of_y(self, index: int) -> np.ndarray | None:
        """For each element of a link's ``y``, the mixed position that it drives.

        ``None`` when it drives several.
        """
        link, whole = self.near_links[index], self.whole[self.links[index].group.index]
        if {*link.alignment.extra} & {*whole.mixed}:
            return None
        with jax.ensure_compile_time_eval():
            laid = np.asarray(link.to_y(jnp.asarray(whole.places())))
        return laid[(0,) * len(link.extra)]

    def position_graph(self, index: int) -> np.ndarray:
        """Which mixed positions of a group depend on which from one step to the next: [M, M].

        ``[p, q]`` says whether the derivative of a new value at ``p`` in an old one at ``q`` can be
        other than zero, in some state and example; see ``_position_graph``.
        """
        whole, transition = self.whole[index], self.graph.cones[index].transition
        if transition is None or not whole.mixed:
            return np.eye(whole.num_mixed, dtype=bool)
        with jax.ensure_compile_time_eval():
            info, shape = self.graph.module_info, (whole.places(), whole.num_mixed)
            one, other = (
                structure_of(transition, whole.group, values_of_parameters(info, sign), *shape)
                for sign in (1, -1)
            )
            if one is None or other is None:
                versions.warn(
                    f"the position graph of {', '.join(map(show_path, whole.group.hidden_paths))} "
                    "cannot be told, because its transition holds a loop, a branch or an index "
                    "that depends on inputs or states; every edge is kept, as in RTRL"
                )
                return np.ones((whole.num_mixed, whole.num_mixed), bool)
            return one | other


def _jacobian(sweep: Reverse, whole: WholeGroup) -> jax.Array:
    """The whole Jacobian [S M, S M, *kept]."""
    group = whole.group

    def of_position(rows: list[Any], _: jax.Array) -> jax.Array:
        return whole.joined(jnp.stack([join_states(group, row[0]) for row in rows]), 1)

    found = sweep.each(whole.mixed, of_position)  # [M, S, S M, *kept]
    return jnp.moveaxis(found, 0, 1).reshape(whole.num_state, *found.shape[2:])


def _factor(sweep: Reverse, whole: WholeGroup, link: Link, i: int) -> jax.Array:
    """``f`` [S M, *E, *Y] of a link."""
    extra = tuple(whole.kept[k] for k in link.alignment.extra)
    found = sweep.each(
        (*whole.mixed, *extra), lambda rows, _: jnp.stack([row[1][i] for row in rows])
    )
    sizes = [n for k, n in enumerate(whole.group.varshape) if k in whole.mixed or k in extra]
    axes = sorted((*whole.mixed, *extra))  # positions are numbered in the order of the group's axes
    found = found.reshape(*sizes, *found.shape[1:])
    lead = len(axes)
    order = [axes.index(k) for k in whole.mixed], [axes.index(k) for k in extra]
    rest = range(lead + 1, found.ndim)
    found = found.transpose(lead, *order[0], *order[1], *rest)
    return found.reshape(whole.num_state, *link.extra, *link.relation.y_var.aval.shape)
