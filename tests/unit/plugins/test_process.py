# SPDX-License-Identifier: Apache-2.0
"""The host of a process, and pickled primitives that load their plugin."""

from __future__ import annotations

import threading

import pytest

from braintrace.ops.primitive import find_primitive
from braintrace.plugins import PluginError, process
from braintrace.plugins.records import Settings


def test_the_host_is_made_once_with_the_settings_of_the_environment(monkeypatch):
    monkeypatch.setattr(process, "_HOST", None)
    monkeypatch.setenv("BRAINTRACE_DISABLE_PLUGINS", "conv")
    monkeypatch.setenv("BRAINTRACE_STRICT_PLUGINS", "yes")
    host = process.host()
    assert host.settings == Settings(disable=frozenset({"conv"}), strict=True)
    assert process.host() is host


def test_a_host_that_is_there_is_had_without_waiting():
    here, found = process.host(), []
    with process._LOCK:
        thread = threading.Thread(target=lambda: found.append(process.host()), daemon=True)
        thread.start()
        thread.join(10)
    assert found == [here]


def test_a_pickled_primitive_loads_the_plugin_that_owns_it(site, host_of, plugin_source):
    text = plugin_source("pickled", "pickled_p")
    host = host_of(site.add("pickled", "pickled_module", text, family="pickled"))
    assert find_primitive("pickled_p") is None
    found = process.restored("pickled_p", "pickled_module")
    assert found is find_primitive("pickled_p") and found.owner == "pickled_module"
    assert {r.family: r.state for r in host.records()}["pickled"] == "loaded"
    assert process.restored("pickled_p", "pickled_module") is found


def test_a_pickled_primitive_of_a_disabled_plugin_says_so(site, host_of, plugin_source):
    text = plugin_source("barred", "barred_p")
    site.add("barred", "barred_module", text, family="barred")
    host_of(site, disable=frozenset({"barred"}))
    with pytest.raises(PluginError, match="the primitive 'barred_p' .* 'barred' 1.0, which is dis"):
        process.restored("barred_p", "barred_module")
