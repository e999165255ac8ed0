# SPDX-License-Identifier: Apache-2.0
"""The element-wise primitive passes the conformance kit."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from braintrace.testing import ConformanceCase, parametrize_with_checks
from braintrace_elemwise import element_wise
from braintrace_elemwise._plugin import plugin
from braintrace_elemwise._primitives import ETP_ELEMWISE


def operands(seed, dtype):
    return [jax.random.normal(jax.random.key(100), (3,), dtype)]


def processed(weight):
    return element_wise(weight, fn=jnp.exp)


CASES = [
    ConformanceCase(ETP_ELEMWISE, operands, element_wise),
    ConformanceCase(ETP_ELEMWISE, operands, processed, "etp_elemwise_processed"),
]


@parametrize_with_checks(plugin, CASES)
def test_conformance(check):
    check()
