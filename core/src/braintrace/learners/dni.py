# SPDX-License-Identifier: Apache-2.0
"""The learners beside D-RTRL and pp_prop: e-prop, OSTL, SnAp, RTRL, UORO, three-factor, DNI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import brainstate

from ..algorithms.config import ETraceConfig, preset
from ..algorithms.rule import LearningRule
from ..drivers.window_step import window_step
from .synthesizer import SyntheticGradient
from .vjp import ETraceVjpAlgorithm


class DNI(ETraceVjpAlgorithm):
    """Truncated reverse mode with learned predictions of the future gradient (DNI).

    There is no trace. In a window, the gradient is that of reverse mode, with the prediction
    ``g(h^k)`` of ``d (later losses) / d h^k`` added to the signal at its end, so that the sum over
    all windows is BPTT if ``g`` is right (Jaderberg et al. 2016, arXiv 1608.05343). ``g`` is one
    affine map per hidden state over its last axis, zero at the start. Its parameters are among
    :attr:`param_states`, and their gradient is that of ``|g(h^0) - dL/dh^0|^2 / 2`` at the start of
    each window: any optimizer trains them with the model.

    Parameters
    ----------
    model, **options
        See :class:`ETraceVjpAlgorithm`.
    vjp_method
        ``'multi-step'``.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.DNI(cell)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner(braintrace.MultiStepData(jnp.ones((5, 2, 3)))).shape
    (5, 2, 4)
    """

    def __init__(
        self, model: brainstate.nn.Module, vjp_method: str = "multi-step", **options: Any
    ) -> None:
        config = preset(
            ETraceConfig(trace_factorization="none", learning_signal="bootstrapped"), options
        )
        super().__init__(model, vjp_method, config=config, **options)
        self.synthesizer: SyntheticGradient | None = None

    def compile_graph(self, *args: Any) -> None:
        """Compile the model and start with predictions of zero; see the base class."""
        super().compile_graph(*args)
        self.synthesizer = SyntheticGradient(self.hidden_states)

    def make_step(self, rule: LearningRule) -> Any:
        """A window with a prediction at its end."""
        return window_step(rule, SyntheticGradient.predict)

    def _predictor(self) -> Any:
        return {} if self.synthesizer is None else self.synthesizer.values()

    @property
    def param_states(self) -> dict[Any, brainstate.State[Any]]:
        """All parameters of the model, and those of the predictions, by path."""
        own: Mapping[Any, Any] = {} if self.synthesizer is None else self.synthesizer.states_by_path
        return {**super().param_states, **own}
