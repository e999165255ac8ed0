# SPDX-License-Identifier: Apache-2.0
"""Learners: the objects that own traces and touch the states of a model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from . import _jax
from ._algorithm import ParamDimRule
from ._compile import ETraceGraph, StateKind, changed_setting, check_scope, show_path
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
from ._units import in_units_of, unit_change

Path = tuple[Any, ...]
CACHED_DRIVERS = 16


class EligibilityTrace(brainstate.ShortTermState):
    """The state that holds one eligibility trace: a dict of arrays, by trainable key."""


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
        self.model = model
        self.executor = ETraceGraphExecutor(model, **options)
        self.traces: tuple[EligibilityTrace, ...] = ()
        self.running_index = brainstate.ShortTermState(jnp.zeros((), jnp.int32))
        self._rule: ParamDimRule | None = None
        self._tape: Tape | None = None
        self._drivers: OrderedDict[Any, Callable[..., Any]] = OrderedDict()

    def make_rule(self, executor: ETraceGraphExecutor) -> ParamDimRule:
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
        executor = ETraceGraphExecutor(self.model, **self.executor.options)
        executor.compile_graph(*args)
        rule = self.make_rule(executor)
        traces = tuple(EligibilityTrace(trace) for trace in rule.init())
        self.executor, self._rule, self.traces = executor, rule, traces
        self._step = online_step(rule)
        self._drivers = OrderedDict()

    @property
    def rule(self) -> ParamDimRule:
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
        return f"{self.graph.report()}\n\ntraces: {len(self.traces)}, {held / 2**20:.2f} MiB"

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

        Leaves have a trailing state axis: [B, in, out, S] for a dense product of a batch.

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
        found = [
            jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), trace.value)
            for link, trace in zip(self.rule.links, self.traces, strict=True)
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
            Whether the model's states are reset too, by ``brainstate.nn.reset_all_states``.

        Raises
        ------
        ValueError
            When the model's states come out with another shape than the compiled one; the states
            then stay as they were.
        """
        self._check_same_states()
        if model_states:
            self._reset_model(batch_size, **kwargs)
        for trace, zero in zip(self.traces, self.rule.init(), strict=True):
            trace.value = zero
        self.running_index.value = jnp.zeros((), jnp.int32)

    def _reset_model(self, batch_size: int | None, **kwargs: Any) -> None:
        before = {s: s.value for s in brainstate.graph.states(self.model).values()}
        try:
            brainstate.nn.reset_all_states(self.model, batch_size=batch_size, **kwargs)
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
        leaves = self._check_args(args)
        self._check_states()
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

    def _check_args(self, args: tuple[Any, ...]) -> list[Any]:
        info = self.graph.module_info
        args = in_units_of(info.arg_treedef, info.with_environment(args))
        leaves, treedef = jax.tree.flatten(args)
        if treedef != info.arg_treedef:
            change = unit_change(info.arg_treedef, treedef)
            raise ValueError(
                f"the arguments have {change}, for which the learner was compiled"
                if change
                else f"the arguments have structure {treedef}, but the learner was compiled for "
                f"{info.arg_treedef}"
            )
        names = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(args)]
        checked = []
        for name, leaf, var in zip(names, leaves, info.jaxpr.invars, strict=False):
            aval = var.aval
            try:
                leaf = jnp.asarray(leaf)
            except (TypeError, ValueError):
                raise TypeError(
                    f"argument{name} is a {type(leaf).__name__}; expected an array of shape "
                    f"{aval.shape} and dtype {aval.dtype}"
                ) from None
            if leaf.shape != aval.shape or leaf.dtype != aval.dtype:
                raise ValueError(
                    f"argument{name} has shape {leaf.shape} and dtype {leaf.dtype}, but the "
                    f"learner was compiled for shape {aval.shape} and dtype {aval.dtype}; "
                    + (
                        "convert it"
                        if leaf.shape == aval.shape
                        else "compile again for another batch size"
                    )
                )
            checked.append(leaf)
        return checked

    def _check_states(self) -> None:
        """States must be those that were compiled, of the same shapes."""
        self._check_same_states()
        info = self.graph.module_info
        for slot in info.slots:
            leaves, treedef = jax.tree.flatten(slot.state.value)
            if treedef != slot.treedef:
                change = unit_change(slot.treedef, treedef)
                raise ValueError(
                    f"the state {show_path(slot.path)} has {change or f'structure {treedef}'}, "
                    "unlike when the learner was compiled; assign it as it was, or compile again"
                )
            for leaf, var in zip(leaves, info.invars_of(slot), strict=True):
                if jnp.shape(leaf) != var.aval.shape:
                    raise ValueError(
                        f"the state {show_path(slot.path)} has shape {jnp.shape(leaf)}, but the "
                        f"learner was compiled for shape {var.aval.shape}; compile again"
                    )
                if jnp.result_type(leaf) != var.aval.dtype:
                    raise ValueError(
                        f"the state {show_path(slot.path)} has dtype {jnp.result_type(leaf)}, but "
                        f"the learner was compiled for {var.aval.dtype}; convert what is assigned "
                        "to it, or compile again"
                    )

    def _check_same_states(self) -> None:
        """States made anew after compiling would be left behind silently."""
        info = self.graph.module_info
        for slot in (*info.slots_of(StateKind.HIDDEN), *info.slots_of(StateKind.PARAM)):
            if _lookup(self.model, slot.path) is not slot.state:
                raise CompilationError(
                    f"the {slot.kind.value} state {show_path(slot.path)} was initialised again, "
                    "replaced or deleted after compile_graph; call compile_graph again, or use "
                    "reset_state to reset it"
                )
        changed = changed_setting(info.settings)
        if changed is not None:
            key, then, now = changed
            raise CompilationError(
                f"the model reads {key!r} from brainstate.environ, which was {then} when the "
                f"learner was compiled and is {now} now; call compile_graph again, or call the "
                "model itself to evaluate it"
            )

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
        self._check_states()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {reduction!r}")
        _require_callable(step_fn)
        size = self._block_size(block_size, steps)
        chosen = self.param_states if weights is None else _checked_weights(weights)
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
        self._check_states()
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
        _require_callable(run)

        def make() -> Callable[..., Any]:
            def evolve(sequences: tuple[Any, ...]) -> Any:
                def body(inputs: tuple[Any, ...]) -> Any:
                    out = run(*inputs)
                    return out if return_outputs else None

                return brainstate.transform.for_loop(body, sequences)

            return evolve

        return self._driver((run, return_outputs), make)(sequences)


