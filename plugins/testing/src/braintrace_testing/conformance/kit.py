# SPDX-License-Identifier: Apache-2.0
"""Running the checks: all at once, or as tests of pytest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import jax

from braintrace.ops.spec import ETPPrimitiveSpec

from .case import ConformanceCase
from .check import CASE_CHECKS, FAMILY_CHECKS, PLUGIN_CHECKS, Check, ConformanceError
from .plugin_checks import PluginSubject, check_cases, declared_cases


@dataclass(frozen=True, eq=False)
class BoundCheck:
    """A check of one case, of all cases or of one plugin; calling it runs it.

    Attributes
    ----------
    id
        ``"<check>[<case>]"``, or ``"<check>"`` for one of the plugin or of all cases together.
    check
        The check.
    subject
        What it looks at: a case, all cases, or a plugin.

    Examples
    --------
    >>> import jax
    >>> from braintrace.plugin_api import ETPPrimitiveSpec, bind
    >>> from braintrace.testing import ConformanceCase, bound_checks
    >>> spec = ETPPrimitiveSpec("doc_bound_scale", lambda x, w: x * w)
    >>> def operands(seed, dtype):
    ...     x, w = jax.random.normal(jax.random.key(seed), (2, 3), dtype)
    ...     return x, w
    >>> case = ConformanceCase(spec, operands, lambda x, w: bind(spec, x, w))
    >>> checks = {check.id: check for check in bound_checks([spec], [case])}
    >>> checks["jax.jit[doc_bound_scale]"]()
    """

    id: str
    check: Check
    subject: Any

    def __call__(self) -> None:
        """Run the check.

        Raises
        ------
        ConformanceError
            When it fails, whatever the plugin raised.
        """
        try:
            with jax.enable_x64(True):
                self.check.run(self.subject)
        except Exception as error:
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            text = f"{self.id} failed: {kind}{error}\nPromised: {self.check.text}"
            raise ConformanceError(text) from error

    def __repr__(self) -> str:
        return f"<check {self.id}>"


def list_checks() -> dict[str, str]:
    """The names of all checks, with what each promises.

    Examples
    --------
    >>> from braintrace.testing import list_checks
    >>> list_checks()["jax.jit"]
    '``jit`` of the operation gives the same numbers, at each call.'
    """
    every = PLUGIN_CHECKS | FAMILY_CHECKS | CASE_CHECKS
    return {id: check.text for id, check in every.items()}


def bound_checks(
    plugin_or_specs: Any, cases: Iterable[ConformanceCase] | None = None
) -> tuple[BoundCheck, ...]:
    """Every check that applies to a plugin (or to specifications) and its cases.

    Parameters
    ----------
    plugin_or_specs, cases
        As in :func:`check_plugin`.

    Returns
    -------
    tuple of BoundCheck

    Raises
    ------
    TypeError
        For something else.
    ValueError
        When there is no case, two have one name, or (for specifications) one has no case.

    Examples
    --------
    >>> import jax
    >>> from braintrace.plugin_api import ETPPrimitiveSpec, bind
    >>> from braintrace.testing import ConformanceCase, bound_checks
    >>> spec = ETPPrimitiveSpec("doc_bound_checks", lambda x, w: x * w)
    >>> def operands(seed, dtype):
    ...     x, w = jax.random.normal(jax.random.key(seed), (2, 3), dtype)
    ...     return x, w
    >>> case = ConformanceCase(spec, operands, lambda x, w: bind(spec, x, w))
    >>> checks = bound_checks([spec], [case])
    >>> "jax.jit[doc_bound_checks]" in {check.id for check in checks}
    True
    """
    is_plugin = hasattr(plugin_or_specs, "braintrace_plugin_info")
    specs = () if is_plugin else _specs(plugin_or_specs)
    chosen = _checked(declared_cases(plugin_or_specs) if cases is None else tuple(cases))
    bound = []
    if is_plugin:
        subject = PluginSubject(plugin_or_specs, chosen)
        bound = [BoundCheck(id, check, subject) for id, check in PLUGIN_CHECKS.items()]
    else:
        try:
            check_cases(specs, chosen)
        except AssertionError as error:
            raise ValueError(str(error)) from None
    bound += [BoundCheck(id, check, chosen) for id, check in FAMILY_CHECKS.items()]
    for case in chosen:
        applying = (check for check in CASE_CHECKS.values() if check.applies(case))
        bound += [BoundCheck(f"{check.id}[{case.name}]", check, case) for check in applying]
    return tuple(bound)


def _specs(given: Any) -> tuple[ETPPrimitiveSpec, ...]:
    specs = tuple(given) if isinstance(given, Iterable) else (given,)
    if not specs or not all(isinstance(spec, ETPPrimitiveSpec) for spec in specs):
        raise TypeError(
            f"expected a plugin object or an iterable of ETPPrimitiveSpec, got {given!r:.80}"
        )
    return specs


def _checked(cases: tuple[Any, ...]) -> tuple[ConformanceCase, ...]:
    if not cases:
        raise ValueError(
            "there is no case: pass cases, or implement the hook braintrace_conformance_cases"
        )
    for case in cases:
        if not isinstance(case, ConformanceCase):
            raise TypeError(f"a case must be a ConformanceCase, got {type(case).__name__}")
    names = [case.name for case in cases]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"several cases are called {', '.join(twice)}; give each a name")
    return cases


def _reasons(bound: tuple[BoundCheck, ...], given: Mapping[str, str] | None) -> dict[str, str]:
    """Why each bound check is expected to fail; a bare check's name stands for all its cases."""
    given = dict(given or {})
    known = {b.id for b in bound} | {b.check.id for b in bound}
    if unknown := sorted(set(given) - known):
        raise ValueError(f"expected_failures names unknown checks: {', '.join(unknown)}")
    for id, reason in given.items():
        if not isinstance(reason, str) or not reason.strip():
            raise ValueError(f"expected_failures[{id!r}] must say why, got {reason!r}")
    reasons = {b.id: given.get(b.id, given.get(b.check.id)) for b in bound}
    return {id: reason for id, reason in reasons.items() if reason is not None}


