# SPDX-License-Identifier: Apache-2.0
"""Where states, traces and parameters lie on the devices of a mesh, by what they mean.

What is known of a model are the axes of its hidden groups: one of examples, and the last one, of
units. A program that makes traces and gradients from arrays in that form is compiled for inputs
that lie so, and XLA says where its results lie. Nothing is run for it.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from ..algorithms.base import Block
from ..base import versions
from ..base.types import Path, State, how_many, show_path
from ..compiler.module_info import StateKind
from ..compiler.places import as_automatic, axes_of_place
from ..executor.executor import Executor
from ..executor.jacobians import StepJacobians
from ..executor.layout import Link, Positions

Names = tuple[str, ...]
Shape = tuple[int, ...]


def place(learner: Any, mesh: Mesh, batch: Any, units: Any) -> None:
    """``learner.shard(mesh, batch, units)``."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, got {type(mesh).__name__}")
    axes = {"batch": _names(mesh, "batch", batch), "units": _names(mesh, "units", units)}
    if twice := {*axes["batch"]} & {*axes["units"]}:
        raise ValueError(f"batch and units are both {sorted(twice)}; give each an axis of its own")
    if not any(axes.values()):
        raise ValueError("give the axis of the mesh for batch, for units, or for both")
    found = found_places(learner, mesh, **axes)
    parts, columns = (math.prod(mesh.shape[name] for name in own) for own in axes.values())
    whole = NamedSharding(automatic(mesh), PartitionSpec(axes["batch"] or None))
    for executor in (learner.rule.executor, learner.executor.compiled):  # a copy has the second's
        executor.divide((parts, whole if columns > 1 else None))
    for state in brainstate.graph.states(learner).values():
        spec = found.get(state, PartitionSpec())
        specs = spec if isinstance(spec, list) else [spec] * len(jax.tree.leaves(state.value))
        state.value = _put(state.value, [NamedSharding(mesh, one) for one in specs])


def found_places(learner: Any, mesh: Mesh, batch: Names, units: Names) -> dict[State, Any]:
    """The places of the states that are divided.

    Units are along the last axis that parameters have, too, in contrast to positions in space: a
    kernel is the same at all of these. Groups of different shapes may have it at other places.
    """
    if not learner.rule.executor.groups:  # all layers are leaks, and filters of what they hear
        leaks = Places(learner, mesh, batch, units)
        return {**leaks.of_parameters(), **leaks.of_states()}
    alone = math.prod(mesh.shape[name] for name in units) == 1  # of which XLA says nothing
    behind: Counter[Shape] = Counter()
    refused: dict[Shape, ValueError] = {}
    known: set[Shape] = set()
    while True:
        places = Places(learner, mesh, batch, units, behind)
        now = places.refused()
        refused = {**now, **refused}
        found = {} if now else places.of_parameters_and_traces()
        params = (state for state in found if isinstance(state, brainstate.ParamState))
        divided = {state for state in params if any(map(any, found[state]))}
        others = () if alone or now else places.shapes_without(divided)
        if not (moving := {*now, *others} - known):
            break
        behind.update(moving)
        for shape in moving - {*places.shapes_with(behind)}:
            if shape in refused:
                raise refused[shape]
            known.add(shape)
    if alone or divided:
        return {**places.of_parameters(), **found, **places.of_states()}
    parts = math.prod(mesh.shape[name] for name in units)
    shapes = ", ".join(str(group.varshape) for group in places.executor.groups)
    raise ValueError(
        f"units={'+'.join(units)!r} divides units among {parts} devices, and no parameter has an "
        f"axis of units of the hidden groups of shape {shapes}. The mesh has {_shown(mesh)}. "
        "Divide the batch alone"
    )


def _names(mesh: Mesh, what: str, given: Any) -> Names:
    """Axes of the mesh; raises ``ValueError`` for one that it does not have."""
    names = () if given is None else (given,) if isinstance(given, str) else tuple(given)
    for name in names:
        if name not in mesh.axis_names:
            raise ValueError(
                f"{what}={given!r}: the mesh has no axis {name!r}; its axes are {_shown(mesh)}. "
                f"Name one of them, or make the mesh with that axis"
            )
    return names


