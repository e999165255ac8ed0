# SPDX-License-Identifier: Apache-2.0
"""Records of the compiler, as texts."""

from __future__ import annotations

from braintrace.base.diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel

KIND, LEVEL = DiagnosticKind.PARAMETER_UNUSED, DiagnosticLevel.WARNING


def test_a_text_says_what_where_and_what_to_do() -> None:
    record = CompilationRecord(KIND, LEVEL, "w is not used", source="net.py:3", remedy="Drop it")
    assert str(record) == "warning: parameter_unused: w is not used. Drop it [net.py:3]"
    assert str(CompilationRecord(KIND, LEVEL, "text")) == "warning: parameter_unused: text"


def test_the_representation_shows_what_it_is_about() -> None:
    record = CompilationRecord(
        KIND, LEVEL, "text", "etp_mm", ("a", 0), (("h",),), {"size": 3}, "net.py:3", "Drop it"
    )
    assert repr(record) == (
        "CompilationRecord(kind=parameter_unused, level=warning, primitive='etp_mm', "
        "weight_path=('a', 0), hidden_paths=[('h',)], message='text', context={'size': 3})"
    )
    bare = CompilationRecord(KIND, LEVEL, "")
    assert repr(bare) == "CompilationRecord(kind=parameter_unused, level=warning)"


def test_records_are_values_although_their_context_is_a_dict() -> None:
    one, two = (CompilationRecord(KIND, LEVEL, "text", context={"a": k}) for k in (1, 1))
    assert one == two and len({one, two}) == 1
    assert one != CompilationRecord(KIND, LEVEL, "text", context={"a": 2})


def test_values_of_kinds_are_their_names() -> None:
    assert all(kind.value == kind.name.lower() for kind in DiagnosticKind)
