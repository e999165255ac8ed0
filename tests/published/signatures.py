# SPDX-License-Identifier: Apache-2.0
"""Which parameters public functions, classes and their methods have.

    python -m tests.published.signatures save FILE    with any ``braintrace`` installed

``signatures.json`` has those of 0.2.8, of the names that are here; ``test_signatures.py`` compares.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

NAMES = (Path(__file__).parent / "names.txt").read_text().splitlines()
VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def parameters_of(function: Any) -> dict[str, bool]:
    """The parameters by name, and whether each may be given by position."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    named = (p for p in found if p.kind not in VARIADIC and p.name != "self")
    return {p.name: p.kind is not p.KEYWORD_ONLY for p in named}


def callables_of(name: str) -> Iterator[tuple[str, Any]]:
    """A name and, of a class, its own public methods; nothing if it is not there."""
    module, _, attribute = name.rpartition(".")
    found = getattr(import_module(module), attribute, None)
    if callable(found):
        yield name, found
    if inspect.isclass(found):
        for method in dir(found):
            value = inspect.getattr_static(found, method)
            of = getattr(value, "__module__", None) or ""
            if not method.startswith("_") and callable(value) and of.startswith("braintrace"):
                yield f"{name}.{method}", getattr(found, method)


def signatures() -> dict[str, dict[str, bool]]:
    """Of all names of the list that are there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        names = (name for name in NAMES if not name.startswith("#"))
        return {n: parameters_of(f) for name in names for n, f in callables_of(name)}


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(signatures(), separators=(",", ":")))
