# SPDX-License-Identifier: Apache-2.0
"""The command ``braintrace``: one function per sub-command, in a table.

Nothing but the interpreter's own modules is imported before a sub-command needs it, so ``--help``
and mistakes in the arguments are answered at once.
"""

from __future__ import annotations

import argparse
import difflib
import importlib.util
import inspect
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import __version__

if TYPE_CHECKING:
    from ._compile import CompilationRecord, ETraceGraph

OK, REFUSED, USAGE = 0, 1, 2


class UsageError(Exception):
    """The command cannot be carried out as it was given; exit status 2."""


class Refusal(Exception):
    """The user's model cannot be built or compiled; exit status 1."""


@dataclass(frozen=True)
class Command:
    """A sub-command: one line of help, its arguments, and what it does."""

    help: str
    arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command.

    Parameters
    ----------
    arguments
        The words of the command line; ``None``: those of the process.

    Returns
    -------
    int
        The exit status: 0; 1 when a model is refused; 2 when the command cannot be carried out.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    try:
        status = COMMANDS[options.command].run(options)
        sys.stdout.flush()
        return status
    except UsageError as error:
        return _complain(error, USAGE)
    except Refusal as error:
        return _complain(error, REFUSED)
    except BrokenPipeError:  # the reader of the output, such as ``head``, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK


def _complain(error: Exception, status: int) -> int:
    print(f"braintrace: {error}", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="braintrace", description="Online learning by eligibility traces: tools for models."
    )
    parser.add_argument("--version", action="version", version=f"braintrace-core {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, command in COMMANDS.items():
        command.arguments(
            commands.add_parser(name, help=command.help, description=command.help + ".")
        )
    return parser


def _near(name: str, known: Iterable[str], what: str) -> str:
    """``; did you mean 'x'?``, or what there is."""
    known = sorted(known)
    found = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if found:
        return f"; did you mean {' or '.join(map(repr, found))}?"
    return f"; {what}: {', '.join(known[:12])}" if known else f"; there are no {what}"


# --- explain ------------------------------------------------------------------------------------


def _explain_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="FILE:MODEL",
        help="a Python file and the name of a model in it: an instance, a Module class without "
        "required arguments, or a function without required arguments that returns model or "
        "(model, *example_args)",
    )
    parser.add_argument("--batch-size", type=int, metavar="N", help="initialise the states with it")
    parser.add_argument(
        "--input",
        action="append",
        metavar="SHAPE[:DTYPE]",
        help="an argument of one step, e.g. 64,10:float32; repeat it for more arguments",
    )
    parser.add_argument("--draw", metavar="OUT.svg", help="write the drawing")
    parser.add_argument("--html", metavar="OUT.html", help="write drawing and tables")
    parser.add_argument("--json", action="store_true", help="print data instead of a report")
    parser.add_argument("--weight", metavar="PATH", help="only diagnostics about this parameter")
    parser.add_argument("--hidden", metavar="PATH", help="only diagnostics about this hidden state")
    parser.add_argument("--kind", metavar="KIND", help="only diagnostics of this kind")


def explain(options: argparse.Namespace) -> int:
    """Compile a model and show what the compiler found."""
    file, name = _file_and_name(options.model)
    shapes = [_shape(text) for text in options.input or ()]
    if options.batch_size is not None and options.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {options.batch_size}")
    module = _import(file)
    model, args = _build(module, file, name)
    graph = _compile(model, _arguments(model, args, shapes, options.batch_size), options, file)
    _write(graph, options)
    records = _selected(graph, options)
    print(_as_json(graph, records) if options.json else _as_text(graph, records))
    return OK


COMMANDS: Mapping[str, Command] = {
    "explain": Command(
        "compile a model and print, draw or save what the compiler found",
        _explain_arguments,
        explain,
    ),
}


# --- from FILE:MODEL to a model -------------------------------------------------------------------


def _file_and_name(text: str) -> tuple[Path, str | None]:
    """``dir/file.py:name``; the name may be missing, and a drive letter is not a file."""
    head, colon, name = text.rpartition(":")
    if not colon or os.path.isfile(text) or (len(head) == 1 and name[:1] in ("\\", "/")):
        head, name = text, ""
    file = Path(head)
    if not file.is_file():
        beside = file.parent.glob("*.py") if file.parent.is_dir() else ()
        near = _near(file.name, (f.name for f in beside), "Python files there")
        raise UsageError(f"there is no file {head!r}{near}")
    return file, name or None


