# SPDX-License-Identifier: Apache-2.0
"""Where the credit of a probe goes that a rule with traces leaves out, edge by edge.

A path from a parameter to a loss is followed as long as the traces follow it: through a relation
to a hidden group ``g``, and through ``D`` of ``g``. With ``lambda^t`` the gradient of all later
losses with respect to the new values of step ``t`` (backpropagation through time), what leaves the
traces for good is

- from new or old values of ``g`` to the new value of another state ``c``, which the next step
  reads: the signals of the perturbed step for the loss ``< lambda_c^t, s_c^t >``;
- from old values of ``g`` to its own new ones past ``D``: the pull-back of ``dL/dh_g^t``;
- from a parameter to a new value of ``c`` past all relations: the direct gradient of that loss.

These signals meet the traces as those of the loss do, so that every entry is a gradient of its own:
of all paths that are kept up to that edge, and of all paths behind it. None is what another leaves.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from ..algorithms.base import Block, LearningRule
from ..algorithms.block_algebra import apply
from ..algorithms.d_rtrl import LaggedDRTRLRule, ParamDimRule
from ..base import versions
from ..base.types import Path
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import StateKind
from ..executor.detours import run_with_nodes, two_ways
from ..executor.executor import Executor
from ..executor.tangents import all_inputs, kept_inputs
from .options import GradOptions, common_length, masked_step, scale_of
from .running import Running
from .steps import add_traced
from .traced import TracedStep, trace_step

#: What the entries are.
KEPT, RULE = "kept by the rule", "the rule's approximation"
RECURRENT, LAYER, STATE = "recurrent product", "another layer", "a state that is not hidden"
UNTRACED = "no trace"


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["gradients"],
    meta_fields=["kind", "origin", "target"],
)
@dataclass(frozen=True)
class Found:
    """An entry: what it is, from which group, to which group or path, and gradients by path."""

    kind: str
    origin: int | None
    target: int | Path | None
    gradients: dict[Path, Any]


@dataclass(frozen=True)
class Nodes:
    """A step as it was traced, with perturbations of what the new hidden values are."""

    executor: Executor

    @cached_property
    def ends(self) -> list[Any]:
        """The new hidden values, in the order of the perturbed step."""
        return [var for group in self.executor.graph.hidden_groups for var in group.hidden_outvars]

    def perturbations(self) -> list[jax.Array]:
        """Zeros."""
        return [jnp.zeros(var.aval.shape, var.aval.dtype) for var in self.ends]

    def run(self, args: Sequence[Any], states: Mapping[Path, Any], perturb: Any) -> Any:
        """The step; what is recorded are its inputs but the parameters."""
        info = self.executor.graph.module_info
        flat = [leaf for slot in info.slots for leaf in jax.tree.leaves(states[slot.path])]
        outputs = run_with_nodes(info, self.ends, [*args, *flat], perturb)
        return *self.executor.results(outputs), kept_inputs(info, args, states)


@dataclass(frozen=True, eq=False)
class Probe:
    """A probe that is run by a learner's rule (``cut``) and as it was traced (``whole``)."""

    rule: LearningRule
    cut: TracedStep
    whole: TracedStep

    @property
    def executor(self) -> Executor:
        """What runs the steps."""
        return self.rule.executor

    @property
    def graph(self) -> ETraceGraph:
        """The compiled step that is run."""
        return self.executor.graph

    @cached_property
    def numbers(self) -> dict[int, int]:
        """For each leaf of the step as it was traced, that of the cut one."""
        pairs = ((self.whole.leaves[s], own) for s, own in self.cut.leaves.items())
        return {i: k for pair in pairs for i, k in zip(*pair, strict=True)}

    def places(self, *kinds: StateKind) -> dict[Path, list[int]]:
        """Where the floating-point leaves of states of some kinds are, by path."""
        leaves = self.cut.read()
        return {
            slot.path: [
                i for i in self.cut.leaves.get(slot.state, ()) if versions.is_float(leaves[i])
            ]
            for slot in self.graph.module_info.slots
            if slot.kind in kinds
        }

    @cached_property
    def carried(self) -> dict[Path, list[int]]:
        """Those of states."""
        return self.places(StateKind.HIDDEN, StateKind.OTHER)

    @cached_property
    def weights(self) -> dict[Path, list[int]]:
        """Those of parameters."""
        return self.places(StateKind.PARAM)

    @cached_property
    def targets(self) -> list[int | Path]:
        """Hidden groups by number and other states by path: where credit can end."""
        groups = [group.index for group in self.graph.hidden_groups]
        return [*groups, *(p for p, own in self.places(StateKind.OTHER).items() if own)]

    def of_target(self, target: int | Path, values: Mapping[int, Any]) -> dict[int, Any]:
        """``values`` of a target, and zeros elsewhere."""
        paths = (
            (target,)
            if isinstance(target, tuple)
            else self.graph.hidden_groups[target].hidden_paths
        )
        own = {i for path in paths for i in self.carried[path]}
        return {i: v if i in own else jnp.zeros_like(v) for i, v in values.items()}


