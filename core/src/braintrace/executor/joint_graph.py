# SPDX-License-Identifier: Apache-2.0
"""Which positions of all states of a step depend on which, and on which parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ..compiler.groups import HiddenGroup
from ..compiler.module_info import ModuleInfo
from .leaves import StateLeaf
from .position_graph import Unknown, reached, values_of_parameters, warn_unknown
from .tangents import differentiated


def joint_graph(
    info: ModuleInfo,
    groups: Sequence[HiddenGroup],
    parameters: Sequence[StateLeaf],
    carried: Sequence[StateLeaf],
) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Which positions of all states depend on which, and on which entries of parameters.

    A position is one of a hidden group, with all its states, or an entry of another state.

    Returns
    -------
    edges
        [N, N], new in old positions, as :func:`position_graph`.
    starts
        [N, P], new positions in the entries of parameters, one after the other.
    places
        Of each carried leaf, the numbers of the positions of its entries.
    """
    places = _places(groups, carried)
    count = 1 + max(int(own.max()) for own in places)
    entries = sum(p.size for p in parameters)

    def reverse(inputs: Sequence[Any], cotangents: Sequence[Any]) -> list[jax.Array]:
        _, pull = differentiated(info, parameters, carried, carried, inputs)
        weights, olds = pull([*cotangents])
        return [*weights, *olds]

    edges, starts = np.zeros((count, count), bool), np.zeros((count, entries), bool)
    ends = [leaf.aval for leaf in carried]
    try:
        with jax.ensure_compile_time_eval():
            for sign in (1, -1):
                fixed = values_of_parameters(info, sign)
                hits = reached(reverse, info.jaxpr.invars, fixed, ends, places)
                of_weights, of_states = hits[: len(parameters)], hits[len(parameters) :]
                wide = [
                    np.tile(hit.reshape(count, -1), p.size // max(1, hit[0].size))
                    for hit, p in zip(of_weights, parameters, strict=True)
                ]
                starts |= np.concatenate(wide, 1)
                for hit, own in zip(of_states, places, strict=True):
                    new, old = np.nonzero(hit.reshape(count, -1))
                    edges[new, own.reshape(-1)[old]] = True
    except Unknown:
        warn_unknown("the position graph", "the step")
        edges[:], starts[:] = True, True
    return edges, starts, places


def _places(groups: Sequence[HiddenGroup], carried: Sequence[StateLeaf]) -> list[np.ndarray]:
    """The numbers of the positions of the entries of carried leaves."""
    found, count = [], 0
    known = {path: group for group in groups for path in group.hidden_paths}
    first: dict[Any, int] = {}
    for leaf in carried:
        group: HiddenGroup | None = known.get(leaf.path)
        shape = leaf.aval.shape if group is None else group.varshape
        key = (leaf.path, leaf.leaf) if group is None else group.index
        if key not in first:
            first[key], count = count, count + math.prod(shape)
        own = first[key] + np.arange(math.prod(shape)).reshape(shape)
        if group is not None and own.ndim < len(leaf.aval.shape):
            own = np.expand_dims(own, group.state_axes[group.hidden_paths.index(leaf.path)])
        found.append(np.broadcast_to(own, leaf.aval.shape))
    return found
