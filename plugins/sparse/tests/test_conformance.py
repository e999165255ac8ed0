# SPDX-License-Identifier: Apache-2.0
"""The sparse primitives pass the conformance kit, with and without a bias, by every route."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.sparse import BCOO

from braintrace.testing import ConformanceCase, bound_checks
from braintrace_sparse import sparse_matmul
from braintrace_sparse._plugin import plugin
from braintrace_sparse._primitives import DENSE_BATCH, ETP_SP_MM, ETP_SP_MV

IN, OUT, WIDE = 3, 2, 60
# out of order, one position twice, an empty row
INDICES = jnp.array([[2, 0], [0, 1], [2, 1], [0, 1]])


def case(spec, has_bias, batch=2, num_out=OUT, name=""):
    nnz = len(INDICES)
    matrix = BCOO((jnp.zeros(nnz), INDICES), shape=(IN, num_out))
    head = (batch,) if spec.batched else ()
    shapes = [(*head, IN), (nnz,), *([(num_out,)] if has_bias else [])]

    def operands(seed, dtype):
        keys = [jax.random.key(seed), jax.random.key(100), jax.random.key(101)]
        return [jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=False)]

    def op(x, weight, bias=None):
        return sparse_matmul(x, weight, sparse_mat=matrix, bias=bias)

    return ConformanceCase(spec, operands, op, f"{spec.name}{'_bias' * has_bias}{name}")


CASES = [case(ETP_SP_MV, has_bias=True), case(ETP_SP_MM, has_bias=False)]
#: The other forms and routes, which models around the operation do not tell apart.
FORMS = [
    case(ETP_SP_MV, has_bias=False),
    case(ETP_SP_MM, has_bias=True, batch=DENSE_BATCH, name="_through_dense"),
    case(ETP_SP_MM, has_bias=True, batch=DENSE_BATCH, num_out=WIDE, name="_wide"),
]
OF_ARRAYS = ("rules.xy", "rules.yw", "rules.written", "rules.sums")
CHECKS = [
    check
    for check in bound_checks(plugin, [*CASES, *FORMS])
    if check.subject not in FORMS or check.id.startswith(OF_ARRAYS)
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_conformance(check):
    check()
