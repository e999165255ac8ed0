# SPDX-License-Identifier: Apache-2.0
"""Every check of a case is failed by a plugin that breaks what it promises; correct ones pass."""

from __future__ import annotations

import pytest

from braintrace.testing import (
    ConformanceError,
    bound_checks,
    list_checks,
    parametrize_with_checks,
    static_parameters,
)

from . import specimens
from .sites import PACKAGING_BREAKERS


@pytest.mark.parametrize("check", specimens.BREAKERS)
def test_a_broken_plugin_fails(check):
    make, message = specimens.BREAKERS[check]
    assert_refused(check, make(), message)


def assert_refused(check, case, message):
    with pytest.raises(ConformanceError, match=f"(?s){message}") as failure:
        bound(check, case)()
    assert str(failure.value).startswith(f"{check}[{case.name}] failed: ")


def bound(check, case):
    (found,) = (b for b in bound_checks([case.spec], [case]) if b.check.id == check)
    return found


@pytest.mark.parametrize("check, make, message", specimens.WRONG_IN_PLACES)
def test_what_is_wrong_in_few_places_fails(check, make, message):
    assert_refused(check, make(), message)


@pytest.mark.parametrize("check, make", specimens.RIGHT_IN_ALL)
def test_the_same_done_right_passes(check, make):
    case = make()
    bound(check, case)()


STATIC = "cases.vary_the_static_parameters"


def test_a_static_parameter_that_no_case_varies_is_refused():
    cases = specimens.with_factor(True, 1.0)
    (check,) = (b for b in bound_checks([cases[0].spec], cases) if b.id == STATIC)
    with pytest.raises(
        ConformanceError, match=r"no case varies factor \(always 1.0\); add"
    ) as failure:
        check()
    assert f"Seen are: {cases[0].spec.name}: factor in (1.0,)" in str(failure.value)


@pytest.mark.parametrize("right", [True, False])
def test_static_parameters_that_cases_vary_are_checked_for_each_value(right):
    cases = specimens.with_factor(right, 1.0, 2.0)
    assert static_parameters(cases) == {cases[0].spec.name: {"factor": (1.0, 2.0)}}
    wanted = (STATIC, "rules.xy_to_dw_is_the_vjp[")
    failed = []
    for check in bound_checks([cases[0].spec], cases):
        if check.id.startswith(wanted):
            try:
                check()
            except ConformanceError:
                failed.append(check.id)
    assert failed == ([] if right else ["rules.xy_to_dw_is_the_vjp[factor_2.0]"])


def test_no_check_is_without_its_breaker():
    assert {*specimens.BREAKERS, *PACKAGING_BREAKERS, STATIC} == set(list_checks())


def test_every_check_says_what_it_promises():
    for text in list_checks().values():
        assert text.endswith(".")


@parametrize_with_checks([case.spec for case in specimens.HEALTHY], specimens.HEALTHY)
def test_a_correct_plugin_passes(check):
    check()
