# SPDX-License-Identifier: Apache-2.0
"""Gradients of a sequence, in windows or block by block: run, recorded, and turned into gradients.

Inside a block, a scan runs its steps: each differentiates the step's loss with respect to zero
perturbations of the hidden states (``l``), to old hidden values where anything reads them late
(``e``), and to parameters where they act directly, and hands out ``x``, ``f`` and ``D``. Nothing of
the size of a trace is touched in the scan. After it, the learning rule turns the recorded block
into cotangents of the operands and, where the trace goes on, into the next trace. A rule with
traces of the size of the activity takes each step up in the scan instead, which records less.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp

from ..algorithms.base import Block, Cotangents
from ..base import versions
from ..base.precision import start_of_sum
from ..base.types import State, named_leaves
from ..compiler.module_info import StateKind
from ..compiler.requirements import check_states
from ..executor.executor import Executor
from ..ops.traces.base import added, together
from . import guards, undo
from .block_size import auto_block_size
from .first import block_without_past, drives_every_state, finite_where_still, is_first
from .in_reverse import in_reverse
from .in_stages import Way
from .in_windows import in_windows
from .loops import Progress, in_parts, marked_scan
from .options import SKIP, GradOptions, Outcome, common_length, masked_step, scale_of
from .outside import say_what_passes
from .running import Running, clear_filters
from .steps import add_gradients, add_scaled, end_of_sum, not_differentiable
from .traced import TracedStep, hidden_leaves, trace_step


def gradient(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    """Gradients of a sequence, inside a compiled program.

    Where ``check`` skips what is not finite, those of the other steps.
    """
    weights = [state for _, state in options.weights]
    values = [state.value for state in (*learner.states_of(StateKind.PARAM).values(), *weights)]

    def run(sequences: Any, mask: Any) -> Outcome:
        found = _of_mode(learner, options, sequences, mask)
        say_what_passes(learner, options, sequences)
        return found

    if versions.types_vary():
        from .by_device import gradients_of  # which nothing else needs

        found = gradients_of(run, (sequences, mask), weights)
    else:
        found = run(sequences, mask)
    guarded = not_differentiable(tuple(found[:3]), (values, sequences, mask))
    return found._replace(grads=guarded[0], losses=guarded[1], aux=guarded[2])


def _of_mode(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    in_steps = _in_blocks if learner.rule.from_blocks else in_reverse
    run = in_steps if options.chunk_size is None else in_windows
    found = run(learner, options, sequences, mask)
    if options.check == SKIP and options.reduction == "mean":
        steps = common_length(sequences)
        found = found._replace(grads=_of_kept_steps(found.grads, options, found.flags, steps, mask))
    return found


def _of_kept_steps(
    grads: Any, options: GradOptions, flags: guards.Flags, steps: int, mask: Any
) -> Any:
    """Gradients that were divided by all steps, as those of the mean over the kept ones."""
    kept = guards.kept_steps(flags, options.chunk_size or int(options.block_size), steps)
    mask = jnp.ones(steps) if mask is None else mask
    of_kept = mask * kept.reshape(-1, *(1,) * (mask.ndim - 1))
    factor = scale_of("mean", of_kept, steps) * mask.sum()

    def scaled(grad: Any) -> Any:
        return grad if grad.dtype == jax.dtypes.float0 else grad * factor.astype(grad.dtype)

    return jax.tree.map(scaled, grads)


def _in_blocks(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Outcome:
    """Run a sequence in blocks and a shorter last one."""
    rule, steps, inputs = learner.rule, common_length(sequences), (mask, *sequences)
    check_states(learner.model, learner.graph.module_info)
    executor, weights = rule.executor, [state for _, state in options.weights]
    if not options.carry_trace:
        clear_filters(learner)
    first = jax.tree.map(lambda v: v[0], inputs)
    step = trace_step(learner, masked_step(options.step_fn, options.has_aux), first, weights)
    size = options.block_size
    if isinstance(size, str):
        size = auto_block_size(rule, steps, options.carry_trace, step.direct.bytes_per_step)
    scale = scale_of(options.reduction, mask, steps)
    params = {path: state.value for path, state in learner.states_of(StateKind.PARAM).items()}
    operands = executor.operand_values(params)
    before = learner.running_index.value if options.carry_trace else 0
    run = BlockRun(learner, options, step, steps, size, scale, params, operands, before)
    leaves, traces = step.read(), learner.read_traces() if options.carry_trace else None
    if traces is None and steps >= 2 * size:
        traces = rule.init()
    live = {i: leaves[i] for i in run.summed_leaves(weights)}
    like = live, [] if executor.parts > 1 else executor.cotangent_types
    sums = {i: step.direct.start_of_sum(i, leaf) for i, leaf in live.items()}
    start = leaves, traces, sums, jax.tree.map(start_of_sum, like[1])
    end, found = in_parts(run.block, start, inputs, size, jax.lax.scan, least=2)
    learner._drivers.last_way = max(run.ways, key=attrgetter("steps"))
    _, (losses, aux), flags = found  # as they were weighted, and as step_fn returned them
    leaves, traces, *sums = end
    direct, total = jax.tree.map(end_of_sum, tuple(sums), like)
    by_path = executor.param_gradients(params, total) if total else {}
    grads = tuple(_total(executor, weight, step, direct, by_path) for weight in weights)
    step.write(leaves)
    if not options.carry_trace:
        clear_filters(learner)
    done = (
        guards.kept_steps(flags, size, steps).sum(dtype="int32") if options.check == SKIP else steps
    )
    learner.write_traces(traces if options.carry_trace else None, done)
    return Outcome(grads, losses, aux, flags)


@dataclass(frozen=True, eq=False)
class BlockRun:
    """What the blocks of a sequence have in common; ``steps`` are all, ``size`` those of a block.

    ``scale`` is what gradients are multiplied by as they are added up; ``before``, how many steps
    the traces know of before the sequence.
    """

    learner: Running
    options: GradOptions
    step: TracedStep
    steps: int
    size: int
    scale: Any
    params: Mapping[Any, Any]
    operands: Any
    before: Any

    @property
    def executor(self) -> Executor:
        return self.learner.rule.executor

    def block(self, carry: Any, numbered: Any) -> Any:
        """Run a block: leaves of states, traces and sums of gradients move on."""
        (leaves, traces, direct, total), (number, inputs) = carry, numbered
        rule, options = self.learner.rule, self.options
        held = rule.hold(traces) if self.takes_steps else ()
        (leaves, direct, held), (recorded, moves, losses, aux, own) = self.record(
            (leaves, direct, held), inputs
        )
        if self.takes_steps:
            found, traces = rule.release(held, recorded, self.operands)
        else:
            found, traces = self.advance(number, traces, recorded, moves)
        self.progress.advance(number, losses)
        own = self.added_up(own, found)
        direct = {i: self.plus(v, own[i]) if i in own else v for i, v in direct.items()}
        flags: Any = None
        if options.check:
            named = [(self.names[i], value) for i, value in direct.items()]
            flags = guards.flags_of_block(rule, losses, named, traces, recorded, found)
            hidden = hidden_leaves(self.learner, self.step).items()
            flags = guards.and_at_end(flags, [(name, leaves[i]) for i, name in hidden])
        after = (leaves, traces, direct, jax.tree.map(self.plus, total, found) if total else total)
        if options.check == SKIP:
            before = carry if carry[1] is not None else (carry[0], rule.init(), *carry[2:])
            after = undo.where_finite(guards.failed(flags), before, after)
        return after, (losses, aux, flags)

    def plus(self, total: jax.Array, found: jax.Array) -> jax.Array:
        """A sum of gradients, and what is added to it."""
        return add_scaled(total, found, self.scale)

    def record(self, start: tuple[Any, Any, Any], inputs: Any) -> tuple[Any, Any]:
        """Run the steps of a block: leaves, direct gradients and what is held for steps move on.

        Behind these come the steps, or what the rule keeps of them, which arrays of these differ
        between steps, losses and aux, and the direct gradients of all steps.
        """
        executor, step, (leaves, direct, held) = self.executor, self.step, start
        perturb, shifts = executor.graph.perturbed.init_perturb_data(), step.direct.shifts()
        old = sorted({i for indices in self.olds.values() for i in indices})
        chosen = [i for i in direct if i in step.direct.elsewhere]
        apart = bool(executor.cascades)  # where states without a signal have no zeros among others'

        def old_signals(found: Mapping[int, Any], leaves: Mapping[int, Any]) -> Any:
            by_path = {
                path: found.get(i, jnp.zeros_like(leaves[i]))
                for group in executor.graph.hidden_groups
                for path, state in zip(group.hidden_paths, group.hidden_states, strict=True)
                for i in step.leaves.get(state, ())
            }
            return executor.old_signals(by_path, {group for group, own in self.olds.items() if own})

        def one(carry: Any, inputs: Any) -> Any:
            leaves, direct, held = carry

            def loss_of(perturb: Any, olds: Any, params: Any, shifts: Any) -> Any:
                changed = {**leaves, **olds, **params}
                loss, *rest = step.run(perturb, inputs, changed, shifts)
                return loss, rest

            (loss, (aux, recorded, new, moving)), (signal, olds, params, dys) = jax.value_and_grad(
                loss_of, argnums=(0, 1, 2, 3), has_aux=True
            )(perturb, {i: leaves[i] for i in old}, {i: leaves[i] for i in chosen}, shifts)
            values, given = recorded
            jacobians = executor.jacobians_at(values)
            direct = {i: self.plus(value, params[i]) for i, value in direct.items()}
            signals = tuple(signal) if apart else executor.signals(signal)
            block = Block(jacobians, signals, old_signals(olds, leaves), given)
            if self.takes_steps:
                held, block = self.learner.rule.take(held, block)
            return (new, direct, held), (block, moving, dys, loss, aux)

        start = leaves, {i: direct[i] for i in chosen}, held
        (new, stepwise, held), found, marks, way = marked_scan(one, start, inputs)
        kept, moving, dys, losses, aux = found
        if apart:
            kept = kept._replace(signal=jax.vmap(executor.signals)(kept.signal))
        own = step.direct.gradients(leaves, moving, dys, executor.parts, self.traced)
        self.ways.append(way)
        return (new, {**direct, **stepwise}, held), (kept, marks[0], losses, aux, own)

    def advance(self, number: Any, traces: Any, recorded: Block, moves: Any) -> tuple[Any, Any]:
        """The cotangents of a recorded block, and the traces after it, if they go on."""
        rule, first = self.learner.rule, is_first(number, self.size, self.before)
        unread = traces is None and rule.needs_no_past
        block = block_without_past(recorded, not unread and first, moves)
        block = finite_where_still(rule.executor, block, first).heard_by(self.heard)
        last = isinstance(number, int) and number == (self.steps - 1) // self.size
        if last and not (self.options.carry_trace or self.options.check):
            return rule.solve(traces, block, self.operands), None
        return rule.advance(traces, block, self.operands)

    def summed_leaves(self, weights: Sequence[State]) -> Iterator[int]:
        """The leaves of parameters whose gradients are summed by leaf."""
        for state in weights:
            yield from self.step.live_leaves(state)
            yield from (i for i, _ in self.traced_of(state))

    def traced_of(self, state: State) -> Iterable[tuple[int, Any]]:
        """The leaves of a parameter with a trace, and their variables, if there are parts."""
        known = self.executor.weights.get(state) if self.executor.parts > 1 else None
        if known is None or not known.links:
            return ()
        return zip(self.step.leaves.get(state, ()), known.inputs, strict=False)

    @cached_property
    def traced(self) -> frozenset[int]:
        """The leaves of parameters with a trace, if there are parts."""
        return frozenset(i for state in self.executor.weights for i, _ in self.traced_of(state))

    def added_up(self, direct: dict[int, Any], found: Cotangents) -> dict[int, Any]:
        """Direct gradients of a block; of parts, with those through traces, summed once."""
        executor = self.executor
        if executor.parts == 1:
            return direct
        pulled, total = executor.pulled(self.params, found), dict(direct)
        for state in executor.weights:
            for i, var in self.traced_of(state):
                if var in pulled:
                    total[i] = added(total[i], pulled[var]) if i in total else pulled[var]
        inputs = self.step.direct.jaxpr.invars
        return {i: together(value, inputs[i].aval.ndim) for i, value in total.items()}

    @cached_property
    def ways(self) -> list[Way]:
        """How each block that was traced is run."""
        return []

    @cached_property
    def takes_steps(self) -> bool:
        """Whether the rule takes up each step while it is run."""
        in_blocks = self.options.check or any(self.olds.values())
        fits = self.learner.rule.takes_steps and not in_blocks
        return fits and drives_every_state(self.executor)

    @cached_property
    def olds(self) -> dict[int, list[int]]:
        """By group, the leaves of its states whose old values the loss depends on."""
        live, groups = self.step.live_leaves, self.executor.graph.hidden_groups
        return {g.index: [i for s in g.hidden_states for i in live(s)] for g in groups}

    @cached_property
    def progress(self) -> Progress:
        return Progress(-(-self.steps // self.size) if self.options.progress else 0)

    @cached_property
    def heard(self) -> tuple[tuple[bool, ...], ...]:
        """Which states the loss of a step depends on."""
        graph = self.executor.graph
        paths = graph.perturbed.perturb_hidden_paths  # the first inputs of the step
        live = {path for i, path in enumerate(paths) if i in self.step.live}
        groups = graph.hidden_groups
        pairs = (zip(g.hidden_paths, g.state_counts, strict=True) for g in groups)
        return tuple(tuple(p in live for p, n in own for _ in range(n)) for own in pairs)

    @cached_property
    def names(self) -> dict[int, str]:
        """What the leaves of parameters are called, by their place in a step."""
        found: dict[int, str] = {}
        for state, name in self.options.names(self.learner.param_states).items():
            named = (f"{name}{place}" for place, _ in named_leaves(state.value))
            found.update(zip(self.step.leaves.get(state, ()), named, strict=False))
        return found


def _total(
    executor: Executor, state: State, step: TracedStep, direct: Any, by_path: Mapping[Any, Any]
) -> Any:
    """Direct plus traced gradient of one parameter, zero where neither exists."""
    total, weight = step.gradient_of(state, direct), executor.weights.get(state)
    if weight is None or weight.path not in by_path:
        return total
    return jax.tree.map(add_gradients, total, by_path[weight.path])
