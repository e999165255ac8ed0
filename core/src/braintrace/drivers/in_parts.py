# SPDX-License-Identifier: Apache-2.0
"""A loop along parts of a sequence: blocks, windows, or the steps between two updates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp


def in_parts(
    one: Callable[[Any, Any], tuple[Any, Any]],
    start: Any,
    inputs: Any,
    size: int,
    scan: Callable[..., Any] = brainstate.transform.scan,
    least: int = 1,
) -> tuple[Any, Any]:
    """Run ``one(carry, (number, part)) -> carry, (per_step, per_step, per_part)`` along parts.

    Parts have ``size`` steps, the last one perhaps fewer. What is per step is joined, what is per
    part stacked.

    Parameters
    ----------
    scan
        What runs parts of one size as a loop.
    least
        From how many parts on. Others are run by themselves, with an ``int`` as their number.
    """
    steps = jax.tree.leaves(inputs)[0].shape[0]
    full = steps // size if steps >= least * size else 0
    found = []
    if full:
        parts = jax.tree.map(lambda v: v[: full * size].reshape(full, size, *v.shape[1:]), inputs)
        start, (a, b, seen) = scan(one, start, (jnp.arange(full), parts))
        found.append((*jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), (a, b)), seen))
    for number in range(full, -(-steps // size)):
        where = slice(number * size, (number + 1) * size)
        part = jax.tree.map(lambda v, where=where: v[where], inputs)
        start, (a, b, seen) = one(start, (number, part))
        found.append((a, b, jax.tree.map(lambda v: jnp.asarray(v)[None], seen)))
    return start, jax.tree.map(lambda *v: jnp.concatenate(v), *found)
