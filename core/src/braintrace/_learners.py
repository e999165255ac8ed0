# SPDX-License-Identifier: Apache-2.0
"""The learning rules as learners, and ``compile``, which makes one ready by its name."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp

from ._algorithm import IODimRule, ParamDimRule, decays_of
from ._checks import check_required
from ._compile import check_scope
from ._execute import ETraceGraphExecutor
from ._learner import ETraceAlgorithm


class ETraceVjpAlgorithm(ETraceAlgorithm):
    """Base of learners whose learning signals are gradients of the loss.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    vjp_method
        ``'single-step'``: learning signals are those of the current step.
    trace_dtype
        Dtype of the traces; default: that of what they are made from (in pp_prop, float32 at
        least).
    recurrence_scope
        ``'diagonal'``: recurrent ETP operations are left out of ``D``. ``'coupled'``: ``D`` is the
        diagonal of the transition with them (it contains ``act' W_ii``), which costs a reverse
        sweep for each position of a layer at every step.
    **options
        Further options of :func:`braintrace.compile_etrace_graph`.

    Raises
    ------
    TypeError, ValueError
        For a model that is none, or an option with another value than those above.
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
    vjp_method, trace_dtype, recurrence_scope, **options
        See :class:`ETraceVjpAlgorithm`.

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

    def make_rule(self, executor: ETraceGraphExecutor) -> ParamDimRule:
        """The rule D-RTRL."""
        return ParamDimRule(executor, self.trace_dtype)


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
    vjp_method, trace_dtype, recurrence_scope, **options
        See :class:`ETraceVjpAlgorithm`.

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
        **options: Any,
    ) -> None:
        super().__init__(model, vjp_method, **options)
        self.decay_x, self.decay_f = decays_of(decay_or_rank)

    def make_rule(self, executor: ETraceGraphExecutor) -> IODimRule:
        """The rule pp_prop."""
        return IODimRule(executor, self.decay_x, self.decay_f, self.trace_dtype)


ParamDimVjpAlgorithm = D_RTRL
IODimVjpAlgorithm = ES_D_RTRL = pp_prop

ALGORITHMS: dict[str, type[ETraceAlgorithm]] = {
    "d_rtrl": D_RTRL,
    "pp_prop": pp_prop,
    "es_d_rtrl": pp_prop,
}


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
        A learner class or its name: ``'d_rtrl'``, ``'pp_prop'`` (or ``'es_d_rtrl'``), or one of an
        installed plugin.
    *example_inputs
        Arguments of one step.
    batch_size
        Passed on to ``brainstate.nn.init_all_states``.
    verbose
        1: print what the compiler found.
    **options
        Passed on to the learner, such as ``decay_or_rank`` of :class:`pp_prop`.

    Raises
    ------
    ValueError
        For an unknown algorithm.
    TypeError
        For an option that the learner does not have, or one that is missing.
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
    check_required(algorithm, options)
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
