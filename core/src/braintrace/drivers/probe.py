# SPDX-License-Identifier: Apache-2.0
"""A probe of a learner's credit: a short sequence, by the rule and as its steps were traced.

In windows of ``k`` steps nothing is dropped inside of one. An edge at a step is dropped for the
losses behind the end of its window, and single steps drop it for the losses of that step, too. So
a step has two gradients with respect to its new states, ``later``, of the losses for which its
edges are dropped, and ``border``: at the end of a window, of the losses of the next one, which meet
the traces there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..algorithms.base import LearningRule
from ..base import versions
from ..base.precision import start_of_sum
from ..base.types import Path
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import StateKind
from ..executor.detours import run_with_nodes
from ..executor.executor import Executor
from ..executor.tangents import kept_inputs
from .options import common_length
from .steps import narrowed
from .traced import TracedStep

#: What the entries are.
KEPT, RULE = "kept by the rule", "the rule's approximation"
RECURRENT, LAYER, STATE = "recurrent product", "another layer", "a state that is not hidden"
UNTRACED, BORDER = "no trace", "window border"


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["gradients"],
    meta_fields=["kind", "origin", "target"],
)
@dataclass(frozen=True)
class Found:
    """An entry: what it is, from which to which group or path, and gradients by path."""

    kind: str
    origin: int | Path | None
    target: int | Path | None
    gradients: dict[Path, Any]


class Row(NamedTuple):
    """A step: what it reads, ``later`` and ``border``, and ``later`` for each new hidden value."""

    leaves: Any
    kept: Any
    inputs: Any
    later: Any
    nodes: Any
    border: Any


@dataclass(frozen=True)
class Nodes:
    """A step as it was traced, with perturbations of what the new hidden values are."""

    executor: Executor

    @cached_property
    def ends(self) -> list[Any]:
        """The new hidden values, in the order of the perturbed step."""
        return [var for group in self.executor.graph.hidden_groups for var in group.hidden_outvars]

    def perturbations(self) -> list[jax.Array]:
        return [jnp.zeros(var.aval.shape, var.aval.dtype) for var in self.ends]

    def run(self, args: Sequence[Any], states: Mapping[Path, Any], perturb: Any) -> Any:
        """The step; what is recorded are its inputs but the parameters."""
        info = self.executor.graph.module_info
        flat = [leaf for slot in info.slots for leaf in jax.tree.leaves(states[slot.path])]
        outputs = run_with_nodes(info, self.ends, [*args, *flat], perturb)
        return *self.executor.results(outputs), kept_inputs(info, args, states)


@dataclass(frozen=True, eq=False)
class Probe:
    """A probe that is run by a learner's rule (``cut``) and as it was traced (``whole``).

    ``size``: steps of a window, or ``None``.
    """

    rule: LearningRule
    cut: TracedStep
    whole: TracedStep
    size: int | None = None

    @property
    def executor(self) -> Executor:
        return self.rule.executor

    @property
    def graph(self) -> ETraceGraph:
        return self.executor.graph

    @cached_property
    def params(self) -> dict[Path, Any]:
        """The values of the parameters."""
        slots = self.graph.module_info.slots_of(StateKind.PARAM)
        return {slot.path: slot.state.value for slot in slots}

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
    def smooth(self) -> list[int]:
        """The same, together."""
        return [i for own in self.carried.values() for i in own]

    @cached_property
    def weights(self) -> list[int]:
        """Those of parameters."""
        return [i for own in self.places(StateKind.PARAM).values() for i in own]

    @cached_property
    def targets(self) -> list[int | Path]:
        """Hidden groups by number and other states by path: where credit can end."""
        groups = [group.index for group in self.graph.hidden_groups]
        return [*groups, *(p for p, own in self.places(StateKind.OTHER).items() if own)]

    def paths(self, target: int | Path) -> tuple[Path, ...]:
        """The states of a target."""
        hidden = self.graph.hidden_groups
        return (target,) if isinstance(target, tuple) else hidden[target].hidden_paths

    def of_target(self, target: int | Path, values: Mapping[int, Any]) -> dict[int, Any]:
        """``values`` of a target, and zeros elsewhere."""
        own = {i for path in self.paths(target) for i in self.carried[path]}
        return {i: v if i in own else jnp.zeros_like(v) for i, v in values.items()}

    def pull_back(self, perturb: Any, row: Row, scale: Any) -> tuple[Any, Any, Any]:
        """Of the cut step: from (of the loss, of new states) to (of ``perturb``, of old states by
        leaf, what :meth:`direct` takes); what it records; and the operands of its products."""
        start, products = self.cut.read(), self.cut.direct

        def step(perturb: Any, olds: Any, weights: Any, shifts: Any) -> Any:
            changed = {**start, **row.leaves, **olds, **weights}
            loss, _, recorded, new, moving = self.cut.run(perturb, row.inputs, changed, shifts)
            return (loss * scale, {i: new[i] for i in self.smooth}), (recorded, moving)

        olds = {i: row.leaves[i] for i in self.smooth}
        weights = {i: start[i] for i in self.stepwise()}
        (loss, _), pull, (recorded, moving) = jax.vjp(
            step, perturb, olds, weights, products.shifts(), has_aux=True
        )

        def pulled(of_loss: float, of_new: Any) -> Any:
            signal, olds, *direct = pull((jnp.full_like(loss, of_loss), of_new))
            return signal, olds, direct

        return pulled, recorded, moving

    def stepwise(self) -> dict[int, Any]:
        """Zeros: gradients of what parameters are besides operands of products, by leaf."""
        start, elsewhere = self.cut.read(), self.cut.direct.elsewhere
        return {i: start_of_sum(start[i]) for i in self.weights if i in elsewhere}

    def direct(self, stepwise: Any, products: Any, moving: Any) -> dict[Path, Any]:
        """Gradients by path past all traces: the sum of those by leaf, and of all products."""
        return self.by_path(_summed(self.cut, stepwise, products, moving))

    def by_path(self, leaves: Mapping[int, Any]) -> dict[Path, Any]:
        """Gradients by path of the parameters from those by leaf of the cut step."""
        slots = self.graph.module_info.slots_of(StateKind.PARAM)
        found = {slot.path: self.cut.gradient_of(slot.state, leaves) for slot in slots}
        return dict(narrowed(found, self.params))


def _summed(step: TracedStep, stepwise: Any, products: Any, moving: Any) -> dict[int, Any]:
    """Gradients of parameters by leaf: the sum of those of single steps, and of products."""
    total = dict(stepwise)
    for i, v in step.direct.gradients(step.read(), moving, products).items():
        total[i] = total[i] + v if i in total else v
    return total


def backward(
    probe: Probe,
    inputs: Any,
    scale: Any,
    seen: Callable[[Row], tuple[Any, Any]] = lambda row: (row, None),
    zeros_of_seen: Any = None,
) -> tuple[Any, Any, Any, Any]:
    """BPTT: the first of what is ``seen`` of each step, and the sum of the second; and gradients of
    the parameters by path: all, and those inside of windows (``None`` without any)."""
    whole, start, numbers = probe.whole, probe.whole.read(), probe.numbers
    number = {k: i for i, k in numbers.items()}
    smooth, weights = [number[i] for i in probe.smooth], {number[i] for i in probe.weights}
    stepwise = {i: start[i] for i in weights & whole.direct.elsewhere}
    zeros, shifts = Nodes(probe.executor).perturbations(), whole.direct.shifts()

    def forward(leaves: Mapping[int, Any], inputs: Any) -> Any:
        _, _, (kept, _), new, moving = whole.run(zeros, inputs, leaves, shifts)
        moved = {i: v for i, v in leaves.items() if i not in weights}
        return new, (moved, kept, inputs, moving)

    def back(carried: Any, now: Any) -> Any:
        (chains, sums), ((leaves, kept, inputs, _), ends) = carried, now

        def step(perturb: Any, olds: Any, weights: Any, shifts: Any) -> Any:
            changed = {**start, **leaves, **olds, **weights}
            loss, _, _, new, _ = whole.run(perturb, inputs, changed, shifts)
            return loss * scale, {i: new[i] for i in smooth}

        border = None
        if probe.size:  # the gradients of the losses of this window, and of those behind it
            near, far = chains
            border = {i: jnp.where(ends, v, 0) for i, v in near.items()}
            chains = {i: near[i] - v for i, v in border.items()}, jax.tree.map(jnp.add, far, border)
        (loss, _), pull = jax.vjp(step, zeros, {i: leaves[i] for i in smooth}, stepwise, shifts)
        own = jnp.ones_like(loss), jnp.zeros_like(loss)
        found = [pull((of_loss, c)) for of_loss, c in zip(own, chains, strict=False)]
        read, later = ({numbers[i]: v for i, v in of.items()} for of in (leaves, chains[-1]))
        border = None if border is None else {numbers[i]: v for i, v in border.items()}
        row = Row(read, kept, inputs, later, found[-1][0], border)
        of_step, added = seen(row)
        sums = jax.tree.map(jnp.add, sums, ([f[2] for f in found], added))
        return (tuple(f[1] for f in found), sums), (of_step, [f[3] for f in found])

    ends = (jnp.arange(common_length((inputs,))) + 1) % (probe.size or 1) == 0
    _, rows = jax.lax.scan(forward, dict(start), inputs)
    none = {i: jnp.zeros_like(start[i]) for i in smooth}
    chains = (none,) * (2 if probe.size else 1)
    sums = [jax.tree.map(start_of_sum, stepwise)] * len(chains), zeros_of_seen
    (_, (direct, added)), (found, of_products) = jax.lax.scan(
        back, (chains, sums), (rows, ends), reverse=True
    )
    of_leaves = [_summed(whole, *of, rows[3]) for of in zip(direct, of_products, strict=True)]
    totals = [probe.by_path({numbers[i]: v for i, v in one.items()}) for one in of_leaves]
    inside = totals[0] if probe.size else None
    return found, added, jax.tree.map(lambda *v: sum(v), *totals), inside
