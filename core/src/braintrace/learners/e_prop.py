# SPDX-License-Identifier: Apache-2.0
"""e-prop as a learner, with an error that is fed back through a fixed random matrix."""

from __future__ import annotations

import math
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..algorithms.config import ETraceConfig
from ..base import versions
from .vjp import ETraceVjpAlgorithm, preset


def feedback_matrix(seed: Any, out: Any, error: Any) -> jax.Array:
    """A fixed matrix [m, n] for an output [.., n] and an error [.., m], of variance ``1 / m``.

    It raises ``TypeError`` or ``ValueError`` when they are not such arrays.
    """
    if len(jax.tree.leaves(out)) != 1 or not versions.is_float(jnp.asarray(out)):
        raise TypeError(
            "an error is fed back to a model that returns one floating-point array; this one "
            f"returns {jax.tree.map(lambda v: (jnp.shape(v), jnp.result_type(v)), out)}"
        )
    shapes = jnp.shape(out), jnp.shape(error)
    if any(len(s) == 0 for s in shapes) or shapes[0][:-1] != shapes[1][:-1]:
        raise ValueError(
            f"error has shape {shapes[1]} and the model's output {shapes[0]}; they must be [.., m] "
            "and [.., n] with the same axes in front"
        )
    rows, columns = shapes[1][-1], shapes[0][-1]
    key = jax.random.fold_in(versions.random_bits_of(seed), rows)
    return jax.random.normal(key, (rows, columns), jnp.result_type(out)) / math.sqrt(rows)


@jax.custom_vjp
def feed_back(out: jax.Array, error: jax.Array, matrix: jax.Array) -> jax.Array:
    """``out``, whose cotangent is ``error @ matrix`` whatever the loss is."""
    return out


def _fed_back(kept: Any, _: jax.Array) -> Any:
    error, matrix = kept
    fed = (jnp.asarray(error) @ matrix).astype(matrix.dtype)
    return fed, jax.tree.map(versions.zero_cotangent, error), jnp.zeros_like(matrix)


feed_back.defvjp(lambda out, error, matrix: (out, (error, matrix)), _fed_back)


def arguments_and_error(learner: EProp, args: tuple[Any, ...], error: Any = None) -> Any:
    """What calls of e-prop take: an error [.., m] that is fed back to the output [.., n]."""
    if error is None:
        return learner.run_call(args)
    if learner.feedback != "random":
        raise ValueError("an error is fed back by feedback='random' only")
    if learner.vjp_method != "single-step":
        raise ValueError("an error is fed back with vjp_method='single-step' only")
    out = learner.run_call(args, given=True)
    return feed_back(out, error, feedback_matrix(learner.config.seed, out, error))


class EProp(ETraceVjpAlgorithm):
    """e-prop: D-RTRL with a low-pass filter on the trace and, if wanted, random feedback.

    ``ebar^t = kappa ebar^{t-1} + eps^t`` with the trace ``eps`` of D-RTRL, and ``dL/dw = sum_t
    <l^t, ebar^t>`` (Bellec et al., Nature Communications 11:3625, 2020, doi
    10.1038/s41467-020-17236-y). With ``kappa`` zero and symmetric feedback it is D-RTRL.

    Parameters
    ----------
    feedback
        ``'symmetric'``: learning signals are gradients of the loss. ``'random'``: they pass a fixed
        random matrix. Without an error, the gradient at the hidden states [.., n] passes a matrix
        [n, n]. When calls are given one, ``learner(x, error=err)`` with ``err`` [.., m], a matrix
        [m, n] brings it to the model's output [.., n], in place of the gradient of the loss: the
        model is the recurrent layers, and ``err`` that of a readout behind them.
    kappa_filter_decay
        ``kappa``, in [0, 1).
    random_feedback_key
        An integer or a JAX key, which ``'random'`` needs.
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Raises
    ------
    TypeError, ValueError
        For an option with another value.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, "eprop", x, batch_size=2, kappa_filter_decay=0.9)
    >>> learner(x).shape
    (2, 4)
    """

    call_takes = staticmethod(arguments_and_error)

    def __init__(
        self,
        model: brainstate.nn.Module,
        feedback: str = "symmetric",
        kappa_filter_decay: float = 0.0,
        random_feedback_key: Any = None,
        *_late: Any,
        **options: Any,
    ) -> None:
        if feedback not in ("symmetric", "random"):
            raise ValueError(f"feedback must be 'symmetric' or 'random', got {feedback!r}")
        if feedback == "random" and random_feedback_key is None:
            raise ValueError("feedback='random' needs random_feedback_key, a seed or a JAX key")
        self.feedback = feedback
        config = ETraceConfig(
            trace_filter="kappa",
            kappa=kappa_filter_decay,
            learning_signal="random_feedback" if feedback == "random" else "symmetric",
            seed=0 if random_feedback_key is None else random_feedback_key,
        )
        super().__init__(model, *_late, **preset(config, options))
