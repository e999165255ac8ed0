# SPDX-License-Identifier: Apache-2.0
"""The kit itself: arguments, expected failures, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from braintrace.testing import (
    ConformanceCase,
    ConformanceError,
    bound_checks,
    check_plugin,
    parametrize_with_checks,
)
from braintrace_testing.conformance import kit

from . import specimens


def test_importing_the_kit_imports_no_pytest():
    code = "import sys, braintrace.testing; sys.exit('pytest' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture
def few_checks(monkeypatch):
    """Only two quick checks; the second one fails for the case."""
    kept = {id: kit.CASE_CHECKS[id] for id in ("jax.vmap", "rules.init_pp")}
    monkeypatch.setattr(kit, "CASE_CHECKS", kept)
    monkeypatch.setattr(kit, "FAMILY_CHECKS", {})
    return specimens.trace_without_states()


def test_all_failures_are_listed(few_checks):
    with pytest.raises(ConformanceError, match="1 of 2 checks") as failure:
        check_plugin([few_checks.spec], [few_checks])
    assert f"rules.init_pp[{few_checks.name}] failed" in str(failure.value)


@pytest.mark.parametrize("bare", [True, False])
def test_an_expected_failure(few_checks, bare):
    id = "rules.init_pp" if bare else f"rules.init_pp[{few_checks.name}]"
    passed = check_plugin(
        [few_checks.spec], [few_checks], expected_failures={id: "it has no states"}
    )
    assert passed == (f"jax.vmap[{few_checks.name}]",)


def test_an_expected_failure_that_passes_fails(few_checks):
    reasons = {"rules.init_pp": "it has no states", "jax.vmap": "mistaken"}
    with pytest.raises(ConformanceError, match="passed, but was expected to fail: mistaken"):
        check_plugin([few_checks.spec], [few_checks], expected_failures=reasons)


def test_pytest_parameters(few_checks):
    mark = parametrize_with_checks(
        [few_checks.spec], [few_checks], expected_failures={"rules.init_pp": "it has no states"}
    ).mark
    names, parameters = mark.args
    assert (mark.name, names) == ("parametrize", "check")
    assert [p.id for p in parameters] == [
        f"{id}[{few_checks.name}]" for id in ("jax.vmap", "rules.init_pp")
    ]
    (xfail,) = parameters[1].marks
    assert xfail.name == "xfail"
    assert xfail.kwargs == {
        "reason": "it has no states", "strict": True, "raises": ConformanceError
    }  # fmt: skip
    assert not parameters[0].marks


def test_cases_of_the_hook():
    case = specimens.HEALTHY[0]

    class Plugin:
        def braintrace_plugin_info(self):
            raise RuntimeError("not asked to list the checks")

        def braintrace_conformance_cases(self, api):
            assert api.version == (1, 0)
            return [case]

    ids = [check.id for check in bound_checks(Plugin())]
    assert "packaging.declaration" in ids
    assert f"jax.jit[{case.name}]" in ids


def test_wrong_arguments():
    case = specimens.HEALTHY[0]
    spec = case.spec
    with pytest.raises(TypeError, match="a plugin object or an iterable"):
        bound_checks(3, [case])
    with pytest.raises(TypeError, match="must be a ConformanceCase, got int"):
        bound_checks([spec], [3])
    with pytest.raises(ValueError, match="there is no case"):
        bound_checks([spec], [])
    with pytest.raises(ValueError, match="several cases are called"):
        bound_checks([spec], [case, case])
    with pytest.raises(ValueError, match="no case of specimen_conv"):
        bound_checks([spec, specimens.CONV], [case])
    with pytest.raises(ValueError, match="which is not declared"):
        bound_checks([spec], [case, specimens.HEALTHY[1]])
    with pytest.raises(ValueError, match="names unknown checks: nonsense"):
        check_plugin([spec], [case], expected_failures={"nonsense": "because"})
    with pytest.raises(ValueError, match="must say why"):
        check_plugin([spec], [case], expected_failures={"jax.jit": " "})


def test_wrong_cases():
    case = specimens.HEALTHY[0]
    with pytest.raises(TypeError, match="spec must be an ETPPrimitiveSpec"):
        ConformanceCase("etp_mm", case.operands, case.op)
    with pytest.raises(TypeError, match="op of the case 'c' must be callable"):
        ConformanceCase(case.spec, case.operands, None, "c")
    with pytest.raises(TypeError, match="name must be a string"):
        replace(case, name=3)
