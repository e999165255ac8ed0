# SPDX-License-Identifier: Apache-2.0
"""The primitives of embeddings pass the conformance kit."""

from __future__ import annotations

import jax
import pytest

from braintrace.testing import ConformanceCase, bound_checks
from braintrace_embedding import embedding
from braintrace_embedding._plugin import plugin
from braintrace_embedding._primitives import ETP_EMBEDDING, ETP_EMBEDDING_BATCHED

COUNT, SIZE, BATCH = 5, 3, 3


def case(spec, rows, overflow="error"):
    def operands(seed, dtype):
        shape = (BATCH,) if spec.batched else ()
        indices = jax.random.randint(jax.random.key(seed), shape, 0, COUNT)
        return [indices, jax.random.normal(jax.random.key(100), (COUNT, SIZE), dtype)]

    def op(x, w):
        return embedding(x, w, rows=rows, overflow=overflow)

    return ConformanceCase(spec, operands, op, f"{spec.name}_{overflow}")


CASES = [case(ETP_EMBEDDING, None), case(ETP_EMBEDDING_BATCHED, None)]
#: Without models: further static parameters.
OTHERS = [case(ETP_EMBEDDING, 4, "forget"), case(ETP_EMBEDDING_BATCHED, 4, "forget")]
CHECKS = [
    check
    for check in bound_checks(plugin, [*CASES, *OTHERS])
    if check.subject not in OTHERS or check.id.startswith(("cases", "jax", "units"))
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_conformance(check):
    check()
