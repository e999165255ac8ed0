# SPDX-License-Identifier: Apache-2.0
"""One call of ``step_fn`` as a program: what it reads, and what of it is a parameter."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.precision import widened
from ..base.types import Path, State, show_path
from ..base.versions import Jaxpr
from ..compiler.filters import credit_of
from ..compiler.module_info import StateKind
from ..compiler.requirements import checked_args
from ..compiler.tracing.effects import with_kept_effects
from ..executor.direct import DirectProducts, direct_products
from ..jaxprs.credit import with_credit
from ..jaxprs.depends import Along, program_influences
from ..jaxprs.run import read
from ..jaxprs.wide import run_widened
from .call_arguments import number_of_steps, one_step_of
from .running import Running, read_states, write_states


@dataclass(frozen=True, eq=False)
class TracedStep:
    """One step of the user's loss as a flat program over inputs and states.

    ``run(perturb, inputs, leaves, shifts) -> (loss, aux, recorded, new_leaves, moving)`` takes the
    leaves of states by input of the program, and gives the record of :class:`Tape`; shifts and
    moving operands are those of ``direct``, its products with parameters. With a dtype ``wide``
    behind them there are no products, and leaves, whose values are as ever, and derivatives are no
    narrower than that. ``leaves`` has every
    state that the step reads or writes, and which inputs its leaves are; ``live`` are the inputs
    with a differentiable path to the loss.
    """

    run: Callable[..., tuple[Any, Any, tuple[Any, ...], dict[int, Any], Any]]
    direct: DirectProducts
    leaves: Mapping[State, range]
    live: frozenset[int]

    def live_leaves(self, state: State) -> list[int]:
        """Those leaves of a state on which the loss depends directly."""
        return [i for i in self.leaves.get(state, ()) if i in self.live]

    def read(self) -> dict[int, Any]:
        """The leaves of the states as they are."""
        found = ((where, jax.tree.leaves(state.value)) for state, where in self.leaves.items())
        return {i: leaf for pair in found for i, leaf in zip(*pair, strict=True)}

    def gradient_of(self, state: State, by_leaf: Mapping[int, Any]) -> Any:
        """Gradients of the leaves of a state, in its structure; zero where there is none."""
        leaves, tree = jax.tree.flatten(state.value)
        own = {k: by_leaf[i] for k, i in enumerate(self.leaves.get(state, ())) if i in by_leaf}
        whole = (own[k] if k in own else jnp.zeros_like(v) for k, v in enumerate(leaves))
        return jax.tree.unflatten(tree, whole)

    def write(self, leaves: Mapping[int, Any]) -> None:
        """Take the leaves of all states but parameters, which a step does not change."""
        for state, where in self.leaves.items():
            if not _is_parameter(state):
                tree = jax.tree.structure(state.value)
                state.value = jax.tree.unflatten(tree, [leaves[i] for i in where])


def trace_step(
    learner: Running,
    step_fn: Callable[..., Any],
    inputs: Any,
    targets: Sequence[State],
    rule: Any = None,
    carried: bool = False,
) -> TracedStep:
    """Trace ``step_fn(*inputs) -> (loss, aux)`` with a tape that takes the learner's call.

    The step is run by the learner's rule, or by another ``rule`` with ``run`` and
    ``perturbations``. ``carried``: products with the parameters ``targets`` are those on the way to
    new states, too.

    It raises ``ValueError`` when ``step_fn`` does not call the learner directly and exactly once,
    does not read a parameter of ``targets`` that is not the learner's, changes the type of a state,
    or writes a parameter or a hidden state.
    """

    def step(perturb: list[Any], inputs: tuple[Any, ...]) -> Any:
        plain = _give_credit(learner)
        tape = Tape(learner, own, perturb, jax.tree.leaves((perturb, inputs))[0], plain)
        with learner.stepping_by(tape):
            loss, aux = step_fn(*inputs)
        recorded = tape.step()
        for path, value in tape.after.items():  # the next step reads it so
            hidden[path].value = value
        return loss, aux, recorded

    own = learner.rule if rule is None else rule
    hidden = learner.states_of(StateKind.HIDDEN)
    perturb = [*own.perturbations()]
    stateful = brainstate.transform.StatefulFunction(step, return_only_write=False)
    stateful.make_jaxpr(perturb, inputs)
    jaxpr = with_kept_effects(stateful.get_jaxpr(perturb, inputs))
    states = stateful.get_state_trace(perturb, inputs).states
    tree = jax.tree.structure(stateful.get_out_shapes(perturb, inputs))
    first = len(jax.tree.leaves((perturb, inputs)))
    ends = [*accumulate((len(jax.tree.leaves(s.value)) for s in states), initial=first)]
    leaves = {s: range(*ends[i : i + 2]) for i, s in enumerate(states)}
    check_reached(learner, targets, leaves)
    _check_kept(learner, leaves, jaxpr)
    new = jaxpr.outvars[first - len(jaxpr.invars) :] if carried else ()
    direct = direct_products(
        jaxpr,
        parameters=frozenset(i for s, where in leaves.items() if _is_parameter(s) for i in where),
        wanted=frozenset(i for target in targets for i in leaves.get(target, ())),
        more=[atom for atom in new if atom not in jaxpr.invars],  # those that stay lead nowhere
        divided=learner.rule.executor.parts > 1,
    )

    def run(
        perturb: list[Any], inputs: Any, leaves: Mapping[int, Any], shifts: Any, wide: Any = None
    ) -> Any:
        values = jax.tree.leaves((perturb, inputs, leaves))
        if wide is None:
            flat, moving = direct.run(values, shifts)
        else:
            flat, moving = _in_wide(jaxpr, values, len(leaves), wide), ()
        (loss, aux, recorded), new = jax.tree.unflatten(tree, flat)
        return loss, aux, recorded, dict(enumerate(jax.tree.leaves(new), first)), moving

    return TracedStep(run, direct, leaves, program_influences(jaxpr, Along.DERIVATIVES)[0])


def _give_credit(learner: Running) -> dict[Path, Any]:
    """Let ``step_fn`` read values with the derivative of the filters that they have.

    The values without it, by path, are what a step reads.
    """
    moving, exact = learner.graph.moving, learner.graph.exact
    if moving is None and exact is None:
        return {}
    params, states = read_states(learner)
    hidden, values = learner.states_of(StateKind.HIDDEN), {**states, **params}
    found = {} if exact is None else exact.credited(values)
    values |= found
    keeps = moving is not None and moving.keeps_traces
    for path, of in {} if moving is None else credit_of(moving, values).items():

        def credited(value: Any, of: Any = of) -> Any:
            of = of.astype(value.dtype)
            return with_credit(value, value + of if keeps else of)

        found[path] = jax.tree.map(credited, values[path])
    plain = {path: hidden[path].value for path in found if path in hidden}
    for path in plain:
        hidden[path].value = found[path]
    return plain


def _in_wide(jaxpr: Jaxpr, values: Sequence[Any], leaves: int, wide: Any) -> list[Any]:
    """The results of a step, of which the last are new ``leaves`` in a wider dtype."""
    env = versions.start_env(jaxpr, values)
    run_widened(jaxpr.eqns, env, wide)
    found = [(widened(read(env, atom), wide), atom.aval) for atom in jaxpr.outvars]
    first = len(found) - leaves
    return [v.astype(a.dtype) if i < first else v for i, (v, a) in enumerate(found)]


def _is_parameter(state: State) -> bool:
    return isinstance(state, brainstate.ParamState)


def check_reached(learner: Running, targets: Sequence[State], states: Collection[State]) -> None:
    """Parameters that are not the learner's must be among the ``states`` of a step."""
    known = {*learner.param_states.values(), *states}
    foreign = [str(jax.tree.map(jnp.shape, s.value)) for s in targets if s not in known]
    if foreign:
        raise ValueError(
            f"{len(foreign)} of the weights, with shapes {', '.join(foreign):.200}, are not the "
            "learner's, nor does step_fn read them, so that they have no gradient; pass "
            "learner.param_states, or what step_fn reads (a copy of a model has states of its own)"
        )


