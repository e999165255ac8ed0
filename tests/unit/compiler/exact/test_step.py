# SPDX-License-Identifier: Apache-2.0
"""The step with values of small groups as states of others; tests/truth/test_exact.py has its
gradients."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from braintrace.base import versions
from braintrace.compiler.exact.step import exact_step
from tests.unit.compiler.exact.layers import Gated, graph_of


def test_values_are_those_of_the_step() -> None:
    graph = graph_of(Gated(3, 4), Gated(4, 3), Gated(3, 2))
    info, (step, _) = graph.module_info, exact_step(graph.exact)
    filters = [slot.path for slot in step.slots if slot.is_filter]
    assert filters == [("<exact>", str(i)) for i in range(3)]
    random = np.random.default_rng(0)
    avals = [var.aval for var in step.jaxpr.invars]
    inputs = [jnp.asarray(random.standard_normal(a.shape), a.dtype) for a in avals]
    own = len(info.jaxpr.invars)
    expected = versions.jaxpr_as_fun(info.jaxpr)(*inputs[:own])
    found = versions.jaxpr_as_fun(step.jaxpr)(*inputs)
    for a, b in zip(expected, found, strict=False):
        assert (a == b).all()
    assert not any(np.any(v) for v in found[len(expected) :])
