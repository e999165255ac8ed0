# SPDX-License-Identifier: Apache-2.0
"""From the program of one example to that of a batch.

The step of a model that is written for one example is traced and rewritten for one example, so
that ETP operations are out of branches and loops, and only then mapped: a branch per example would
otherwise become a select of branches with an operation in each, and map its weights as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ...base import versions
from ...base.errors import CompilationError
from ...base.types import show_path
from ...jaxprs.depends import Along, program_influences
from ...jaxprs.run import flatten, read, run_equations
from ..batch_states import is_batched, leading_axis
from ..module_info import ModuleInfo
from ..program import StateKind


def arguments_of_one(args: tuple[Any, ...], size: int) -> tuple[tuple[Any, ...], tuple[bool, ...]]:
    """Types of the arguments of one example, and which leaves have an axis of examples.

    Every array of a batch has a leading axis of ``size``; a scalar is the same for all examples.
    """
    leading_axis(args, size, f"the states of the model hold {size} examples")

    def of_one(leaf: Any) -> Any:
        shape = jnp.shape(leaf)
        return jax.ShapeDtypeStruct(shape[1:], leaf.dtype) if shape else leaf

    return jax.tree.map(of_one, args), tuple(jnp.ndim(leaf) > 0 for leaf in jax.tree.leaves(args))


def in_batch(info: ModuleInfo, args: Sequence[bool], size: int) -> ModuleInfo:
    """The step of a batch of ``size`` examples, from that of one.

    ``args`` says of each leaf of its arguments whether every example has its own. What comes from
    ``brainstate.environ`` is the same for all.

    Raises
    ------
    CompilationError
        When examples would have to share a state that each of them changes.
    """
    num_args, num_out, old, new = info.num_args, info.num_out, info.jaxpr.invars, info.jaxpr.outvars
    states = [slot.state for slot in info.slots for _ in slot.leaves]
    none = [False] * (num_args - len(args))
    each = [*args, *none, *map(is_batched, states)]
    random = brainstate.random.RandomState
    keys = [i for i, state in enumerate(states, num_args) if isinstance(state, random)]
    axes = [0 if mapped or i in keys else None for i, mapped in enumerate(each)]
    _refuse_shared(info, axes)

    def one(*inputs: Any) -> list[Any]:
        env = versions.start_env(info.jaxpr, inputs)
        run_equations(info.eqns, env)
        return [read(env, atom) for atom in new]

    out_axes = [0] * num_out + axes[num_args:]
    mapped = jax.vmap(one, in_axes=axes, out_axes=out_axes, axis_size=size)

    def step(*inputs: Any) -> list[Any]:
        """A random state is split: one part for each example, and one for the next step."""
        split = {i: jax.random.split(inputs[i], size + 1) for i in keys}
        found = mapped(*(split[i][1:] if i in keys else v for i, v in enumerate(inputs)))
        for i in keys:
            k = num_out + i - num_args
            found[k] = inputs[i] if new[k] is old[i] else split[i][0]
        return found

    types = [
        var.aval.update(shape=(size, *var.aval.shape)) if batched else var.aval
        for var, batched in zip(old, each, strict=True)
    ]
    jaxpr = versions.make_jaxpr(step, *types)
    hidden = info.slots_of(StateKind.HIDDEN)
    own = [num_out + i for slot in hidden for i in slot.leaves]
    flat = flatten(jaxpr, range(len(jaxpr.invars)), range(len(jaxpr.outvars)), own)
    return replace(info, jaxpr=flat)


def _refuse_shared(info: ModuleInfo, axes: Sequence[int | None]) -> None:
    """Hidden states without an axis of examples, and shared states that examples change."""
    own = {i for i, axis in enumerate(axes) if axis == 0}
    behind = program_influences(info.jaxpr, Along.VALUES)
    for slot in info.slots:
        shared = [info.num_out + i for i in slot.leaves if axes[info.num_args + i] is None]
        if any(slot.kind is StateKind.HIDDEN or own & behind[k] for k in shared):
            raise CompilationError(
                f"the state {show_path(slot.path)} has no axis of examples, but with vmap=True "
                "each example has a value of its own. Make its module an attribute of the model, "
                "and let braintrace.compile(model, ..., vmap=True) initialise the model"
            )
