# SPDX-License-Identifier: Apache-2.0
"""The low-rank primitives pass the conformance kit, with and without a bias."""

from __future__ import annotations

import jax
import pytest

from braintrace.testing import ConformanceCase, bound_checks, parametrize_with_checks
from braintrace_lora import lora_matmul
from braintrace_lora._plugin import plugin
from braintrace_lora._primitives import ETP_LORA_MM, ETP_LORA_MV

IN, RANK, OUT, BATCH = 3, 2, 2, 3
ALPHA = 0.5  # a constant factor, which yw_to_w must leave out


def low_rank(x, B, A, bias=None):
    return lora_matmul(x, B, A, alpha=ALPHA, bias=bias)


def case(spec, has_bias):
    head = (BATCH,) if spec.batched else ()
    shapes = [(*head, IN), (IN, RANK), (RANK, OUT), *([(OUT,)] if has_bias else [])]

    def operands(seed, dtype):
        seeds = (seed, 100, 101, 102)
        return [
            jax.random.normal(jax.random.key(k), shape, dtype)
            for k, shape in zip(seeds, shapes, strict=False)
        ]

    return ConformanceCase(spec, operands, low_rank, f"{spec.name}{'_bias' * has_bias}")


@parametrize_with_checks(plugin, [case(ETP_LORA_MV, True), case(ETP_LORA_MM, False)])
def test_conformance(check):
    check()


#: The other two forms; models around them are in test_lora_training.
OTHERS = [
    check
    for check in bound_checks(
        [ETP_LORA_MV, ETP_LORA_MM], [case(ETP_LORA_MV, False), case(ETP_LORA_MM, True)]
    )
    if check.check.id.partition(".")[0] in ("cases", "jax", "rules", "units")
]


@pytest.mark.parametrize("check", OTHERS, ids=[check.id for check in OTHERS])
def test_conformance_of_the_operation(check):
    check()
