# SPDX-License-Identifier: Apache-2.0
"""What the sub-commands share: how they refuse and what they print."""

from __future__ import annotations

import difflib
import json
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..names import OFFICIAL

OK, REFUSED, USAGE = 0, 1, 2
LISTED = 30  # names, where none is like the one that was given


class UsageError(Exception):
    """The command cannot be carried out as it was given; exit status 2."""


class Refusal(Exception):
    """What the user gave cannot be used, such as a model that does not compile; exit status 1."""


def hint(name: str, known: Iterable[str], what: str) -> str:
    """``; did you mean 'x'?``, or what there is."""
    known = sorted(known)
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if found:
        return f"; did you mean {' or '.join(map(repr, found))}?"
    if not known:
        return f"; there are no {what}"
    more = ", ..." if len(known) > LISTED else ""
    return f"; {what}: {', '.join(known[:LISTED])}{more}"


def as_json(data: Any) -> str:
    """Data as the option ``--json`` prints them."""
    return json.dumps(data, indent=2, ensure_ascii=False)


def core_version() -> str:
    """The version of the package; another distribution may have written over it."""
    return str(getattr(sys.modules["braintrace"], "__version__", "0+unknown"))


def official() -> set[str]:
    """The distributions of the official families."""
    return {distribution for names in OFFICIAL.values() for distribution in names.values()}


def told(error: BaseException, file: Path) -> str:
    """An error of the user's code in one line, with the last place beside the file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
    folder, where = str(file.resolve().parent), str(file)
    for frame, line in traceback.walk_tb(error.__traceback__):
        path = frame.f_code.co_filename
        if path.startswith(folder) and "site-packages" not in path:
            where = f"{path}:{line}"
    return f"{where}: {type(error).__name__}: {error}"
