# SPDX-License-Identifier: Apache-2.0
"""Credit that passes ``step_fn`` on its way through time, which no trace follows."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import accumulate
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.types import show_path
from ..compiler.module_info import StateKind
from ..jaxprs.depends import Along, program_influences
from .call_arguments import number_of_steps
from .options import GradOptions, common_length
from .running import Running

ENTERS = (
    "step_fn makes arguments of the learner from {names}, and what these do to later steps by that "
    "is not in the gradient, or within a block or window alone: traces follow the model. Let the "
    "model do it; where no gradient is wanted by this way, jax.lax.stop_gradient says so"
)
BEFORE = (
    "the loss of step_fn reads {names} of before the call of the learner, and in windows what "
    "earlier steps did to that is not in the gradient. Read it after the call, or learn with "
    "vjp_method='single-step'"
)


def say_what_passes(learner: Running, options: GradOptions, sequences: Any) -> None:
    """Warn where parameters or hidden states act through ``step_fn`` in the place of the model.

    ``step_fn`` is traced with zeros for what a call of the learner makes: what depends on states
    then, or on parameters, passes ``step_fn`` alone. Within a single window nothing is left out.
    """
    if options.chunk_size is not None and options.chunk_size >= common_length(sequences):
        return
    info, hidden = learner.graph.module_info, learner.states_of(StateKind.HIDDEN)
    types, entering = [var.aval for var in info.jaxpr.outvars[: info.num_out]], list[Any]()
    if any(jnp.issubdtype(aval.dtype, jax.dtypes.extended) for aval in types):  # a key, say
        return

    def cut(learner: Running, args: tuple[Any, ...], given: Any) -> Any:
        entering.append(jax.tree.leaves(args))
        lead = () if (steps := number_of_steps(args)) is None else (steps,)
        for state in hidden.values():
            state.value = jax.tree.map(jnp.zeros_like, state.value)
        out = [jnp.zeros((*lead, *aval.shape), aval.dtype) for aval in types]
        return jax.tree.unflatten(info.out_treedef, out)

    def step(*inputs: Any) -> Any:
        entering.clear()
        with learner.stepping_by(cut):
            result = options.step_fn(*inputs)
        return jax.tree.leaves(result[0] if options.has_aux else result), [*entering]

    size = options.chunk_size or 1
    first = jax.tree.map(lambda v: v[:size] if size > 1 else v[0], sequences)
    stateful: Any = brainstate.transform.StatefulFunction(step, return_only_write=False)
    stateful.make_jaxpr(*first)
    losses, entered = stateful.get_out_shapes(*first)[0]
    states = stateful.get_state_trace(*first).states
    lengths = [len(jax.tree.leaves(state.value)) for state in states]
    starts = accumulate(lengths, initial=len(jax.tree.leaves(first)))
    behind = program_influences(stateful.get_jaxpr(*first), Along.DERIVATIVES)
    of_losses = frozenset[int]().union(*behind[: len(losses)])
    count = len(jax.tree.leaves((losses, entered)))
    of_arguments = frozenset[int]().union(*behind[len(losses) : count])
    names = options.names(learner.param_states) | {s: show_path(p) for p, s in hidden.items()}
    places = [(s, range(a, a + n)) for s, a, n in zip(states, starts, lengths, strict=False)]

    def say(text: str, among: Iterable[Any], inputs: frozenset[int]) -> None:
        known = {*among}
        found = [names[s] for s, own in places if s in known and not inputs.isdisjoint(own)]
        if found:
            versions.warn(text.format(names=", ".join(found)))

    say(ENTERS, names, of_arguments)
    if options.chunk_size is not None:
        say(BEFORE, hidden.values(), of_losses)
