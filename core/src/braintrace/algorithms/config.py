# SPDX-License-Identifier: Apache-2.0
"""Learning rules as coordinates of one record, and what they are made of."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import brainstate
import jax
import numpy as np

from ..base import versions
from ..base.types import how_many
from ..compiler.filters import check_downstream
from ..executor.executor import Executor
from ..executor.graph_executor import ETraceVjpGraphExecutor, compiled_step
from ..published import ConfigViews
from .base import LearningRule
from .d_rtrl import ParamDimRule
from .delayed import DelayedDRTRLRule, lag_of
from .e_prop import EPropRule
from .influence import InfluenceRule
from .lagged import LaggedDRTRLRule, may_lag
from .pp_prop import IODimRule
from .signals import Modulated, RandomFeedback, Resignalled, TracelessRule
from .snap import SnApRule
from .uoro import UORORule

SIGNALS = ("symmetric", "random_feedback", "modulatory")
SCOPES = ("diagonal", "coupled", "sparse_n", "full")

#: Each factorization, and which scopes, signals and filters go with it.
LEGAL = {
    "per_param": (SCOPES, SIGNALS, ("none", "kappa")),
    "io_factorized": (("diagonal", "coupled"), SIGNALS, ("none",)),
    "random_projection": (("full",), SIGNALS, ("none",)),
    "none": (("diagonal",), ("bootstrapped",), ("none",)),
}
COORDINATES = {
    "trace_factorization": (*LEGAL,),
    "recurrence_scope": SCOPES,
    "learning_signal": (*SIGNALS, "bootstrapped"),
    "trace_filter": ("none", "kappa"),
}

#: Which rules do not go with ``downstream='exact'``, and why.
EXACT = {
    ("trace_factorization", "io_factorized"): "pp_prop's own filters approximate the trace",
    ("trace_factorization", "random_projection"): "UORO's trace is a random one",
    ("trace_factorization", "none"): "there is no trace",
    ("recurrence_scope", "sparse_n"): "SnAp keeps the influence on all layers by itself",
    ("recurrence_scope", "full"): "RTRL keeps the influence on all layers by itself, exactly",
    ("learning_signal", "random_feedback"): "random feedback takes the place of that gradient",
    ("learning_signal", "modulatory"): "a modulator takes the place of that gradient",
    ("trace_filter", "kappa"): "kappa filters the trace",
}


@dataclass(frozen=True)
class ETraceConfig(ConfigViews):
    """A learning rule, as coordinates that can be combined.

    Parameters
    ----------
    trace_factorization
        What the trace is: ``'per_param'``, an entry per example and parameter (D-RTRL and what is
        like it); ``'io_factorized'``, a filtered input and a filtered factor (pp_prop);
        ``'random_projection'``, a random product of rank one (UORO); ``'none'`` (DNI).
    recurrence_scope
        What ``D`` holds: ``'diagonal'``, no recurrent ETP operation; ``'coupled'``, the diagonal of
        the transition with them; ``'sparse_n'``, influence within ``n`` steps of the position graph
        (SnAp-n); ``'full'``, all of the transition within a group (RTRL).
    learning_signal
        What the trace meets: ``'symmetric'``, the gradient of the loss; ``'random_feedback'``, that
        gradient through a fixed random matrix; ``'modulatory'``, a modulator that the caller gives;
        ``'bootstrapped'``, at a window's end a learned prediction of the future gradient (DNI).
    trace_filter
        ``'kappa'``: a low-pass filter behind what a layer emits, or with ``downstream='step'`` on
        the trace (e-prop).
    decay
        ``decay_or_rank`` of :class:`braintrace.pp_prop`, which ``'io_factorized'`` needs.
    kappa
        Decay of the filter in [0, 1), which ``'kappa'`` needs; 0 is no filter.
    sparse_n
        The order ``n`` from 1, which ``'sparse_n'`` needs; 1 is ``'coupled'``.
    seed
        An integer or a JAX key, for ``'random_projection'`` and ``'random_feedback'``.
    downstream
        How far credit goes in the layers above: ``'step'``, as published; ``'linear'``, through
        later steps, too, where their dynamics are linear; ``'exact'``, also where they are not, of
        groups of few values (of D-RTRL and OSTL); see :func:`braintrace.compile_etrace_graph`.
        SnAp and RTRL keep the influence on all layers, but for ``'step'``. Default: ``'linear'``;
        with a modulator, which then meets what the layers above remember, too, ``'step'``. Without
        traces, both are the same rule.

    Raises
    ------
    TypeError, ValueError
        For a value or a combination that is no rule; the message names those that are.

    Examples
    --------
    >>> import braintrace
    >>> first = braintrace.ETraceConfig(recurrence_scope="sparse_n", sparse_n=1, downstream="step")
    >>> first.recurrence_scope
    'coupled'
    >>> braintrace.ETraceConfig(trace_factorization="io_factorized")
    Traceback (most recent call last):
    ValueError: trace_factorization='io_factorized' needs decay
    """

    trace_factorization: str = "per_param"
    recurrence_scope: str = "diagonal"
    learning_signal: str = "symmetric"
    trace_filter: str = "none"
    decay: Any = None
    kappa: float | None = None
    sparse_n: int | None = None
    seed: Any = 0
    downstream: str = field(default="", metadata={"saved": False})

    def __post_init__(self) -> None:
        for name, legal in COORDINATES.items():
            if getattr(self, name) not in legal:
                raise ValueError(f"{name} must be one of {legal}, got {getattr(self, name)!r}")
        for name, (coordinate, value, check) in COEFFICIENTS.items():
            chosen, given = getattr(self, coordinate) == value, getattr(self, name)
            if chosen and given is None:
                raise ValueError(f"{coordinate}={value!r} needs {name}")
            if given is not None and not chosen:
                raise ValueError(f"{name}={given!r} needs {coordinate}={value!r}")
            if given is not None:
                check(given)
        _check_seed(self.seed)
        if not self.downstream:
            modulated = self.learning_signal == "modulatory"
            self._set(downstream="step" if modulated else "linear")
        check_downstream(self.downstream)
        if self.trace_filter == "kappa" and self.kappa == 0:
            self._set(trace_filter="none", kappa=None)
        if self.recurrence_scope == "sparse_n" and self.sparse_n == 1 and not self.of_steps:
            self._set(recurrence_scope="coupled", sparse_n=None)
        for name, legal in zip([*COORDINATES][1:], LEGAL[self.trace_factorization], strict=True):
            self._check("trace_factorization", name, legal)
        self._check_exact()
        if self.trace_filter == "kappa":
            self._check("trace_filter", "recurrence_scope", ("diagonal", "coupled", "full"))

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check(self, coordinate: str, other: str, legal: tuple[str, ...]) -> None:
        """Whether the value of a coordinate goes with that of another."""
        if getattr(self, other) not in legal:
            raise ValueError(
                f"{coordinate}={getattr(self, coordinate)!r} goes with {other} in "
                f"{legal}, not with {getattr(self, other)!r}"
            )

    def _check_exact(self) -> None:
        """Whether the traces of the rule are exact where each value above is a state."""
        why = next((EXACT[n, v] for n, v in EXACT if getattr(self, n) == v), None)
        if self.downstream == "exact" and why:
            raise ValueError(
                "downstream='exact' is of D-RTRL and OSTL, with the gradient of the loss as the "
                f"learning signal: {why}. Use downstream='linear', or one of these rules"
            )

    @property
    def decays(self) -> tuple[float, float]:
        """``a_x`` and ``a_f`` of ``decay``."""
        return decays_of(self.decay)

    @property
    def needs_windows(self) -> bool:
        """Whether the rule exists in windows only."""
        return self.learning_signal == "bootstrapped"

    @property
    def has_windows(self) -> bool:
        """Whether the rule exists in windows."""
        return self.learning_signal != "modulatory"

    @property
    def of_steps(self) -> bool:
        """Whether the rule keeps the influence on all that a step carries, in all layers."""
        elsewhere = self.trace_factorization, self.learning_signal, self.trace_filter
        plain = elsewhere == ("per_param", "symmetric", "none")
        whole = self.recurrence_scope in ("sparse_n", "full")
        return plain and whole and self.downstream != "step"

    @property
    def moves_leaks(self) -> bool:
        """Whether the rule runs on the step in which leaks of uniform states are filters."""
        within = self.recurrence_scope in ("diagonal", "coupled")
        of_groups = within or self.trace_factorization == "random_projection"
        traced = self.trace_factorization != "none"
        return self.downstream != "step" and traced and of_groups

    @property
    def keeps_traces(self) -> bool:
        """Whether uniform states keep their traces, because the rule does not use ``D`` for them.

        Those of pp_prop are filters of its own, and the signal of a modulated rule is no gradient.
        """
        of_group = self.trace_factorization == "io_factorized"
        return of_group or self.learning_signal == "modulatory"

    @property
    def jacobians(self) -> str:
        """What ``D`` and ``f`` must hold, as for :class:`braintrace.ETraceGraphExecutor`."""
        between = self.recurrence_scope in ("sparse_n", "full") and not self.of_steps
        return "whole" if between else "near"

    def executor(
        self, model: brainstate.nn.Module, jacobians: str | None = None, **options: Any
    ) -> ETraceVjpGraphExecutor:
        """An executor that gives the Jacobians of the recurrence scope, or those asked for."""
        jacobians = self.jacobians if jacobians in (None, "near") else jacobians
        near = jacobians == "near" and self.recurrence_scope == "diagonal"
        scope = "diagonal" if near else "coupled"
        if self.moves_leaks or (self.downstream == "step" and self.trace_factorization != "none"):
            options = {"downstream": self.downstream, **options}
        if self.keeps_traces and options.get("downstream") == "linear":
            options = {"keeps_traces": True, **options}
        if self.kappa is not None and options.get("downstream") == "linear":
            options = {"kappa": float(self.kappa), **options}
        options = {"jacobians": jacobians, "recurrence_scope": scope, **options}
        return ETraceVjpGraphExecutor(model, **options)

    def rule(self, executor: Executor, trace_dtype: Any = None) -> LearningRule:
        """The learning rule for a compiled executor of :meth:`executor`."""
        executor = compiled_step(executor)
        rule = self._traces(executor, trace_dtype)
        if self.learning_signal == "random_feedback":
            return Resignalled(rule, RandomFeedback(executor, self.seed))
        if self.learning_signal == "modulatory":
            return Resignalled(rule, Modulated(executor))
        return rule

    def _traces(self, executor: Executor, dtype: Any) -> LearningRule:
        if self.trace_factorization == "none":
            return TracelessRule(executor)
        if self.trace_factorization == "random_projection":
            return UORORule(executor, dtype, self.seed)
        if self.trace_factorization == "io_factorized":
            return IODimRule(executor, *self.decays, dtype)
        if self.of_steps:
            return InfluenceRule(executor, dtype, self.sparse_n)
        if self.sparse_n is not None:
            return SnApRule(executor, dtype, self.sparse_n)
        moving = executor.graph.moving
        if self.kappa is not None and (moving is None or moving.kappa is None):
            return EPropRule(executor, dtype, float(self.kappa))
        banded = replace(executor, banded=True)
        executor = banded if banded.bands else executor
        if (lag := lag_of(executor, dtype)) > 1:
            return DelayedDRTRLRule(executor, dtype, lag=lag)
        cascaded = replace(executor, cascaded=True)
        if may_lag(executor) and not cascaded.above:
            return LaggedDRTRLRule(executor, dtype)
        executor = cascaded if cascaded.cascades else executor
        return ParamDimRule(executor, dtype, of_model=True)


def decays_of(decay_or_rank: Any) -> tuple[float, float]:
    """``a_x`` and ``a_f`` of the option ``decay_or_rank``: one value for both, or a pair.

    Raises ``TypeError`` or ``ValueError`` for something else than floats in [0, 1) and integers
    from 1: ``0.9`` gives (0.9, 0.9), ``3`` (0.5, 0.5), and ``(0.0, 0.9)`` itself.
    """
    if not isinstance(decay_or_rank, tuple | list):
        return (_decay(decay_or_rank),) * 2
    if len(decay_or_rank) != 2:
        raise ValueError(
            "decay_or_rank must be one value or a pair, for x and for f; got "
            f"{how_many(len(decay_or_rank), 'value')}"
        )
    return _decay(decay_or_rank[0]), _decay(decay_or_rank[1])


def _decay(value: Any) -> float:
    legal = "decay_or_rank must be a decay (a float in [0, 1)) or a rank (an integer from 1)"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        return float(_number(legal, numbers.Real, 0, 1, value))
    if value < 1:
        raise ValueError(f"{legal}, got the integer {value}; no memory at all is 0.0")
    return (int(value) - 1) / (int(value) + 1)


def _number(legal: str, kind: Any, least: float, below: float, value: Any) -> Any:
    """``value``, if it is a number of a kind in a range."""
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{legal}, got {value!r}")
    if not least <= value < below:
        raise ValueError(f"{legal}, got {value!r}")
    return value


def _check_seed(seed: Any) -> None:
    """Refuse what is neither an integer nor one key of JAX's default kind."""
    if type(seed) is not bool and isinstance(seed, numbers.Integral):
        return
    dtype = getattr(seed, "dtype", None)
    typed = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    is_key = isinstance(seed, jax.Array | np.ndarray) and (typed or dtype == np.uint32)
    if not is_key or versions.random_bits_of(seed).shape != versions.random_bits_of(0).shape:
        raise TypeError(
            "seed (projection_key, random_feedback_key) must be an integer or a JAX key, got "
            f"{seed!r:.80}"
        )


_of_kappa = partial(_number, "kappa must be a number in [0, 1)", numbers.Real, 0, 1)
_of_order = partial(_number, "n must be an integer from 1", numbers.Integral, 1, math.inf)

#: Every coefficient belongs to one value of one coordinate, and is there with it.
COEFFICIENTS: dict[str, tuple[str, str, Callable[[Any], Any]]] = {
    "decay": ("trace_factorization", "io_factorized", decays_of),
    "kappa": ("trace_filter", "kappa", _of_kappa),
    "sparse_n": ("recurrence_scope", "sparse_n", _of_order),
}
