# SPDX-License-Identifier: Apache-2.0
"""One call of ``step_fn`` as a program: what it reads, and what of it is a parameter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import brainstate
import jax

from ..base.types import State, show_path
from ..compiler.program import StateKind
from ..executor.step import Executor
from ..jaxprs.depends import reaches
from .direct import DirectProducts, direct_products
from .tape import Tape


@dataclass(frozen=True, eq=False)
class TracedStep:
    """One step of the user's loss as a flat program over inputs and states.

    Attributes
    ----------
    run
        ``run(perturb, inputs, state_leaves, shifts) -> (loss, aux, boundary, new_state_leaves,
        recorded)``, with the boundary of :class:`Tape`, and the shifts and records of ``direct``.
    direct, first
        The products of the step with parameters; its inputs from ``first`` are the state leaves.
    states
        Every state the step reads or writes.
    leaf_ranges
        Where each state's leaves stand among the state leaves.
    live
        State leaves (by index) with a differentiable path to the loss.
    """

    run: Callable[..., tuple[Any, Any, tuple[Any, ...], list[Any], Any]]
    direct: DirectProducts
    first: int
    states: tuple[State, ...]
    leaf_ranges: tuple[range, ...]
    live: frozenset[int]

    def is_step_by_step(self, leaf: int) -> bool:
        """Whether a state leaf acts on the loss other than through the direct products."""
        return self.first + leaf in self.direct.elsewhere

    def products(
        self, leaves: Sequence[Any], recorded: Sequence[Any], dys: Sequence[jax.Array]
    ) -> dict[int, Any]:
        """Gradients by state leaf through the direct products of ``K`` steps."""
        values = {self.first + i: leaf for i, leaf in enumerate(leaves)}
        found = self.direct.gradients(values, recorded, dys)
        return {i - self.first: value for i, value in found.items()}

    def leaves_of(self, state: State) -> range | None:
        """Indices of a state's leaves, or ``None`` when the step does not use it."""
        for other, leaves in zip(self.states, self.leaf_ranges, strict=True):
            if other is state:
                return leaves
        return None

    def live_leaves(self, state: State) -> list[int]:
        """Indices of those leaves of a state on which the loss depends directly."""
        return [i for i in self.leaves_of(state) or () if i in self.live]


def trace_step(
    executor: Executor,
    step_fn: Callable[..., Any],
    attach: Callable[[Tape | None], None],
    inputs: Any,
    targets: Sequence[State],
) -> TracedStep:
    """Trace ``step_fn`` with the learner in recording mode.

    Parameters
    ----------
    step_fn
        ``step_fn(*inputs) -> (loss, aux)`` with a scalar loss.
    attach
        Gives the learner its tape, and takes it away again with ``None``.
    inputs
        Inputs of one step.
    targets
        The parameter states whose gradients are wanted.

    Raises
    ------
    ValueError
        When ``step_fn`` does not call the learner directly and exactly once, changes the type of a
        state, or writes a parameter or a hidden state.
    """

    def step(perturb: list[Any], inputs: tuple[Any, ...]) -> Any:
        tape = Tape(perturb, hidden)
        attach(tape)
        try:
            loss, aux = step_fn(*inputs)
        finally:
            attach(None)
        boundary = tape.boundary()
        tape.check_hidden()
        return loss, aux, boundary

    slots = executor.graph.module_info.slots_of(StateKind.HIDDEN)
    hidden = {slot.path: slot.state for slot in slots}
    perturb = executor.graph.perturbed.init_perturb_data()
    stateful = brainstate.transform.StatefulFunction(step, return_only_write=False)
    stateful.make_jaxpr(perturb, inputs)
    jaxpr = stateful.get_jaxpr(perturb, inputs)
    states = tuple(stateful.get_state_trace(perturb, inputs).states)
    tree = jax.tree.structure(stateful.get_out_shapes(perturb, inputs))
    ranges, count = [], 0
    for state in states:
        size = len(jax.tree.leaves(state.value))
        ranges.append(range(count, count + size))
        count += size
    first = len(jax.tree.leaves((perturb, inputs)))
    _check_kept(executor, states, ranges, jaxpr.invars[first:], jaxpr.outvars[-count:])
    live = frozenset(i - first for i in reaches(jaxpr, 0) if i >= first)
    params = [(s, r) for s, r in zip(states, ranges, strict=True) if _is_parameter(s)]
    direct = direct_products(
        jaxpr,
        parameters=frozenset(first + i for _, leaves in params for i in leaves),
        wanted=frozenset(first + i for s, r in params if any(s is t for t in targets) for i in r),
    )

    def run(perturb: list[Any], inputs: Any, leaves: Sequence[Any], shifts: Any) -> Any:
        flat, recorded = direct.run([*jax.tree.leaves((perturb, inputs)), *leaves], shifts)
        (loss, aux, boundary), new = jax.tree.unflatten(tree, flat)
        return loss, aux, boundary, jax.tree.leaves(new), recorded

    return TracedStep(run, direct, first, states, tuple(ranges), live)


def _is_parameter(state: State) -> bool:
    return isinstance(state, brainstate.ParamState)


def _check_kept(
    executor: Executor,
    states: Sequence[State],
    ranges: Sequence[range],
    old: Sequence[Any],
    new: Sequence[Any],
) -> None:
    """A step may not change the type of a state, nor write a parameter."""
    names = {
        state: show_path(path)
        for path, state in executor.graph.module_info.compiled_model_states.items()
    }
    for state, leaves in zip(states, ranges, strict=True):
        name = names.get(state) or state.name or type(state).__name__
        for i in leaves:
            a, b = old[i].aval, new[i].aval
            if (a.shape, a.dtype) != (b.shape, b.dtype):
                raise ValueError(
                    f"step_fn leaves the state {name} with shape {b.shape} and dtype {b.dtype}; it "
                    f"was {a.shape} and {a.dtype}, and a sequence needs it to stay so"
                )
            if _is_parameter(state) and old[i] is not new[i]:
                raise ValueError(
                    f"step_fn writes the parameter {name}; weights stay as they are during a "
                    "sequence gradient, so change them between calls"
                )
