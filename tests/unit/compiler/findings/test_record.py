# SPDX-License-Identifier: Apache-2.0
"""A finding and its texts."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

from braintrace.base import versions
from braintrace.base.diagnostics import DiagnosticKind, DiagnosticLevel
from braintrace.compiler.findings.record import described, info, warning

KIND = DiagnosticKind.STATE_MISMATCH


def sine(x: Any) -> Any:
    return jnp.sin(x)


def test_a_finding_names_the_facts_it_is_about() -> None:
    (eqn,) = versions.make_jaxpr(sine, 1.0).eqns
    finding = info(
        KIND, "{primitive}({parameter}) -> {states}: {size}, {more} at {at}", "Change it"
    )
    record = finding(eqn, ("a", 0), (("h",), ("b", 1)), {"size": 3}, more="and")
    source = versions.source_of(eqn)
    assert record.message == f"sin(a[0]) -> h, b[1]: 3, and at 'sin' ({source})"
    assert (record.kind, record.level) == (KIND, DiagnosticLevel.INFO)
    assert (record.primitive, record.source, record.remedy) == ("sin", source, "Change it")
    assert (record.weight_path, record.hidden_paths) == (("a", 0), (("h",), ("b", 1)))
    assert record.context == {"size": 3}  # what is only told is not kept
    assert described(eqn) == f"'sin' ({source})" and "test_record.py:" in source


def test_a_finding_about_no_equation() -> None:
    record = warning(KIND, "text", "")()
    assert record.level is DiagnosticLevel.WARNING
    assert (record.primitive, record.source, record.weight_path) == (None, None, None)
    with pytest.raises(KeyError, match="size"):
        warning(KIND, "{size}", "")()
