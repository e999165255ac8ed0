# SPDX-License-Identifier: Apache-2.0
"""The low-rank primitives pass the conformance kit, with and without a bias."""

from __future__ import annotations

import jax
import pytest

from braintrace.testing import ConformanceCase, bound_checks
from braintrace_lora import lora_matmul
from braintrace_lora._plugin import plugin
from braintrace_lora._primitives import ETP_LORA_MM, ETP_LORA_MV

IN, RANK, OUT, BATCH = 3, 2, 2, 3


def case(spec, has_bias, alpha=0.5):  # a constant factor, which yw_to_w must leave out
    head = (BATCH,) if spec.batched else ()
    shapes = [(*head, IN), (IN, RANK), (RANK, OUT), *([(OUT,)] if has_bias else [])]

    def operands(seed, dtype):
        seeds = (seed, 100, 101, 102)
        return [
            jax.random.normal(jax.random.key(k), shape, dtype)
            for k, shape in zip(seeds, shapes, strict=False)
        ]

    def low_rank(x, B, A, bias=None):
        return lora_matmul(x, B, A, alpha=alpha, bias=bias)

    return ConformanceCase(spec, operands, low_rank, f"{spec.name}{'_bias' * has_bias}")


CASES = [case(ETP_LORA_MV, True), case(ETP_LORA_MM, False)]
#: The other two forms; models around them are in test_lora_training.
OTHERS = [case(ETP_LORA_MV, False, alpha=2.0), case(ETP_LORA_MM, True, alpha=2.0)]
CHECKS = [
    check
    for check in bound_checks(plugin, [*CASES, *OTHERS])
    if check.subject not in OTHERS or check.id.startswith(("cases", "jax", "rules", "units"))
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_conformance(check):
    check()
