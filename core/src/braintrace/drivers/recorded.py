# SPDX-License-Identifier: Apache-2.0
"""A scan that stacks no more than changes.

A step hands out some arrays several times (the input of four gates), and some that are the same at
every step (``f`` of a current that is added to a membrane is one). Stacked as they are, they would
take most of the memory of a block, and writing fresh memory costs more than computing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..jaxprs.depends import Along, moving_with, slice_to
from ..jaxprs.run import read, run_equations


def recorded_scan(
    body: Callable[[Any, Any], tuple[Any, Any]], start: Any, inputs: Any
) -> tuple[Any, Any]:
    """``jax.lax.scan(body, start, inputs)`` that stacks every array once, and no constant ones."""
    length = jax.tree.leaves(inputs)[0].shape[0]
    first = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), inputs)
    jaxpr, shapes = jax.make_jaxpr(body, return_shape=True)(start, first)
    carried = len(jax.tree.leaves(start))
    outputs = jaxpr.outvars[carried:]
    moves = moving_with(jaxpr.eqns, jaxpr.invars)
    moving = [i for i, atom in enumerate(outputs) if versions.is_var(atom) and atom in moves]
    places = {i: next(k for k in moving if outputs[k] is outputs[i]) for i in moving}
    distinct = [i for i in moving if places[i] == i]

    env = versions.constants(jaxpr)
    fixed = [atom for i, atom in enumerate(outputs) if i not in places]
    run_equations([jaxpr.eqns[i] for i in slice_to(jaxpr.eqns, fixed, along=Along.EQUATIONS)], env)
    call = versions.jaxpr_as_fun(jaxpr)

    def step(carry: Any, now: Any) -> tuple[Any, list[Any]]:
        flat = call(*jax.tree.leaves((carry, now)))
        new = jax.tree.unflatten(jax.tree.structure(carry), flat[:carried])
        return new, [flat[carried + i] for i in distinct]

    end, found = jax.lax.scan(step, start, inputs)
    stacked = dict(zip(distinct, found, strict=True))

    def whole(i: int) -> Any:
        if i in places:
            return stacked[places[i]]
        value = read(env, outputs[i])
        return jnp.broadcast_to(value, (length, *jnp.shape(value)))

    results = [whole(i) for i in range(len(outputs))]
    return end, jax.tree.unflatten(jax.tree.structure(shapes[1]), results)
