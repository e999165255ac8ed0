# SPDX-License-Identifier: Apache-2.0
"""``braintrace explain``: compile a model and show what the compiler found.

The user's file is run before JAX is imported: it may choose the device, and mistakes are quick.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import sys
from pathlib import Path
from types import ModuleType

from . import OK, Refusal, UsageError, hint, told


def declare(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", metavar="FILE:MODEL",
        help="a Python file and the name of a model in it: an instance, a Module class without "
        "required arguments, or a function without required arguments that returns model or "
        "(model, *example_args)")  # fmt: skip
    add("--batch-size", type=int, metavar="N", help="initialise the states with it")
    add("--input", action="append", default=[], metavar="SHAPE[:DTYPE]",
        help="an argument of one step, e.g. 64,10:float32; repeat it for more")  # fmt: skip
    add("--frozen", action="append", default=[], metavar="NAME",
        help="a parameter that stays as it is; repeat it for more")  # fmt: skip
    add("--recurrence-scope", choices=("diagonal", "coupled"), default="diagonal",
        help="which paths are in the transition (default: %(default)s)")  # fmt: skip
    add("--scan-unroll-limit", type=int, metavar="N",
        help="the longest loop with an operation inside that is written out")  # fmt: skip
    add("--draw", metavar="OUT.svg", help="write the drawing")
    add("--html", metavar="OUT.html", help="write drawing and tables")
    add("--json", action="store_true", help="print data instead of a report")
    add("--weight", metavar="PATH", help="only diagnostics about this parameter")
    add("--hidden", metavar="PATH", help="only diagnostics about this hidden state")
    add("--kind", metavar="KIND", help="only diagnostics of this kind")


def run(options: argparse.Namespace) -> int:
    """Compile a model and show what the compiler found."""
    file, name = file_and_name(options.model)
    shapes = [parse_shape(text) for text in options.input]
    if options.batch_size is not None and options.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {options.batch_size}")
    limit = options.scan_unroll_limit
    if limit is not None and limit < 0:
        raise UsageError(f"--scan-unroll-limit must not be negative, got {limit}")
    module = import_file(file)
    from . import model

    found, args = model.build(module, file, name)
    example = model.arguments(found, args, shapes, options.batch_size)
    graph = model.compiled(found, example, options, file)
    model.write(graph, options)
    print(model.shown(graph, options))
    return OK


def file_and_name(text: str) -> tuple[Path, str | None]:
    """``dir/file.py:name``; the name may be missing, and a drive letter is not a file."""
    head, colon, name = text.rpartition(":")
    if not colon or os.path.isfile(text) or (len(head) == 1 and name[:1] in ("\\", "/")):
        head, name = text, ""
    file = Path(head)
    if not file.is_file():
        beside = (f.name for f in file.parent.glob("*.py"))
        near = hint(file.name, beside, "Python files there")
        raise UsageError(f"there is no file {head!r}{near}")
    return file, name or None


def parse_shape(text: str) -> tuple[tuple[int, ...], str | None]:
    """``64,10:float32`` as a shape and the name of a dtype."""
    shape, colon, dtype = text.partition(":")
    sizes = shape.strip().removeprefix("(").removesuffix(")").strip().removesuffix(",")
    if not re.fullmatch(r"(\d+(\s*,\s*\d+)*)?", sizes) or (colon and not dtype):
        raise UsageError(
            f"--input {text!r} is not a shape; write sizes with commas and, if you like, a dtype: "
            "64,10 or 64,10:float32 (an empty shape, as in :int32, is a single number)"
        )
    return tuple(int(size) for size in re.findall(r"\d+", sizes)), dtype or None


def import_file(file: Path) -> ModuleType:
    """Run the user's file as a module of its own name, with its folder on the path."""
    name = file.stem if file.stem not in sys.modules else f"_explained_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(file)!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(file.resolve().parent))
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        raise Refusal(
            f"{file} calls sys.exit({error.code}) while it is imported; put what it does as a "
            "program under: if __name__ == '__main__':"
        ) from error
    except Exception as error:
        raise Refusal(told(error, file)) from error
    return module