def automatic(mesh: Any) -> Any:
    """The same, on which XLA chooses."""
    if isinstance(mesh, AbstractMesh):
        return as_automatic(mesh)
    return Mesh(mesh.devices, mesh.axis_names)


def _shown(mesh: Mesh) -> str:
    return ", ".join(f"{name!r} ({how_many(size, 'device')})" for name, size in mesh.shape.items())


def _put(value: Any, shardings: list[NamedSharding]) -> Any:
    leaves, tree = jax.tree.flatten(value)
    pairs = zip(leaves, shardings, strict=True)
    return jax.tree.unflatten(tree, [versions.put(leaf, where) for leaf, where in pairs])


@dataclass(frozen=True, eq=False)
class Places:
    """The places of a learner's arrays: axes of the mesh for the batch, and for the units.

    ``behind`` is how many axes of groups of a shape stand behind that of their units.
    """

    learner: Any
    mesh: Mesh
    batch: Names
    units: Names
    behind: Mapping[Shape, int] = field(default_factory=Counter)

    @cached_property
    def executor(self) -> Any:
        """What runs the step that the rule sees, position by position; the model's without groups.

        A rule may have an executor that counts mixed positions as states, and then no axis of them.
        """
        found = self.learner.rule.executor
        if any(group.mixed for group in found.groups):
            return replace(found, jacobians="near")
        return found if found.groups else Executor(self.learner.graph)

    @cached_property
    def examples(self) -> dict[Positions, int]:
        """The axis of examples of the groups that have one."""
        found: dict[Positions, int] = {}
        for link in self.executor.links:
            if link.relation.spec.batched and link.alignment.axes[0] is not None:
                found.setdefault(link.group, link.alignment.axes[0])
        sizes = {group.varshape[k] for group, k in found.items()}
        for group in self.executor.groups:  # with nothing but operations of one example for all
            if group not in found and group.ndim > 1 and {group.varshape[0]} == sizes:
                found[group] = 0
        return found

    def spec(self, group: Positions) -> list[Names | None]:
        """Where positions [*V] of a group lie."""
        own: list[Names | None] = [None] * group.ndim
        k = self.examples.get(group)
        if self.batch and k is not None:
            own[k] = self._divided(group, k, "batch", self.batch)
        others, behind = self._others(group), self.behind[group.varshape]
        if self.units and len(others) > behind:
            axis = others[-1 - behind]
            own[axis] = self._divided(group, axis, "units", self.units)
        return own

    def _others(self, group: Positions) -> list[int]:
        """The axes of a group that are not of examples."""
        return [axis for axis in range(group.ndim) if axis != self.examples.get(group)]

    def refused(self) -> dict[Shape, ValueError]:
        """Shapes of groups of which an axis cannot be divided, and why."""
        found = {}
        for group in self.executor.groups:
            try:
                self.spec(group)
            except ValueError as error:
                found[group.varshape] = error
        return found

    def shapes_with(self, behind: Mapping[Shape, int]) -> Iterator[Shape]:
        """Shapes of groups that have an axis in front of so many."""
        groups = self.executor.groups
        return (g.varshape for g in groups if len(self._others(g)) > behind[g.varshape])

    def shapes_without(self, divided: Collection[State]) -> set[Shape]:
        """Shapes of groups with several such axes, none of whose own parameters is divided."""
        groups = defaultdict[Path, set[Positions]](set)
        known: dict[Shape, bool] = {}
        for link in self.executor.links:
            for path in link.relation.parameter_paths:
                groups[path].add(link.group)
        states = self.learner.states_of(StateKind.PARAM)
        for path, those in groups.items():
            for group in those if len(those) == 1 else ():
                shape = group.varshape
                known[shape] = known.get(shape, False) or states[path] in divided
        several = {g.varshape for g in self.executor.groups if len(self._others(g)) > 1}
        return {shape for shape in several if not known.get(shape, True)}

    def _divided(self, group: Positions, axis: int, what: str, names: Names) -> Names:
        size, parts = group.varshape[axis], math.prod(self.mesh.shape[name] for name in names)
        if size % parts:
            paths = ", ".join(map(show_path, group.group.hidden_paths))
            meant = {"batch": "examples", "units": "units"}[what]
            raise ValueError(
                f"{what}={'+'.join(names)!r} divides {size} {meant} (axis {axis} of {paths}, "
                f"shape {group.varshape}) among {parts} devices, which leaves a rest; the mesh has "
                f"{_shown(self.mesh)}. Take a multiple of {parts} {meant}, or another mesh"
            )
        return names

    def of_parameters(self) -> dict[State, Any]:
        """Where parameters lie that no trace tells of: with units, if their last axis is as long.

        Where a parameter lies changes no number; the gates of a cell lie beside one another so.
        """
        places = ((group, self.spec(group)) for group in self.executor.groups)
        sizes = {g.varshape[own.index(self.units)] for g, own in places if self.units in own}

        def spec(leaf: Any) -> PartitionSpec:
            shape = jnp.shape(leaf)
            if not shape or shape[-1] not in sizes:
                return PartitionSpec()
            return PartitionSpec(*[None] * (len(shape) - 1), self.units)

        params = self.learner.states_of(StateKind.PARAM).values()
        return {state: [*map(spec, jax.tree.leaves(state.value))] for state in params}

    def of_states(self) -> dict[State, PartitionSpec]:
        """Where the states of the model lie that are no parameters."""
        found: dict[State, PartitionSpec] = {}
        if self.batch and not self.examples:
            raise ValueError(
                f"batch={'+'.join(self.batch)!r}: the model has no axis of examples. Compile it "
                "with batch_size=..., or give units alone"
            )
        sizes = {group.varshape[k] for group, k in self.examples.items()}
        for slot in self.learner.graph.executed.module_info.slots:
            shape = jnp.shape(jax.tree.leaves(slot.state.value)[0])
            if slot.kind is not StateKind.PARAM and self.batch and {*shape[:1]} == sizes:
                found[slot.state] = PartitionSpec(self.batch)
        for group in self.executor.groups:
            if group.mixed:
                continue
            spec, own = self.spec(group), group.group
            for state, axis in zip(own.hidden_states, own.state_axes, strict=True):
                shape = jnp.shape(jax.tree.leaves(state.value)[0])
                single = shape == group.varshape
                k = axis % len(shape)
                whole = spec if single else [*spec[:k], None, *spec[k:]]
                if len(whole) == len(shape):
                    found[state] = PartitionSpec(*whole)
        return found

    # --- parameters and traces -----------------------------------------------------------------

    def of_parameters_and_traces(self) -> dict[State, Any]:
        """Where parameters lie, as their gradients do, and traces, after a step."""
        rule, states = self.learner.rule, self.learner.states_of(StateKind.PARAM)
        types = {
            path: jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape, v.dtype), state.value)
            for path, state in states.items()
        }
        inputs = [*self._inputs()]
        given = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v, _ in inputs]
        mesh = automatic(self.mesh)
        places = [NamedSharding(mesh, spec) for _, spec in inputs]

        def one_step(values: Any, params: Any) -> Any:
            block, operands = self._block(values), self.executor.operand_values(params)
            signals = values[len(values) - len(self.executor.groups) :]
            found = [
                self._contracted(link, block.jacobians.x, signals, operands)
                for link in self.executor.links
            ]
            traces: Any = ()
            if rule.from_blocks:  # some rules hold the last step back
                traces = rule.update(rule.update(rule.init(), block, operands), block, operands)
            return self.executor.param_gradients(params, rule.summed(found, operands)), traces

        step = jax.jit(one_step, in_shardings=(places, NamedSharding(mesh, PartitionSpec())))
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            gradients, traces = step.lower(given, types).compile().output_shardings
        own = partial(self._spec_of, names=self.units)
        found = {states[path]: [*map(own, jax.tree.leaves(gradients[path]))] for path in gradients}
        if not rule.from_blocks:
            return {**found, **self._of_influence(rule)}
        both = partial(self._spec_of, names=(*self.batch, *self.units))
        of_traces = zip(self.learner.traces, traces, strict=True)
        return found | {s: [*map(both, jax.tree.leaves(where))] for s, where in of_traces}

    def _contracted(self, link: Link, xs: Any, signals: list[Any], operands: Any) -> Any:
        """Cotangents from a signal at the output of an operation."""
        signal = signals[self.executor.groups.index(link.group)][None]
        dy = link.sum_to_y(link.to_y(signal, 2).sum(1), 1)
        x, held = xs[link.relation.index], operands[link.relation.index]
        return link.operation.contract(x, dy, held)

    def _spec_of(self, found: Any, names: Names) -> PartitionSpec:
        """What XLA chose for an array, as far as it is along these axes of the mesh."""
        own = axes_of_place(getattr(found, "spec", ()))
        if not all({*part} <= {*names} for part in own):
            return PartitionSpec()
        return PartitionSpec(*(part or None for part in own))

    def _inputs(self) -> Iterator[tuple[Any, PartitionSpec]]:
        """Types of inputs of one step, and of an array [S, *V] per group, and where they lie."""
        types = self.executor.jacobian_types
        for relation, x in zip(self.executor.graph.hidden_param_op_relations, types.x, strict=True):
            if x is not None:
                lead = self.batch if relation.spec.batched and self.batch else None
                yield x, PartitionSpec(lead)
        for group in self.executor.groups:
            shape = (group.num_state, *group.varshape)
            yield jax.ShapeDtypeStruct(shape, group.wide), PartitionSpec(None, *self.spec(group))

    def _block(self, values: list[Any]) -> Block:
        """A block of one step that is made of these."""
        rules = self.learner.rule.executor
        given, types = iter(values), rules.jacobian_types
        x = tuple(None if own is None else next(given) for own in types.x)
        groups = {group: next(given) for group in self.executor.groups}
        pairs = zip(self.executor.links, types.f, strict=True)
        f = tuple(self._factor(link, groups[link.group], own) for link, own in pairs)
        if any(group.mixed for group in rules.groups):
            own = zip(rules.groups, groups.values(), strict=True)
            groups = {group: group.joined(value) for group, value in own}
        rows = zip(rules.groups, types.transition, strict=True)

        def entries(group: Positions, own: Any) -> Any:  # [.., *V], of all or of some
            first = groups[group][0]

            def entry(like: Any) -> Any:  # some are the same along some axes
                part = first[tuple(slice(n) for n in like.shape[like.ndim - first.ndim :])]
                return jnp.broadcast_to(part, like.shape).astype(like.dtype)

            return jax.tree.map(entry, own)

        transition = tuple(entries(*row) for row in rows)
        jacobians = jax.tree.map(lambda v: v[None], StepJacobians(x, f, transition))
        signal = tuple(value[None] for value in groups.values())
        return Block(jacobians, signal, (None,) * len(signal))

    def _factor(self, link: Link, value: Any, own: Any) -> Any:
        """A factor [S, \\*E, \\*Y] of the rule, from [S, \\*V]: it lies as ``y`` does."""
        found = link.to_y(value, 1)
        if own.shape[1:] != found.shape[1:] or len(found) < own.shape[0]:  # with mixed positions
            found = jnp.broadcast_to(found[(0,) * (1 + len(link.extra))], own.shape)
        return found[: own.shape[0]].astype(own.dtype)

    def _of_influence(self, rule: Any) -> dict[State, PartitionSpec]:
        """Traces [entries, *state] lie as the states do."""
        places: Mapping[Any, PartitionSpec] = {
            jnp.shape(jax.tree.leaves(state.value)[0]): spec
            for state, spec in self.of_states().items()
        }
        shapes = [leaf.aval.shape for leaf in rule.carried]
        pairs = zip(self.learner.traces, shapes, strict=True)
        return {s: PartitionSpec(None, *places[shape]) for s, shape in pairs if shape in places}
