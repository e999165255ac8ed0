# SPDX-License-Identifier: Apache-2.0
"""Gradients that are zero: neurons that never fire, inputs or signals that are nothing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.types import State, show_path
from ..compiler.module_info import ModuleInfo, StateKind
from ..drivers.running import Running

#: In fewer steps a gradient of zero says little: a recurrent product has met the start alone.
LEAST = 10


def say_silent(learner: Running, weights: Mapping[Any, State], grads: Any, steps: int) -> None:
    """Warn of parameters whose first gradient is zero, though the step depends on them.

    A dead network learns nothing, and its loss does not say why. This looks once for each compiled
    learner, at the first gradient that is no tracer; where a weight of zeros, as of a readout that
    starts so, hides what is below it, at the next one.
    """
    leaves = jax.tree.leaves(grads)
    known = (isinstance(leaf, np.ndarray) or leaf.is_fully_addressable for leaf in leaves)
    if learner._drivers.looks_left == 0 or steps < LEAST or any(map(versions.is_traced, leaves)):
        return
    if not all(known):  # parts are with other processes
        return
    paths = {state: path for path, state in learner.param_states.items()}
    zeros = {
        (paths[state], k): not np.any(np.asarray(leaf))
        for key, state in weights.items()
        if state in paths
        for k, leaf in enumerate(jax.tree.leaves(grads[key]))
        if leaf.size
    }
    silent = [place for place, zero in zeros.items() if zero]
    hidden = bool(silent) and any(
        v.ndim > 1 and not np.any(np.asarray(v)) and zeros.get((path, k)) is False
        for path, state in learner.param_states.items()
        for k, v in enumerate(jax.tree.leaves(state.value))
    )
    learner._drivers.looks_left = learner._drivers.looks_left - 1 if hidden else 0
    if hidden or not silent:
        return
    info = learner.graph.module_info
    heard = heard_at_random(info)
    found = dict.fromkeys(leaf[0] for leaf in silent if leaf in heard)
    if found:
        names = ", ".join(map(show_path, found))
        versions.warn(
            f"the first gradient, of {steps} steps, has an array of zeros in {names}, although the "
            "step depends on it: all that came into its operation was zero, as from neurons that "
            "never fire, or no loss heard what came out. Look at the inputs, at thresholds and the "
            "scale of weights, at the width of a surrogate derivative, at the mask, and at delays "
            "that are longer than these steps"
        )


def heard_at_random(info: ModuleInfo) -> set[tuple[Any, int]]:
    """The parameter leaves with a gradient somewhere: of one step from random states and inputs."""
    places = {var: place for place, var in info.parameter_leaves.items()}
    held = {slot.path: jax.tree.leaves(slot.state.value) for slot in info.slots_of(StateKind.PARAM)}
    draw = np.random.default_rng(0).standard_normal

    def random(aval: Any) -> Any:
        if not versions.is_float(aval):
            return np.zeros(aval.shape, aval.dtype)
        return jnp.asarray(draw(aval.shape), aval.dtype)

    variables = info.jaxpr.invars
    keys = (jnp.issubdtype(var.aval.dtype, jax.dtypes.extended) for var in variables)
    if info.jaxpr.effects or any(keys):
        return set()
    values = []
    for var in variables:
        path, k = places.get(var, (None, 0))
        values.append(random(var.aval) if path is None else held[path][k])
    smooth = [i for i, v in enumerate(variables) if v in places and versions.is_float(v.aval)]

    @jax.jit
    def pulled(values: Any) -> Any:
        step = versions.partial_at(versions.jaxpr_as_fun(info.jaxpr), values, smooth)
        out, pull = jax.vjp(step, *(values[i] for i in smooth))
        ones = [
            jnp.ones_like(o) if versions.is_float(o) else np.zeros(o.shape, jax.dtypes.float0)
            for o in out
        ]
        return pull(ones)

    found = zip(smooth, pulled(values), strict=True)
    return {places[variables[i]] for i, grad in found if np.any(np.asarray(grad))}
