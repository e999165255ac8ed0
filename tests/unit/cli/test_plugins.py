# SPDX-License-Identifier: Apache-2.0
"""``braintrace plugins``: the list of what is installed."""

from __future__ import annotations


def test_the_list_of_plugins(site, command, plugin_source):
    site.add("listed", "listed_m", plugin_source("listed", "p"), family="listed", ops=["listed"])
    site.add("mad", "mad_m", "raise OSError('mad')", family="mad")
    site.hide("braintrace-lora", "importlib_metadata")
    env = {"BRAINTRACE_PLUGINS": "listed,mad"}
    status, text = command("plugins", env=env)
    assert status == 0
    assert "listed    listed               1.0      discovered  listed" in text
    assert "not installed: braintrace-lora" in text.splitlines()
    status, data = command("plugins", "--load", "--json", env=env)
    assert status == 1
    states = {p["family"]: (p["state"], p["exception"]) for p in data["plugins"]}
    assert states["listed"] == ("loaded", None) and states["mad"] == ("failed", "OSError: mad")
