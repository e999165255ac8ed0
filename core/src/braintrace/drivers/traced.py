# SPDX-License-Identifier: Apache-2.0
"""One call of ``step_fn`` as a program: what it reads, and what of it is a parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import brainstate
import jax

from ..base.types import State, show_path
from ..jaxprs.depends import reaches
from .direct import DirectProducts, direct_products
from .running import Running
from .tape import Tape


@dataclass(frozen=True, eq=False)
class TracedStep:
    """One step of the user's loss as a flat program over inputs and states.

    Attributes
    ----------
    run
        ``run(perturb, inputs, state_leaves, shifts) -> (loss, aux, recorded, new_state_leaves,
        moving)``, with the record of :class:`Tape`, and the shifts and records of ``direct``.
    direct, first
        The products of the step with parameters; its inputs from ``first`` are the state leaves.
    leaves
        Every state the step reads or writes, and where its leaves stand among the state leaves.
    live
        State leaves (by index) with a differentiable path to the loss.
    """

    run: Callable[..., tuple[Any, Any, tuple[Any, ...], list[Any], Any]]
    direct: DirectProducts
    first: int
    leaves: Mapping[State, range]
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

    def live_leaves(self, state: State) -> list[int]:
        """Indices of those leaves of a state on which the loss depends directly."""
        return [i for i in self.leaves.get(state, ()) if i in self.live]

    def read(self) -> list[Any]:
        """The state leaves as they are."""
        return [leaf for state in self.leaves for leaf in jax.tree.leaves(state.value)]

    def write(self, leaves: Sequence[Any]) -> None:
        """Take the leaves of all states but parameters, which a step does not change."""
        for state, where in self.leaves.items():
            if not _is_parameter(state):
                tree = jax.tree.structure(state.value)
                state.value = jax.tree.unflatten(tree, leaves[where.start : where.stop])


def trace_step(
    learner: Running, step_fn: Callable[..., Any], inputs: Any, targets: Sequence[State]
) -> TracedStep:
    """Trace ``step_fn`` with a tape that takes the learner's call.

    Parameters
    ----------
    step_fn
        ``step_fn(*inputs) -> (loss, aux)`` with a scalar loss.
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
        tape = Tape(learner, perturb)
        with learner.stepping_by(tape):
            loss, aux = step_fn(*inputs)
        return loss, aux, tape.step()

    perturb = learner.graph.perturbed.init_perturb_data()
    stateful = brainstate.transform.StatefulFunction(step, return_only_write=False)
    stateful.make_jaxpr(perturb, inputs)
    jaxpr = stateful.get_jaxpr(perturb, inputs)
    states = stateful.get_state_trace(perturb, inputs).states
    tree = jax.tree.structure(stateful.get_out_shapes(perturb, inputs))
    ends = [*accumulate((len(jax.tree.leaves(s.value)) for s in states), initial=0)]
    leaves = {s: range(*ends[i : i + 2]) for i, s in enumerate(states)}
    first = len(jax.tree.leaves((perturb, inputs)))
    _check_kept(learner, leaves, jaxpr.invars[first:], jaxpr.outvars[-ends[-1] :])
    params = {first + i for s, where in leaves.items() if _is_parameter(s) for i in where}
    direct = direct_products(
        jaxpr,
        parameters=frozenset(params),
        wanted=frozenset(first + i for target in targets for i in leaves.get(target, ())),
    )

    def run(perturb: list[Any], inputs: Any, leaves: Sequence[Any], shifts: Any) -> Any:
        flat, moving = direct.run([*jax.tree.leaves((perturb, inputs)), *leaves], shifts)
        (loss, aux, recorded), new = jax.tree.unflatten(tree, flat)
        return loss, aux, recorded, jax.tree.leaves(new), moving

    live = frozenset(i - first for i in reaches(jaxpr, 0) if i >= first)
    return TracedStep(run, direct, first, leaves, live)


def _is_parameter(state: State) -> bool:
    return isinstance(state, brainstate.ParamState)


def _check_kept(
    learner: Running, leaves: Mapping[State, range], old: Sequence[Any], new: Sequence[Any]
) -> None:
    """A step may not change the type of a state, nor write a parameter."""
    states = learner.graph.module_info.compiled_model_states
    names = {state: show_path(path) for path, state in states.items()}
    for state, i in ((state, i) for state, where in leaves.items() for i in where):
        name = names.get(state) or state.name or type(state).__name__
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
