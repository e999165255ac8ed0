# SPDX-License-Identifier: Apache-2.0
"""The comparison fails on everything that should fail."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from braintrace.testing import assert_tree_close

ONES, ZEROS = np.ones(3), np.zeros(3)


def test_equal_trees_pass() -> None:
    tree = {("cell", 0, "w"): {"weight": ONES, "bias": 2 * ONES}}
    assert_tree_close(tree, tree, 0.0)
    assert_tree_close(ONES, ONES + 1e-12)


@pytest.mark.parametrize(
    ("actual", "reference", "message"),
    [
        ({"w": ONES}, {"w": 1.01 * ONES}, r"^w: relative error 9\.90e-03 exceeds 1e-09"),
        ({("a", 1): {"w": ONES}}, {("a", 1): {"w": 2 * ONES}}, r"^a\.1\.w: relative error"),
        ({"w": ONES * np.nan}, {"w": ONES}, "relative error nan"),
        ({"w": ONES}, {"w": ONES * np.nan}, "relative error nan"),
        ({"w": ZEROS}, {"w": ZEROS}, "w: the reference is zero everywhere"),
        ({"w": ONES}, {"w": ONES, "b": ONES}, r"only in reference \['b'\]"),
        ({"w": ONES}, {"w": np.ones((3, 1))}, r"shape \(3,\) differs"),
        ({}, {}, "nothing would be compared"),
    ],
)
def test_differences_fail(actual: Any, reference: Any, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_tree_close(actual, reference)


def test_allowed_zero_is_compared_with_the_whole() -> None:
    reference = {("a", "w"): ONES, ("a", "b"): ZEROS}
    assert_tree_close({("a", "w"): ONES, ("a", "b"): ZEROS + 1e-12}, reference, allow_zero=["a.b"])
    with pytest.raises(AssertionError, match=r"a\.b: relative error 1\.00e-03"):
        wrong = {("a", "w"): ONES, ("a", "b"): ZEROS + 1e-3}
        assert_tree_close(wrong, reference, allow_zero=[("a", "b")])


def test_scale_replaces_the_norm() -> None:
    assert_tree_close({"w": ONES + 1e-3}, {"w": ONES}, 1e-3, scale=2.0)
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close({"w": ONES + 1e-3}, {"w": ONES}, 1e-3, scale=0.1)
