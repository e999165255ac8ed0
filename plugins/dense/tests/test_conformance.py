# SPDX-License-Identifier: Apache-2.0
"""The dense primitives pass the conformance kit, one with and one without a bias."""

from __future__ import annotations

import numpy as np

from braintrace.testing import ConformanceCase, parametrize_with_checks
from braintrace_dense import matmul
from braintrace_dense._plugin import plugin
from braintrace_dense._primitives import ETP_MM, ETP_MV

IN, OUT, BATCH = 3, 2, 3


def case(spec, has_bias):
    head = (BATCH,) if spec.batched else ()
    shapes = [(*head, IN), (IN, OUT), *([(OUT,)] if has_bias else [])]

    def operands(seed, dtype):
        pairs = zip((seed, 100, 101), shapes, strict=False)
        return [np.random.default_rng(s).normal(size=shape).astype(dtype) for s, shape in pairs]

    return ConformanceCase(spec, operands, matmul, f"{spec.name}{'_bias' * has_bias}")


CASES = [case(ETP_MV, False), case(ETP_MM, True)]


@parametrize_with_checks(plugin, CASES)
def test_conformance(check):
    check()
