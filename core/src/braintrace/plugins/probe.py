# SPDX-License-Identifier: Apache-2.0
"""Load one plugin in a process of its own and say how it went.

A plugin may hang, end the interpreter or crash it; the process that asks is not harmed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_PROGRAM = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
_PROGRAM += "from braintrace.plugins import probe; probe.main(*sys.argv[2:])"

_READY = ".ready"  # a file beside the answer, once what all plugins need is imported


@dataclass(frozen=True)
class Report:
    """How loading a plugin in its own process went.

    ``state`` is that of its record, or ``"hang"`` or ``"crash"``, or ``"unexamined"`` where what
    all plugins need does not load; ``reason`` continues "``<distribution>``, which ...", and in the
    latter case "no plugin can be loaded, because ...". ``findings`` are those of its own
    ``braintrace_doctor``.
    """

    state: str
    reason: str = ""
    seconds: float | None = None
    primitives: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    findings: tuple[dict[str, str], ...] = ()


def probe(distribution: str, timeout: float) -> Report:
    """Load a plugin in a fresh interpreter with this one's path and environment.

    It is ended after ``timeout`` seconds; its stack is logged before.
    """
    with tempfile.TemporaryDirectory() as name:
        answer, log = Path(name, "answer.json"), Path(name, "log.txt")
        ready = Path(f"{answer}{_READY}")
        arguments = [json.dumps(sys.path), distribution, str(answer), str(0.8 * timeout)]
        with log.open("wb") as stream:
            status = _run([sys.executable, "-P", "-c", _PROGRAM, *arguments], stream, timeout)
        data = json.loads(answer.read_text(encoding="utf-8")) if answer.is_file() else None
        begun = ready.is_file()
        stack = re.findall(  # as faulthandler writes it, innermost line first
            r'most recent call first\):\n  File "(.+)", line (\d+)',
            log.read_text(encoding="utf-8", errors="replace"),
        )
    place = ", at {}:{}".format(*stack[-1]) if stack else ""
    ending = f"ends the interpreter (exit status {status})"
    if status is not None and status < 0:
        ending = f"crashes the interpreter ({signal.Signals(-status).name})"
    if data is None and not begun:
        what = f"importing brainstate takes more than {timeout:g} s" if status is None else ""
        return Report("unexamined", f"{what or f'importing brainstate {ending}'}{place}")
    if data is None and status is None:
        return Report("hang", f"does not finish loading within {timeout:g} s{place}")
    if data is None:
        return Report("crash", f"{ending} while it is loaded{place}")
    if status is None:
        return Report("hang", f"keeps the interpreter from ending within {timeout:g} s")
    if status:
        return Report("crash", f"{ending} when the interpreter ends", data["seconds"])
    fields: Any = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
    return Report(**fields)


def _run(command: list[str], stream: Any, timeout: float) -> int | None:
    """The exit status of a command, or ``None`` when it had to be ended with its children."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": stream, "stderr": subprocess.STDOUT}
    with subprocess.Popen(command, start_new_session=True, **streams) as process:
        try:
            return process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(OSError):  # where the system has groups, all it has started
                if hasattr(os, "killpg"):
                    os.killpg(process.pid, signal.SIGKILL)
                else:
                    process.kill()


def main(distribution: str, answer: str, seconds: str) -> None:
    """In a process of its own: load a plugin and write its report as JSON."""
    import faulthandler

    from .host import why_nothing_loads

    faulthandler.enable()
    faulthandler.dump_traceback_later(float(seconds))
    report = Report("unexamined", why_nothing_loads())
    if not report.reason:
        Path(f"{answer}{_READY}").touch()
        report = _load(distribution)
    faulthandler.cancel_dump_traceback_later()
    Path(f"{answer}.part").write_text(json.dumps(asdict(report)), encoding="utf-8")
    os.replace(f"{answer}.part", answer)


def _load(distribution: str) -> Report:
    from . import services
    from .errors import PluginError
    from .process import host

    found = host()
    candidate = next(c for c in found.candidates() if c.distribution == distribution)
    with contextlib.suppress(PluginError):
        found.load(candidate)
    record = found.record(candidate)
    known = str(record.state), record.reason, record.load_time, record.primitives
    if record.state != "loaded":
        return Report(*known, record.problems)
    problems = [*record.problems]
    for (_, name), entry in candidate.exports.items():
        try:
            entry.load()
        except BaseException as exception:
            error = f"{type(exception).__name__}: {exception}"
            problems.append(f"its export {name!r} ({entry.value}) cannot be loaded ({error})")
    try:
        findings = tuple(map(asdict, services.findings(found, candidate)))
    except Exception as exception:
        text = f"its braintrace_doctor cannot be used ({type(exception).__name__}: {exception})"
        findings = ({"id": "doctor_hook", "level": "error", "text": text, "fix": ""},)
    return Report(*known, tuple(problems), findings)