def _require_callable(step_fn: Any) -> None:
    if not callable(step_fn):
        raise TypeError(f"step_fn must be callable, got {type(step_fn).__name__}")
    try:
        hash(step_fn)
    except TypeError:
        raise TypeError(
            f"step_fn must be hashable, because it is compiled once; {type(step_fn).__name__} is "
            "not. Wrap it in a function"
        ) from None


def _checked_weights(weights: Any) -> dict[Any, brainstate.State[Any]]:
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"weights must be a mapping from any key to ParamState, got {type(weights).__name__}"
        )
    for key, state in weights.items():
        if not isinstance(state, brainstate.ParamState):
            raise TypeError(f"weights[{key!r}] must be a ParamState, got {type(state).__name__}")
    return dict(weights)


def _lookup(model: Any, path: Path) -> Any:
    """The object at a state's path in a model."""
    found = model
    for part in path:
        by_key = isinstance(found, Mapping) and part in found
        by_index = isinstance(found, Sequence) and isinstance(part, int)
        found = found[part] if by_key or by_index else getattr(found, str(part), None)
    return found


class D_RTRL(ETraceAlgorithm):
    """Online learning with parameter-dimension traces (D-RTRL).

    The trace of a relation obeys ``eps^t = D^t eps^{t-1} + f^t (x) x^t`` with the diagonal ``D`` of
    the hidden transition, and ``dL/dw = sum_t <l^t, eps^t> + <e^t, eps^{t-1}>`` (Wang et al.,
    Nature Communications 2026, doi 10.1038/s41467-026-68453-w). Exact when every hidden-to-hidden
    path is element-wise; otherwise the recurrent products are left out of ``D``.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    vjp_method
        ``'single-step'``: learning signals are those of the current step.
    trace_dtype
        Dtype of the traces; default: that of each operation's output.
    recurrence_scope
        ``'diagonal'``: recurrent ETP operations are left out of ``D``. ``'coupled'``: ``D`` is the
        diagonal of the transition with them (it contains ``act' W_ii``), which costs a reverse
        sweep for each position of a layer at every step.
    **options
        Further options of :func:`braintrace.compile_etrace_graph`.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.D_RTRL(cell)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner(jnp.ones((2, 3))).shape
    (2, 4)
    """

    def __init__(
        self,
        model: brainstate.nn.Module,
        vjp_method: str = "single-step",
        *,
        trace_dtype: Any = None,
        recurrence_scope: str = "diagonal",
        **options: Any,
    ) -> None:
        super().__init__(model, recurrence_scope=check_scope(recurrence_scope), **options)
        if vjp_method != "single-step":
            raise ValueError(f"vjp_method must be 'single-step', got {vjp_method!r}")
        self.trace_dtype = trace_dtype if trace_dtype is None else _float_dtype(trace_dtype)

    def make_rule(self, executor: ETraceGraphExecutor) -> ParamDimRule:
        """The rule D-RTRL."""
        return ParamDimRule(executor, self.trace_dtype)


