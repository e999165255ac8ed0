# SPDX-License-Identifier: Apache-2.0
"""Signatures as they are written: short names of types, and names of constants as defaults.

Evaluated, a type such as ``Size`` is a line of its own, and a default such as ``ZEROS`` an address;
and a brainstate module is made by a metaclass whose call takes anything.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import textwrap
from typing import Any


def as_written(
    app: Any, what: str, name: str, obj: Any, options: Any, given: str | None, result: str | None
) -> tuple[str, str | None] | None:
    """Arguments and result from the source; ``None`` leaves them as they were found."""
    if isinstance(obj, type) and dataclasses.is_dataclass(obj):
        return of_record(obj), None
    made = constructor(obj) if what == "class" else obj
    function = inspect.unwrap(made) if callable(made) else None
    if what not in ("class", "function", "method") or not inspect.isfunction(function):
        return None
    node = source(function)
    places = node.args.posonlyargs or node.args.args
    if places and places[0].arg in ("self", "cls"):
        del places[0]
    returned = None if what == "class" or node.returns is None else ast.unparse(node.returns)
    return f"({ast.unparse(node.args)})", returned


def constructor(cls: Any) -> Any:
    """The ``__init__`` of a class, if it is the project's own."""
    own = (vars(c).get("__init__") for c in cls.__mro__ if c.__module__.startswith("braintrace"))
    return next(filter(None, own), None)


def of_record(cls: type) -> str:
    """The fields of a dataclass as arguments."""
    written: dict[str, ast.AnnAssign] = {}
    for base in reversed(cls.__mro__):
        if dataclasses.is_dataclass(base):
            found = (n for n in source(base).body if isinstance(n, ast.AnnAssign))
            written |= {ast.unparse(n.target): n for n in found}
    fields = [written[f.name] for f in dataclasses.fields(cls) if f.init and f.name[0] != "_"]
    return f"({', '.join(map(as_argument, fields))})"


def as_argument(field: ast.AnnAssign) -> str:
    """``name: type``, and the default if there is one."""
    text = f"{ast.unparse(field.target)}: {ast.unparse(field.annotation)}"
    match field.value:
        case None:
            return text
        case ast.Call(func=ast.Name(id="field"), keywords=[ast.keyword("default_factory", made)]):
            return f"{text} = {ast.unparse(made)}()"
        case value:
            return f"{text} = {ast.unparse(value)}"


def source(obj: Any) -> Any:
    """The definition of a function or class, as a tree."""
    return ast.parse(textwrap.dedent(inspect.getsource(obj))).body[0]


def setup(app: Any) -> dict[str, Any]:
    """Ask before a signature is written."""
    app.connect("autodoc-process-signature", as_written)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
