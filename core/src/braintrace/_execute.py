# SPDX-License-Identifier: Apache-2.0
"""The executor: one step of a compiled model, with its Jacobians."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp

from . import _jax
from ._compile import (
    Cone,
    ETraceGraph,
    HiddenGroup,
    HiddenParamOpRelation,
    StateKind,
    TrainableOperand,
    compile_etrace_graph,
)
from ._errors import CompilationError, NotSupportedError
from ._jax import Var
from ._jaxpr import read, run_equations
from ._positions import Alignment
from ._rules import Operation

Path = tuple[Any, ...]


class StepJacobians(NamedTuple):
    """What a learning rule needs to know of one step.

    Attributes
    ----------
    x
        Per relation, the input of the operation (``None`` for one without).
    f
        Per link (relation and group), ``d h_g / d y`` laid out as ``y``: [S, *E, *Y].
    transition
        Per group, ``D[i, j] = d h_i / d h_j`` [S, S, *V]; ``None`` where structurally zero.
    """

    x: tuple[Any, ...]
    f: tuple[jax.Array, ...]
    transition: tuple[jax.Array | None, ...]


@dataclass(frozen=True, eq=False)
class Link:
    """One relation in one hidden group, and the layout of ``y`` in the group's positions.

    ``extra`` are the sizes of the group's axes along which ``y`` is broadcast.
    """

    relation: HiddenParamOpRelation
    group: HiddenGroup
    alignment: Alignment

    @cached_property
    def _extra_axes(self) -> tuple[int, ...]:
        mapped = set(self.alignment.axes)
        return tuple(k for k, n in enumerate(self.group.varshape) if n > 1 and k not in mapped)

    @property
    def extra(self) -> tuple[int, ...]:
        """Sizes of the axes ``E``."""
        return tuple(self.group.varshape[k] for k in self._extra_axes)

    @property
    def bijective(self) -> bool:
        """Whether every position of the group has its own position of ``y``."""
        return not self._extra_axes

    def to_y(self, array: jax.Array, lead: int = 0) -> jax.Array:
        """Lay out [*lead, *V] as [*lead, *E, *Y]."""
        v = self.group.varshape
        mapped = tuple(k for k in self.alignment.axes if k is not None)
        ones = tuple(k for k in range(len(v)) if k not in mapped and k not in self._extra_axes)
        order = (*self._extra_axes, *mapped, *ones)
        if order != tuple(range(len(v))):
            array = array.transpose(*range(lead), *(lead + k for k in order))
        return array.reshape(*array.shape[:lead], *self.extra, *self.relation.y_var.aval.shape)

    def sum_to_y(self, array: jax.Array, lead: int) -> jax.Array:
        """Sum [*lead, *E, *Y] over the axes ``E``."""
        return array.sum(tuple(range(lead, lead + len(self.extra)))) if self.extra else array


class ETraceGraphExecutor:
    """Compiles a model and runs its steps.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    """

    def __init__(self, model: brainstate.nn.Module) -> None:
        self.model = model
        self._graph: ETraceGraph | None = None

    def compile_graph(self, *args: Any) -> None:
        """Compile for arguments of these shapes and dtypes; see ``compile_etrace_graph``."""
        graph = compile_etrace_graph(self.model, *args)
        links = tuple(
            Link(relation, graph.hidden_groups[g], alignment)
            for relation in graph.hidden_param_op_relations
            for g, alignment in relation.group_alignments.items()
        )
        for link in links:
            _refuse_forward_mode(graph, link)
        self._graph, self.links = graph, links
        self.boundary = _boundary(graph)

    @property
    def graph(self) -> ETraceGraph:
        """The compiled graph.

        Raises
        ------
        CompilationError
            Before :meth:`compile_graph`.
        """
        if self._graph is None:
            raise CompilationError("call compile_graph(*example_inputs) before using the learner")
        return self._graph

    @property
    def path_to_states(self) -> dict[Path, brainstate.State[Any]]:
        """The states of the step, by path."""
        return self.graph.module_info.compiled_model_states

    @property
    def states(self) -> tuple[brainstate.State[Any], ...]:
        """The states of the step."""
        return tuple(self.path_to_states.values())

    def operation(self, relation: HiddenParamOpRelation) -> Operation:
        """A relation's operation as its rules see it."""
        return Operation(
            spec=relation.spec,
            params=relation.eqn_params,
            operand_avals=tuple(atom.aval for atom in relation.operands),
            y_aval=relation.y_var.aval,
            traced=tuple(t.key for t in relation.trainables),
        )

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
            One array per hidden state, in the order of ``graph.hidden_perturb``; zeros if omitted.

        Returns
        -------
        out, states, boundary
            The result, the new values of the states, and the values of :attr:`boundary`, from
            which :meth:`jacobians` is computed.
        """
        info, plan = self.graph.module_info, self.graph.hidden_perturb
        leaves = [leaf for slot in info.slots for leaf in jax.tree.leaves(states[slot.path])]
        perturb = plan.init_perturb_data() if perturb is None else perturb
        outputs, boundary = plan.eval_jaxpr([*args, *leaves], perturb, self.boundary)
        new = outputs[info.num_out :]
        new_states = {
            slot.path: slot.treedef.unflatten([new[i] for i in slot.leaves]) for slot in info.slots
        }
        return info.out_treedef.unflatten(outputs[: info.num_out]), new_states, tuple(boundary)

    def jacobians(self, boundary: Sequence[Any]) -> StepJacobians:
        """``x``, ``f`` and ``D`` of a step, from the values of its boundary.

        For a position-wise cone, one reverse sweep per state with a cotangent of ones gives
        ``D[p, i, :]`` and ``f_r[p, i]`` of all relations at once. A relation whose ``y`` is
        broadcast over positions takes a forward sweep instead, because a reverse one would sum.
        """
        env = dict(zip(self.boundary, boundary, strict=True))
        info = self.graph.module_info
        env.update(_jax.constants(info.jaxpr))
        found: dict[int, jax.Array] = {}
        transitions: list[jax.Array | None] = []
        for group, cone in zip(self.graph.hidden_groups, self.graph.cones, strict=True):
            links = {i: k for i, k in enumerate(self.links) if k.group is group}
            if not links:
                transitions.append(None)
                continue
            transition, factors = self._group_jacobians(group, cone, links, env)
            transitions.append(transition)
            found.update(factors)
        x = tuple(
            None if r.x_var is None else read(env, r.x_var)
            for r in self.graph.hidden_param_op_relations
        )
        return StepJacobians(x, tuple(found[i] for i in range(len(self.links))), tuple(transitions))

    def _group_jacobians(
        self, group: HiddenGroup, cone: Cone, links: Mapping[int, Link], env: Mapping[Var, Any]
    ) -> tuple[jax.Array | None, dict[int, jax.Array]]:
        ys = [link.relation.y_var for link in links.values()]
        reverse = [i for i, link in links.items() if link.bijective]
        zeros = {y: jnp.zeros(y.aval.shape, y.aval.dtype) for y in ys}
        olds = [env[var] for var in group.hidden_invars] if cone.old_reaches else []

        def new_values(olds: list[Any], perturb: dict[int, Any]) -> list[Any]:
            shift = dict(zeros)
            shift.update({links[i].relation.y_var: v for i, v in perturb.items()})
            return self._run_cone(group, cone, olds, shift, env)

        at_zero = {i: zeros[links[i].relation.y_var] for i in reverse}
        news, pull = jax.lax.optimization_barrier(jax.vjp(new_values, olds, at_zero))
        rows = [pull(cotangent) for cotangent in _one_hot_states(group, news)]
        transition = None
        if cone.old_reaches:
            transition = jnp.stack([join_states(group, row[0]) for row in rows])
        factors = {i: jnp.stack([row[1][i] for row in rows]) for i in reverse}
        for i, link in links.items():
            if not link.bijective:
                y = zeros[link.relation.y_var]
                _, moved = jax.jvp(
                    lambda v, i=i: new_values(olds, {i: v}), (y,), (jnp.ones_like(y),)
                )
                factors[i] = link.to_y(join_states(group, moved), 1)
        return transition, factors

    def _run_cone(
        self,
        group: HiddenGroup,
        cone: Cone,
        olds: Sequence[Any],
        shift: Mapping[Var, Any],
        values: Mapping[Var, Any],
    ) -> list[Any]:
        """New values of a group from its old ones, with ``shift`` added to the outputs ``y``."""
        eqns = self.graph.module_info.eqns
        env = dict(values)
        env.update(zip(group.hidden_invars, olds, strict=False))
        inside = {var for i in cone.eqns for var in eqns[i].outvars}
        for y, change in shift.items():
            if y not in inside:
                env[y] = env[y] + change
        for i in cone.eqns:
            run_equations([eqns[i]], env)
            for var in eqns[i].outvars:
                if var in shift:
                    env[var] = env[var] + shift[var]
        return [env[var] for var in group.hidden_outvars]

    def signals(self, perturb: Sequence[Any]) -> tuple[jax.Array, ...]:
        """Gradients of the perturbations, per group: ``l`` [S, *V]."""
        by_path = dict(zip(self.graph.hidden_perturb.perturb_hidden_paths, perturb, strict=True))
        return tuple(
            join_states(group, [by_path[path] for path in group.hidden_paths])
            for group in self.graph.hidden_groups
        )

    def late_signals(
        self, gradients: Mapping[Path, Any], groups: Container[int]
    ) -> tuple[jax.Array | None, ...]:
        """Gradients of old hidden values, per group: ``e`` [S, *V], ``None`` outside ``groups``."""
        return tuple(
            join_states(group, [gradients[path] for path in group.hidden_paths])
            if group.index in groups
            else None
            for group in self.graph.hidden_groups
        )

    def operand_values(self, params: Mapping[Path, Any]) -> list[list[Any]]:
        """Per relation, the values of all operands but ``x`` (``None`` there), from parameters.

        The parameter-only equations in front of each operand are run here, so that the gradients
        of the operands are pulled back to the parameters by differentiating this function.
        """
        info = self.graph.module_info
        env = dict(_jax.constants(info.jaxpr))
        for slot in info.slots_of(StateKind.PARAM):
            env.update(zip(info.invars_of(slot), jax.tree.leaves(params[slot.path]), strict=True))
        done: set[int] = set()
        found: list[list[Any]] = []
        for relation in self.graph.hidden_param_op_relations:
            values: list[Any] = [None] * len(relation.operands)
            for operand in (*relation.trainables, *relation.constants):
                self._run_chain(operand, env, done)
                values[operand.position] = read(env, operand.atom)
            found.append(values)
        return found

    def _run_chain(self, operand: TrainableOperand, env: dict[Var, Any], done: set[int]) -> None:
        todo = [i for i in operand.chain if i not in done]
        run_equations([self.graph.module_info.eqns[i] for i in todo], env)
        done.update(todo)

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
        traced = tuple(dict.fromkeys(p for r in relations for p in r.trainable_paths))
        fixed = {path: value for path, value in params.items() if path not in traced}

        def operands(chosen: dict[Path, Any]) -> list[dict[str, Any]]:
            values = self.operand_values({**fixed, **chosen})
            return [{t.key: values[r.index][t.position] for t in r.trainables} for r in relations]

        _, pull = jax.vjp(operands, {path: params[path] for path in traced})
        return pull([dict(c) for c in cotangents])[0]


def join_states(group: HiddenGroup, members: Sequence[Any]) -> jax.Array:
    """Stack one array per member along a leading state axis: [S, *V].

    The state axis leads in all internal arrays: a trailing axis of one or two entries makes every
    element-wise loop short.
    """
    return jnp.concatenate(
        [
            array[None] if array.shape == group.varshape else jnp.moveaxis(array, -1, 0)
            for array in members
        ]
    )


def split_states(group: HiddenGroup, joined: jax.Array) -> list[jax.Array]:
    """The inverse of :func:`join_states`."""
    parts, start = [], 0
    for var, count in zip(group.hidden_outvars, group.state_counts, strict=True):
        part = joined[start : start + count]
        whole = var.aval.shape == group.varshape
        parts.append(part[0] if whole else jnp.moveaxis(part, 0, -1))
        start += count
    return parts


def _one_hot_states(group: HiddenGroup, news: Sequence[Any]) -> list[list[Any]]:
    """For each state, cotangents that are one at that state of every position."""
    ones, zeros = jnp.ones(group.varshape), jnp.zeros(group.varshape)
    states = range(group.num_state)
    return [
        [
            part.astype(new.dtype)
            for part, new in zip(
                split_states(group, jnp.stack([ones if i == j else zeros for j in states])),
                news,
                strict=True,
            )
        ]
        for i in states
    ]


def _boundary(graph: ETraceGraph) -> tuple[Var, ...]:
    """Variables whose values determine the Jacobians of a step."""
    relations = graph.hidden_param_op_relations
    driven = {g for r in relations for g in r.group_alignments}
    produced = {var for eqn in graph.module_info.eqns for var in eqn.outvars}
    known = produced | set(graph.module_info.jaxpr.invars)
    wanted: dict[Any, None] = {}
    for group, cone in zip(graph.hidden_groups, graph.cones, strict=True):
        if group.index in driven:
            wanted.update(dict.fromkeys((*group.hidden_invars, *cone.free)))
    for relation in relations:
        wanted[relation.y_var] = None
        if relation.x_var is not None:
            wanted[relation.x_var] = None
    return tuple(var for var in wanted if _jax.is_var(var) and var in known)


def _refuse_forward_mode(graph: ETraceGraph, link: Link) -> None:
    """A broadcast ``y`` needs forward mode, which ``jax.custom_vjp`` functions do not have."""
    if link.bijective:
        return
    for i in graph.cones[link.group.index].eqns:
        eqn = graph.module_info.eqns[i]
        if eqn.primitive is _jax.jaxp.custom_vjp_call_p:
            raise NotSupportedError(
                f"{link.relation.primitive.name!r} at {link.relation.source} is broadcast over the "
                f"positions {math.prod(link.extra)} times on its way to a hidden state through a "
                f"jax.custom_vjp function at {_jax.source_of(eqn)}. Define that function with "
                "jax.custom_jvp, or give the parameter the shape of the state"
            )
