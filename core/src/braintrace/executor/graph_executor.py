# SPDX-License-Identifier: Apache-2.0
"""The public executors: a model, its compiled step once there is one, and Jacobians by name."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator
from functools import cached_property
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
from brainstate.util import FlattedDict

from ..base import versions
from ..base.errors import CompilationError, NotCompiledError, refuse_unused
from ..base.former import OPTIONS, FormerAttributes, former_options, instead
from ..base.types import Path
from ..compiler.compile import compile_etrace_graph
from ..compiler.coverage import by_path
from ..compiler.findings.downstream import as_written
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import StateKind
from ..compiler.places import made_here, traced_without_place
from ..compiler.requirements import check_states, checked_args
from .executor import Executor
from .jacobians import JACOBIANS

#: What an executor had of a step before :class:`Executor` ran it, and what it is called there.
STEP = {name: name for name in "run run_plain signals operand_values param_gradients".split()}
STEP |= {name: name for name in "passing driving driven sources links".split()}
STEP |= {"late_signals": "old_signals", "boundary": "inputs_of_jacobians"}


class HiddenToWeight(NamedTuple):
    """How a relation's weights act on one of its hidden groups at a step.

    Attributes
    ----------
    paths
        The parameters of the relation.
    group
        Number of the hidden group.
    x
        The input of the operation; ``None`` for one without.
    f
        ``d h_g / d y`` [*E, *Y, S], with ``E`` the axes of the group that ``y`` lacks. For a dense
        product, ``d h / d W`` is the product of ``x`` and ``f``.
    """

    paths: tuple[Path, ...]
    group: int
    x: Any
    f: jax.Array


class ETraceGraphExecutor(FormerAttributes):
    """Compiles a model and runs its steps.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    jacobians
        ``'near'``: ``D`` and ``f`` hold the entries between equal positions; ``'whole'``: every
        entry within a hidden group, as UORO, SnAp and RTRL need; ``recurrence_scope`` is
        ``'coupled'`` then, unless it is given.
    **options
        Options of :func:`braintrace.compile_etrace_graph`.

    Raises
    ------
    TypeError, ValueError
        For an unknown option, or other Jacobians.

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

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_unused(cls, dict.fromkeys(STEP, "braintrace.executor.executor.Executor runs a step"))

    def __getattr__(self, name: str) -> Any:
        if name not in STEP:
            return super().__getattr__(name)
        new = STEP[name]
        versions.warn(f"{name} of an executor is executor.compiled.{new} now", DeprecationWarning)
        return getattr(self.compiled, new)

    def __init__(
        self, model: brainstate.nn.Module, *, jacobians: str = "near", **options: Any
    ) -> None:
        options = former_options(options)
        if jacobians not in JACOBIANS:
            raise ValueError(f"jacobians must be one of {(*JACOBIANS,)}, got {jacobians!r}")
        known = sorted(compile_options())
        if unknown := sorted(options.keys() - known):
            text = f"unknown option {unknown[0]!r}{instead(unknown[0], OPTIONS)}"
            raise TypeError(f"{text}; options of compiling are {known}")
        if jacobians == "whole":
            options = {"recurrence_scope": "coupled", **options}
            if options["recurrence_scope"] != "coupled":
                raise ValueError(
                    "jacobians='whole' needs recurrence_scope='coupled', got "
                    f"{options['recurrence_scope']!r}, which cuts what is between positions"
                )
        if isinstance(options.get("frozen"), Iterator):  # it is read at every compilation
            options["frozen"] = (*options["frozen"],)
        self.model, self.jacobians, self.options = model, jacobians, options
        self._compiled: Executor | None = None
        self._graph: Any = None

    def compile_graph(self, *args: Any) -> None:
        """Compile for arguments of these shapes and dtypes; see ``compile_etrace_graph``."""

        def compiled(*args: Any) -> None:
            self._graph = compile_etrace_graph(self.model, *args, **self.options)
            self._compiled = self._of(self._graph)

        traced_without_place(compiled, args)
        made_here(slot.state for slot in self.graph.executed.module_info.slots if slot.is_filter)

    def _of(self, graph: ETraceGraph) -> Executor:
        """What runs the steps of a graph, as they are written where filters are refused."""
        try:
            return Executor(graph.executed, self.jacobians)
        except CompilationError as why:
            if graph.filtered is None or graph.exact is not None:
                raise
            self._graph = as_written(graph, str(why))
        return self._of(self._graph)

    def run_as_written(self, why: str) -> None:
        """Run the compiled step without filters in front of its uniform states, for a reason."""
        self._graph = as_written(self.graph, why)
        self._compiled = self._of(self._graph)

    @cached_property
    def with_leaks(self) -> ETraceGraphExecutor:
        """The same with the leaks of the model, and no traces of uniform states beside them."""
        other = self.for_model(self.model, compiled=False)
        own = {"kappa", "keeps_traces"}
        other.options = {name: v for name, v in other.options.items() if name not in own}
        with self.graph.module_info.as_when_traced() as args:
            other.compile_graph(*args)
        return other

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
        other = copy.copy(self)
        other.model, other._compiled, other._graph = model, None, None
        vars(other).pop("with_leaks", None)
        if model is not self.model and "frozen" in self.options:
            states = brainstate.graph.states(self.model, brainstate.ParamState)
            other.options = {**self.options, "frozen": by_path(states, self.options["frozen"])}
        if compiled and self._compiled is not None:
            with self.graph.module_info.as_when_traced() as args:
                other.compile_graph(*args)
            other.compiled.divide(self.compiled.divided)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> ETraceGraphExecutor:
        return self.for_model(copy.deepcopy(self.model, memo))

    @property
    def is_compiled(self) -> bool:
        """Whether there is a graph."""
        return self._compiled is not None

    @property
    def compiled(self) -> Executor:
        """What runs the steps; raises ``CompilationError`` before :meth:`compile_graph`."""
        if self._compiled is None:
            raise NotCompiledError("call compile_graph(*example_inputs) before using the learner")
        return self._compiled

    @property
    def graph(self) -> ETraceGraph:
        """The compiled graph; raises ``CompilationError`` before :meth:`compile_graph`."""
        self.compiled  # noqa: B018  raises before compile_graph
        return self._graph

    @property
    def path_to_states(self) -> dict[Path, brainstate.State[Any]]:
        """The states of the step, by path."""
        return FlattedDict(self.graph.module_info.compiled_model_states)

    @property
    def state_id_to_path(self) -> dict[brainstate.State[Any], Path]:
        """The path of each state of the step; the key is the state itself."""
        return self.graph.module_info.state_id_to_path

    @property
    def states(self) -> tuple[brainstate.State[Any], ...]:
        """The states of the step."""
        return tuple(self.path_to_states.values())

    def show_graph(self, verbose: bool = True, return_msg: bool = False) -> str | None:
        """Print (``verbose``) or return what the compiler found."""
        report = self.graph.report()
        if verbose:
            print(report)
        return report if return_msg else None

    def solve_h2w_h2h_jacobian(self, *args: Any) -> tuple[Any, ...]:
        """Run a step and its Jacobians; no state is written.

        Parameters
        ----------
        *args
            Arguments of the model.

        Returns
        -------
        out, hidden, other, h2w, h2h
            The model's result; new values of hidden and of other states, by path; one
            :class:`HiddenToWeight` per relation and group; ``D`` [*V, S, S] by number of the group
            (``None`` where it is structurally zero, or no relation leads).

        Raises
        ------
        CompilationError, TypeError, ValueError
            As for a call of a learner.
        """
        return self.solve_h2w_h2h_l2h_jacobian(*args)[:-1]

    def solve_h2w_h2h_l2h_jacobian(self, *args: Any) -> tuple[Any, ...]:
        """Like :meth:`solve_h2w_h2h_jacobian`, with the pull-back to the hidden states.

        Returns
        -------
        out, hidden, other, h2w, h2h, l2h
            ``l2h(out_bar)`` gives, for a cotangent like ``out``, the learning signals ``l`` [*V, S]
            by number of the group.
        """
        step, info = self.compiled, self.graph.module_info
        if step.graph is not self.graph:  # that holds filters in place of uniform states
            step = Executor(self.graph, self.jacobians)
        check_states(self.model, info)
        leaves = checked_args(info, args)
        states = {slot.path: slot.state.value for slot in info.slots}

        def run(perturb: Any) -> tuple[Any, Any]:
            out, *further = step.run(leaves, states, perturb)
            return out, further

        zeros = self.graph.perturbed.init_perturb_data()
        out, pull, (new, inputs_of_jacobians) = jax.vjp(run, zeros, has_aux=True)
        found = step.jacobians_at(inputs_of_jacobians)
        hidden, other = (
            {slot.path: new[slot.path] for slot in info.slots_of(kind)}
            for kind in (StateKind.HIDDEN, StateKind.OTHER)
        )
        h2w = tuple(
            HiddenToWeight(k.relation.parameter_paths, k.group.index, x, jnp.moveaxis(f, 0, -1))
            for k in step.links
            for x, f, _ in (found.of(k),)
        )
        h2h = {
            g: None if d is None else jnp.moveaxis(d, (0, 1), (-2, -1))
            for g, d in enumerate(found.transition)
        }

        def l2h(out_bar: Any) -> dict[int, jax.Array]:
            signals = step.signals(pull(out_bar)[0])
            return {g: jnp.moveaxis(signal, 0, -1) for g, signal in enumerate(signals)}

        return out, hidden, other, h2w, h2h, l2h


