# SPDX-License-Identifier: Apache-2.0
"""The primitive passes the conformance kit.

One case that uses everything at once takes every check; the other geometries take those that
compare the hand-written rules with what is derived from the implementation.
"""

from __future__ import annotations

from functools import partial

import jax
import pytest

from braintrace.testing import ConformanceCase, bound_checks
from braintrace_conv import conv
from braintrace_conv._plugin import plugin
from braintrace_conv._primitives import ETP_CONV

LAST = ("NHWC", "HWIO", "NHWC")
RULES = (
    "rules.xy_to_dw_is_the_vjp",
    "rules.one_step_trace_gives_xy_to_dw",
    "rules.increments_drtrl_is_a_sum_over_steps",
    "rules.sums_over_steps",
    "rules.written_trace_equals_the_derived_one",
)


def case(name, x, kernel, bias=(), **options):
    shapes = [x, kernel, *([bias] if bias else [])]

    def operands(seed, dtype):
        keys = [jax.random.key(seed), jax.random.key(100), jax.random.key(101)]
        return [
            jax.random.normal(key, shape, dtype) for key, shape in zip(keys, shapes, strict=False)
        ]

    return ConformanceCase(ETP_CONV, operands, partial(conv, **options), name)


WHOLE = case(
    "everything",
    (2, 4, 5),
    (2, 2, 4),
    (4,),
    strides=2,
    rhs_dilation=2,
    feature_group_count=2,
    dimension_numbers=("NCW", "WIO", "NWC"),
)

GEOMETRIES = [
    case("1d_strided_bias", (3, 1, 5), (2, 1, 3), (2,), strides=3, padding="VALID"),
    case("1d_depthwise", (2, 4, 3), (4, 1, 2), (4,), feature_group_count=4),
    case(
        "2d_channels_last_groups",
        (2, 4, 3, 4),
        (2, 2, 2, 2),
        strides=(2, 1),
        rhs_dilation=(2, 1),
        feature_group_count=2,
        dimension_numbers=LAST,
    ),
    case(
        "2d_mixed_layout_explicit_padding",
        (2, 1, 2, 2),
        (2, 3, 2, 1),
        padding=((1, 0), (-1, 2)),
        lhs_dilation=(1, 2),
        dimension_numbers=("NCHW", "OHWI", "NHCW"),
    ),
    case("3d_bias", (2, 1, 2, 1, 3), (2, 1, 1, 1, 2), (2,), padding="SAME_LOWER"),
    case("sizes_of_one", (2, 1, 1, 1), (1, 1, 1, 1), (1,)),
]


CHECKS = [
    check
    for check in bound_checks(plugin, [WHOLE, *GEOMETRIES])
    if check.subject not in GEOMETRIES or check.id.startswith(RULES)
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_conformance(check):
    check()
