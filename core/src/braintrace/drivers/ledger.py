# SPDX-License-Identifier: Apache-2.0
"""Where the credit of a probe goes that a rule with traces leaves out, edge by edge.

A path from a parameter to a loss is followed as long as the traces follow it: through a relation
to a hidden group ``g``, and through ``D`` of ``g``. With ``lambda^t`` the gradient of the later
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
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..algorithms.base import Block
from ..algorithms.block_algebra import apply, turned
from ..algorithms.d_rtrl import ParamDimRule
from ..algorithms.delayed import DelayedDRTRLRule
from ..algorithms.lagged import LaggedDRTRLRule
from ..algorithms.signals import TracelessRule
from ..base.types import Path
from ..executor.detours import two_ways
from ..executor.tangents import all_inputs
from .exactly import cleared_filters, refuse_errors, without_moving
from .gradients import gradient
from .ledger_of_masks import entries_of_masks
from .options import GradOptions, common_length, masked_step, scale_of
from .probe import (
    BORDER,
    KEPT,
    LAYER,
    RECURRENT,
    RULE,
    STATE,
    UNTRACED,
    Found,
    Nodes,
    Probe,
    Row,
    backward,
)
from .running import Running
from .steps import add_traced
from .traced import trace_step


def probed(
    learner: Running, options: GradOptions, by_step: Any, exact: Any, sequences: Any, mask: Any
) -> Any:
    """The gradient of BPTT by path, and all entries; no state moves on.

    ``by_step`` gives the loss of one step. ``exact``: what runs the model's own steps where the
    learner does not.
    """
    run = partial(_probed, learner if exact is None else exact, options, by_step)
    bptt, entries = run(sequences, mask)
    if exact is None and not isinstance(learner.rule, TracelessRule):
        return bptt, entries
    own = replace(options, carry_trace=False)
    grads = own.by_key(without_moving(partial(gradient, learner, own), sequences, mask).grads)
    by_rule = {path: grads.get(path, v) for path, v in bptt.items()}
    (kept, *others) = entries
    missed = jax.tree.map(jnp.subtract, kept.gradients, by_rule)
    return bptt, [replace(kept, gradients=by_rule), Found(RULE, None, None, missed), *others]


def _probed(learner: Any, options: GradOptions, by_step: Any, sequences: Any, mask: Any) -> Any:
    rule, inputs = learner.rule, (mask, *sequences)
    first = jax.tree.map(lambda v: v[0], inputs)
    step, weights = masked_step(by_step, False), [state for _, state in options.weights]
    scale = scale_of(options.reduction, mask, common_length(sequences))
    drops = (rule.from_blocks or rule.in_single_steps) and not isinstance(rule, TracelessRule)
    with cleared_filters(learner):
        trace = partial(trace_step, learner, step, first, weights, carried=True)
        whole = trace(rule=Nodes(rule.executor))
        probe = Probe(rule, trace() if drops else whole, whole, options.chunk_size)
        if drops and rule.from_blocks:
            signals = partial(_signals, probe, scale)
            zeros = [probe.stepwise() for _ in (KEPT, *probe.targets)]
            found, direct, bptt, inside = backward(probe, inputs, scale, signals, zeros)
            return bptt, _entries(probe, found, direct, inside)
        rows, _, bptt, inside = backward(probe, inputs, scale)
        if drops:
            return bptt, entries_of_masks(probe, rows, inside, scale)
        return bptt, [Found(KEPT, None, None, bptt)]


def _signals(probe: Probe, scale: Any, row: Row) -> Any:
    """Of a step: its Jacobians; ``l``, ``e`` and direct gradients of the loss and of each target;
    and what comes back to each group past ``D``."""
    executor, graph = probe.executor, probe.graph
    perturb = graph.perturbed.init_perturb_data()
    pull, (values, given), moving = probe.pull_back(perturb, row, scale)
    refuse_errors(probe.rule, given)
    jacobians = executor.jacobians_at(values).composed(executor.links)
    paths = graph.perturbed.perturb_hidden_paths
    groups = range(len(executor.groups))

    def hidden(leaves: Mapping[int, Any]) -> dict[Path, Any]:
        return {p: leaves[probe.carried[p][0]] for p in paths}

    def pulled(of_loss: float, of_new: Any, itself: bool = False) -> Any:
        signal, olds, direct = pull(of_loss, of_new)
        if not itself:  # what the next step reads of a state is the state
            signal = [v - new for v, new in zip(signal, hidden(of_new).values(), strict=True)]
        return executor.signals(signal), executor.old_signals(hidden(olds), groups), direct

    if row.border is None:
        kept = pulled(1.0, jax.tree.map(jnp.zeros_like, row.later))
    else:
        at_border = executor.old_signals(hidden(row.border), groups)
        kept = at_border, (None,) * len(groups), (probe.stepwise(), None)
    targets = [pulled(0.0, probe.of_target(c, row.later)) for c in probe.targets]
    whole = pulled(float(row.border is None), row.later, itself=True)[0]
    full = all_inputs(graph.module_info, row.kept, probe.params)
    detours = [_detour(probe, g.index, full, row.nodes, whole, jacobians) for g in executor.driven]
    signals, olds, direct = zip(kept, *targets, strict=True)
    stepwise, products = zip(*direct, strict=True)
    return (jacobians, given, moving, signals, olds, detours, products), [*stepwise]


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
    return past if matrix is None else past - apply(turned(matrix), whole[g])


def _entries(probe: Probe, of_steps: Any, stepwise: Any, inside: Any) -> list[Found]:
    """The entries of a probe, from what :func:`_signals` gives of each step, and of their sum."""
    jacobians, given, moving, signals, olds, detours, products = of_steps
    executor, rule, params = probe.executor, probe.rule, probe.params
    operands = executor.operand_values(params)
    exact = ParamDimRule(executor)
    of_loss, *of_targets = zip(stepwise, products, strict=True)

    def to_parameters(cotangents: Any) -> dict[Path, Any]:
        zeros = {p: jax.tree.map(jnp.zeros_like, v) for p, v in params.items()}
        return add_traced(zeros, executor.param_gradients(params, cotangents))

    def block(signal: Any, old: Any, given: Any = None) -> Block:
        return Block(jacobians, tuple(signal), tuple(old), given)

    def kind(name: str) -> str:
        return name if inside is None else BORDER

    by_rule = to_parameters(rule.solve(None, block(signals[0], olds[0], given), operands))
    direct = probe.direct(*of_loss, moving) if inside is None else inside
    entries = [Found(KEPT, None, None, add_traced(by_rule, direct))]
    if type(rule) not in (ParamDimRule, LaggedDRTRLRule, DelayedDRTRLRule):
        kept, _ = exact.of_block(block(signals[0], olds[0]), operands)
        exactly = to_parameters(exact.summed(kept, operands))
        entries.append(Found(RULE, None, None, jax.tree.map(jnp.subtract, exactly, by_rule)))
    for c, signal, old in zip(probe.targets, signals[1:], olds[1:], strict=True):
        past = list(old)
        for group, detour in zip(executor.driven, detours, strict=True):
            if group.index == c:
                past[c] = past[c] + detour
        found, _ = exact.of_block(block(signal, past), operands)
        for group in executor.driven:
            g = group.index
            own = [v if k.group is group else {} for k, v in zip(exact.links, found, strict=True)]
            name = STATE if isinstance(c, tuple) else RECURRENT if c == g else LAYER
            entries.append(Found(kind(name), g, c, to_parameters(exact.summed(own, operands))))
    for c, of in zip(probe.targets, of_targets, strict=True):
        entries.append(Found(kind(UNTRACED), None, c, probe.direct(*of, moving)))
    return entries