class ETraceVjpGraphExecutor(ETraceGraphExecutor):
    """An executor by the name under which published code asks for the Jacobians of a step.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    vjp_method
        ``'single-step'`` or ``'multi-step'``, which is how a learner uses the Jacobians: those of a
        window are those of its steps.
    **options
        See :class:`ETraceGraphExecutor`.

    Raises
    ------
    TypeError, ValueError
        As for :class:`ETraceGraphExecutor`, and for another ``vjp_method``.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> executor = braintrace.ETraceVjpGraphExecutor(cell)
    >>> executor.compile_graph(jnp.ones((2, 3)))
    >>> out, hidden, other, h2w, h2h = executor.solve_h2w_h2h_jacobian(jnp.ones((2, 3)))
    >>> h2w[0].paths, h2w[0].f.shape, h2h[0].shape
    ((('Wz', 'weight'),), (2, 4, 1), (2, 4, 1, 1))
    """

    def __init__(
        self, model: brainstate.nn.Module, vjp_method: str = "single-step", **options: Any
    ) -> None:
        if vjp_method not in ("single-step", "multi-step"):
            raise ValueError(
                f"vjp_method must be 'single-step' or 'multi-step', got {vjp_method!r}"
            )
        super().__init__(model, **options)
        self.vjp_method = vjp_method
        self.is_single_step_vjp = vjp_method == "single-step"
        self.is_multi_step_vjp = not self.is_single_step_vjp


def compiled_step(executor: ETraceGraphExecutor | Executor) -> Executor:
    """What runs the steps: of a public executor, its compiled one."""
    return executor.compiled if isinstance(executor, ETraceGraphExecutor) else executor


def compile_options() -> frozenset[str]:
    """Names of the options of compiling."""
    parameters = inspect.signature(compile_etrace_graph).parameters.values()
    return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)
