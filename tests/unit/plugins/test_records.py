# SPDX-License-Identifier: Apache-2.0
"""Records check themselves; settings are read from the environment."""

from __future__ import annotations

import pytest

from braintrace.plugin_api import (
    Finding,
    PluginInfo,
)
from braintrace.plugins.records import Settings


def test_settings_from_the_environment(monkeypatch):
    monkeypatch.setenv("BRAINTRACE_PLUGINS", "")
    monkeypatch.setenv("BRAINTRACE_DISABLE_PLUGINS", "Dense, my_conv")
    monkeypatch.setenv("BRAINTRACE_STRICT_PLUGINS", "1")
    monkeypatch.setenv("BRAINTRACE_TRACE_PLUGINS", "no")
    expected = Settings(frozenset(), frozenset({"dense", "my-conv"}), strict=True, trace=False)
    assert Settings.from_environment() == expected


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"family": ""}, ValueError, "family must not be empty"),
        ({"family": 3}, TypeError, "family must be a string, got 3"),
        ({"family": "x", "api": 1}, TypeError, "api must be"),
        ({"family": "x", "api": ("1", "0")}, TypeError, "api must be"),
        ({"family": "x", "exports": ["op"]}, TypeError, "exports must map"),
        ({"family": "x", "exports": {"layers": ()}}, ValueError, "unknown kinds \\['layers'\\]"),
        ({"family": "x", "exports": {"ops": "matmul"}}, TypeError, "must be a tuple of names"),
    ],
)
def test_plugin_info_is_checked(arguments, error, text):
    with pytest.raises(error, match=text):
        PluginInfo(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        (("a b", "info", "x"), ValueError, "id must be an identifier, got 'a b'"),
        (("a", "fatal", "x"), ValueError, "level must be one of error, warning, info"),
        (("a", "info", " "), ValueError, "text must not be empty"),
        (("a", "info", 3), TypeError, "text must be a string, got 3"),
    ],
)
def test_a_finding_checks_itself(arguments, error, text):
    with pytest.raises(error, match=text):
        Finding(*arguments)
