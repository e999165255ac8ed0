# SPDX-License-Identifier: Apache-2.0
"""Gradients of a whole sequence, block by block.

The user's ``step_fn`` is traced once. Inside a block, a scan runs its steps: each differentiates
the step's loss with respect to zero perturbations of the hidden states (``l``), to old hidden
values where anything reads them late (``e``), and to parameters where they act directly, and hands
out ``x``, ``f`` and ``D``. Nothing of the size of a trace is touched in the scan. After it, the
learning rule turns the recorded block into cotangents of the operands and, where the trace goes
on, into the next trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from . import _jax
from ._algorithm import Block, LearningRule, Traces
from ._compile import StateKind, show_path
from ._direct import DirectProducts, direct_products
from ._execute import ETraceGraphExecutor
from ._jaxpr import reaches
from ._progress import Progress
from ._recorded import recorded_scan

State = brainstate.State[Any]


class Tape:
    """What passes between a driver and the learner's one call inside ``step_fn``."""

    def __init__(self, perturb: Sequence[Any], hidden: Mapping[tuple[Any, ...], State]) -> None:
        self.perturb = perturb
        self.boundaries: list[tuple[tuple[Any, ...], Any]] = []
        self._hidden = hidden
        self.keep_hidden()

    def keep_hidden(self) -> None:
        """Remember the values of the hidden states."""
        self._values = [jax.tree.leaves(state.value) for state in self._hidden.values()]

    def check_hidden(self) -> None:
        """The hidden states are as they were remembered.

        Raises
        ------
        ValueError
            When one was written by anything but the model.
        """
        for (path, state), kept in zip(self._hidden.items(), self._values, strict=True):
            now = jax.tree.leaves(state.value)
            if any(_jax.from_another_trace(leaf, self.perturb[0]) for leaf in now):
                return  # inside of a transformation, which is refused in the end
            if len(now) != len(kept) or any(a is not b for a, b in zip(now, kept, strict=True)):
                raise ValueError(
                    f"step_fn writes the hidden state {show_path(path)}, and the traces would not "
                    "follow. Let the model do it, a reset from an input, say: "
                    "h = h * (1 - done); between sequences call reset_state"
                )

    def boundary(self) -> tuple[tuple[Any, ...], Any]:
        """Values from which the step's Jacobians are computed, and what the caller gave besides.

        Raises
        ------
        ValueError
            When the learner was not called directly and exactly once.
        """
        if len(self.boundaries) != 1:
            raise ValueError(
                f"step_fn must call the learner exactly once per step; it called it "
                f"{len(self.boundaries)} times"
            )
        if any(_jax.from_another_trace(v, self.perturb[0]) for v in self.boundaries[0][0]):
            raise ValueError(
                "step_fn must call the learner directly, not inside a transformation of its own "
                "(jit, grad, vmap, cond, for_loop, ...); a sequence is compiled as a whole anyway"
            )
        return self.boundaries[0]


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
    executor: ETraceGraphExecutor,
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
    executor: ETraceGraphExecutor,
    states: Sequence[State],
    ranges: Sequence[range],
    old: Sequence[Any],
    new: Sequence[Any],
) -> None:
    """A step may not change the type of a state, nor write a parameter."""
    names = {state: show_path(path) for path, state in executor.path_to_states.items()}
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


