# SPDX-License-Identifier: Apache-2.0
"""From ``FILE:MODEL`` and shapes on a command line to a model and the arguments of one step."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from .common import Refusal, UsageError, hint


def file_and_name(text: str) -> tuple[Path, str | None]:
    """``dir/file.py:name``; the name may be missing, and a drive letter is not a file."""
    head, colon, name = text.rpartition(":")
    if not colon or os.path.isfile(text) or (len(head) == 1 and name[:1] in ("\\", "/")):
        head, name = text, ""
    file = Path(head)
    if not file.is_file():
        beside = file.parent.glob("*.py") if file.parent.is_dir() else ()
        near = hint(file.name, (f.name for f in beside), "Python files there")
        raise UsageError(f"there is no file {head!r}{near}")
    return file, name or None


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


def build(module: ModuleType, file: Path, name: str | None) -> tuple[Any, tuple[Any, ...] | None]:
    """The model, and its example arguments if it comes with them."""
    import brainstate

    if name is None or not hasattr(module, name):
        near = hint(name or "", _names(module), "models there")
        what = f"{str(file)!r} has no {name!r}" if name else f"name a model: {file}:MODEL"
        raise UsageError(what + near)
    found = getattr(module, name)
    if callable(found) and not isinstance(found, brainstate.nn.Module):
        if needed := _required(found):
            raise UsageError(
                f"{name!r} in {str(file)!r} takes arguments ({', '.join(needed)}); name a function "
                "without required arguments that makes the model"
            )
        try:
            found = found()
        except Exception as error:
            raise Refusal(told(error, file)) from error
    model, *args = found if isinstance(found, tuple) and found else (found,)
    if not isinstance(model, brainstate.nn.Module):
        kind = type(found).__name__
        article = "an" if kind[0].lower() in "aeiou" else "a"
        raise UsageError(
            f"{name!r} in {str(file)!r} is {article} {kind}; it must be a brainstate.nn.Module, a "
            "class of one, or a function that returns model or (model, *example_args)"
        )
    return model, tuple(args) if isinstance(found, tuple) else None


def _required(function: Callable[..., Any]) -> list[str]:
    """Names of the arguments that a call must give."""
    made = inspect.isclass(function)  # its metaclass hides the signature of __init__
    try:
        signature = inspect.signature(function.__init__ if made else function)  # type: ignore[misc]
    except (TypeError, ValueError):
        return []
    parameters = list(signature.parameters.values())[made:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in variadic]


def _names(module: ModuleType) -> list[str]:
    """What of a file can be explained: models, and what makes one without arguments."""
    import brainstate

    def makes(value: Any) -> bool:
        own = getattr(value, "__module__", None) == module.__name__
        made = inspect.isclass(value) and issubclass(value, brainstate.nn.Module)
        return own and (made or inspect.isfunction(value)) and not _required(value)

    public = [(name, value) for name, value in vars(module).items() if name[:1] != "_"]
    return [name for name, v in public if isinstance(v, brainstate.nn.Module) or makes(v)]


Shape = tuple[tuple[int, ...], str | None]


def parse_shape(text: str) -> Shape:
    """``64,10:float32`` as a shape and the name of a dtype."""
    shape, colon, dtype = text.partition(":")
    sizes = shape.strip().removeprefix("(").removesuffix(")").strip().removesuffix(",")
    if not re.fullmatch(r"(\d+(\s*,\s*\d+)*)?", sizes) or (colon and not dtype):
        raise UsageError(
            f"--input {text!r} is not a shape; write sizes with commas and, if you like, a dtype: "
            "64,10 or 64,10:float32 (an empty shape, as in :int32, is a single number)"
        )
    return tuple(int(size) for size in re.findall(r"\d+", sizes)), dtype or None


def arguments(
    model: Any, args: tuple[Any, ...] | None, shapes: Sequence[Shape], batch_size: int | None
) -> tuple[Any, ...]:
    """Example arguments: those asked for, those that came with the model, or by its input size."""
    if shapes:
        return tuple(_zeros(shape, dtype) for shape, dtype in shapes)
    if args is not None:
        return args
    needed = _required(model.update)
    if not needed:
        return ()
    size = getattr(model, "in_size", None)
    if size is None or len(needed) != 1:
        raise UsageError(
            f"a step of {type(model).__name__} takes {', '.join(needed)}: give "
            "--input SHAPE[:DTYPE] for each argument, or name a function that returns "
            "(model, *example_args)"
        )
    batch = () if batch_size is None else (batch_size,)
    return (_zeros((*batch, *((size,) if isinstance(size, int) else size)), None),)


def _zeros(shape: tuple[int, ...], name: str | None) -> Any:
    import brainstate
    import jax
    import jax.numpy as jnp

    try:
        dtype = jnp.dtype(name or brainstate.environ.dftype())
    except TypeError:
        known = ("float16", "bfloat16", "float32", "float64", "int8", "int32", "int64", "bool")
        near = hint(str(name), known, "dtypes")
        raise UsageError(f"{name!r} is not a dtype{near}") from None
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise UsageError(f"dtype {dtype} needs JAX_ENABLE_X64=1 in the environment")
    return jnp.zeros(shape, dtype)


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
