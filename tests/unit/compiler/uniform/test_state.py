# SPDX-License-Identifier: Apache-2.0
"""What is recorded of a uniform state."""

from __future__ import annotations

from braintrace.compiler.uniform.state import MINUS, UniformConstant, UniformFactor, UniformSource


def test_records_by_themselves() -> None:
    assert MINUS.how == "times" and MINUS.case == 0  # of no value: -1
    source = UniformSource("z", (UniformFactor("c"),))
    assert not source.cut and source.of is None and not source.trained
    assert UniformConstant(frozenset({2}), ()) != UniformConstant(frozenset({2}), ())
