# SPDX-License-Identifier: Apache-2.0
"""The executor: one step of a compiled model, with its Jacobians."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.errors import CompilationError
from ..base.types import Path
from ..base.versions import Var
from ..compiler.compile import compile_etrace_graph
from ..compiler.cones import Cone, Pattern
from ..compiler.graph import ETraceGraph
from ..compiler.groups import HiddenGroup
from ..compiler.operands import TrainableOperand
from ..compiler.program import StateKind
from ..compiler.relation import HiddenParamOpRelation
from ..compiler.transitions import Transition
from ..jaxprs.run import read, run_equations
from ..ops.operation import Operation
from .jacobians import StepJacobians, boundary_of, takes_forward_mode, zeros_of
from .layout import Link, Positions, join_states
from .sweeps import Reverse, block_diagonal, factor_by_position


class ETraceGraphExecutor:
    """Compiles a model and runs its steps.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    **options
        Options of :func:`braintrace.compile_etrace_graph`.

    Raises
    ------
    TypeError
        For an unknown option.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> executor = braintrace.ETraceGraphExecutor(cell)
    >>> executor.compile_graph(jnp.ones((2, 3)))
    >>> len(executor.graph.hidden_param_op_relations), sorted(executor.path_to_states)[0]
    (2, ('Wh', 'weight'))
    """

    def __init__(self, model: brainstate.nn.Module, **options: Any) -> None:
        unknown = sorted(options.keys() - compile_options())
        if unknown:
            raise TypeError(
                f"unknown option {unknown[0]!r}; options of compiling are "
                f"{sorted(compile_options())}"
            )
        self.model = model
        self.options = options
        self._graph: ETraceGraph | None = None

    def compile_graph(self, *args: Any) -> None:
        """Compile for arguments of these shapes and dtypes; see ``compile_etrace_graph``."""
        graph = compile_etrace_graph(self.model, *args, **self.options)
        links = tuple(
            Link(relation, graph.hidden_groups[g], alignment)
            for relation in graph.hidden_param_op_relations
            for g, alignment in relation.group_alignments.items()
        )
        self._graph, self.near_links, self.links = graph, links, self.arranged(graph, links)
        self.boundary = boundary_of(graph)

    def arranged(self, graph: ETraceGraph, links: tuple[Link, ...]) -> tuple[Link, ...]:
        """The links as learning rules see them."""
        return links

    def for_model(self, model: brainstate.nn.Module, compiled: bool = True) -> ETraceGraphExecutor:
        """An executor of another model with the same options, compiled if this one is.

        Parameters
        ----------
        model
            A model like this one's, such as a copy of it. It is compiled for arguments of the same
            shapes and dtypes and under the same settings of ``brainstate.environ``.
        compiled
            ``False``: do not compile it.

        Raises
        ------
        CompilationError, NotSupportedError
            As :meth:`compile_graph`.
        """
        other = type(self)(model, **self.options)
        if compiled and self._graph is not None:
            with self._graph.module_info.as_when_traced() as args:
                other.compile_graph(*args)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> ETraceGraphExecutor:
        return self.for_model(copy.deepcopy(self.model, memo))

    @property
    def is_compiled(self) -> bool:
        """Whether there is a graph."""
        return self._graph is not None

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

    def passing(self, index: int) -> Pattern:
        """Which entries of a group's ``D`` are not structurally zero [S][S]."""
        return self.graph.cones[index].passing

    def driving(self, index: int) -> tuple[bool, ...]:
        """Which states of its group a link drives: where ``f`` is not structurally zero [S]."""
        link = self.links[index]
        return self.graph.cones[link.group.index].driving[link.relation.y_var]

    @property
    def sources(self) -> dict[int, int]:
        """For each relation with an input, by index, the first one with the same input."""
        found = [r for r in self.graph.hidden_param_op_relations if r.x_var is not None]
        return {r.index: next(one.index for one in found if one.x_var is r.x_var) for r in found}

    def operation(
        self, relation: HiddenParamOpRelation, group: Positions | None = None
    ) -> Operation:
        """A relation's operation as its rules see it, in one of its hidden groups."""
        return Operation(
            spec=relation.spec,
            params=relation.eqn_params,
            operand_avals=tuple(atom.aval for atom in relation.operands),
            y_aval=relation.y_var.aval,
            traced=tuple(t.key for t in relation.trainables),
            group=group,
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
            One array per hidden state, in the order of ``graph.perturbed``; zeros if omitted.

        Returns
        -------
        out, states, boundary
            The result, the new values of the states, and the values of :attr:`boundary`, from
            which :meth:`jacobians` is computed.
        """
        info, plan = self.graph.module_info, self.graph.perturbed
        leaves = [leaf for slot in info.slots for leaf in jax.tree.leaves(states[slot.path])]
        perturb = plan.init_perturb_data() if perturb is None else perturb
        outputs, boundary = plan.eval_jaxpr([*args, *leaves], perturb, self.boundary)
        return *self._results(outputs), tuple(boundary)

    def run_plain(
        self, args: Sequence[Any], states: Mapping[Path, Any]
    ) -> tuple[Any, dict[Path, Any], tuple[Any, ...]]:
        """Run one step as it was traced: its derivative is the ordinary one, with every path.

        Parameters and results are those of :meth:`run`.
        """
        info = self.graph.module_info
        leaves = [leaf for slot in info.slots for leaf in jax.tree.leaves(states[slot.path])]
        env = versions.start_env(info.jaxpr, (*args, *leaves))
        run_equations(info.eqns, env)
        outputs = [read(env, atom) for atom in info.jaxpr.outvars]
        return *self._results(outputs), tuple(read(env, var) for var in self.boundary)

    def _results(self, outputs: Sequence[Any]) -> tuple[Any, dict[Path, Any]]:
        """The model's result and the new values of its states, from the outputs of a step."""
        info = self.graph.module_info
        new = outputs[info.num_out :]
        states = {
            slot.path: slot.treedef.unflatten([new[i] for i in slot.leaves]) for slot in info.slots
        }
        return info.out_treedef.unflatten(outputs[: info.num_out]), states

    def jacobians(self, boundary: Sequence[Any]) -> StepJacobians:
        """``x``, ``f`` and ``D`` of a step, from the values of its boundary.

        While positions are apart, one reverse sweep per state with a cotangent of ones gives
        ``D[p, i, :]`` and ``f_r[p, i]`` of all relations at once. A relation whose ``y`` is
        broadcast over positions takes a forward sweep instead, because a reverse one would sum.
        Along axes where positions are mixed, there is a reverse sweep for each of them.
        """
        env = dict(zip(self.boundary, boundary, strict=True))
        info = self.graph.module_info
        env.update(versions.constants(info.jaxpr))
        found: dict[int, jax.Array] = {}
        transitions: list[jax.Array | None] = []
        for group, cone in zip(self.graph.hidden_groups, self.graph.cones, strict=True):
            links = {i: k for i, k in enumerate(self.near_links) if k.group is group}
            transition, factors = self._group_jacobians(group, cone, links, env)
            transitions.append(transition)
            found.update(factors)
        x = tuple(
            None if r.x_var is None else read(env, r.x_var)
            for r in self.graph.hidden_param_op_relations
        )
        return StepJacobians(x, tuple(found[i] for i in range(len(self.links))), tuple(transitions))

    def jacobian_types(self) -> StepJacobians:
        """Types of what :meth:`jacobians` gives, without tracing it."""
        relations, groups = self.graph.hidden_param_op_relations, self.graph.hidden_groups

        def array(shape: tuple[int, ...], *avals: Any) -> Any:
            return jax.ShapeDtypeStruct(shape, jnp.result_type(*(aval.dtype for aval in avals)))

        def factor(link: Link, near: Link) -> Any:
            y, forward = link.relation.y_var.aval, takes_forward_mode(self.graph, near)
            states = [var.aval for var in groups[link.group.index].hidden_outvars]
            shape = (link.group.num_state, *link.extra, *y.shape)
            return array(shape, *(states if forward else [y]))

        positions = {link.group.index: link.group for link in self.links}

        def transition(group: HiddenGroup, cone: Cone) -> Any:
            found = positions.get(group.index)
            if found is None or cone.transition is None:
                return None
            shape = (found.num_state, found.num_state, *found.varshape)
            return array(shape, *(var.aval for var in group.hidden_invars))

        xs = (None if r.x_var is None else r.x_var.aval for r in relations)
        return StepJacobians(
            tuple(None if x is None else array(x.shape, x) for x in xs),
            tuple(map(factor, self.links, self.near_links)),
            tuple(transition(*pair) for pair in zip(groups, self.graph.cones, strict=True)),
        )

    def _group_jacobians(
        self, group: HiddenGroup, cone: Cone, links: Mapping[int, Link], env: dict[Var, Any]
    ) -> tuple[jax.Array | None, dict[int, jax.Array]]:
        """``D`` of a group and ``f`` of its links."""
        if not links:
            return None, {}
        forward = [i for i, k in links.items() if takes_forward_mode(self.graph, k)]
        moved = self._cone_function(group, cone, links, env)
        sweep = self._cone_sweep(group, cone, links, env, [i for i in links if i not in forward])
        rows = sweep.rows()
        factors = {}
        for i, link in links.items():
            if i in forward:
                factors[i] = link.to_y(join_states(group, moved(i)), 1)
            elif link.extra:
                factors[i] = factor_by_position(sweep, link, i)
            else:
                factors[i] = jnp.stack([row[1][i] for row in rows])
        return self._transition(group, cone, sweep, rows, env), factors

    def _cone_sweep(
        self,
        group: HiddenGroup,
        cone: Cone,
        links: Mapping[int, Link],
        env: dict[Var, Any],
        chosen: Sequence[int],
    ) -> Reverse:
        """Reverse mode of a group's new values in its old ones and the ``y`` of chosen links."""
        zeros = zeros_of(links)
        olds = [env[var] for var in group.hidden_invars] if cone.old_reaches else []

        def new_values(olds: list[Any], perturb: dict[int, Any]) -> list[Any]:
            shift = {links[i].relation.y_var: perturb.get(i, zero) for i, zero in zeros.items()}
            return self._run_cone(group, cone, olds, shift, env)

        at_zero = {i: zeros[i] for i in chosen}
        return Reverse(group, *jax.lax.optimization_barrier(jax.vjp(new_values, olds, at_zero)))

    def _cone_function(
        self, group: HiddenGroup, cone: Cone, links: Mapping[int, Link], env: dict[Var, Any]
    ) -> Callable[[int], list[Any]]:
        """Per link, the forward derivative of the group's new values along ones in its ``y``."""
        zeros = zeros_of(links)
        olds = [env[var] for var in group.hidden_invars] if cone.old_reaches else []

        def moved(i: int) -> list[Any]:
            def new_values(y: Any) -> list[Any]:
                shift = {links[k].relation.y_var: zero for k, zero in zeros.items()}
                shift[links[i].relation.y_var] = y
                return self._run_cone(group, cone, olds, shift, env)

            return jax.jvp(new_values, (zeros[i],), (jnp.ones_like(zeros[i]),))[1]

        return moved

    def _transition(
        self,
        group: HiddenGroup,
        cone: Cone,
        sweep: Reverse,
        rows: Sequence[Any],
        env: dict[Var, Any],
    ) -> jax.Array | None:
        """``D`` of a group [S, S, *V]; ``None`` when it is structurally zero."""
        transition = cone.transition
        if transition is None:
            return None
        sweep = self._transition_sweep(group, transition, sweep, env)
        if transition.mixed:
            return block_diagonal(sweep, transition.mixed)
        rows = rows if transition.program is None else sweep.rows()
        return jnp.stack([join_states(group, row[0]) for row in rows])

    def _transition_sweep(
        self, group: HiddenGroup, transition: Transition, sweep: Reverse, env: dict[Var, Any]
    ) -> Reverse:
        """Reverse mode of the transition: that of the cone, unless it has a program of its own."""
        if transition.program is None:
            return sweep
        held = [read(env, var) for var in transition.free]
        call = versions.jaxpr_as_fun(transition.program)
        olds = [env[var] for var in group.hidden_invars]
        news, pull = jax.vjp(lambda olds: call(*held, *olds), olds)
        return Reverse(group, news, lambda cotangents: (*pull(cotangents), {}))

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
        by_path = dict(zip(self.graph.perturbed.perturb_hidden_paths, perturb, strict=True))
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
        env = versions.constants(info.jaxpr)
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
        traced = tuple(dict.fromkeys(p for r in relations for p in r.parameter_paths))
        fixed = {path: value for path, value in params.items() if path not in traced}

        def operands(chosen: dict[Path, Any]) -> list[dict[str, Any]]:
            values = self.operand_values({**fixed, **chosen})
            return [{t.key: values[r.index][t.position] for t in r.trainables} for r in relations]

        _, pull = jax.vjp(operands, {path: params[path] for path in traced})
        return pull([dict(c) for c in cotangents])[0]


def compile_options() -> frozenset[str]:
    """Names of the options of compiling."""
    parameters = inspect.signature(compile_etrace_graph).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
