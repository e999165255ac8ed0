# SPDX-License-Identifier: Apache-2.0
"""``braintrace plugins``: the list of what is installed."""

from __future__ import annotations

import json

from braintrace import cli
from braintrace.plugins.records import PluginRecord, PluginState


def test_the_list_of_plugins(site, command, plugin_source):
    site.add("listed", "listed_m", plugin_source("listed", "p"), family="listed", ops=["listed"])
    site.add("mad", "mad_m", "raise OSError('mad')", family="mad")
    site.hide("braintrace-lora", "importlib_metadata")
    env = {"BRAINTRACE_PLUGINS": "listed,mad"}
    status, text = command("plugins", env=env)
    assert status == 0
    assert "listed listed 1.0 discovered listed" in map(" ".join, map(str.split, text.splitlines()))
    assert "not installed: braintrace-lora" in text.splitlines()
    status, data = command("plugins", "--load", "--json", env=env)
    assert status == 1
    states = {p["family"]: (p["state"], p["exception"]) for p in data["plugins"]}
    assert states["listed"] == ("loaded", None) and states["mad"] == ("failed", "OSError: mad")


def test_a_table_of_records(monkeypatch, capsys):
    loaded, failed = PluginState.LOADED, PluginState.FAILED
    exports = tuple(f"braintrace.operation{k}" for k in range(9))
    records = (
        PluginRecord("a", "braintrace-a", "1.0", "", loaded, exports, problems=("odd",)),
        PluginRecord("bb", "b", "", "", failed, reason="failed to load", exception=OSError("x")),
    )
    answers = {"records": lambda self: records, "load_all": lambda self, strict: records}
    found = type("", (), answers)
    monkeypatch.setattr("braintrace.cli.plugins.host", found)
    monkeypatch.setattr("braintrace.plugins.metadata.use_backport", lambda: None)
    assert cli.main(["plugins"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["family", "distribution", "version", "state", "names"]
    assert lines[1].endswith("...") and lines[1].startswith("a       braintrace-a  1.0      loaded")
    assert lines[2] == "bb      b                      failed"
    assert lines[3:5] == ["'braintrace-a': odd", "'b' failed to load"]
    assert lines[5].startswith("not installed: braintrace-conv, braintrace-dense")
    assert cli.main(["plugins", "--load", "--json"]) == 1
    data = json.loads(capsys.readouterr().out)
    assert [p["exception"] for p in data["plugins"]] == [None, "OSError: x"]
    records = ()
    assert cli.main(["plugins"]) == 0
    assert capsys.readouterr().out.startswith("no plugin is installed\nnot installed: ")