def check_plugin(
    plugin_or_specs: Any,
    cases: Iterable[ConformanceCase] | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Run every conformance check of a plugin.

    Parameters
    ----------
    plugin_or_specs
        A plugin object, or an iterable of ``ETPPrimitiveSpec``, for which packaging is not checked.
    cases
        The cases; by default those of the plugin's hook ``braintrace_conformance_cases``.
    expected_failures
        Why a check fails, by its id: ``"rules.init_pp[etp_mm]"``, or ``"rules.init_pp"`` for all
        cases. One that passes is an error.

    Returns
    -------
    tuple of str
        Ids of the checks that passed.

    Raises
    ------
    ConformanceError
        Listing every check that failed, and every expected failure that passed.
    TypeError, ValueError
        For arguments that are none of the above.

    Examples
    --------
    >>> import jax
    >>> from braintrace.plugin_api import ETPPrimitiveSpec, bind
    >>> from braintrace.testing import ConformanceCase, check_plugin
    >>> spec = ETPPrimitiveSpec("doc_kit_scale", lambda x, w: x * w)
    >>> def operands(seed, dtype):
    ...     x, w = jax.random.normal(jax.random.key(seed), (2, 3), dtype)
    ...     return x, w
    >>> case = ConformanceCase(spec, operands, lambda x, w: bind(spec, x, w))
    >>> "jax.jit[doc_kit_scale]" in check_plugin([spec], [case])
    True
    """
    bound = bound_checks(plugin_or_specs, cases)
    reasons = _reasons(bound, expected_failures)
    passed, problems = [], []
    for check in bound:
        try:
            check()
        except ConformanceError as error:
            problems += [] if check.id in reasons else [str(error)]
        else:
            passed.append(check.id)
            if check.id in reasons:
                problems.append(f"{check.id} passed, but was expected to fail: {reasons[check.id]}")
    if problems:
        head = f"{len(problems)} of {len(bound)} checks did not end as they should"
        raise ConformanceError("\n\n".join([head, *problems]))
    return tuple(passed)


def parametrize_with_checks(
    plugin_or_specs: Any,
    cases: Iterable[ConformanceCase] | None = None,
    *,
    expected_failures: Mapping[str, str] | None = None,
) -> Any:
    """A ``pytest.mark.parametrize`` that makes one test of every check.

    The decorated test takes an argument ``check`` and calls it. An expected failure is a strict
    ``xfail``. Errors are those of :func:`check_plugin`.

    Parameters
    ----------
    plugin_or_specs, cases, expected_failures
        As in :func:`check_plugin`.

    Examples
    --------
    With a case as in :func:`check_plugin`, in a test file::

        from braintrace.testing import parametrize_with_checks

        @parametrize_with_checks(plugin, cases)
        def test_conformance(check):
            check()

    >>> import jax
    >>> from braintrace.plugin_api import ETPPrimitiveSpec, bind
    >>> from braintrace.testing import ConformanceCase, parametrize_with_checks
    >>> spec = ETPPrimitiveSpec("doc_marked_scale", lambda x, w: x * w)
    >>> def operands(seed, dtype):
    ...     x, w = jax.random.normal(jax.random.key(seed), (2, 3), dtype)
    ...     return x, w
    >>> case = ConformanceCase(spec, operands, lambda x, w: bind(spec, x, w))
    >>> parametrize_with_checks([spec], [case]).name
    'parametrize'
    """
    import pytest

    bound = bound_checks(plugin_or_specs, cases)
    reasons = _reasons(bound, expected_failures)
    parameters = []
    for check in bound:
        marks = []
        if check.id in reasons:
            marks = [
                pytest.mark.xfail(reason=reasons[check.id], strict=True, raises=ConformanceError)
            ]
        parameters.append(pytest.param(check, id=check.id, marks=marks))
    return pytest.mark.parametrize("check", parameters)