def _import(file: Path) -> ModuleType:
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
        raise Refusal(_told(error, file)) from error
    return module


def _build(module: ModuleType, file: Path, name: str | None) -> tuple[Any, tuple[Any, ...] | None]:
    """The model, and its example arguments if it comes with them."""
    import brainstate

    if name is None:
        raise UsageError(f"name a model: {file}:MODEL{_near('', _names(module), 'models there')}")
    if not hasattr(module, name):
        near = _near(name, _names(module), "models there")
        raise UsageError(f"{str(file)!r} has no {name!r}{near}")
    found = getattr(module, name)
    if callable(found) and not isinstance(found, brainstate.nn.Module):
        found = _called(found, file, name)
    model, *args = found if isinstance(found, tuple) and found else (found,)
    if not isinstance(model, brainstate.nn.Module):
        raise UsageError(
            f"{name!r} in {str(file)!r} is {_article(type(found).__name__)}; it must be a "
            "brainstate.nn.Module, a class of one, or a function that returns model or "
            "(model, *example_args)"
        )
    return model, tuple(args) if isinstance(found, tuple) else None


def _article(noun: str) -> str:
    return f"{'an' if noun[:1].lower() in 'aeiou' else 'a'} {noun}"


def _called(found: Callable[[], Any], file: Path, name: str) -> Any:
    needed = _required(found)
    if needed:
        raise UsageError(
            f"{name!r} in {str(file)!r} takes arguments ({', '.join(needed)}); name a function "
            "without required arguments that makes the model"
        )
    try:
        return found()
    except Exception as error:
        raise Refusal(_told(error, file)) from error


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
    """What of a file can be explained."""
    import brainstate

    def fits(value: Any) -> bool:
        if isinstance(value, brainstate.nn.Module):
            return True
        own = getattr(value, "__module__", None) == module.__name__
        model = inspect.isfunction(value) or (
            inspect.isclass(value) and issubclass(value, brainstate.nn.Module)
        )
        return own and model and not _required(value)

    return [name for name, value in vars(module).items() if name[:1] != "_" and fits(value)]


# --- the arguments of one step --------------------------------------------------------------------

Shape = tuple[tuple[int, ...], str | None]


def _shape(text: str) -> Shape:
    """``64,10:float32`` as a shape and the name of a dtype."""
    shape, colon, dtype = text.partition(":")
    sizes = shape.strip().removeprefix("(").removesuffix(")").strip().removesuffix(",")
    if not re.fullmatch(r"(\d+(\s*,\s*\d+)*)?", sizes) or (colon and not dtype):
        raise UsageError(
            f"--input {text!r} is not a shape; write sizes with commas and, if you like, a dtype: "
            "64,10 or 64,10:float32 (an empty shape, as in :int32, is a single number)"
        )
    return tuple(int(size) for size in re.findall(r"\d+", sizes)), dtype or None


def _arguments(
    model: Any, args: tuple[Any, ...] | None, shapes: Sequence[Shape], batch_size: int | None
) -> tuple[Any, ...]:
    """Example arguments: those asked for, those that came with the model, or by its input size."""
    if shapes:
        return tuple(_zeros(shape, dtype) for shape, dtype in shapes)
    if args is not None:
        return args
    if not _required(model.update):
        return ()
    size = getattr(model, "in_size", None)
    if size is None or len(_required(model.update)) != 1:
        needed = ", ".join(_required(model.update))
        raise UsageError(
            f"a step of {type(model).__name__} takes {needed}: give --input SHAPE[:DTYPE] for each "
            "argument, or name a function that returns (model, *example_args)"
        )
    size = (size,) if isinstance(size, int) else tuple(size)
    return (_zeros((*(() if batch_size is None else (batch_size,)), *size), None),)


def _zeros(shape: tuple[int, ...], name: str | None) -> Any:
    import brainstate
    import jax
    import jax.numpy as jnp

    try:
        dtype = jnp.dtype(name or brainstate.environ.dftype())
    except TypeError:
        known = ("float16", "bfloat16", "float32", "float64", "int8", "int32", "int64", "bool")
        near = _near(str(name), known, "dtypes")
        raise UsageError(f"{name!r} is not a dtype{near}") from None
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise UsageError(f"dtype {dtype} needs JAX_ENABLE_X64=1 in the environment")
    return jnp.zeros(shape, dtype)


