# SPDX-License-Identifier: Apache-2.0
"""e-prop as a learner, with an error that is fed back."""

from __future__ import annotations

from typing import Any

import brainstate

from ..algorithms.config import ETraceConfig, preset
from .feedback import feed_back, feedback_matrix
from .vjp import ETraceVjpAlgorithm


class EProp(ETraceVjpAlgorithm):
    """e-prop: D-RTRL with a low-pass filter on the trace and, if wanted, random feedback.

    ``ebar^t = kappa ebar^{t-1} + eps^t`` with the trace ``eps`` of D-RTRL, and ``dL/dw = sum_t
    <l^t, ebar^t>`` (Bellec et al., Nature Communications 11:3625, 2020, doi
    10.1038/s41467-020-17236-y). With ``kappa`` zero and symmetric feedback it is D-RTRL.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
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
    vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Raises
    ------
    TypeError, ValueError
        For an option with another value.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.EProp(cell, kappa_filter_decay=0.9)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner(jnp.ones((2, 3))).shape
    (2, 4)
    """

    def __init__(
        self,
        model: brainstate.nn.Module,
        feedback: str = "symmetric",
        kappa_filter_decay: float = 0.0,
        random_feedback_key: Any = None,
        vjp_method: str = "single-step",
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
        config = preset(config, options)
        super().__init__(model, vjp_method, config=config, **options)

    def update(self, *args: Any, error: Any = None) -> Any:
        """Run the model and the traces; see :meth:`ETraceAlgorithm.update`.

        Parameters
        ----------
        *args
            Arguments like those the learner was compiled for.
        error
            With random feedback, what is fed back to the model's output in place of the gradient of
            the loss: [.., m] for an output [.., n].
        """
        if error is None:
            return super().update(*args)
        if self.feedback != "random":
            raise ValueError("an error is fed back by feedback='random' only")
        if self.vjp_method != "single-step":
            raise ValueError("an error is fed back with vjp_method='single-step' only")
        out = self._run(args, given=True)
        return feed_back(out, error, feedback_matrix(self.config.seed, out, error))
