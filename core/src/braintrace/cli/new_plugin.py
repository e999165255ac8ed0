# SPDX-License-Identifier: Apache-2.0
"""``braintrace new-plugin``: write a working plugin to start from."""

from __future__ import annotations

import argparse
import keyword
import re
from pathlib import Path

from ..names import CORE, OFFICIAL, SUBMODULES
from . import FAMILIES, OK, VERSION, UsageError


def declare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", help="name of the family and of its operation, such as 'gain'")
    add("--directory", metavar="DIR", help="where to write it (default: ./braintrace-NAME)")


def run(options: argparse.Namespace) -> int:
    """Write the files of ``template`` with the placeholders filled in, in paths and texts."""
    name = checked_name(options.name)
    dashed = name.replace("_", "-")
    folder = Path(options.directory or f"braintrace-{dashed}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{str(folder)!r} exists already; choose another --directory")
    values = {"@NAME@": name, "@DASHED@": dashed, "@CORE@": bounds(VERSION)}

    def filled(text: str) -> str:
        return re.sub(r"@[A-Z]+@", lambda found: values[found[0]], text)

    template = Path(__file__).with_name("template")
    try:
        for file in template.rglob("*.txt"):
            target = folder / filled(file.relative_to(template).with_suffix("").as_posix())
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(filled(file.read_text(encoding="utf-8")), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{str(folder)!r} cannot be written: {error.strerror}") from error
    print(
        f"wrote {folder}\n  cd {folder}\n"
        '  python -m pip install -e ".[test]"\n  python -m pytest\n'
        f"  braintrace doctor {name}"
    )
    return OK


def checked_name(text: str) -> str:
    """The family's name as a Python name."""
    name = text.removeprefix("braintrace-").removeprefix("braintrace_").replace("-", "_")
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise UsageError(f"{text!r} is not a name for a plugin; write a lower-case Python name")
    families = {distribution.removeprefix("braintrace-") for distribution in FAMILIES}
    if name in {*families, *CORE, *SUBMODULES, *OFFICIAL["ops"], "core"}:
        raise UsageError(f"{name!r} is a name of braintrace itself; choose another")
    return name


def bounds(version: str) -> str:
    """The versions of core that a plugin written today may expect to work with."""
    major, minor = [*re.findall(r"\d+", version), "0", "0"][:2]
    return f">={major}.{minor},<{major}.{int(minor) + 1}"