# --- running blocks --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class BlockRunner:
    """Runs blocks of a traced step.

    Attributes
    ----------
    rule
        The learning rule.
    step
        The traced step.
    targets
        The parameter states whose gradients are wanted.
    """

    rule: LearningRule
    step: TracedStep
    targets: tuple[State, ...]

    @property
    def _direct(self) -> list[int]:
        """State leaves that are parameters with a direct gradient."""
        return [i for state in self.targets for i in self.step.live_leaves(state)]

    def _late(self) -> dict[int, list[int]]:
        """Per group, the leaves of its old values where the loss reads them late."""
        found = {}
        for group in self.rule.executor.graph.hidden_groups:
            leaves = [i for s in group.hidden_states for i in self.step.live_leaves(s)]
            if leaves:
                found[group.index] = leaves
        return found

    def init_direct(self, leaves: Sequence[Any]) -> dict[int, Any]:
        """Zeros for the direct gradients, by state leaf."""
        return {i: start_of_sum(leaves[i]) for i in self._direct}

    def record(
        self, leaves: list[Any], direct: dict[int, Any], inputs: Any
    ) -> tuple[list[Any], dict[int, Any], Block, Any, Any]:
        """Run ``K`` steps: states and direct gradients move on, the rest is recorded.

        Returns
        -------
        leaves, direct, block, losses, aux
        """
        executor = self.rule.executor
        perturb = executor.graph.perturbed.init_perturb_data()
        late = sorted({i for indices in self._late().values() for i in indices})
        chosen = [i for i in self._direct if self.step.is_step_by_step(i)]
        shifts = self.step.direct.shifts()

        def one(carry: Any, inputs: Any) -> Any:
            leaves, direct = carry

            def loss_of(perturb: Any, olds: Any, params: Any, shifts: Any) -> Any:
                full = list(leaves)
                for i, value in {**olds, **params}.items():
                    full[i] = value
                loss, *rest = self.step.run(perturb, inputs, full, shifts)
                return loss, rest

            (loss, (aux, boundary, new, moving)), (signal, olds, params, dys) = jax.value_and_grad(
                loss_of, argnums=(0, 1, 2, 3), has_aux=True
            )(perturb, {i: leaves[i] for i in late}, {i: leaves[i] for i in chosen}, shifts)
            values, given = boundary
            jacobians = executor.jacobians(values)
            direct = {i: value + params[i] for i, value in direct.items()}
            signals = executor.signals(signal), self._late_signals(olds, leaves)
            step = Block(jacobians, *signals, given)
            return (new, direct), (step, moving, dys, loss, aux)

        start = leaves, {i: direct[i] for i in chosen}
        (new, stepwise), found = recorded_scan(one, start, inputs)
        block, moving, dys, losses, aux = found
        direct = {**direct, **stepwise}
        for i, value in self.step.products(leaves, moving, dys).items():
            direct[i] = direct[i] + value
        return new, direct, block, losses, aux

    def _late_signals(
        self, olds: Mapping[int, Any], leaves: Sequence[Any]
    ) -> tuple[jax.Array | None, ...]:
        executor, late = self.rule.executor, self._late()
        gradients = {}
        for group in executor.graph.hidden_groups:
            for path, state in zip(group.hidden_paths, group.hidden_states, strict=True):
                for i in self.step.leaves_of(state) or ():
                    gradients[path] = olds.get(i, jnp.zeros_like(leaves[i]))
        return executor.late_signals(gradients, late)


@dataclass(frozen=True)
class Extras:
    """What is done after each block besides learning.

    Attributes
    ----------
    flags
        ``flags(block, gradients, traces, direct, losses)``: what is looked for, if anything.
    names
        Names of the state leaves with a direct gradient, for the flags.
    progress
        Whether to show a progress bar.
    """

    flags: Callable[..., Any] | None = None
    names: Mapping[int, str] = field(default_factory=dict)
    progress: bool = False

    def seen(self, block: Block, found: Any, traces: Any, direct: Any, losses: Any) -> Any:
        """The flags of a block."""
        if self.flags is None:
            return None
        by_name = {self.names.get(i, str(i)): value for i, value in direct.items()}
        return self.flags(block, found, traces, by_name, losses)


@dataclass(frozen=True)
class Sweep:
    """The outcome of a sequence; ``flags`` have a leading axis of blocks."""

    leaves: list[Any]
    traces: Traces | None
    direct: dict[int, Any]
    operands: list[dict[str, Any]]
    losses: Any
    aux: Any
    flags: Any = None


