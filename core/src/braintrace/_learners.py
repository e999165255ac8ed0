# SPDX-License-Identifier: Apache-2.0
"""The base of learners whose signals are gradients, D-RTRL and pp_prop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import brainstate
import jax.numpy as jnp

from ._algorithm import LearningRule, decays_of
from ._compile import check_scope
from ._config import ETraceConfig, preset
from ._execute import ETraceGraphExecutor
from ._learner import ETraceAlgorithm

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
        Dtype of the traces; default: that of what they are made from (in pp_prop, float32 at
        least).
    random_feedback_key
        In place of the ``seed`` of a ``config`` with random feedback, which alone has a use for it.
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
        vjp_method: str = "single-step",
        *,
        config: ETraceConfig | None = None,
        trace_dtype: Any = None,
        random_feedback_key: Any = None,
        **options: Any,
    ) -> None:
        config = ETraceConfig() if config is None else config
        if not isinstance(config, ETraceConfig):
            raise TypeError(f"config must be an ETraceConfig, got {type(config).__name__}")
        if "recurrence_scope" in options:
            raise TypeError(
                f"recurrence_scope is no option of {type(self).__name__}; pass "
                "config=ETraceConfig(recurrence_scope=...) to ETraceVjpAlgorithm"
            )
        if random_feedback_key is not None and config.learning_signal == "random_feedback":
            config = replace(config, seed=random_feedback_key)
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
        return self.config.executor(model, **options)

    def make_rule(self, executor: ETraceGraphExecutor) -> LearningRule:
        """The rule of the configuration."""
        return self.config.rule(executor, self.trace_dtype)


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
    try:
        if jnp.issubdtype(jnp.dtype(dtype), jnp.floating):
            return jnp.dtype(dtype)
    except TypeError:
        pass
    raise TypeError(f"trace_dtype must be a floating-point dtype, got {dtype!r}")


class D_RTRL(ETraceVjpAlgorithm):
    """Online learning with parameter-dimension traces (D-RTRL).

    The trace of a relation obeys ``eps^t = D^t eps^{t-1} + f^t (x) x^t`` with the diagonal ``D`` of
    the hidden transition, and ``dL/dw = sum_t <l^t, eps^t> + <e^t, eps^{t-1}>`` (Wang et al.,
    Nature Communications 2026, doi 10.1038/s41467-026-68453-w). Exact when every hidden-to-hidden
    path is element-wise; otherwise the recurrent products are left out of ``D``.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    recurrence_scope
        ``'diagonal'``: recurrent ETP operations are left out of ``D``. ``'coupled'``: ``D`` is the
        diagonal of the transition with them (it contains ``act' W_ii``), which costs a reverse
        sweep for each position of a layer at every step.
    vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`; a ``config`` has traces per parameter, too.

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
        recurrence_scope: str = "diagonal",
        **options: Any,
    ) -> None:
        config = ETraceConfig(recurrence_scope=check_scope(recurrence_scope))
        config = preset(config, options, "trace_factorization")
        super().__init__(model, vjp_method, config=config, **options)


class pp_prop(ETraceVjpAlgorithm):
    """Online learning with input-output-dimension traces (pp_prop, also ES-D-RTRL).

    The trace of a relation is a filtered input, a filtered factor and the number of steps ``t``
    since they were zero::

        eps_x^t = a_x eps_x^{t-1} + x^t
        eps_f^t = a_f D^t eps_f^{t-1} + (1 - a_f) f^t
        dL/dw   = sum_t xy_to_dw(eps_x^t, l^t eps_f^t / (1 - a_f^{t+1}))

    (Wang et al., Nature Communications 2026, doi 10.1038/s41467-026-68453-w). It is of the size of
    the activity, B (in + out S) for a dense product, whatever the number of parameters. The
    gradient of one step is exact; over several, a product of two sums takes the place of D-RTRL's
    sum of products.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    decay_or_rank
        A float in [0, 1): the decay ``a``. An integer ``k`` from 1, the rank: ``a = (k - 1) /
        (k + 1)``. Two of these: ``(a_x, a_f)``.
    recurrence_scope
        As in :class:`D_RTRL`.
    vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`; a ``config`` is factorized, too, and its decay counts.

    Raises
    ------
    TypeError, ValueError
        For an option with another value.

    Notes
    -----
    Compiling refuses an operation whose ``x`` is not floating-point (an index), unless ``a_x`` is
    zero: there is nothing to filter.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.pp_prop(cell, decay_or_rank=0.9)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner(jnp.ones((2, 3))).shape
    (2, 4)
    >>> {name: part.shape for name, part in learner.get_etrace_of(("Wz", "weight"))[0].items()}
    {'x': (2, 7), 'f': (2, 4, 1)}
    """

    def __init__(
        self,
        model: brainstate.nn.Module,
        decay_or_rank: float | int | tuple[float | int, float | int],
        vjp_method: str = "single-step",
        *,
        recurrence_scope: str = "diagonal",
        **options: Any,
    ) -> None:
        self.decay_x, self.decay_f = decays_of(decay_or_rank)
        config = ETraceConfig(
            trace_factorization="io_factorized",
            decay=decay_or_rank,
            recurrence_scope=check_scope(recurrence_scope),
        )
        config = preset(config, options, "trace_factorization")
        super().__init__(model, vjp_method, config=config, **options)


ParamDimVjpAlgorithm = D_RTRL
IODimVjpAlgorithm = ES_D_RTRL = pp_prop
