# SPDX-License-Identifier: Apache-2.0
"""The element-wise primitive passes the conformance kit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from braintrace.testing import ConformanceCase, bound_checks
from braintrace_elemwise import element_wise
from braintrace_elemwise._plugin import plugin
from braintrace_elemwise._primitives import ETP_ELEMWISE


def operands(seed, dtype):
    return [jax.random.normal(jax.random.key(100), (3,), dtype)]


def processed(weight):
    return element_wise(weight, fn=jnp.exp)


PLAIN = ConformanceCase(ETP_ELEMWISE, operands, element_wise)
#: With a function, without models: those are in test_elemwise_training.
PROCESSED = ConformanceCase(ETP_ELEMWISE, operands, processed, "processed")
CHECKS = [
    check
    for check in bound_checks(plugin, [PLAIN, PROCESSED])
    if check.subject != PROCESSED or check.id.startswith(("cases", "jax", "rules", "units"))
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_conformance(check):
    check()
