# SPDX-License-Identifier: Apache-2.0
"""``braintrace doctor``, with plugins that break in every way."""

from __future__ import annotations

import pytest


def findings(data, *subjects):
    return {(f["subject"], f["id"]): f for f in data["findings"] if f["subject"] in subjects}


DOCTOR = """
    @hookimpl
    def braintrace_doctor(self, context):
        from braintrace.plugin_api import Finding
        return [Finding("disk", {level!r}, "has little room", "make room")]

    @hookimpl
    def braintrace_primitives"""


def with_doctor(text, level):
    old = "    @hookimpl\n    def braintrace_primitives"
    return text.replace(old, DOCTOR.format(level=level).lstrip("\n"))


BROKEN = {
    "import-error": ("import no_such_module_at_all", "failed", "ModuleNotFoundError"),
    "system-exit": ("raise SystemExit(0)", "failed", "SystemExit: 0"),
    "syntax-error": ("def (", "failed", "SyntaxError"),
    "garbage": ("plugin = 42", "failed", "does not implement braintrace_plugin_info"),
    "crash": ("import os; os.abort()", "crash", "crashes the interpreter (SIGABRT) while it is"),
    "exits": ("import os\nos._exit(0)", "crash", "ends the interpreter (exit status 0)"),
}


def test_every_plugin_broken(site, command):
    for name, (text, _, _) in BROKEN.items():
        module = name.replace("-", "_")
        site.add(name, f"broken_{module}", text, family=name, ops=[f"op_{module}"])
    others = {"BRAINTRACE_PLUGINS": ",".join(BROKEN)}
    status, data = command("doctor", "--json", env=others)
    assert status == 1 and data["ok"] is False
    states = {p["distribution"]: p["state"] for p in data["plugins"]}
    for name, (_, state, reason) in BROKEN.items():
        assert states[name] == state
        assert reason in findings(data, name)[name, state]["text"]
        assert findings(data, name)[name, state]["level"] == "error"
    assert findings(data, "braintrace-dense").keys() == {("braintrace-dense", "disabled")}

    status, data = command("plugins", "--json", env=others)
    assert status == 0
    assert {p["state"] for p in data["plugins"] if p["distribution"] in BROKEN} == {"discovered"}


def test_a_plugin_that_hangs(site, command):
    text = "import time, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', "
    text += "'import time; time.sleep(1000)'])\ntime.sleep(1000)\n"
    site.add("hangs", "hangs_module", text, family="hangs")
    status, text = command("doctor", "hangs", "--timeout", "12")
    assert status == 1
    assert "hangs does not finish loading within 12 s, at " in text
    assert "hangs_module.py:3" in text


def test_no_plugin_and_a_good_one(site, command, plugin_source):
    version = plugin_source("fine", "fine_p", version="1.0")
    site.add("fine", "fine_module", with_doctor(version, "warning"), family="fine", ops=["fine"])
    status, text = command("doctor", env={"BRAINTRACE_PLUGINS": ""})
    assert status == 0 and "fine 1.0: disabled" in text
    status, data = command("doctor", "fine", "--json")
    (plugin,) = data["plugins"]
    assert (status, plugin["state"], plugin["primitives"]) == (0, "loaded", ["fine_p"])
    assert findings(data, "fine") == {
        ("fine", "disk"): {
            "subject": "fine",
            "id": "disk",
            "level": "warning",
            "text": "has little room",
            "fix": "make room",
        }
    }


def test_what_keeps_every_plugin_from_loading_is_one_finding(site, command, plugin_source):
    """A home that cannot be written to, say; and names in settings that are nobody's."""
    site.add("fine", "fine_module", plugin_source("fine", "fine_p"), family="fine")
    shadow = "raise PermissionError(13, 'Permission denied', '/home/.cache/brainevent/0')"
    (site.folder / "brainstate.py").write_text(shadow)
    settings = {"BRAINTRACE_PLUGINS": "fine,fin,dense", "PYTHONWARNINGS": "error"}
    status, data = command("doctor", "--json", env=settings)
    assert status == 1
    assert {p["distribution"]: p["state"] for p in data["plugins"]}["fine"] == "unexamined"
    (found,) = findings(data, "braintrace-core", "fine", "braintrace-dense").values()
    assert found["id"] == "nothing_loads" and "Set BRAINEVENT_CACHE_DIR" in found["text"]
    (named,) = findings(data, "BRAINTRACE_PLUGINS").values()
    assert named["text"] == "names 'fin', but no plugin is called so; did you mean 'fine'?"


