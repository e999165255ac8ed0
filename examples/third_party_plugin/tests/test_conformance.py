# SPDX-License-Identifier: Apache-2.0
"""Every primitive passes the conformance kit of braintrace."""

import jax
from grouped_products import dendrites, grouped_matmul
from grouped_products._plugin import plugin
from grouped_products._primitives import DENDRITES, GROUPED_MM, GROUPED_MV

from braintrace.testing import ConformanceCase, parametrize_with_checks


def drawn(*shapes):
    """Operands of these shapes: the first one is ``x``, the others are the same for every seed."""

    def operands(seed, dtype):
        seeds = [seed, *range(100, 99 + len(shapes))]
        pairs = zip(seeds, shapes, strict=True)
        return [jax.random.normal(jax.random.key(s), shape, dtype) for s, shape in pairs]

    return operands


CASES = [
    ConformanceCase(GROUPED_MV, drawn((2, 3), (2, 3, 2)), grouped_matmul),
    ConformanceCase(GROUPED_MM, drawn((2, 2, 3), (2, 3, 2)), grouped_matmul),
    ConformanceCase(DENDRITES, drawn((3,), (3, 2, 2), (2, 2)), dendrites),
]


@parametrize_with_checks(plugin, CASES)
def test_conformance(check):
    check()