def probed(learner: Running, options: GradOptions, sequences: Any, mask: Any) -> Any:
    """The gradient of BPTT by path, and all entries; no state moves on."""
    rule, steps, inputs = learner.rule, common_length(sequences), (mask, *sequences)
    first = jax.tree.map(lambda v: v[0], inputs)
    trace = partial(trace_step, learner, masked_step(options.step_fn, False), first, ())
    whole = trace(rule=Nodes(rule.executor))
    probe = Probe(rule, trace() if rule.from_blocks else whole, whole)
    start, scale = probe.cut.read(), scale_of(options.reduction, mask, steps)
    rows, total = _backward(probe, start, inputs, scale)
    if not rule.from_blocks:  # nothing is dropped
        return _by_path(probe, total), [Found(KEPT, None, None, _by_path(probe, total))]
    signals = jax.lax.scan(lambda _, now: (None, _signals(probe, start, scale, now)), None, rows)[1]
    return _by_path(probe, total), _entries(probe, signals)


def _backward(probe: Probe, start: Mapping[int, Any], inputs: Any, scale: Any) -> Any:
    """BPTT: per step, what :func:`_signals` takes; and the gradient of the parameters, by leaf."""
    number = {k: i for i, k in probe.numbers.items()}
    params = {i for own in probe.cut.leaves for i in probe.cut.leaves[own] if _is_weight(probe, i)}
    smooth = [i for own in probe.carried.values() for i in own]
    zeros = Nodes(probe.executor).perturbations()

    def run(perturb: Any, inputs: Any, leaves: Mapping[int, Any]) -> Any:
        given = {number[i]: v for i, v in leaves.items()}
        loss, _, (kept, _), new, _ = probe.whole.run(perturb, inputs, given, ())
        return loss * scale, {probe.numbers[i]: v for i, v in new.items()}, kept

    def forward(leaves: Mapping[int, Any], inputs: Any) -> Any:
        _, new, kept = run(zeros, inputs, leaves)
        return new, ({i: v for i, v in leaves.items() if i not in params}, kept)

    weights = {i: start[i] for own in probe.weights.values() for i in own}

    def backward(carry: Any, now: Any) -> Any:
        later, total = carry
        leaves, kept, inputs = now

        def step(perturb: Any, olds: Any, weights: Any) -> Any:
            loss, new, _ = run(perturb, inputs, {**start, **leaves, **olds, **weights})
            return loss, {i: new[i] for i in smooth}

        olds = {i: leaves[i] for i in smooth}
        (loss, _), pull = jax.vjp(step, zeros, olds, weights)
        nodes, before, found = pull((jnp.ones_like(loss), later))
        return (before, jax.tree.map(jnp.add, total, found)), (leaves, kept, inputs, later, nodes)

    _, (leaves, kept) = jax.lax.scan(forward, dict(start), inputs)
    nothing = jax.tree.map(jnp.zeros_like, ({i: start[i] for i in smooth}, weights))
    (_, total), rows = jax.lax.scan(backward, nothing, (leaves, kept, inputs), reverse=True)
    return rows, total


def _is_weight(probe: Probe, place: int) -> bool:
    return any(place in own for own in probe.weights.values())


def _signals(probe: Probe, start: Any, scale: Any, now: Any) -> Any:
    """Of a step: its Jacobians; ``l``, ``e`` and direct gradients of the loss and of each target;
    and what comes back to each group past ``D``."""
    leaves, kept, inputs, later, nodes = now
    executor, graph = probe.executor, probe.graph
    smooth = [i for own in probe.carried.values() for i in own]
    weights = {i: start[i] for own in probe.weights.values() for i in own}

    def step(perturb: Any, olds: Any, weights: Any) -> Any:
        changed = {**start, **leaves, **olds, **weights}
        loss, _, (values, given), new, _ = probe.cut.run(perturb, inputs, changed, ())
        return (loss * scale, {i: new[i] for i in smooth}), (values, given)

    perturb = graph.perturbed.init_perturb_data()
    (loss, _), pull, (values, given) = jax.vjp(
        step, perturb, {i: leaves[i] for i in smooth}, weights, has_aux=True
    )
    jacobians = executor.jacobians_at(values)

    def pulled(of_loss: Any, of_new: Any, itself: bool = False) -> Any:
        signal, olds, direct = pull((of_loss, of_new))
        if not itself:  # what the next step reads of a state is the state
            paths = graph.perturbed.perturb_hidden_paths
            signal = [v - of_new[probe.carried[p][0]] for p, v in zip(paths, signal, strict=True)]
        hidden = {p: olds[probe.carried[p][0]] for p in graph.perturbed.perturb_hidden_paths}
        groups = range(len(executor.groups))
        return executor.signals(signal), executor.old_signals(hidden, groups), direct

    one, nothing = jnp.ones_like(loss), jnp.zeros_like(loss)
    none = jax.tree.map(jnp.zeros_like, later)
    targets = [pulled(nothing, probe.of_target(c, later)) for c in probe.targets]
    whole = pulled(one, later, itself=True)[0]
    params = {slot.path: slot.state.value for slot in graph.module_info.slots_of(StateKind.PARAM)}
    full = all_inputs(graph.module_info, kept, params)
    detours = [_detour(probe, g.index, full, nodes, whole, jacobians) for g in executor.driven]
    return jacobians, given, pulled(one, none), targets, detours


