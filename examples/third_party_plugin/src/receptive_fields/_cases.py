# SPDX-License-Identifier: Apache-2.0
"""Examples of the operations for the conformance kit, which alone imports this."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from braintrace.testing import ConformanceCase

from ._ops import dendrites, receptive_fields
from ._primitives import DENDRITES, FIELDS, FIELDS_BATCHED


def _drawn(*shapes: tuple[int, ...]) -> Callable[[int, Any], list[jax.Array]]:
    """Operands of these shapes: the first one is ``x``, the others are the same for every seed."""

    def operands(seed: int, dtype: Any) -> list[jax.Array]:
        seeds = [seed, *range(100, 99 + len(shapes))]
        pairs = zip(seeds, shapes, strict=True)
        return [jax.random.normal(jax.random.key(s), shape, dtype) for s, shape in pairs]

    return operands


CASES = (
    ConformanceCase(FIELDS, _drawn((2,), (2, 3), (2, 3)), receptive_fields),
    ConformanceCase(FIELDS_BATCHED, _drawn((3, 2), (2, 3), (2, 3)), receptive_fields),
    ConformanceCase(DENDRITES, _drawn((3,), (3, 2, 2), (2, 2)), dendrites),
)
