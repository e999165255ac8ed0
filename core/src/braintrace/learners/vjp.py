# SPDX-License-Identifier: Apache-2.0
"""The base of learners whose gradients come from vector-Jacobian products."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import brainstate
import jax.numpy as jnp

from ..algorithms.base import LearningRule
from ..algorithms.config import ETraceConfig
from ..base import versions
from ..executor.executor import Executor
from ..executor.graph_executor import ETraceGraphExecutor
from .learner import ETraceAlgorithm
from .options import options_of

VJP_METHODS = ("single-step", "multi-step")

#: Learners that give a rule what gradients of the loss are not.
OWN_LEARNERS = {"modulatory": "ThreeFactor", "bootstrapped": "DNI"}


class ETraceVjpAlgorithm(ETraceAlgorithm):
    """Base of learners whose learning signals are gradients of the loss.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    vjp_method
        ``'single-step'``: learning signals are those of the current step. ``'multi-step'``: calls
        take windows of several steps (see :class:`braintrace.MultiStepData`), with reverse mode
        inside and the traces' credit for what was before.
    config
        The learning rule as an :class:`braintrace.ETraceConfig`; default: D-RTRL.
    trace_dtype
        Dtype of the traces; default: that of what they are made from, and no narrower than those of
        parameters and states, and float32.
    random_feedback_key
        In place of the ``seed`` of a ``config`` with random feedback, which alone has a use for it.
    downstream
        In place of that of ``config``: how far credit goes in the layers above, ``'step'``,
        ``'linear'`` or ``'exact'``; see :func:`braintrace.compile_etrace_graph`. A subclass with a
        rule of its own has ``'step'`` unless it is asked for more.
    **options
        Further options of :func:`braintrace.compile_etrace_graph`.

    Raises
    ------
    TypeError, ValueError
        For a model that is none, or an option with another value than those above.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> coupled = braintrace.ETraceConfig(recurrence_scope="coupled")
    >>> learner = braintrace.ETraceVjpAlgorithm(cell, config=coupled)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> [group.num_state for group in learner.graph.hidden_groups]
    [1]
    """

    def __init__(
        self,
        model: brainstate.nn.Module,
        *_late: Any,
        vjp_method: str = "single-step",
        config: ETraceConfig | None = None,
        trace_dtype: Any = None,
        random_feedback_key: Any = None,
        downstream: str | None = None,
        **options: Any,
    ) -> None:
        vjp_method = by_name(type(self), vjp_method, *_late)
        config = _checked(ETraceConfig() if config is None else config)
        if "recurrence_scope" in options:
            raise TypeError(
                f"recurrence_scope is no option of {type(self).__name__}; pass "
                "config=ETraceConfig(recurrence_scope=...) to ETraceVjpAlgorithm"
            )
        if random_feedback_key is not None and config.learning_signal == "random_feedback":
            config = replace(config, seed=random_feedback_key)
        self._own_rule = type(self).make_rule is not ETraceVjpAlgorithm.make_rule
        if downstream is not None or self._own_rule:
            config = replace(config, downstream=downstream or "step")
        check_method(vjp_method, config)
        if type(self) is ETraceVjpAlgorithm and config.learning_signal in OWN_LEARNERS:
            raise ValueError(
                f"learning_signal={config.learning_signal!r} is that of braintrace."
                f"{OWN_LEARNERS[config.learning_signal]}; use it, or braintrace.compile(model, "
                "config, ...)"
            )
        self.config, self.vjp_method = config, vjp_method
        super().__init__(model, **options)
        self.trace_dtype = trace_dtype if trace_dtype is None else _float_dtype(trace_dtype)

    def make_executor(self, model: brainstate.nn.Module, **options: Any) -> ETraceGraphExecutor:
        """What gives the Jacobians that the configuration asks for."""
        options = {"vjp_method": self.vjp_method, **options}
        if self.vjp_method == "multi-step" and self.config.kappa is not None:
            options = {"downstream": None, **options}  # a window starts from filtered traces
        if self._own_rule and self.config.downstream == "step":
            options = {"downstream": None, **options}  # it may keep credit of its own
        return self.config.executor(model, self.jacobians, **options)

    def make_rule(self, executor: Executor) -> LearningRule:
        """The rule of the configuration."""
        return self.config.rule(executor, self.trace_dtype)


def by_name(learner: type, vjp_method: str, *late: Any) -> Any:
    """``vjp_method``, also from where it stood before; ``TypeError`` for anything behind it."""
    if not late:
        return vjp_method
    if vjp_method != options_of(learner)["vjp_method"].default:
        raise TypeError("vjp_method is given twice, by position and by name")
    if late[1:]:
        raise TypeError(f"options of {learner.__name__} are given by name, got {late[1]!r}")
    versions.warn(
        f"options of {learner.__name__} are given by name: vjp_method={late[0]!r}; by position "
        "they will be refused",
        DeprecationWarning,
    )
    return late[0]


def preset(
    own: ETraceConfig, options: Mapping[str, Any], shared: str | None = None
) -> dict[str, Any]:
    """Options of a learner with a name, with its own configuration or the one given in its place.

    That must agree with it in one coordinate; ``shared`` is ``None`` for a learner whose name says
    all of its rule. Raises ``TypeError`` or ``ValueError`` for another one.
    """
    given = options.get("config")
    if given is None:
        return {**options, "config": own}
    elsewhere = "ETraceVjpAlgorithm(model, config=...) and compile(model, config, ...) take any"
    if shared is None:
        raise TypeError(f"config is no option of a learner whose name says its rule; {elsewhere}")
    if getattr(_checked(given), shared) != getattr(own, shared):
        raise ValueError(
            f"config must have {shared}={getattr(own, shared)!r}, got "
            f"{getattr(given, shared)!r}; {elsewhere}"
        )
    if own.recurrence_scope not in ("diagonal", given.recurrence_scope):
        raise ValueError(
            f"recurrence_scope={own.recurrence_scope!r} contradicts the one of config, "
            f"{given.recurrence_scope!r}; pass one of them"
        )
    return dict(options)


def _checked(config: Any) -> ETraceConfig:
    if not isinstance(config, ETraceConfig):
        raise TypeError(f"config must be an ETraceConfig, got {type(config).__name__}")
    return config


def check_method(vjp_method: str, config: ETraceConfig) -> None:
    """Whether a rule learns in steps or in windows; raises ``ValueError`` for one that cannot."""
    legal = VJP_METHODS[config.needs_windows : 2 if config.has_windows else 1]
    if vjp_method not in legal:
        allowed = " or ".join(map(repr, legal))
        raise ValueError(
            f"vjp_method must be {allowed} with learning_signal={config.learning_signal!r}, got "
            f"{vjp_method!r}"
        )


def _float_dtype(dtype: Any) -> Any:
    with suppress(TypeError):
        if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return jnp.dtype(dtype)
    raise TypeError(f"trace_dtype must be a floating-point dtype, got {dtype!r}")
