# SPDX-License-Identifier: Apache-2.0
"""Learners: the objects that own traces and touch the states of a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from . import _jax
from ._algorithm import LearningRule
from ._checks import (
    check_options,
    check_same_states,
    check_states,
    checked_args,
    checked_weights,
    require_callable,
    warn_of_unreset,
)
from ._compile import ETraceGraph, StateKind, show_path
from ._errors import CompilationError
from ._execute import ETraceGraphExecutor
from ._online import add_gradients, not_differentiable, online_step
from ._sequence import (
    BlockRunner,
    Tape,
    auto_block_size,
    common_length,
    flat_states,
    sweep,
    trace_step,
    write_states,
)

Path = tuple[Any, ...]
CACHED_DRIVERS = 16


class EligibilityTrace(brainstate.ShortTermState):
    """A state that holds eligibility traces: a pytree of arrays, in the form of its rule."""


class ETraceAlgorithm(brainstate.nn.Module):
    """Base of the learners: a model with eligibility traces.

    A learner is called like the model it wraps. Differentiating a loss of its result with
    ``brainstate.transform.grad`` with respect to ``learner.param_states`` gives online gradients;
    :meth:`etrace_grad` gives those of a whole sequence, much faster.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    **options
        Options of :func:`braintrace.compile_etrace_graph`.

    Notes
    -----
    A subclass says which learning rule it is by :meth:`make_rule`.
    """

    def __init__(self, model: brainstate.nn.Module, **options: Any) -> None:
        super().__init__()
        if not isinstance(model, brainstate.nn.Module):
            raise TypeError(f"model must be a brainstate.nn.Module, got {type(model).__name__}")
        if isinstance(model, ETraceAlgorithm):
            raise TypeError(
                f"model is a learner already ({type(model).__name__}); pass the model that it wraps"
            )
        check_options(type(self), options)
        self.model = model
        self._executor = ETraceGraphExecutor(model, **options)
        self.traces: tuple[EligibilityTrace, ...] = ()
        self.running_index = brainstate.ShortTermState(jnp.zeros((), jnp.int32))
        self._rule: LearningRule | None = None
        self._tape: Tape | None = None
        self._drivers: OrderedDict[Any, Callable[..., Any]] = OrderedDict()

    def make_rule(self, executor: ETraceGraphExecutor) -> LearningRule:
        """The learning rule for a compiled model."""
        raise NotImplementedError(f"{type(self).__name__} does not define make_rule")

    # --- compiling ---------------------------------------------------------------------------

    def compile_graph(self, *args: Any) -> None:
        """Compile the model for arguments like ``args`` and start with traces of zeros.

        Parameters
        ----------
        *args
            Example arguments of one step; only shapes and dtypes matter.

        Raises
        ------
        CompilationError, NotSupportedError
            See :func:`braintrace.compile_etrace_graph`.
        """
        executor = ETraceGraphExecutor(self.model, **self._executor.options)
        executor.compile_graph(*args)
        rule = self._adopt(executor)
        self.traces = tuple(EligibilityTrace(trace) for trace in rule.init())

    def _adopt(self, executor: ETraceGraphExecutor) -> LearningRule:
        """Learn by the learner's rule with a compiled executor from now on."""
        rule = self.make_rule(executor)
        self._executor, self._rule, self._step = executor, rule, online_step(rule)
        self._drivers = OrderedDict()
        return rule

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
            "pickled; make the model and the learner where they are needed and set the values of "
            "their states. copy.deepcopy copies a learner"
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
        held = sum(
            leaf.size * leaf.dtype.itemsize
            for t in self.traces
            for leaf in jax.tree.leaves(t.value)
        )
        return f"{self.graph.report()}\n\ntraces: {len(self.rule.links)}, {held / 2**20:.2f} MiB"

    def _states_of(self, kind: StateKind) -> dict[Path, brainstate.State[Any]]:
        return {slot.path: slot.state for slot in self.graph.module_info.slots_of(kind)}

    @property
    def param_states(self) -> dict[Path, brainstate.State[Any]]:
        """All parameters of the model, by path."""
        return dict(brainstate.graph.states(self.model, brainstate.ParamState))

    @property
    def hidden_states(self) -> dict[Path, brainstate.State[Any]]:
        """Hidden states of the compiled step, by path."""
        return self._states_of(StateKind.HIDDEN)

    @property
    def other_states(self) -> dict[Path, brainstate.State[Any]]:
        """Further states of the compiled step, by path."""
        return self._states_of(StateKind.OTHER)

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
            Passed on to the model's ``reset_state``.
        model_states
            Whether the model's states are reset too, by ``brainstate.nn.reset_all_states``. A
            module without a ``reset_state`` of its own keeps its states.

        Raises
        ------
        ValueError
            When the model's states come out with another shape than the compiled one; the states
            then stay as they were.
        """
        check_same_states(self.model, self.graph.module_info)
        if model_states:
            self._reset_model(batch_size, **kwargs)
        for trace, zero in zip(self.traces, self.rule.init(), strict=True):
            trace.value = zero
        self.running_index.value = jnp.zeros((), jnp.int32)

    def _reset_model(self, batch_size: int | None, **kwargs: Any) -> None:
        before = {s: s.value for s in brainstate.graph.states(self.model).values()}
        try:
            brainstate.nn.reset_all_states(self.model, batch_size=batch_size, **kwargs)
            warn_of_unreset(self.model, self.graph.module_info, before)
            for slot in self.graph.module_info.slots_of(StateKind.HIDDEN):
                shapes = [jnp.shape(v) for v in (slot.state.value, before[slot.state])]
                if shapes[0] != shapes[1]:
                    raise ValueError(
                        f"batch_size={batch_size} resets {show_path(slot.path)} to shape "
                        f"{shapes[0]}, but the learner was compiled for {shapes[1]}; compile again "
                        "for another batch"
                    )
        except Exception:
            for state, value in before.items():
                state.restore_value(value)
            raise

    # --- one step ----------------------------------------------------------------------------

    def update(self, *args: Any) -> Any:
        """Run one step of the model and of the traces.

        Parameters
        ----------
        *args
            Arguments like those the learner was compiled for.

        Returns
        -------
        The model's result. Its gradient with respect to the parameters is the online gradient;
        with respect to the arguments it is that of the current step, and with respect to states
        zero: credit for the past is in the traces.

        Raises
        ------
        CompilationError
            Before :meth:`compile_graph`, or when the model's states were made anew since.
        ValueError
            When an argument or a state has another shape, dtype or structure than the compiled one.
        NotSupportedError
            When the gradient is differentiated once more.
        """
        leaves = checked_args(self.graph.module_info, args)
        check_states(self.model, self.graph.module_info)
        slots = self.graph.module_info.slots
        values = {slot.path: slot.state.value for slot in slots}
        if self._tape is not None:
            out, new, boundary = self.executor.run(leaves, values, self._tape.perturb)
            self._tape.boundaries.append(boundary)
        else:
            params = {s.path: values.pop(s.path) for s in slots if s.kind is StateKind.PARAM}
            out, new, traces = self._step(
                params, leaves, values, tuple(t.value for t in self.traces)
            )
            for state, trace in zip(self.traces, traces, strict=True):
                state.value = trace
            self.running_index.value = self.running_index.value + 1
        for slot in slots:
            if slot.kind is not StateKind.PARAM:
                slot.state.value = new[slot.path]
        return out

    # --- sequences ---------------------------------------------------------------------------

    def etrace_grad(
        self,
        *sequences: Any,
        step_fn: Callable[..., Any],
        weights: Mapping[Any, brainstate.State[Any]] | None = None,
        reduction: str = "mean",
        has_aux: bool = False,
        return_value: bool = False,
        block_size: int | str = "auto",
        carry_trace: bool = True,
    ) -> Any:
        """Gradients of the losses of a sequence, in memory that does not grow with its length.

        States, traces and ``running_index`` move on by the length of the sequence.

        Parameters
        ----------
        *sequences
            Pytrees of arrays [T, ...]; slice ``t`` of each is an argument of ``step_fn``.
        step_fn
            Calls the learner once and returns the scalar loss of a step (and auxiliary data).
        weights
            Parameter states whose gradients are wanted, by any key; default: all of the model.
        reduction
            ``'mean'`` or ``'sum'`` of the per-step losses is what is differentiated.
        has_aux
            ``step_fn`` returns ``(loss, aux)``; the stacked ``aux`` is returned too.
        return_value
            Return the per-step losses [T] too.
        block_size
            Steps that are evaluated together, or ``'auto'``. It never changes the numbers beyond
            round-off (mathematics: Schmidhuber, Neural Computation 4:243, 1992).
        carry_trace
            ``False``: credit does not cross the borders of this call; traces are taken as zero
            before it and are zero after it, and with one block no trace is computed at all.

        Returns
        -------
        ``grads``, or ``(grads, losses)``, ``(grads, aux)``, ``(grads, losses, aux)``. ``grads`` has
        the keys of ``weights`` and values like those of the parameters.

        Raises
        ------
        CompilationError
            Before :meth:`compile_graph`.
        TypeError, ValueError
            For sequences of unequal or zero length, an unknown option, or a ``step_fn`` that does
            not return a scalar loss or does not call the learner exactly once.
        """
        steps = common_length(sequences)
        check_states(self.model, self.graph.module_info)
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        require_callable(step_fn)
        size = self._block_size(block_size, steps)
        chosen = self.param_states if weights is None else checked_weights(weights)
        key = (step_fn, tuple(chosen.items()), reduction, has_aux, size, carry_trace)
        driver = self._driver(
            key, lambda: self._make_grad(step_fn, chosen, reduction, has_aux, size, carry_trace)
        )
        grads, losses, aux = driver(sequences)
        parts = (grads, *([losses] if return_value else []), *([aux] if has_aux else []))
        return parts if len(parts) > 1 else grads

    def _block_size(self, block_size: int | str, steps: int) -> int:
        if block_size == "auto":
            return auto_block_size(self.rule, steps)
        is_int = isinstance(block_size, int | np.integer) and not isinstance(block_size, bool)
        if not is_int or int(block_size) < 1:
            raise ValueError(f"block_size must be 'auto' or a positive integer, got {block_size!r}")
        return min(int(block_size), steps)

    def _driver(self, key: Any, make: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
        """A compiled driver for these options, kept for the next call."""
        names = self.graph.module_info.environment
        key = (*key, tuple(str(brainstate.environ.get(name, None)) for name in names))
        if key not in self._drivers:
            self._warn_of_new_functions(*key)
            self._drivers[key] = brainstate.transform.jit(make())
            if len(self._drivers) > CACHED_DRIVERS:
                self._drivers.popitem(last=False)
        self._drivers.move_to_end(key)
        return self._drivers[key]

    def _warn_of_new_functions(self, step_fn: Any, *options: Any) -> None:
        """A function written inside a loop is a new one each time, and compiled each time."""
        code = getattr(step_fn, "__code__", None)
        same = [k for k in self._drivers if k[1:] == options]
        if code is not None and sum(getattr(k[0], "__code__", None) is code for k in same) == 3:
            _jax.warn(
                f"step_fn ({code.co_filename}:{code.co_firstlineno}) is a new function at each "
                "call and is compiled anew each time; define it once, outside of the loop"
            )

    def _make_grad(
        self,
        step_fn: Callable[..., Any],
        weights: Mapping[Any, brainstate.State[Any]],
        reduction: str,
        has_aux: bool,
        block_size: int,
        carry_trace: bool,
    ) -> Callable[..., Any]:
        def run(sequences: tuple[Any, ...]) -> Any:
            return self._grad(
                sequences, step_fn, weights, reduction, has_aux, block_size, carry_trace
            )

        return run

    def _attach(self, tape: Tape | None) -> None:
        self._tape = tape

    def _grad(
        self,
        sequences: tuple[Any, ...],
        step_fn: Callable[..., Any],
        weights: Mapping[Any, brainstate.State[Any]],
        reduction: str,
        has_aux: bool,
        block_size: int,
        carry_trace: bool,
    ) -> Any:
        rule, steps = self.rule, common_length(sequences)
        check_states(self.model, self.graph.module_info)
        first = jax.tree.map(lambda v: v[0], sequences)
        traced = trace_step(self.executor, step_fn, self._attach, first, has_aux)
        runner = BlockRunner(rule, traced, tuple(weights.values()))
        params = {path: state.value for path, state in self._states_of(StateKind.PARAM).items()}
        result = sweep(
            runner,
            flat_states(traced.states),
            tuple(t.value for t in self.traces) if carry_trace else None,
            sequences,
            self.executor.operand_values(params),
            block_size,
            keep_trace=carry_trace,
            scale=1.0 / steps if reduction == "mean" else 1.0,
        )
        by_path = self.executor.param_gradients(params, result.operands)
        grads = {
            key: self._total(state, traced, result.direct, by_path)
            for key, state in weights.items()
        }
        parameters = list(self._states_of(StateKind.PARAM).values())
        write_states(traced.states, result.leaves, skip=[*parameters, *weights.values()])
        new = result.traces if carry_trace and result.traces is not None else rule.init()
        for state, trace in zip(self.traces, new, strict=True):
            state.value = trace
        self.running_index.value = self.running_index.value + steps
        return not_differentiable((grads, result.losses, result.aux), (params, sequences))

    def _total(
        self,
        state: brainstate.State[Any],
        traced: Any,
        direct: Mapping[int, Any],
        by_path: Mapping[Path, Any],
    ) -> Any:
        """Direct plus traced gradient of one parameter, zero where neither exists."""
        leaves, treedef = jax.tree.flatten(state.value)
        total = [jnp.zeros_like(leaf) for leaf in leaves]
        for k, i in enumerate(traced.leaves_of(state) or ()):
            if i in direct:
                total[k] = add_gradients(total[k], direct[i])
        for path, other in self._states_of(StateKind.PARAM).items():
            if other is state and path in by_path:
                found = jax.tree.leaves(by_path[path])
                total = [add_gradients(a, b) for a, b in zip(total, found, strict=True)]
        return jax.tree.unflatten(treedef, total)

    def etrace_evolve(
        self,
        *sequences: Any,
        step_fn: Callable[..., Any] | None = None,
        return_outputs: bool = False,
    ) -> Any:
        """Let states and traces move on over a sequence, without gradients.

        Parameters
        ----------
        *sequences
            Pytrees of arrays [T, ...]; slice ``t`` of each is an argument of ``step_fn``.
        step_fn
            Calls the learner once per step; default: the learner itself.
        return_outputs
            Return what ``step_fn`` returned, stacked.

        Raises
        ------
        CompilationError, ValueError
            As for :meth:`etrace_grad`.
        """
        common_length(sequences)
        self.graph  # noqa: B018  raises before compile_graph
        run = self if step_fn is None else step_fn
        require_callable(run)

        def make() -> Callable[..., Any]:
            def evolve(sequences: tuple[Any, ...]) -> Any:
                def body(inputs: tuple[Any, ...]) -> Any:
                    out = run(*inputs)
                    return out if return_outputs else None

                return brainstate.transform.for_loop(body, sequences)

            return evolve

        return self._driver((run, return_outputs), make)(sequences)