def test_an_error_that_a_plugin_reports_is_the_status(site, command, plugin_source):
    text = with_doctor(plugin_source("ill", "ill_p"), "error").replace("def op(", "def other(")
    site.add("ill", "ill_module", text, family="ill", ops=["ill"])
    status, data = command("doctor", "ill", "--json")
    assert status == 1
    assert findings(data, "ill").keys() == {("ill", "disk"), ("ill", "exports")}
    assert (
        "its export 'ill' (ill_module:op) cannot be"
        in findings(data, "ill")["ill", "exports"]["text"]
    )


def test_collisions_and_bounds_are_found_without_loading(site, command, plugin_source):
    text = "raise MemoryError\n"
    how = {"requires": "braintrace-core>=9"}
    site.add("new", "new_module", text, family="new", ops=["compile", "matmul"], **how)
    site.add("newer", "newer_module", text, family="newer", ops=["same"], **how)
    site.add("newest", "newest_module", text, family="newest", ops=["same"], **how)
    site.add("twin-a", "twin_a", text, family="twin", requires="no-such-distribution>=2")
    site.add("twin-b", "twin_b", text, family="twin")
    status, data = command("doctor", "--json", env={"BRAINTRACE_DISABLE_PLUGINS": "dense,elemwise"})
    assert status == 1
    assert findings(data, "new", "newer", "newest", "twin-a", "twin-b").keys() == {
        ("new", "incompatible"),
        ("new", "name_of_core"),
        ("new", "official_name"),
        ("newer", "incompatible"),
        ("newer", "name_collision"),
        ("newest", "incompatible"),
        ("newest", "name_collision"),
        ("twin-a", "conflict"),
        ("twin-a", "requirement"),
        ("twin-b", "conflict"),
    }
    needs = findings(data, "new")["new", "incompatible"]["text"]
    assert needs.startswith("needs braintrace-core>=9, but braintrace-core 0.1.0 is installed")


def test_one_primitive_of_two_plugins(site, command, plugin_source):
    for name in ("left", "right"):
        site.add(name, f"{name}_module", plugin_source(name, "shared_p"), family=name)
    status, text = command("doctor", env={"BRAINTRACE_PLUGINS": "left,right"})
    assert status == 1
    assert "left and 'right' both define shared_p; only one can be used" in text


@pytest.mark.parametrize("how", ["name", "files"])
def test_a_foreign_distribution_that_owns_the_import_name(how, site, command):
    name = "braintrace" if how == "name" else "something-else"
    site.add(name, "unused", "", version="0.0.9")
    record = site.folder / f"{name.replace('-', '_')}-0.0.9.dist-info" / "RECORD"
    record.write_text("braintrace/__init__.py,,\n" if how == "files" else "")
    status, data = command("doctor", "--json", env={"BRAINTRACE_PLUGINS": ""})
    assert status == 1
    found = findings(data, name)[name, "foreign_distribution"]
    assert "0.0.9 in" in found["text"] and "owns the import name 'braintrace' too" in found["text"]
    assert found["fix"].startswith(f"Run: pip uninstall {name}. Run: pip install --force-reinst")


def test_a_testing_kit_of_another_version(site, command):
    site.add("braintrace-testing", "unused", "", version="0.0.9")
    status, data = command("doctor", "--json", env={"BRAINTRACE_PLUGINS": ""})
    assert status == 1
    found = findings(data, "braintrace-testing")["braintrace-testing", "other_version"]
    assert found["text"].startswith("0.0.9 is installed, but it must have the version of braint")
    assert found["fix"] == "Run: pip install braintrace-testing==0.1.0"


def test_names(site, command):
    site.hide("braintrace-lora", "importlib_metadata")
    status, text = command("doctor", "lora")
    assert status == 1 and "braintrace-lora is not installed.\n  Run: pip install brain" in text
    site.add("braintrace-bridge", "bridge", "", requires="no-such-distribution>=2")  # an adapter
    status, data = command("doctor", "bridge", "--json")
    about = findings(data, "braintrace-bridge")
    assert status == 1 and "is no plugin" in about["braintrace-bridge", "no_plugin"]["text"]
    assert about["braintrace-bridge", "requirement"]["level"] == "error"
    status, text = command("doctor", "densse")
    assert status == 2 and "no plugin is called 'densse'; did you mean 'dense'?" in text
    status, text = command("doctor", "--timeout", "0")
    assert status == 2 and "--timeout must be positive, got 0" in text