def sweep(
    runner: BlockRunner,
    leaves: list[Any],
    traces: Traces | None,
    inputs: Any,
    operands: Sequence[Sequence[Any]],
    block_size: int,
    keep_trace: bool,
    scale: Any = 1.0,
    extras: Extras = Extras(),
) -> Sweep:
    """Run a sequence in blocks of ``block_size`` steps and a shorter last one.

    Parameters
    ----------
    traces
        Traces before the sequence; ``None`` for zero.
    inputs
        Pytree of arrays [T, ...].
    operands
        Values of the operands of every relation.
    keep_trace
        Whether the traces after the sequence are wanted.
    scale
        What the gradients are multiplied by.
    extras
        What is done after each block besides.
    """
    steps = jax.tree.leaves(inputs)[0].shape[0]
    full, rest = divmod(steps, block_size)
    rule = runner.rule
    trained = [
        {t.key: operands[r.index][t.position] for t in r.trainables}
        for r in rule.executor.graph.hidden_param_op_relations
    ]

    progress = Progress(full + bool(rest)) if extras.progress else None

    def one_block(carry: Any, inputs: Any, number: Any, last: bool) -> Any:
        leaves, traces, direct, total = carry
        leaves, direct, block, losses, aux = runner.record(leaves, direct, inputs)
        if last and not keep_trace:
            found, traces = rule.solve(traces, block, operands), None
        else:
            found, traces = rule.advance(traces, block, operands)
        total = jax.tree.map(jnp.add, total, found)
        flags = extras.seen(block, found, traces, direct, losses)
        if progress is not None:
            progress.advance(number, losses)
        return (leaves, traces, direct, total), (losses, aux, flags)

    def alone(carry: Any, inputs: Any, number: int, last: bool) -> Any:
        carry, (losses, aux, flags) = one_block(carry, inputs, number, last)
        return carry, (losses, aux, jax.tree.map(lambda v: jnp.asarray(v)[None], flags))

    start = leaves
    carry = (leaves, traces, runner.init_direct(leaves), jax.tree.map(start_of_sum, trained))
    outputs = []
    if full > 1:
        carry = (leaves, rule.init() if traces is None else traces, *carry[2:])
        blocks = jax.tree.map(
            lambda v: v[: full * block_size].reshape(full, block_size, *v.shape[1:]), inputs
        )
        carry, (losses, aux, flags) = jax.lax.scan(
            lambda c, now: one_block(c, now[1], now[0], False), carry, (jnp.arange(full), blocks)
        )
        joined = jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), (losses, aux))
        outputs.append((*joined, flags))
    elif full == 1:
        head = jax.tree.map(lambda v: v[:block_size], inputs)
        carry, out = alone(carry, head, 0, last=not rest)
        outputs.append(out)
    if rest:
        tail = jax.tree.map(lambda v: v[full * block_size :], inputs)
        carry, out = alone(carry, tail, full, last=True)
        outputs.append(out)
    losses, aux, flags = jax.tree.map(lambda *parts: jnp.concatenate(parts), *outputs)
    leaves, traces, direct, total = carry
    direct = {i: end_of_sum(value, start[i], scale) for i, value in direct.items()}
    total = jax.tree.map(lambda v, like: end_of_sum(v, like, scale), total, trained)
    return Sweep(leaves, traces, direct, total, losses, aux, flags)


def start_of_sum(like: Any) -> jax.Array:
    """Zeros to add gradients to: a sum of many steps in half precision would stop growing."""
    dtype = jnp.result_type(like)
    half = jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4
    return jnp.zeros(jnp.shape(like), jnp.float32 if half else dtype)


def end_of_sum(total: jax.Array, like: Any, scale: Any) -> jax.Array:
    """A sum of gradients, scaled, in the dtype of what it is the gradient of."""
    return (total * scale).astype(jnp.result_type(like))


def common_length(sequences: tuple[Any, ...]) -> int:
    """The common length T of sequences.

    Raises
    ------
    ValueError
        When there is none, or it is zero.
    """
    leaves = jax.tree_util.tree_leaves_with_path(sequences)
    if not leaves:
        raise ValueError("at least one sequence is needed, for example inputs [T, ...]")
    lengths = {}
    for path, leaf in leaves:
        name = f"sequences{jax.tree_util.keystr(path)}"
        if (np.isscalar(leaf) and not isinstance(leaf, str | bytes)) or getattr(
            leaf, "shape", 0
        ) == ():
            raise ValueError(f"{name} is a scalar; expected an array [T, ...]")
        if not isinstance(leaf, np.ndarray | jax.Array):
            raise TypeError(f"{name} is a {type(leaf).__name__}; expected an array [T, ...]")
        lengths[name] = jnp.shape(leaf)[0]
    if len(set(lengths.values())) > 1:
        raise ValueError(f"all sequences must have one length T; got {lengths}")
    steps = next(iter(lengths.values()))
    if steps == 0:
        raise ValueError("the sequences have length zero; at least one step is needed")
    return steps


def flat_states(states: Sequence[State]) -> list[Any]:
    """Leaves of the values of several states."""
    return [leaf for state in states for leaf in jax.tree.leaves(state.value)]


def write_states(states: Sequence[State], leaves: Sequence[Any], skip: Sequence[State]) -> None:
    """Write leaves back to their states, except those in ``skip``."""
    start = 0
    for state in states:
        old, treedef = jax.tree.flatten(state.value)
        if not any(state is other for other in skip):
            state.value = jax.tree.unflatten(treedef, leaves[start : start + len(old)])
        start += len(old)


__all__ = [
    "BlockRunner",
    "Extras",
    "Sweep",
    "Tape",
    "TracedStep",
    "common_length",
    "end_of_sum",
    "flat_states",
    "start_of_sum",
    "sweep",
    "trace_step",
    "write_states",
]
