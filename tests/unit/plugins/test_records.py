# SPDX-License-Identifier: Apache-2.0
"""Records check themselves; settings are read from the environment."""

from __future__ import annotations

import pytest

from braintrace.plugin_api import (
    Finding,
    PluginInfo,
)
from braintrace.plugins.records import Settings, names, normalised


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


@pytest.mark.parametrize("value", ["", "0", "False", " no ", "off"])
def test_what_switches_a_variable_off(value, monkeypatch):
    monkeypatch.setenv("BRAINTRACE_STRICT_PLUGINS", value)
    monkeypatch.delenv("BRAINTRACE_PLUGINS", raising=False)
    settings = Settings.from_environment()
    assert not settings.strict and settings.allow is None


def test_names_are_compared_as_packaging_does():
    assert normalised(" My__Plug.in ") == "my-plug-in"
    assert names(["A_b", " ", "a.B"]) == {"a-b"}


def test_why_a_plugin_may_not_be_used():
    assert Settings().why_disabled("conv", "braintrace-conv") is None
    for disable in ({"conv"}, {"Braintrace_Conv"}, {"*"}):
        reason = Settings(disable=frozenset(disable)).why_disabled("conv", "braintrace-conv")
        assert "take it off that list" in str(reason)
    allowed = Settings(allow=frozenset({"dense"}))
    assert allowed.why_disabled("dense", "braintrace-dense") is None
    assert "it is not among the allowed plugins" in str(allowed.why_disabled("conv", "x"))
    assert "not among" in str(Settings(allow=frozenset()).why_disabled("dense", "x"))


def test_exports_of_a_plugin_cannot_be_changed():
    info = PluginInfo("x", exports={"ops": ("a",)})
    assert info.exports == {"ops": ("a",)}
    with pytest.raises(TypeError, match="does not support item assignment"):
        info.exports["nn"] = ()