def _detour(
    probe: Probe, g: int, inputs: Sequence[Any], nodes: Any, whole: Any, jacobians: Any
) -> jax.Array:
    """What comes back from new values of a group to old ones past ``D`` [S, *V]."""
    executor, group, info = probe.executor, probe.graph.hidden_groups[g], probe.graph.module_info
    ends = Nodes(executor).ends
    others = frozenset(ends) - {*group.hidden_outvars}
    places = {
        var: info.num_args + i
        for slot in info.slots
        for var, i in zip(info.invars_of(slot), slot.leaves, strict=True)
    }
    olds = [inputs[places[var]] for var in group.hidden_invars]
    _, pull = jax.vjp(partial(two_ways, info, group, others, inputs), olds)
    own = [nodes[ends.index(var)] for var in group.hidden_outvars]
    zeros = [*map(jnp.zeros_like, own)]

    def laid(cotangents: Any) -> jax.Array:
        found = dict(zip(group.hidden_paths, pull(cotangents)[0], strict=True))
        rest = {
            p: jnp.zeros(v.aval.shape)
            for h in probe.graph.hidden_groups
            for p, v in zip(h.hidden_paths, h.hidden_invars, strict=True)
        }
        signal = executor.old_signals({**rest, **found}, {g})[g]
        return jnp.asarray(signal)

    transition, matrix = probe.graph.cones[g].transition, jacobians.transition[g]
    past = laid((own, zeros))
    near = probe.graph.recurrence_scope == "diagonal" and executor.jacobians == "near"
    if near and (transition is None or not transition.mixed):
        return past  # all that is near is in D
    past = past + laid((zeros, own))
    return past if matrix is None else past - apply(jnp.swapaxes(matrix, 0, 1), whole[g])


def _entries(probe: Probe, signals: Any) -> list[Found]:
    """The entries of a probe, from the signals of all its steps."""
    jacobians, given, kept, targets, detours = signals
    executor, rule = probe.executor, probe.rule
    params = {
        slot.path: slot.state.value for slot in probe.graph.module_info.slots_of(StateKind.PARAM)
    }
    operands = executor.operand_values(params)
    exact = ParamDimRule(executor)

    def solved(rule: LearningRule, signal: Any, old: Any, given: Any = None) -> dict[Path, Any]:
        block = Block(jacobians, tuple(signal), tuple(old), given)
        found = executor.param_gradients(params, rule.solve(None, block, operands))
        zeros = {p: jax.tree.map(jnp.zeros_like, v) for p, v in params.items()}
        return add_traced(zeros, found)

    def only(g: int, signal: Any, old: Any) -> tuple[list[Any], list[Any]]:
        return (
            [v if k == g else jnp.zeros_like(v) for k, v in enumerate(signal)],
            [v if k == g else None for k, v in enumerate(old)],
        )

    of_loss = solved(exact, kept[0], kept[1])
    by_rule = solved(rule, kept[0], kept[1], given)
    direct = _by_path(probe, jax.tree.map(lambda v: v.sum(0), kept[2]))
    entries = [Found(KEPT, None, None, add_traced(by_rule, direct))]
    if type(rule) not in (ParamDimRule, LaggedDRTRLRule):
        missed = jax.tree.map(jnp.subtract, of_loss, by_rule)
        entries.append(Found(RULE, None, None, missed))
    for n, g in enumerate(group.index for group in executor.driven):
        for c, (signal, old, _) in zip(probe.targets, targets, strict=True):
            own, past = only(g, signal, old)
            if c == g:
                past[g] = past[g] + detours[n]
            kind = STATE if isinstance(c, tuple) else RECURRENT if c == g else LAYER
            entries.append(Found(kind, g, c, solved(exact, own, past)))
    for c, (_, _, found) in zip(probe.targets, targets, strict=True):
        summed = jax.tree.map(lambda v: v.sum(0), found)
        entries.append(Found(UNTRACED, None, c, _by_path(probe, summed)))
    return entries


def _by_path(probe: Probe, leaves: Mapping[int, Any]) -> dict[Path, Any]:
    """Gradients by path of the parameters from those by leaf."""
    found = {}
    for slot in probe.graph.module_info.slots_of(StateKind.PARAM):
        values, tree = jax.tree.flatten(slot.state.value)
        new = [jnp.zeros_like(v) for v in values]
        for k, i in enumerate(probe.cut.leaves.get(slot.state, ())):
            new[k] = leaves.get(i, new[k])
        found[slot.path] = jax.tree.unflatten(tree, new)
    return found
