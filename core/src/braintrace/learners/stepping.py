# SPDX-License-Identifier: Apache-2.0
"""A model with traces: it is compiled, called and reset, and owns what changes meanwhile."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..algorithms.rule import LearningRule, check_jacobians
from ..base.errors import CompilationError
from ..base.types import Path, show_path
from ..compiler.batch_states import refuse_lost_examples, repeated_like
from ..compiler.graph import ETraceGraph
from ..compiler.program import StateKind
from ..compiler.requirements import check_same_states, check_states, checked_args
from ..drivers.online_step import online_step
from ..drivers.step_data import checked_steps, number_of_steps, one_step_of, steps_of
from ..drivers.tape import Tape
from ..drivers.window_step import window_step
from ..executor.graph_executor import ETraceGraphExecutor
from ..executor.step import Executor
from .options import check_options, options_of, without_obsolete
from .report import trace_report
from .resets import reset_model


class EligibilityTrace(brainstate.ShortTermState):
    """A state that holds eligibility traces: a pytree of arrays, in the form of its rule.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> x = jnp.ones((2, 3))
    >>> learner = braintrace.compile(braintrace.nn.GRUCell(3, 4), "d_rtrl", x, batch_size=2)
    >>> all(isinstance(trace, braintrace.EligibilityTrace) for trace in learner.traces)
    True
    """


class SteppingLearner(brainstate.nn.Module):
    """A learner without its sequence drivers; see :class:`ETraceAlgorithm`."""

    #: ``'single-step'``, or ``'multi-step'`` for a learner that learns in windows.
    vjp_method = "single-step"

    def __init__(self, model: brainstate.nn.Module, **options: Any) -> None:
        named: dict[str, Any] = {"name": options.pop("name", None)}
        super().__init__(**named)
        if not isinstance(model, brainstate.nn.Module):
            raise TypeError(f"model must be a brainstate.nn.Module, got {type(model).__name__}")
        if isinstance(model, SteppingLearner):
            raise TypeError(
                f"model is a learner already ({type(model).__name__}); pass the model that it wraps"
            )
        options = without_obsolete(type(self), options)
        check_options(type(self), options)
        self.model = model
        self._executor = self.make_executor(model, **options)
        self.traces: tuple[EligibilityTrace, ...] = ()
        self.running_index = brainstate.ShortTermState(jnp.zeros((), jnp.int32))
        self._rule: LearningRule | None = None
        self._tape: Tape | None = None
        self.calls = 0

    def make_executor(self, model: brainstate.nn.Module, **options: Any) -> ETraceGraphExecutor:
        """What runs and differentiates the steps of a model."""
        return ETraceGraphExecutor(model, **options)

    def make_rule(self, executor: Executor) -> LearningRule:
        """The learning rule for a compiled model."""
        raise NotImplementedError(f"{type(self).__name__} does not define make_rule")

    # --- compiling ---------------------------------------------------------------------------

    def compile_graph(self, *args: Any) -> None:
        """Compile the model for arguments like ``args`` and start with traces of zeros.

        Parameters
        ----------
        *args
            Example arguments of a call; only shapes and dtypes matter. Those in a
            :class:`braintrace.MultiStepData` hold several steps, of which one is looked at.

        Raises
        ------
        CompilationError, NotSupportedError
            See :func:`braintrace.compile_etrace_graph`.
        """
        executor = self._executor.for_model(self.model, compiled=False)
        executor.compile_graph(*one_step_of(args))
        rule = self._adopt(executor)
        self.traces = tuple(EligibilityTrace(trace) for trace in rule.init())

    def _adopt(self, executor: ETraceGraphExecutor) -> LearningRule:
        """Learn by the learner's rule with a compiled executor from now on."""
        rule = self.make_rule(executor.compiled)
        check_jacobians(rule)
        # As a whole: outside of jit, the loops in it would be compiled anew at each call.
        self._executor, self._rule, self._step = executor, rule, jax.jit(self.make_step(rule))
        return rule

    def make_step(self, rule: LearningRule) -> Any:
        """The step, or the window, as a function whose reverse mode is the learning rule."""
        return window_step(rule) if self.vjp_method == "multi-step" else online_step(rule)

    @property
    def executor(self) -> ETraceGraphExecutor:
        """What runs and differentiates a step of the model.

        A learner that was copied with its model is compiled anew for the copy here.
        """
        if self._executor.model is not self.model:
            executor = self._executor.for_model(self.model)
            if executor.is_compiled:
                self._adopt(executor)
            self._executor = executor
        return self._executor

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled, because brainstate states cannot be "
            "pickled; make the model and the learner where they are needed, and carry their "
            "values over with learner.save(path) and learner.restore(path). copy.deepcopy copies "
            "a learner"
        )

    @property
    def rule(self) -> LearningRule:
        """The learning rule of the compiled model."""
        self.graph  # noqa: B018  raises before compile_graph
        if self._rule is None:
            raise CompilationError("call compile_graph(*example_inputs) before using the learner")
        return self._rule

    @property
    def graph(self) -> ETraceGraph:
        """What the compiler found."""
        return self.executor.graph

    @property
    def report(self) -> str:
        """What the compiler found and what the traces take, as text."""
        return f"{self.graph.report()}\n\n{trace_report(self.rule, self.vjp_method)}"

    @property
    def own_options(self) -> dict[str, Any]:
        """What the learner was made with besides its configuration, by name."""
        named = options_of(type(self)).keys() - {"config"}
        return {name: value for name, value in vars(self).items() if name in named}

    def states_of(self, kind: StateKind) -> dict[Path, brainstate.State[Any]]:
        """States of the compiled step of a kind, by path."""
        return {slot.path: slot.state for slot in self.graph.module_info.slots_of(kind)}

    @property
    def param_states(self) -> dict[Path, brainstate.State[Any]]:
        """All parameters of the model, by path."""
        return dict(brainstate.graph.states(self.model, brainstate.ParamState))

    @property
    def hidden_states(self) -> dict[Path, brainstate.State[Any]]:
        """Hidden states of the compiled step, by path."""
        return self.states_of(StateKind.HIDDEN)

    @property
    def other_states(self) -> dict[Path, brainstate.State[Any]]:
        """Further states of the compiled step, by path."""
        return self.states_of(StateKind.OTHER)

    def get_etrace_of(self, weight: Path | brainstate.State[Any]) -> list[dict[str, Any]]:
        """The traces of a parameter, one dict per relation and hidden group it takes part in.

        D-RTRL: an array for each trainable key, with a trailing state axis: [B, in, out, S] for a
        dense product of a batch. pp_prop: the filtered input ``"x"``, [B, in] (absent for an
        operation without one), and the filtered factor ``"f"``, [B, out, S].

        Parameters
        ----------
        weight
            The parameter or its path.

        Raises
        ------
        KeyError
            When the parameter has no trace.
        """
        path = weight
        if isinstance(weight, brainstate.State):
            path = next((p for p, s in self.param_states.items() if s is weight), ("?",))
        traces = tuple(trace.value for trace in self.traces)
        found = [
            self.rule.of_link(traces, i)
            for i, link in enumerate(self.rule.links)
            if path in link.relation.parameter_paths
        ]
        if not found:
            known = [
                show_path(p) for link in self.rule.links for p in link.relation.parameter_paths
            ]
            name = show_path(path) if isinstance(path, tuple) else repr(path)
            raise KeyError(f"{name} has no trace; parameters with one are {sorted(set(known))}")
        return found

    def reset_state(
        self, batch_size: int | None = None, *, model_states: bool = False, **kwargs: Any
    ) -> None:
        """Set the traces (and with ``model_states=True`` those of the model) to their start.

        Parameters
        ----------
        batch_size
            Passed on to the model's ``reset_state``, so that it has an effect with
            ``model_states=True`` only. When the model's states come out for another batch
            than before, the model is compiled for it, which takes as long as compiling it did. The
            batch of an argument is then its first axis, or else its only one, that is as long as
            the old batch.
        model_states
            Whether the model's states are reset too, by ``brainstate.nn.reset_all_states``. A
            module without a ``reset_state`` of its own keeps its states.

        Raises
        ------
        ValueError
            When the model's states come out with other shapes than those of another batch, or
            the model cannot be compiled for it; the states then stay as they were.
        """
        check_same_states(self.model, self.graph.module_info)
        executor = self.executor
        if model_states:
            executor = reset_model(executor, batch_size, **kwargs)
        other_batch = executor is not self.executor
        if other_batch:
            self._adopt(executor)
        for trace, zero in zip(self.traces, self.rule.init(), strict=True):
            # the traces of a learner that was compiled under vmap have an axis of examples
            trace.value = zero if other_batch else repeated_like(zero, trace.value)
        self.running_index.value = jnp.zeros((), jnp.int32)

    def init_etrace_state(self) -> None:
        """Set the traces to zero: :meth:`reset_state` by its name in version 0.2."""
        self.reset_state()

    def show_graph(self, verbose: bool = True, return_msg: bool = False) -> str | None:
        """Print (``verbose``) or return :attr:`report`."""
        if verbose:
            print(self.report)
        return self.report if return_msg else None

    # --- one call ----------------------------------------------------------------------------

    def update(self, *args: Any) -> Any:
        """Run the model and the traces for one step, or for those of a window.

        Parameters
        ----------
        *args
            Arguments like those the learner was compiled for. Arguments in a
            :class:`braintrace.MultiStepData` [k, ...] are those of ``k`` steps.

        Returns
        -------
        The model's result, [k, ...] for ``k`` steps. Its gradient with respect to the parameters
        is the online gradient; with respect to the arguments it is that of the current step (or
        window), and with respect to states zero: credit for the past is in the traces.

        Raises
        ------
        CompilationError
            Before :meth:`compile_graph`, or when the model's states were made anew since.
        ValueError
            When an argument or a state has another shape, dtype or structure than the compiled one.
        NotSupportedError
            When the gradient is differentiated once more.
        """
        return self._run(args)

    def _run(self, args: tuple[Any, ...], given: Any = None) -> Any:
        """A call with what a rule is given besides the model's arguments."""
        steps = number_of_steps(args)
        if self.vjp_method == "multi-step":
            return self._run_window(args, steps)
        if steps is not None:
            if self._tape is not None:
                raise ValueError(
                    "step_fn passes a MultiStepData; a sequence is taken step by step, pass the "
                    "slice that step_fn gets (or chunk_size, with vjp_method='multi-step')"
                )
            return brainstate.transform.for_loop(
                lambda now: self._run(now, given), steps_of(args, steps)
            )
        return self._run_step(args, given)

    def _run_step(self, args: tuple[Any, ...], given: Any) -> Any:
        leaves = checked_args(self.graph.module_info, one_step_of(args))
        params, values = self._values()
        if self._tape is not None:
            self._tape.check_hidden()
            out, new, boundary = self.rule.executor.run(
                leaves, {**params, **values}, self._tape.perturb
            )
            refuse_lost_examples(values, new)
            self._tape.boundaries.append((boundary, given))
        else:
            traces = tuple(t.value for t in self.traces)
            out, new, traces = self._step(params, leaves, values, traces, given)
            refuse_lost_examples(values, new)
            self.write_traces(traces, 1)
        self._write_states(new)
        if self._tape is not None:
            self._tape.keep_hidden()
        return out

    def _run_window(self, args: tuple[Any, ...], steps: int | None) -> Any:
        info = self.graph.module_info
        if steps is None:
            wrap = "wrap arguments of several steps in braintrace.MultiStepData"
            leaves = [leaf[None] for leaf in checked_args(info, one_step_of(args), wrap)]
        else:
            leaves = checked_steps(info, args, steps)
        params, values = self._values()
        traces = tuple(t.value for t in self.traces)
        out, new, traces = self._step(params, self._predictor(), leaves, values, traces)
        refuse_lost_examples(values, new)
        self.write_traces(traces, steps or 1)
        self._write_states(new)
        self.calls += 1
        return out if steps is not None else jax.tree.map(lambda v: v[0], out)

    def _predictor(self) -> Any:
        """Parameters of what predicts the gradients of later losses, if anything does."""
        return {}

    def _values(self) -> tuple[dict[Path, Any], dict[Path, Any]]:
        """Values of the parameters, and of the other states, of the compiled step."""
        check_states(self.model, self.graph.module_info)
        slots = self.graph.module_info.slots
        values = {slot.path: slot.state.value for slot in slots}
        params = {s.path: values.pop(s.path) for s in slots if s.kind is StateKind.PARAM}
        return params, values

    def write_traces(self, traces: Any, steps: int) -> None:
        """Take the traces after some more steps."""
        for state, trace in zip(self.traces, traces, strict=True):
            state.value = trace
        self.running_index.value = self.running_index.value + steps

    def _write_states(self, new: dict[Path, Any]) -> None:
        for slot in self.graph.module_info.slots:
            if slot.kind is not StateKind.PARAM:
                slot.state.value = new[slot.path]

    def attach(self, tape: Tape | None) -> None:
        """Record the next call on a tape, or (``None``) run steps again."""
        self._tape = tape
