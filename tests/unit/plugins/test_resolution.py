# SPDX-License-Identifier: Apache-2.0
"""Who provides a name: one distribution, the official one, and none that may not be used."""

from __future__ import annotations

import sys

import pytest

from braintrace.names import OFFICIAL
from braintrace.plugins import PluginError
from braintrace.plugins.resolution import available, enabled_providers, exported, resolve


def test_an_export_that_is_not_there(site, host_of, plugin_source):
    text = plugin_source("noexport", "noexport_p").replace("def op(", "def other(")
    host = host_of(site.add("noexport", "noexport", text, family="noexport", ops=["nothing"]))
    with pytest.raises(PluginError, match="'noexport:op' cannot be loaded") as caught:
        resolve(host, "ops", "nothing")
    assert isinstance(caught.value.__cause__, AttributeError)


@pytest.mark.parametrize("order", [1, -1])
def test_one_name_from_two_distributions(order, make_site, host_of, plugin_source):
    sites = []
    for name in ("same_a", "same_b"):
        text = plugin_source(name, f"{name}_p")
        sites.append(make_site(name).add(name, name, text, family=name, ops=["same"]))
    host = host_of(*sites[::order])
    with pytest.raises(PluginError, match="provided by 'same-a' 1.0 and 'same-b' 1.0; none of"):
        resolve(host, "ops", "same")
    assert "same" not in available(host, "ops")
    assert not {"same_a", "same_b"} & set(sys.modules)


def test_official_names_belong_to_official_distributions(site, host_of, plugin_source, monkeypatch):
    text = plugin_source("thief", "thief_p")
    site.add("thief", "thief_module", text, family="thief", ops=["matmul", "to_come"])
    monkeypatch.setitem(OFFICIAL["ops"], "to_come", "braintrace-to-come")
    host = host_of(site)
    assert resolve(host, "ops", "matmul").__module__.startswith("braintrace_dense")
    with pytest.raises(PluginError, match="'braintrace-to-come', which is not installed"):
        resolve(host, "ops", "to_come")
    monkeypatch.setitem(OFFICIAL["ops"], "to_come", "braintrace-dense")  # which is older
    with pytest.raises(PluginError, match="no name of 'braintrace-dense'.*pip install --upgrade"):
        resolve(host, "ops", "to_come")
    assert "thief_module" not in sys.modules


def test_what_is_exported_and_what_can_be_had(site, host_of, plugin_source):
    for name in ("open", "shut"):
        text = plugin_source(f"{name}fam", f"{name}_p")
        site.add(name, f"{name}_module", text, family=f"{name}fam", ops=[f"{name}_op"], nn=["Same"])
    host = host_of(site, disable=frozenset({"shut"}))
    assert {"open_op", "shut_op"} <= exported(host, "ops")
    assert "Same" in available(host, "nn") and "open_op" in available(host, "ops")
    assert "shut_op" not in available(host, "ops")
    assert [c.distribution for c in enabled_providers(host, "nn", "Same")] == ["open"]
    with pytest.raises(PluginError, match="braintrace.shut_op is provided by 'shut' 1.0, which is"):
        resolve(host, "ops", "shut_op")
    op = resolve(host, "nn", "Same")
    assert op is host.values["nn", "Same"] is resolve(host, "nn", "Same")
