# SPDX-License-Identifier: Apache-2.0
"""The executor: one step of a compiled model, with its Jacobians."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.types import Path, State
from ..base.versions import Atom, Var
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import StateKind
from ..compiler.reach import Cone, Pattern
from ..jaxprs.run import read, run_equations
from .jacobians import GroupAtStep, StepJacobians, takes_forward_mode
from .layout import Link, Positions


@dataclass(frozen=True, eq=False)
class WeightAddress:
    """Where a parameter is met in a compiled step.

    Attributes
    ----------
    path
        In the model.
    inputs
        Variables of its leaves in the step's program.
    links
        Numbers of the links (relations in their groups) that it is a weight of.
    """

    path: Path
    inputs: tuple[Var, ...]
    links: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Executor:
    """Runs and differentiates the steps of a compiled model.

    With ``jacobians='whole'``, ``D`` is [S M, S M, *kept], ``f`` is [S M, *E, *Y] and signals are
    [S M, *kept]; see :class:`Positions`. A pull-back is then made for every position of a layer at
    every step.

    Attributes
    ----------
    graph
        The compiled model.
    jacobians
        What ``D`` and ``f`` hold: ``'near'``, the entries between equal positions; ``'whole'``,
        every entry within a hidden group.
    """

    graph: ETraceGraph
    jacobians: str = "near"

    @cached_property
    def groups(self) -> tuple[Positions, ...]:
        """The hidden groups as rules see them."""
        mixed = (() if c.transition is None else c.transition.mixed for c in self.graph.cones)
        whole = self.jacobians == "whole"
        pairs = zip(self.graph.hidden_groups, mixed, strict=True)
        return tuple(Positions(group, axes if whole else ()) for group, axes in pairs)

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """The relations in their groups."""
        return tuple(
            Link(relation, self.groups[g], self.groups[g].alignment(alignment))
            for relation in self.graph.hidden_param_op_relations
            for g, alignment in relation.group_alignments.items()
        )

    @cached_property
    def driven(self) -> tuple[Positions, ...]:
        """The groups that have links."""
        return tuple(dict.fromkeys(link.group for link in self.links))

    @cached_property
    def inputs_of_jacobians(self) -> tuple[Var, ...]:
        """Variables whose values determine the Jacobians of a step."""
        info, relations = self.graph.module_info, self.graph.hidden_param_op_relations
        wanted: list[Any] = []
        for group, cone in zip(self.groups, self.graph.cones, strict=True):
            if group in self.driven:
                held = () if cone.transition is None else cone.transition.free
                wanted += [*group.group.hidden_invars, *cone.free, *held]
        wanted += [atom for relation in relations for atom in (relation.y_var, relation.x_var)]
        known = {*info.producers, *info.jaxpr.invars}
        return tuple(dict.fromkeys(v for v in wanted if versions.is_var(v) and v in known))

    @cached_property
    def weights(self) -> dict[State, WeightAddress]:
        """The parameters of the step."""
        info, found = self.graph.module_info, {}
        for slot in info.slots_of(StateKind.PARAM):
            links = enumerate(link.relation.parameter_paths for link in self.links)
            led = tuple(i for i, paths in links if slot.path in paths)
            found[slot.state] = WeightAddress(slot.path, info.invars_of(slot), led)
        return found

    @cached_property
    def sources(self) -> dict[int, int]:
        """For each relation with an input, by index, the first one with the same input."""
        found = [r for r in self.graph.hidden_param_op_relations if r.x_var is not None]
        return {r.index: next(one.index for one in found if one.x_var is r.x_var) for r in found}

    def passing(self, index: int) -> Pattern:
        """Which entries of a group's ``D`` are not structurally zero [S][S]."""
        if self.jacobians == "near":
            return self.graph.cones[index].passing
        states = self.groups[index].num_state
        return ((True,) * states,) * states

    def driving(self, index: int) -> tuple[bool, ...]:
        """Which states of its group a link drives: where ``f`` is not structurally zero [S]."""
        link = self.links[index]
        if self.jacobians == "near":
            return self.graph.cones[link.group.index].driving[link.relation.y_var]
        return (True,) * link.group.num_state

    # --- steps -------------------------------------------------------------------------------

    def run(
        self,
        args: Sequence[Any],
        states: Mapping[Path, Any],
        perturb: Sequence[Any] | None = None,
    ) -> tuple[Any, dict[Path, Any], tuple[Any, ...]]:
        """Run one perturbed step.

        Parameters
        ----------
        args
            Leaves of the arguments.
        states
            Value of every state, by path.
        perturb
            One array per hidden state, in the order of ``graph.perturbed``; zeros if omitted.

        Returns
        -------
        out, states, inputs_of_jacobians
            The result, the new values of the states, and the values of
            :attr:`inputs_of_jacobians`, for :meth:`jacobians_at`.
        """
        plan = self.graph.perturbed
        perturb = plan.init_perturb_data() if perturb is None else perturb
        outputs, extras = plan.eval_jaxpr(
            self._inputs(args, states), perturb, self.inputs_of_jacobians
        )
        return *self._results(outputs), tuple(extras)

    def run_plain(
        self, args: Sequence[Any], states: Mapping[Path, Any]
    ) -> tuple[Any, dict[Path, Any], tuple[Any, ...]]:
        """Run one step as it was traced: its derivative is the ordinary one, with every path.

        Parameters and results are those of :meth:`run`.
        """
        jaxpr = self.graph.module_info.jaxpr
        env = versions.start_env(jaxpr, self._inputs(args, states))
        run_equations(jaxpr.eqns, env)
        outputs = [read(env, atom) for atom in jaxpr.outvars]
        return *self._results(outputs), tuple(read(env, v) for v in self.inputs_of_jacobians)

    def _inputs(self, args: Sequence[Any], states: Mapping[Path, Any]) -> list[Any]:
        """The inputs of the step's program."""
        slots = self.graph.module_info.slots
        return [*args, *(leaf for slot in slots for leaf in jax.tree.leaves(states[slot.path]))]

    def _results(self, outputs: Sequence[Any]) -> tuple[Any, dict[Path, Any]]:
        """The model's result and the new values of its states, from the outputs of a step."""
        info = self.graph.module_info
        new = outputs[info.num_out :]
        states = {
            slot.path: slot.treedef.unflatten([new[i] for i in slot.leaves]) for slot in info.slots
        }
        return info.out_treedef.unflatten(outputs[: info.num_out]), states

    # --- Jacobians and signals ---------------------------------------------------------------

    def jacobians_at(self, values: Sequence[Any]) -> StepJacobians:
        """``x``, ``f`` and ``D`` of a step, from the values of :attr:`inputs_of_jacobians`."""
        info = self.graph.module_info
        env = versions.constants(info.jaxpr)
        env.update(zip(self.inputs_of_jacobians, values, strict=True))
        factors: dict[int, jax.Array] = {}
        transitions: list[jax.Array | None] = []
        for group, cone in zip(self.groups, self.graph.cones, strict=True):
            links = {i: k for i, k in enumerate(self.links) if k.group is group}
            transition, found = GroupAtStep(info.eqns, group, cone, links, env).jacobians()
            transitions.append(transition)
            factors.update(found)
        xs = (r.x_var for r in self.graph.hidden_param_op_relations)
        return StepJacobians(
            tuple(None if x is None else read(env, x) for x in xs),
            tuple(factors[i] for i in range(len(self.links))),
            tuple(transitions),
        )

    @cached_property
    def jacobian_types(self) -> StepJacobians:
        """Types of what :meth:`jacobians_at` gives, without tracing it."""

        def array(shape: tuple[int, ...], atoms: Sequence[Atom]) -> Any:
            return jax.ShapeDtypeStruct(shape, jnp.result_type(*(a.aval.dtype for a in atoms)))

        def factor(link: Link) -> Any:
            group, y = link.group, link.relation.y_var
            cone = self.graph.cones[group.index]
            forward = takes_forward_mode(self.graph.module_info.eqns, cone, link)
            shape = (group.num_state, *link.extra, *y.aval.shape)
            return array(shape, group.group.hidden_outvars if forward else [y])

        def transition(group: Positions, cone: Cone) -> Any:
            shape = (group.num_state, group.num_state, *group.varshape)
            known = group in self.driven and cone.transition is not None
            return array(shape, group.group.hidden_invars) if known else None

        xs = (r.x_var for r in self.graph.hidden_param_op_relations)
        return StepJacobians(
            tuple(None if x is None else array(x.aval.shape, [x]) for x in xs),
            tuple(map(factor, self.links)),
            tuple(map(transition, self.groups, self.graph.cones)),
        )

    def signals(self, perturb: Sequence[Any]) -> tuple[jax.Array, ...]:
        """Gradients of the perturbations, per group: ``l`` [S, *V]."""
        by_path = dict(zip(self.graph.perturbed.perturb_hidden_paths, perturb, strict=True))
        return tuple(
            g.stacked([by_path[path] for path in g.group.hidden_paths]) for g in self.groups
        )

    def old_signals(
        self, gradients: Mapping[Path, Any], groups: Container[int]
    ) -> tuple[jax.Array | None, ...]:
        """Gradients of old hidden values, per group: ``e`` [S, *V], ``None`` outside ``groups``."""
        return tuple(
            g.stacked([gradients[p] for p in g.group.hidden_paths]) if g.index in groups else None
            for g in self.groups
        )

    # --- parameters --------------------------------------------------------------------------

    def operand_values(self, params: Mapping[Path, Any]) -> list[list[Any]]:
        """Per relation, the values of all operands but ``x`` (``None`` there), from parameters.

        The parameter-only equations in front of each operand are run here, so that the gradients
        of the operands are pulled back to the parameters by differentiating this function.
        """
        info = self.graph.module_info
        env = versions.constants(info.jaxpr)
        for weight in self.weights.values():
            env.update(zip(weight.inputs, jax.tree.leaves(params[weight.path]), strict=True))
        relations = self.graph.hidden_param_op_relations
        operands = [operand for r in relations for operand in (*r.trainables, *r.constants)]
        chains = dict.fromkeys(i for operand in operands for i in operand.chain)
        run_equations([info.eqns[i] for i in chains], env)
        found: list[list[Any]] = [[None] * len(r.operands) for r in relations]
        for relation, values in zip(relations, found, strict=True):
            for operand in (*relation.trainables, *relation.constants):
                values[operand.position] = read(env, operand.atom)
        return found

    def param_gradients(
        self, params: Mapping[Path, Any], cotangents: Sequence[Mapping[str, Any]]
    ) -> dict[Path, Any]:
        """Pull cotangents of traced operands, per relation, back to the parameters.

        Returns
        -------
        dict
            For every traced parameter, a cotangent like its value.
        """
        relations = self.graph.hidden_param_op_relations

        def operands(chosen: dict[Path, Any]) -> list[dict[str, Any]]:
            values = self.operand_values({**params, **chosen})
            return [{t.key: values[r.index][t.position] for t in r.trainables} for r in relations]

        traced = {w.path: params[w.path] for w in self.weights.values() if w.links}
        _, pull = jax.vjp(operands, traced)
        return pull([dict(c) for c in cotangents])[0]
