# SPDX-License-Identifier: Apache-2.0
"""Learning rules as coordinates of one record, and what they are made of."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import numpy as np

from ..base import versions
from ..executor.executor import Executor
from ..executor.graph_executor import ETraceGraphExecutor, compiled_step
from .base import LearningRule
from .d_rtrl import ParamDimRule
from .e_prop import EPropRule
from .lagged import LaggedDRTRLRule, may_lag
from .pp_prop import IODimRule
from .signals import Modulated, RandomFeedback, Resignalled, TracelessRule
from .snap import SnApRule
from .uoro import UORORule

COORDINATES = {
    "trace_factorization": ("per_param", "io_factorized", "random_projection", "none"),
    "recurrence_scope": ("diagonal", "coupled", "sparse_n", "full"),
    "learning_signal": ("symmetric", "random_feedback", "modulatory", "bootstrapped"),
    "trace_filter": ("none", "kappa"),
}

#: Which scopes and signals go with each factorization, and whether a filter does.
LEGAL = {
    "per_param": (
        ("diagonal", "coupled", "sparse_n", "full"),
        ("symmetric", "random_feedback", "modulatory"),
        True,
    ),
    "io_factorized": (
        ("diagonal", "coupled"),
        ("symmetric", "random_feedback", "modulatory"),
        False,
    ),
    "random_projection": (("full",), ("symmetric", "random_feedback", "modulatory"), False),
    "none": (("diagonal",), ("bootstrapped",), False),
}


@dataclass(frozen=True)
class ETraceConfig:
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
        ``'kappa'``: a low-pass filter on the trace (e-prop).
    decay
        ``decay_or_rank`` of :class:`braintrace.pp_prop`, which ``'io_factorized'`` needs.
    kappa
        Decay of the filter in [0, 1), which ``'kappa'`` needs; 0 is no filter.
    sparse_n
        The order ``n`` from 1, which ``'sparse_n'`` needs; 1 is ``'coupled'``.
    seed
        An integer or a JAX key, for ``'random_projection'`` and ``'random_feedback'``.

    Raises
    ------
    TypeError, ValueError
        For a value or a combination that is no rule; the message names those that are.

    Examples
    --------
    >>> import braintrace
    >>> braintrace.ETraceConfig(recurrence_scope="sparse_n", sparse_n=1).recurrence_scope
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

    def __post_init__(self) -> None:
        for name, legal in COORDINATES.items():
            if getattr(self, name) not in legal:
                raise ValueError(f"{name} must be one of {legal}, got {getattr(self, name)!r}")
        self._check_coefficients()
        if self.trace_filter == "kappa" and self.kappa == 0:
            self._set(trace_filter="none", kappa=None)
        if self.recurrence_scope == "sparse_n" and self.sparse_n == 1:
            self._set(recurrence_scope="coupled", sparse_n=None)
        self._check_combination()

    def _set(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check_coefficients(self) -> None:
        """Every coefficient belongs to one value of one coordinate, and is there with it."""
        for coefficient, coordinate, value, check in (
            ("decay", "trace_factorization", "io_factorized", decays_of),
            ("kappa", "trace_filter", "kappa", _check_kappa),
            ("sparse_n", "recurrence_scope", "sparse_n", _check_order),
        ):
            chosen, given = getattr(self, coordinate) == value, getattr(self, coefficient)
            if chosen and given is None:
                raise ValueError(f"{coordinate}={value!r} needs {coefficient}")
            if given is not None and not chosen:
                raise ValueError(f"{coefficient}={given!r} needs {coordinate}={value!r}")
            if given is not None:
                check(given)
        _check_seed(self.seed)

    def _check_combination(self) -> None:
        scopes, signals, filtered = LEGAL[self.trace_factorization]
        for name, legal in (
            ("recurrence_scope", scopes),
            ("learning_signal", signals),
            ("trace_filter", ("none", "kappa") if filtered else ("none",)),
        ):
            if getattr(self, name) not in legal:
                raise ValueError(
                    f"trace_factorization={self.trace_factorization!r} goes with {name} in "
                    f"{legal}, not with {getattr(self, name)!r}"
                )
        if self.recurrence_scope == "sparse_n" and self.trace_filter != "none":
            raise ValueError(
                "trace_filter='kappa' goes with recurrence_scope in "
                f"('diagonal', 'coupled', 'full'), not with {self.recurrence_scope!r}"
            )

    @property
    def needs_windows(self) -> bool:
        """Whether the rule exists in windows only."""
        return self.learning_signal == "bootstrapped"

    @property
    def has_windows(self) -> bool:
        """Whether the rule exists in windows."""
        return self.learning_signal != "modulatory"

    # --- what it is made of --------------------------------------------------------------------

    @property
    def jacobians(self) -> str:
        """What ``D`` and ``f`` must hold, as for :class:`braintrace.ETraceGraphExecutor`."""
        return "whole" if self.recurrence_scope in ("sparse_n", "full") else "near"

    def executor(
        self, model: brainstate.nn.Module, jacobians: str | None = None, **options: Any
    ) -> ETraceGraphExecutor:
        """An executor that gives the Jacobians of the recurrence scope, or those asked for."""
        if jacobians in (None, "near"):
            jacobians = self.jacobians
        near = jacobians == "near" and self.recurrence_scope == "diagonal"
        scope = "diagonal" if near else "coupled"
        return ETraceGraphExecutor(model, jacobians=jacobians, recurrence_scope=scope, **options)

    def rule(self, executor: Executor, trace_dtype: Any = None) -> LearningRule:
        """The learning rule for a compiled executor of :meth:`executor`."""
        rule = self._traces(compiled_step(executor), trace_dtype)
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
            return IODimRule(executor, *decays_of(self.decay), dtype)
        if self.recurrence_scope == "sparse_n":
            return SnApRule(executor, dtype, self.sparse_n or 1)
        if self.kappa is not None:
            return EPropRule(executor, dtype, float(self.kappa))
        if may_lag(executor):
            return LaggedDRTRLRule(executor, dtype)
        return ParamDimRule(executor, dtype, of_model=True)


def decays_of(decay_or_rank: Any) -> tuple[float, float]:
    """``a_x`` and ``a_f`` of the option ``decay_or_rank``: one value for both, or a pair.

    Raises
    ------
    TypeError, ValueError
        For something else than a float in [0, 1), an integer from 1, or two of these.

    Examples
    --------
    >>> decays_of(0.9), decays_of(3), decays_of((0.0, 0.9))
    ((0.9, 0.9), (0.5, 0.5), (0.0, 0.9))
    """
    if not isinstance(decay_or_rank, tuple | list):
        return (_decay(decay_or_rank),) * 2
    if len(decay_or_rank) != 2:
        raise ValueError(
            "decay_or_rank must be one value or a pair, for x and for f; got "
            f"{len(decay_or_rank)} values"
        )
    of_x, of_f = map(_decay, decay_or_rank)
    return of_x, of_f


def _decay(value: Any) -> float:
    legal = "decay_or_rank must be a decay (a float in [0, 1)) or a rank (an integer from 1)"
    if not isinstance(value, numbers.Integral):
        return float(_number(value, legal, numbers.Real, 0, 1))
    rank = int(_number(value, legal, numbers.Integral, -math.inf, math.inf))
    if rank < 1:
        raise ValueError(f"{legal}, got the integer {rank}; no memory at all is 0.0")
    return (rank - 1) / (rank + 1)


def _number(value: Any, legal: str, kind: Any, least: float, below: float) -> Any:
    """``value``, if it is a number of a kind in a range."""
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{legal}, got {value!r}")
    if not least <= value < below:
        raise ValueError(f"{legal}, got {value!r}")
    return value


def _check_kappa(kappa: Any) -> None:
    _number(kappa, "kappa must be a number in [0, 1)", numbers.Real, 0, 1)


def _check_order(n: Any) -> None:
    _number(n, "n must be an integer from 1", numbers.Integral, 1, math.inf)


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
