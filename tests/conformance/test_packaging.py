# SPDX-License-Identifier: Apache-2.0
"""Every packaging check is failed by a distribution made for it; a correct one passes all."""

from __future__ import annotations

import importlib

import pytest

from braintrace.testing import ConformanceError, bound_checks

from .sites import PACKAGING_BREAKERS, case_for, install


@pytest.fixture
def checks_of(tmp_path, monkeypatch):
    """Install a distribution for this process, and bind the checks of its plugin."""

    def bound(**options):
        monkeypatch.syspath_prepend(tmp_path)
        module = importlib.import_module(install(tmp_path, **options))
        return bound_checks(module.plugin, [case_for(module)])

    return bound


@pytest.mark.parametrize("check", PACKAGING_BREAKERS)
def test_a_broken_distribution_fails(check, checks_of):
    options, message = PACKAGING_BREAKERS[check]
    (bound,) = (b for b in checks_of(**options) if b.check.id == check)
    with pytest.raises(ConformanceError, match=message) as failure:
        bound()
    assert str(failure.value).startswith(f"{check} failed: ")


def test_a_correct_distribution_passes(checks_of):
    packaging = [b for b in checks_of() if b.id.startswith("packaging.")]
    assert len(packaging) == len(PACKAGING_BREAKERS)
    for check in packaging:
        check()


def test_a_plugin_that_is_not_installed_fails(checks_of, tmp_path, monkeypatch):
    bound = {b.id: b for b in checks_of()}
    monkeypatch.setattr("sys.path", [p for p in __import__("sys").path if p != str(tmp_path)])
    with pytest.raises(ConformanceError, match="no installed distribution is called"):
        bound["packaging.entry_point"]()