def _float_dtype(dtype: Any) -> Any:
    try:
        if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return jnp.dtype(dtype)
    except TypeError:
        pass
    raise TypeError(f"trace_dtype must be a floating-point dtype, got {dtype!r}")


ParamDimVjpAlgorithm = D_RTRL

ALGORITHMS: dict[str, type[ETraceAlgorithm]] = {"d_rtrl": D_RTRL}


def compile(
    model: brainstate.nn.Module,
    algorithm: str | type[ETraceAlgorithm],
    *example_inputs: Any,
    batch_size: int | None = None,
    verbose: int = 0,
    **options: Any,
) -> ETraceAlgorithm:
    """Initialise a model's states and return a ready learner.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module``.
    algorithm
        A learner class or its name (``'d_rtrl'``).
    *example_inputs
        Arguments of one step.
    batch_size
        Passed on to ``brainstate.nn.init_all_states``.
    verbose
        1: print what the compiler found.
    **options
        Passed on to the learner.

    Raises
    ------
    ValueError
        For an unknown algorithm.
    CompilationError, NotSupportedError
        When the model cannot be compiled.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> learner = braintrace.compile(
    ...     braintrace.nn.GRUCell(3, 4), "d_rtrl", jnp.ones((2, 3)), batch_size=2
    ... )
    >>> learner(jnp.ones((2, 3))).shape
    (2, 4)
    """
    if isinstance(algorithm, str):
        name = algorithm.lower().replace("-", "_")
        algorithm = ALGORITHMS[name] if name in ALGORITHMS else _of_a_plugin(name)
    if not (isinstance(algorithm, type) and issubclass(algorithm, ETraceAlgorithm)):
        raise TypeError(f"algorithm must be a name or a learner class, got {algorithm!r}")
    learner = algorithm(model, **options)
    brainstate.nn.init_all_states(model, batch_size=batch_size)
    learner.compile_graph(*example_inputs)
    if verbose:
        print(learner.report)
    return learner


def _of_a_plugin(name: str) -> type[ETraceAlgorithm]:
    """The learner that an installed plugin offers under a name."""
    from ._plugins import _services, host

    offered, problems = _services.algorithms(host())
    if name not in offered:
        notes = "".join(f"; {problem}" for problem in problems)
        known = sorted({*ALGORITHMS, *offered})
        raise ValueError(f"unknown algorithm {name!r}; known are {known}{notes}")
    return offered[name]
