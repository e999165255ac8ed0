# SPDX-License-Identifier: Apache-2.0
"""Learners: a model with traces, compiled, called, reset, and run over sequences."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import brainstate
import jax.numpy as jnp

from ..algorithms.base import LearningRule, check_jacobians
from ..algorithms.influence import InfluenceRule
from ..algorithms.signals import TracelessRule
from ..base.errors import CompilationError, NotCompiledError, refuse_unused
from ..base.former import FormerAttributes
from ..base.types import check_module
from ..compiler.graph import ETraceGraph
from ..compiler.keywords import in_order
from ..compiler.module_info import StateKind
from ..compiler.requirements import state_lookup
from ..drivers.call_arguments import one_step_of
from ..drivers.of_influence import influence_step, influence_window
from ..drivers.running import Drivers, Stepper, compiled, steps_by_call, window_by_call
from ..drivers.steps import online_step, window_step
from ..executor.executor import Executor
from ..executor.graph_executor import ETraceGraphExecutor
from . import saving, sequences
from .ledger import credit_ledger
from .optimizers import OptaxOptimizer, optimizer
from .options import Signature, checked_options
from .report import CompilationReport, report_of
from .reset_model import reset_state
from .restarts import Watch, begin_call
from .sharding import shard
from .states import EligibilityTrace, StatesOfLearner

#: Methods of learners that were hooks, here or in version 0.2.
FORMER_HOOKS = dict.fromkeys(
    "_solve_weight_gradients _update_etrace_data _compute_learning_signal make_step".split(),
    "how traces and signals become gradients is the learning rule that make_rule returns; see 'a "
    "rule of your own' in docs/learning-rules.md",
)


def arguments_of_model(learner: Any, args: tuple[Any, ...]) -> Any:
    """What calls take: the arguments of the model. Learners that take more say so."""
    return learner.run_call(args)


class ETraceAlgorithm(FormerAttributes, StatesOfLearner):
    """Base of the learners: a model with eligibility traces.

    A learner is called like the model it wraps, by keyword too. Differentiating a loss of its
    result by ``brainstate.transform.grad`` in ``learner.param_states`` gives online gradients;
    :meth:`etrace_grad` gives those of a whole sequence, much faster. What runs a sequence is
    compiled once, works under ``jit`` and ``vmap`` too, and takes memory that does not grow with
    the length of the sequence, besides that of the sequence itself and of what is returned.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    require_trace
        ``False``: a model without any trace is accepted, whose gradients are of the current step.
    **options
        Options of :func:`braintrace.compile_etrace_graph`.

    Notes
    -----
    A subclass says which learning rule it is by :meth:`make_rule`.

    Examples
    --------
    Every learner is one:

    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> x = jnp.ones((2, 3))
    >>> learner = braintrace.compile(braintrace.nn.GRUCell(3, 4), "d_rtrl", x, batch_size=2)
    >>> isinstance(learner, braintrace.ETraceAlgorithm)
    True
    >>> grads = brainstate.transform.grad(lambda: learner(x).sum(), learner.param_states)()
    >>> grads[("Wz", "weight")]["weight"].shape
    (7, 4)
    """

    __signature__ = Signature()

    #: ``'single-step'``, or ``'multi-step'`` for a learner that learns in windows.
    vjp_method = "single-step"

    #: What calls take, and what they do with it.
    call_takes: ClassVar[Any] = staticmethod(arguments_of_model)

    #: What predicts the gradients of later losses from the hidden states, if anything does.
    synthesizer_of: ClassVar[Any] = None

    #: What its rule needs ``D`` and ``f`` of the steps to hold, ``'near'`` or ``'whole'`` (as the
    #: class of the rule says: ``UORORule.jacobians``); ``None``: what the configuration needs.
    jacobians: str | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_unused(cls, FORMER_HOOKS)

    def __init__(
        self, model: brainstate.nn.Module, *, require_trace: bool = True, **options: Any
    ) -> None:
        named: dict[str, Any] = {"name": options.pop("name", None)}
        super().__init__(**named)
        check_module(model)
        if isinstance(model, ETraceAlgorithm):
            raise TypeError(
                f"model is a learner already ({type(model).__name__}); pass the model that it wraps"
            )
        self.model = model
        self._executor = self.make_executor(model, **checked_options(type(self), options))
        self._rule: LearningRule | None = None
        self._require_trace = require_trace
        self._stepper: Any = None
        self._own_stepper: Any = None
        self._drivers = Drivers()
        self._optimizers: list[OptaxOptimizer] = []
        self.traces: tuple[EligibilityTrace, ...] = ()
        self.filters: tuple[brainstate.State[Any], ...] = ()
        self.running_index = brainstate.ShortTermState(jnp.zeros((), jnp.int32))
        self._watch = Watch(self)
        self.synthesizer: Any = None

    def make_executor(self, model: brainstate.nn.Module, **options: Any) -> ETraceGraphExecutor:
        """What runs and differentiates the steps of a model."""
        return ETraceGraphExecutor(model, jacobians=self.jacobians or "near", **options)

    def make_rule(self, executor: Executor) -> LearningRule:
        """The learning rule for a compiled model."""
        raise NotImplementedError(f"{type(self).__name__} does not define make_rule")

    # --- compiling ---------------------------------------------------------------------------

    def compile_graph(self, *args: Any, **named: Any) -> None:
        """Compile the model for arguments like these and start with traces of zeros.

        Parameters
        ----------
        *args, **named
            Example arguments of a call; only shapes and dtypes matter. Those in a
            :class:`braintrace.MultiStepData` hold several steps, of which one is looked at.

        Raises
        ------
        CompilationError, NotSupportedError
            See :func:`braintrace.compile_etrace_graph`; when nothing has a trace and
            ``require_trace`` is true.
        TypeError
            For arguments by name that the model does not take.
        """
        args = in_order(self.model, args, named) if named else args
        executor = self._executor.for_model(self.model, compiled=False)
        executor.compile_graph(*one_step_of(args))
        self.filters = ()
        self.adopt(executor)
        self.traces = tuple(EligibilityTrace(trace) for trace in self.rule.init())
        if self.synthesizer_of is not None:
            self.synthesizer = self.synthesizer_of(self.hidden_states)

    def adopt(self, executor: ETraceGraphExecutor) -> None:
        """Learn by the learner's rule with a compiled executor from now on."""
        self._drivers = Drivers()
        rule = self._rule_for(executor)
        check_jacobians(rule)
        traced = bool(rule.traced_paths) or isinstance(rule, TracelessRule)
        if executor.graph.filtered is not None:  # relations may have filters, and no trace
            traced = traced or bool(executor.graph.hidden_param_op_relations)
        if self._require_trace and not traced:
            raise CompilationError(
                "there is nothing to train online: no parameter is a weight of an ETP operation "
                "that drives a hidden state. Use layers of braintrace.nn, or operations such as "
                "braintrace.matmul (jax.vmap over a weight makes plain products of them: map over "
                "inputs alone); with require_trace=False, gradients are of the current step"
            )
        if isinstance(rule, InfluenceRule) and self.vjp_method == "multi-step":
            self._stepper = window_by_call(compiled(influence_window(rule)))
        elif isinstance(rule, InfluenceRule):
            self._stepper = steps_by_call(compiled(influence_step(rule)))
        elif self.vjp_method != "multi-step":
            self._stepper = steps_by_call(compiled(online_step(rule)))
        else:
            predict = getattr(self.synthesizer_of, "predict", None)
            self._stepper = window_by_call(compiled(window_step(rule, predict)))
        self._own_stepper = self._stepper
        self._executor, self._rule = executor, rule
        before = self.filters
        slots = executor.graph.executed.module_info.slots
        self.filters = tuple(slot.state for slot in slots if slot.is_filter)
        for old, new in zip(before, self.filters, strict=False):
            new.value = old.value
        self._watch = self._watch.of(self)
        self._watch.look_at(self.states_of(StateKind.HIDDEN).values())

    def __deepcopy__(self, memo: Any = None) -> ETraceAlgorithm:
        other: ETraceAlgorithm = super().__deepcopy__(memo)
        other._watch = Watch(other)
        if self.is_compiled:
            found = (state_lookup(other.model, path) for path in self.states_of(StateKind.HIDDEN))
            other._watch.look_at(found)
        return other

    def _rule_for(self, executor: ETraceGraphExecutor) -> LearningRule:
        """The rule, for the step as it is written where it refuses the one with filters."""
        try:
            return self.make_rule(executor.compiled)
        except CompilationError as why:
            if executor.graph.filtered is None or executor.graph.exact is not None:
                raise
            executor.run_as_written(str(why))
        return self.make_rule(executor.compiled)

    @property
    def executor(self) -> ETraceGraphExecutor:
        """What runs and differentiates a step of the model.

        A learner that was copied with its model is compiled anew for the copy here.
        """
        if self._executor.model is not self.model:
            executor = self._executor.for_model(self.model)
            watched = self._watch.watched_of(self)
            if executor.is_compiled:
                self.adopt(executor)
            self._executor = executor
            if executor.is_compiled and watched is not None:
                now = {*self.states_of(StateKind.HIDDEN).values()}
                if made := now - watched:  # before the first use of the copy
                    self._watch.made_anew(self, made)
        return self._executor

    @property
    def rule(self) -> LearningRule:
        """The learning rule of the compiled model."""
        self.graph  # noqa: B018  raises before compile_graph
        if self._rule is None:
            raise NotCompiledError("call compile_graph(*example_inputs) before using the learner")
        return self._rule

    @property
    def graph(self) -> ETraceGraph:
        """What the compiler found."""
        return self.executor.graph

    def __pretty_repr_item__(self, name: str, value: Any) -> Any:
        """What is shown of an attribute: nothing of what the model was compiled to."""
        return None if name in ("_executor", "_rule") else super().__pretty_repr_item__(name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            f"a {type(self).__name__} cannot be pickled, because brainstate states cannot be "
            "pickled; make the model and the learner where they are needed, and carry their "
            "values over with learner.save(path) and learner.restore(path). copy.deepcopy copies "
            "a learner"
        )

    # --- what there is -------------------------------------------------------------------------

    @property
    def report(self) -> CompilationReport:
        """What the compiler found, what traces take, and how the last gradient ran, as text.

        It is a ``str`` that can also be called, and has ``show(level)``, which prints it (and from
        level 2 on all findings), and ``counts`` of groups, weights and findings.
        """
        return report_of(self.graph, self.rule, self.vjp_method, self._drivers.last_way)

    def _repr_html_(self) -> str | None:
        """The graph and the traces, in a notebook; as text before ``compile_graph``."""
        return self.report._repr_html_() if self.is_compiled else None

    def show_graph(self, verbose: bool = True, return_msg: bool = False) -> str | None:
        """Print (``verbose``) or return :attr:`report`."""
        if verbose:
            self.report.show()
        return self.report if return_msg else None

    @property
    def is_compiled(self) -> bool:
        """Whether there is a graph."""
        return self._rule is not None

    @property
    def module(self) -> ETraceAlgorithm:
        """The learner: what was around it in version 0.2 under ``vmap=True`` is not here."""
        return self

    reset_state = reset_state

    def init_etrace_state(self, *args: Any, **kwargs: Any) -> None:
        """Set the traces to zero, whatever the arguments: :meth:`reset_state` in version 0.2."""
        self.reset_state()

    def update(self, *args: Any, **named: Any) -> Any:
        """Run the model and the traces for one step, or for those of a window.

        Parameters
        ----------
        *args
            Arguments like those the learner was compiled for. Arguments in a
            :class:`braintrace.MultiStepData` [k, ...] are those of ``k`` steps.
        **named
            Those of the model's arguments that are given by name, and what the learner takes
            besides, if anything: ``error`` of :class:`braintrace.EProp`, ``modulator`` of
            :class:`braintrace.ThreeFactor`.

        Returns
        -------
        The model's result, [k, ...] for ``k`` steps. Its gradient with respect to the parameters
        is the online gradient; with respect to the arguments it is that of the current step (or
        window), and with respect to states zero: credit for the past is in the traces.

        Raises
        ------
        CompilationError
            Before :meth:`compile_graph`, or when the model's states were made anew since, of
            another shape, dtype or unit.
        TypeError
            For an argument by name that neither the model nor the learner takes.
        ValueError
            When an argument or a state has another shape, dtype or structure than the compiled one.
        NotSupportedError
            When the gradient is differentiated once more.
        """
        if not named:
            return self.call_takes(self, args)
        own = [*inspect.signature(self.call_takes).parameters][2:]  # behind learner and args
        given = {name: named.pop(name) for name in own if name in named}
        args = in_order(self.model, args, named) if named else args
        return self.call_takes(self, args, **given)

    def run_call(self, args: tuple[Any, ...], given: Any = None) -> Any:
        """A call with what the rule is given besides the model's arguments."""
        begin_call(self, args)
        return self.call_stepper(self, args, given)

    @property
    def call_stepper(self) -> Stepper:
        """What a call does: a step or a window, unless a driver brings another stepper."""
        self.rule  # noqa: B018  raises before compile_graph
        return self._stepper

    @property
    def is_driven(self) -> bool:
        """Whether a driver runs, which takes the calls."""
        return self._stepper is not self._own_stepper

    @contextmanager
    def stepping_by(self, stepper: Stepper) -> Iterator[None]:
        """Calls go to another stepper meanwhile."""
        before, self._stepper = self.call_stepper, stepper
        try:
            yield
        finally:
            self._stepper = before

    # --- sequences, and files ------------------------------------------------------------------

    etrace_grad = sequences.etrace_grad
    etrace_update = sequences.etrace_update
    etrace_evolve = sequences.etrace_evolve
    credit_ledger = credit_ledger
    optimizer = optimizer
    shard = shard
    save = saving.save
    restore = saving.restore
