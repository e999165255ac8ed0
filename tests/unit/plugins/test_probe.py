# SPDX-License-Identifier: Apache-2.0
"""One plugin loaded in a process of its own; here in this one where it does no harm."""

from __future__ import annotations

import json
import sys
import time

import pytest

from braintrace.plugins.probe import Report, _load, _run, main, probe
from tests.sites import plugin_object

FINDS = """
class Finding(Plugin):
    @hookimpl
    def braintrace_doctor(self, context):
        from braintrace.plugin_api import Finding
        {answer}


plugin = Finding()
"""


def with_doctor(text, answer):
    return text + FINDS.format(answer=answer)


def test_a_good_plugin(site, host_of, plugin_source):
    answer = 'return [Finding("disk", "warning", context.distribution + " is full", "clean")]'
    text = with_doctor(plugin_source("probed", "probed_p"), answer)
    host_of(site.add("probed", "probed_module", text, family="probed", ops=["probed"]))
    report = _load("probed")
    assert (report.state, report.reason, report.primitives) == ("loaded", "", ("probed_p",))
    assert report.seconds is not None and report.problems == ()
    (finding,) = report.findings
    assert finding == {
        "id": "disk", "level": "warning", "text": "probed is full", "fix": "clean"
    }  # fmt: skip


def test_exports_that_are_not_there_and_a_doctor_that_fails(site, host_of, plugin_source):
    text = with_doctor(plugin_source("sick", "sick_p"), 'raise OSError("no disk")')
    text = text.replace("def op(", "def other(")
    host_of(site.add("sick", "sick_module", text, family="sick", ops=["sick"]))
    report = _load("sick")
    (problem,), (finding,) = report.problems, report.findings
    assert problem.startswith("its export 'sick' (sick_module:op) cannot be loaded (AttributeErr")
    assert (finding["id"], finding["level"]) == ("doctor_hook", "error")
    assert finding["text"] == "its braintrace_doctor cannot be used (OSError: no disk)"


def test_a_plugin_that_does_not_load(site, host_of):
    host_of(site.add("torn", "torn_module", "raise OSError('torn')", family="torn", ops=["torn"]))
    report = _load("torn")
    assert (report.state, report.reason) == ("failed", "failed to load (OSError: torn)")
    assert report.problems == () and report.findings == ()


def test_the_answer_is_written_as_a_whole(host_of, tmp_path):
    host = host_of()
    host.register(plugin_object("answered", []))
    main("answered", str(tmp_path / "answer.json"), "60")
    data = json.loads((tmp_path / "answer.json").read_text())
    assert {k: data[k] for k in ("state", "problems")} == {"state": "loaded", "problems": []}
    assert {p.name for p in tmp_path.iterdir()} == {"answer.json", "answer.json.ready"}


@pytest.mark.parametrize(("code", "status"), [("pass", 0), ("raise SystemExit(3)", 3)])
def test_the_status_of_a_command(code, status, tmp_path):
    with (tmp_path / "log").open("wb") as log:
        assert _run([sys.executable, "-c", code], log, 60) == status


def test_a_command_that_takes_too_long_is_ended(tmp_path):
    start = time.monotonic()
    with (tmp_path / "log").open("wb") as log:
        assert _run([sys.executable, "-c", "import time; time.sleep(60)"], log, 0.2) is None
    assert time.monotonic() - start < 20


ENDINGS = {
    "no answer": (0, None, "crash", "ends the interpreter (exit status 0) while it is loaded"),
    "killed": (-6, None, "crash", "crashes the interpreter (SIGABRT) while it is loaded"),
    "hangs": (None, None, "hang", "does not finish loading within 5 s"),
    "late": (None, Report("loaded"), "hang", "keeps the interpreter from ending within 5 s"),
    "dies": (3, Report("loaded", seconds=1.5), "crash", "ends the interpreter (exit status 3) whe"),
    "core hangs": (None, None, "unexamined", "importing brainstate takes more than 5 s"),
    "core dies": (-6, None, "unexamined", "importing brainstate crashes the interpreter (SIGABRT)"),
    "good": (0, Report("loaded", primitives=("a",)), "loaded", ""),
}


@pytest.mark.parametrize("case", ENDINGS)
def test_how_a_process_ends_is_told(case, monkeypatch):
    status, answered, state, reason = ENDINGS[case]

    def run(command, stream, timeout):
        if state != "unexamined":
            open(f"{command[6]}.ready", "x").close()
        if answered is not None:
            with open(command[6], "w", encoding="utf-8") as file:
                json.dump(vars(answered), file)
        return status

    monkeypatch.setattr("braintrace.plugins.probe._run", run)
    report = probe("some", 5)
    assert report.state == state and report.reason.startswith(reason)
    assert case != "good" or report == answered


def test_the_place_of_a_process_that_hangs_is_told(monkeypatch):
    stack = 'Thread 0x1 (most recent call first):\n  File "/a/b.py", line 7 in f\n'

    def run(command, stream, timeout):
        open(f"{command[6]}.ready", "x").close()
        first = stack.replace("/a/b.py", "/first.py")
        stream.write(f"{first}{stack}".encode())  # the last one counts

    monkeypatch.setattr("braintrace.plugins.probe._run", run)
    assert probe("some", 5).reason == "does not finish loading within 5 s, at /a/b.py:7"