def _check_kept(learner: Running, leaves: Mapping[State, range], jaxpr: Jaxpr) -> None:
    """A step may not change the type of a state, nor write a parameter."""
    states = learner.graph.executed.module_info.compiled_model_states
    names = {state: show_path(path) for path, state in states.items()}
    for state, i in ((state, i) for state, where in leaves.items() for i in where):
        name = names.get(state) or state.name or type(state).__name__
        old, new = jaxpr.invars[i], jaxpr.outvars[i - len(jaxpr.invars)]
        a, b = old.aval, new.aval
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            raise ValueError(
                f"step_fn leaves the state {name} with shape {b.shape} and dtype {b.dtype}; it "
                f"was {a.shape} and {a.dtype}, and a sequence needs it to stay so"
            )
        if _is_parameter(state) and old is not new:
            raise ValueError(
                f"step_fn writes the parameter {name}; weights stay as they are during a "
                "sequence gradient, so change them between calls"
            )


def hidden_leaves(learner: Running, step: TracedStep) -> dict[int, str]:
    """What the leaves of hidden states are called, by their place in a step."""
    states = learner.states_of(StateKind.HIDDEN).items()
    return {i: f"the state {show_path(p)}" for p, s in states for i in step.leaves.get(s, ())}


class Tape:
    """A stepper that runs perturbed steps and records them.

    Nothing but the model may write hidden states of the learner meanwhile.
    """

    def __init__(
        self,
        learner: Running,
        rule: Any,
        perturb: Sequence[Any],
        traced: Any,
        plain: Mapping[Path, Any],
    ) -> None:
        self.rule, self.perturb, self.traced, self.plain = rule, perturb, traced, plain
        self.recorded: list[tuple[tuple[Any, ...], Any]] = []
        self.hidden = learner.states_of(StateKind.HIDDEN)
        self.values = self._hidden_now()
        self.written: list[Any] = []
        self.after: dict[Path, Any] = {}

    def __call__(self, learner: Running, args: tuple[Any, ...], given: Any) -> Any:
        """Run a step and record the inputs of its Jacobians, and ``given``."""
        if number_of_steps(args) is not None:
            raise ValueError(
                "step_fn passes a MultiStepData; a sequence is taken step by step, pass the "
                "slice that step_fn gets (or chunk_size, with vjp_method='multi-step')"
            )
        leaves = checked_args(learner.graph.module_info, one_step_of(args))
        params, states = read_states(learner)
        self._check_hidden()
        own = {**states, **params, **self.plain}
        out, new, values = self.rule.run(leaves, own, self.perturb)
        self.recorded.append((values, given))
        self.written = jax.tree.leaves(new)
        write_states(learner, states, new)
        if learner.graph.exact is not None:
            self.after = _give_credit(learner)
        self.values = self._hidden_now()
        return out

    def step(self) -> tuple[tuple[Any, ...], Any]:
        """The inputs of the Jacobians of the recorded step, and what the caller gave besides.

        It raises ``ValueError`` as :func:`trace_step` does.
        """
        if len(self.recorded) != 1:
            raise ValueError(
                f"step_fn must call the learner exactly once per step; it called it "
                f"{len(self.recorded)} times"
            )
        if self._elsewhere((*self.recorded[0][0], *self.written)):
            raise ValueError(
                "step_fn must call the learner directly, not inside a transformation of its own "
                "(jit, grad, vmap, cond, for_loop, ...); a sequence is compiled as a whole anyway"
            )
        self._check_hidden()
        return self.recorded[0]

    def _check_hidden(self) -> None:
        """The hidden states are as the model left them."""
        for path, before, now in zip(self.hidden, self.values, self._hidden_now(), strict=True):
            if self._elsewhere(now):
                return  # inside of a transformation, which is refused in the end
            if len(now) != len(before) or any(a is not b for a, b in zip(now, before, strict=True)):
                raise ValueError(
                    f"step_fn writes the hidden state {show_path(path)}, and the traces would not "
                    "follow. Let the model do it, a reset from an input, say: "
                    "h = h * (1 - done); between sequences call reset_state"
                )

    def _hidden_now(self) -> list[list[Any]]:
        return [jax.tree.leaves(state.value) for state in self.hidden.values()]

    def _elsewhere(self, values: Sequence[Any]) -> bool:
        """Whether one of them is of a transformation inside of ``step_fn``."""
        return any(versions.from_another_trace(value, self.traced) for value in values)