# --- compiling ------------------------------------------------------------------------------------


def _compile(model: Any, args: tuple[Any, ...], options: Any, file: Path) -> ETraceGraph:
    import brainstate

    from ._compile import compile_etrace_graph
    from ._errors import CompilationError

    fresh = not brainstate.graph.states(model, brainstate.HiddenState)
    try:
        if options.batch_size is not None or fresh:
            brainstate.nn.init_all_states(model, batch_size=options.batch_size)
        with warnings.catch_warnings():  # they are in the report
            warnings.filterwarnings("ignore", r"(info|warning): ", UserWarning)
            return compile_etrace_graph(model, *args)
    except CompilationError as error:
        raise Refusal(f"{_place_of(model, file)}: {error}") from error
    except Exception as error:
        raise Refusal(_told(error, file)) from error


def _place_of(model: Any, file: Path) -> str:
    """Where the step of a model is written."""
    code = getattr(type(model).update, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else str(file)


def _told(error: BaseException, file: Path) -> str:
    """An error of the user's code in one line, with the last place beside the file."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}:{error.lineno}: SyntaxError: {error.msg}"
    folder, where, trace = str(file.resolve().parent), str(file), error.__traceback__
    while trace is not None:
        path = trace.tb_frame.f_code.co_filename
        if path.startswith(folder) and "site-packages" not in path:
            where = f"{path}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{where}: {type(error).__name__}: {error}"


# --- output ---------------------------------------------------------------------------------------


def _write(graph: ETraceGraph, options: argparse.Namespace) -> None:
    from ._compile._show import page, summarize

    texts = {
        options.draw: lambda: str(graph.draw()),
        options.html: lambda: page(summarize(graph), options.model),
    }
    for path, text in texts.items():
        if path is not None:
            try:
                Path(path).write_text(text(), encoding="utf-8")
            except OSError as error:
                raise UsageError(f"{path!r} cannot be written: {error.strerror}") from error


def _selected(graph: ETraceGraph, options: argparse.Namespace) -> list[CompilationRecord] | None:
    """The diagnostics that were asked for; ``None``: no selection."""
    from ._compile import DiagnosticKind

    if not (options.weight or options.hidden or options.kind):
        return None
    states = [slot.path for slot in graph.module_info.slots]
    kinds = {kind.value: kind for kind in DiagnosticKind}
    if options.kind and options.kind.lower() not in kinds:
        raise UsageError(f"--kind {options.kind!r} is unknown{_near(options.kind, kinds, 'kinds')}")
    return graph.explain(
        weight_path=_path("--weight", options.weight, graph.coverage()),
        hidden_path=_path("--hidden", options.hidden, states),
        kind=kinds[options.kind.lower()] if options.kind else None,
    )


def _path(option: str, text: str | None, paths: Iterable[tuple[Any, ...]]) -> Any:
    """The path that is written ``layers[0].weight`` or ``layers.0.weight``."""
    from ._compile import show_path

    if text is None:
        return None
    known = {_dotted(show_path(path)): path for path in paths}
    if _dotted(text) not in known:
        near = _near(text, map(show_path, known.values()), "names")
        raise UsageError(f"{option} {text!r} is not in the model{near}")
    return known[_dotted(text)]


def _dotted(text: str) -> str:
    return re.sub(r"\[(\d+)\]", r".\1", text).removeprefix(".")


def _as_text(graph: ETraceGraph, records: list[CompilationRecord] | None) -> str:
    if records is None:
        return graph.report()
    return "\n".join(map(str, records)) or "no diagnostic fits"


def _as_json(graph: ETraceGraph, records: list[CompilationRecord] | None) -> str:
    from ._compile._show import record_data, summarize, to_data

    if records is not None:
        data: Any = [record_data(record) for record in records]
    else:
        diagnostics = [record_data(record) for record in graph.diagnostics]
        data = to_data(summarize(graph)) | {"diagnostics": diagnostics}
    return json.dumps(data, indent=2, ensure_ascii=False)
