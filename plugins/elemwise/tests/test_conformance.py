# SPDX-License-Identifier: Apache-2.0
"""The element-wise primitive passes the conformance kit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from braintrace.testing import ConformanceCase, bound_checks, parametrize_with_checks
from braintrace_elemwise import element_wise
from braintrace_elemwise._plugin import plugin
from braintrace_elemwise._primitives import ETP_ELEMWISE


def operands(seed, dtype):
    return [jax.random.normal(jax.random.key(100), (3,), dtype)]


def processed(weight):
    return element_wise(weight, fn=jnp.exp)


@parametrize_with_checks(plugin, [ConformanceCase(ETP_ELEMWISE, operands, element_wise)])
def test_conformance(check):
    check()


#: With a function, without models: those are in test_elemwise_training.
PROCESSED = [
    check
    for check in bound_checks(
        [ETP_ELEMWISE], [ConformanceCase(ETP_ELEMWISE, operands, processed, "processed")]
    )
    if check.check.id.partition(".")[0] in ("cases", "jax", "rules", "units")
]


@pytest.mark.parametrize("check", PROCESSED, ids=[check.id for check in PROCESSED])
def test_conformance_of_the_processed_operation(check):
    check()
