# SPDX-License-Identifier: Apache-2.0
"""From the program of one example to that of a batch.

The step of a model that is written for one example is traced and rewritten for one example, so
that ETP operations are out of branches and loops, and only then mapped: a branch per example would
otherwise become a select of branches with an operation in each, and map its weights as well.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ...base import versions
from ...base.errors import CompilationError
from ...base.types import show_path
from ...base.versions import Jaxpr
from ...jaxprs.depends import Along, program_influences
from ...jaxprs.run import flatten, read, run_equations
from ..batch_states import is_batched, leading_axis
from ..module_info import ModuleInfo
from ..program import StateSlot


class Across(enum.Enum):
    """What the examples of a batch have of an input of the step."""

    EACH = "each"  # one of its own, along a leading axis
    SAME = "same"
    KEY = "key"  # one of its own, split from that of the step


def arguments_of_one(args: tuple[Any, ...], size: int) -> tuple[tuple[Any, ...], tuple[bool, ...]]:
    """Types of the arguments of one example, and which leaves have an axis of examples.

    Parameters
    ----------
    args
        Arguments of a batch. Every array has a leading axis of ``size``; a scalar is the same for
        all examples.

    Raises
    ------
    ValueError
        When an array has another leading axis.
    """
    leading_axis(args, size, f"the states of the model hold {size} examples")

    def of_one(leaf: Any) -> Any:
        shape = jnp.shape(leaf)
        return jax.ShapeDtypeStruct(shape[1:], leaf.dtype) if shape else leaf

    return jax.tree.map(of_one, args), tuple(jnp.ndim(leaf) > 0 for leaf in jax.tree.leaves(args))


def in_batch(info: ModuleInfo, args: Sequence[bool], size: int) -> ModuleInfo:
    """The step of a batch.

    Parameters
    ----------
    info
        The step of one example.
    args
        For each leaf of its arguments, whether every example has its own; the same holds for all of
        what comes from ``brainstate.environ``.
    size
        Number of examples.

    Raises
    ------
    CompilationError
        When examples would have to share a state that each of them changes.
    """
    across = [Across.EACH if mapped else Across.SAME for mapped in args]
    across += [Across.SAME] * (info.num_args - len(across))
    across += [_across(slot) for slot in info.slots for _ in slot.leaves]
    _refuse_shared(info, across)
    mapped = _mapped(info.jaxpr, info.num_args, info.num_out, across, size)
    hidden = info.hidden_path_to_invar
    own = [info.num_out + i for slot in info.slots if slot.path in hidden for i in slot.leaves]
    flat = flatten(mapped, range(len(mapped.invars)), range(len(mapped.outvars)), own)
    return replace(info, jaxpr=flat)


def _across(slot: StateSlot) -> Across:
    if isinstance(slot.state, brainstate.random.RandomState):
        return Across.KEY
    return Across.EACH if is_batched(slot.state) else Across.SAME


def _refuse_shared(info: ModuleInfo, across: Sequence[Across]) -> None:
    """Hidden states without an axis of examples, and shared states that examples change."""
    own = {i for i, how in enumerate(across) if how is not Across.SAME}
    behind = program_influences(info.jaxpr, Along.VALUES)
    for slot in info.slots:
        shared = _across(slot) is Across.SAME
        if shared and (
            slot.path in info.hidden_path_to_invar
            or any(own & behind[info.num_out + i] for i in slot.leaves)
        ):
            raise CompilationError(
                f"the state {show_path(slot.path)} has no axis of examples, but with vmap=True "
                "each example has a value of its own. Make its module an attribute of the model, "
                "and let braintrace.compile(model, ..., vmap=True) initialise the model"
            )


def _mapped(
    jaxpr: Jaxpr, num_args: int, num_out: int, across: Sequence[Across], size: int
) -> Jaxpr:
    """A program with a leading axis of examples on the inputs and outputs that have one.

    A random state is split at every step: one part for each example, and one for the next step.
    """
    shift = num_out - num_args  # from an input of a state to its output

    def one(*inputs: Any) -> list[Any]:
        env = versions.start_env(jaxpr, inputs)
        run_equations(jaxpr.eqns, env)
        return [read(env, atom) for atom in jaxpr.outvars]

    axes = [None if how is Across.SAME else 0 for how in across]
    mapped = jax.vmap(one, in_axes=axes, out_axes=[0] * num_out + axes[num_args:], axis_size=size)

    def step(*inputs: Any) -> list[Any]:
        given, following = list(inputs), {}
        for i, how in enumerate(across):
            if how is Across.KEY:
                keys = jax.random.split(inputs[i], size + 1)
                drawn = jaxpr.outvars[i + shift] is not jaxpr.invars[i]
                following[i + shift], given[i] = keys[0] if drawn else inputs[i], keys[1:]
        return [following.get(i, value) for i, value in enumerate(mapped(*given))]

    types = [
        var.aval.update(shape=(size, *var.aval.shape)) if how is Across.EACH else var.aval
        for var, how in zip(jaxpr.invars, across, strict=True)
    ]
    return versions.make_jaxpr(step, *types)
