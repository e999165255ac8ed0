# SPDX-License-Identifier: Apache-2.0
"""Every check of a case is failed by a plugin that breaks what it promises; correct ones pass."""

from __future__ import annotations

import pytest

from braintrace.testing import ConformanceError, bound_checks, list_checks, parametrize_with_checks

from . import specimens
from .sites import PACKAGING_BREAKERS


@pytest.mark.parametrize("check", specimens.BREAKERS)
def test_a_broken_plugin_fails(check):
    make, message = specimens.BREAKERS[check]
    case = make()
    (bound,) = (b for b in bound_checks([case.spec], [case]) if b.check.id == check)
    with pytest.raises(ConformanceError, match=f"(?s){message}") as failure:
        bound()
    assert str(failure.value).startswith(f"{check}[{case.name}] failed: ")


def test_no_check_is_without_its_breaker():
    assert {*specimens.BREAKERS, *PACKAGING_BREAKERS} == set(list_checks())


def test_every_check_says_what_it_promises():
    for text in list_checks().values():
        assert text.endswith(".")


@parametrize_with_checks([case.spec for case in specimens.HEALTHY], specimens.HEALTHY)
def test_a_correct_plugin_passes(check):
    check()
