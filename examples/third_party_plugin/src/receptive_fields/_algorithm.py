# SPDX-License-Identifier: Apache-2.0
"""A learning rule of the plugin: D-RTRL with one number in place of the transition ``D``.

``eps^t = decay eps^{t-1} + f^t (x) x^t``, as in a model whose states all have one time constant.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from braintrace.algorithms import Block, ParamDimRule
from braintrace.plugin_api import ETraceVjpAlgorithm


@dataclass(frozen=True, eq=False)
class LeakyTraceRule(ParamDimRule):
    """D-RTRL with ``decay`` in place of ``D``."""

    decay: float = 0.9
    name = "leaky traces"

    def leaky(self, block: Block) -> Block:
        """The block with other transitions."""
        steps = block.jacobians.f[0].shape[0]

        def of_group(group: Any) -> jax.Array:
            eye = self.decay * jnp.eye(group.num_state)
            wide = eye.reshape(*eye.shape, *(1,) * group.ndim)
            return jnp.broadcast_to(wide, (steps, *eye.shape, *group.varshape))

        transition = tuple(map(of_group, self.executor.graph.hidden_groups))
        return block._replace(jacobians=block.jacobians._replace(transition=transition))

    def solve(self, traces: Any, block: Block, operands: Any) -> Any:
        """The gradients of a block."""
        return super().solve(traces, self.leaky(block), operands)

    def update(self, traces: Any, block: Block, operands: Any) -> Any:
        """The traces after a block."""
        return super().update(traces, self.leaky(block), operands)


class LeakyTrace(ETraceVjpAlgorithm):
    """``braintrace.compile(model, "leaky_trace", ..., decay=0.9)``."""

    def __init__(self, model: Any, decay: float, **options: Any) -> None:
        super().__init__(model, **options)
        self.decay = decay

    def make_rule(self, executor: Any) -> LeakyTraceRule:
        """The rule with the learner's decay."""
        return LeakyTraceRule(executor, self.trace_dtype, self.decay)
