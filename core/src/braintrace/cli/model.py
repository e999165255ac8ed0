# SPDX-License-Identifier: Apache-2.0
"""From a user's module to a model, the arguments of one step, and the compiled graph shown."""

from __future__ import annotations

import argparse
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base.diagnostics import CompilationRecord, DiagnosticKind
from ..base.errors import CompilationError, CompilationWarning
from ..base.types import Path as StatePath
from ..base.types import show_path
from ..compiler.compile import compile_etrace_graph
from ..compiler.control.rewrite import ControlFlowPolicy
from ..compiler.graph import ETraceGraph, summarize
from ..plugins import services
from ..plugins.process import host
from ..show.facts import record_data, to_data
from ..show.report import page
from . import Refusal, UsageError, as_json, hint, told


def build(module: ModuleType, file: Path, name: str | None) -> tuple[Any, tuple[Any, ...] | None]:
    """The model, and its example arguments if it comes with them."""
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

    def fits(value: Any) -> bool:
        if isinstance(value, brainstate.nn.Module):
            return True
        made = inspect.isclass(value) and issubclass(value, brainstate.nn.Module)
        own = getattr(value, "__module__", None) == module.__name__
        return own and (made or inspect.isfunction(value)) and not _required(value)

    return [name for name, value in vars(module).items() if name[:1] != "_" and fits(value)]


def arguments(
    model: Any,
    args: tuple[Any, ...] | None,
    shapes: Sequence[tuple[tuple[int, ...], str | None]],
    batch_size: int | None,
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
    try:
        dtype = jnp.dtype(name or brainstate.environ.dftype())
    except TypeError:
        known = ("float16", "bfloat16", "float32", "float64", "int8", "int32", "int64", "bool")
        near = hint(str(name), known, "dtypes")
        raise UsageError(f"{name!r} is not a dtype{near}") from None
    if jax.dtypes.canonicalize_dtype(dtype) != dtype:
        raise UsageError(
            f"dtype {dtype} needs brainstate.environ.set(precision=64) in the file of the model: "
            "importing brainstate turns JAX_ENABLE_X64=1 off"
        )
    return jnp.zeros(shape, dtype)


def compiled(
    model: Any, args: tuple[Any, ...], options: argparse.Namespace, file: Path
) -> ETraceGraph:
    """The graph of a model; its states are initialised if it has none, or with a batch size."""
    limit = options.scan_unroll_limit
    policy = ControlFlowPolicy(**({} if limit is None else {"scan_unroll_limit": limit}))
    fresh = not brainstate.graph.states(model, brainstate.HiddenState)
    try:
        if options.batch_size is not None or fresh:
            brainstate.nn.init_all_states(model, batch_size=options.batch_size)
        with warnings.catch_warnings():  # they are in the report
            warnings.simplefilter("ignore", CompilationWarning)
            chosen = {"frozen": options.frozen, "recurrence_scope": options.recurrence_scope}
            return compile_etrace_graph(model, *args, control_flow=policy, **chosen)
    except CompilationError as error:
        code = getattr(type(model).update, "__code__", None)
        where = f"{code.co_filename}:{code.co_firstlineno}" if code else str(file)
        raise Refusal(f"{where}: {error}") from error
    except (TypeError, ValueError, brainstate.BrainStateError) as error:
        shapes = ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(args))
        text = f"(a step with {shapes}, batch size {options.batch_size}; see --input, --batch-size)"
        raise Refusal(f"{told(error, file)} {text}") from error
    except Exception as error:
        raise Refusal(told(error, file)) from error


def write(graph: ETraceGraph, options: argparse.Namespace) -> None:
    """The files that were asked for."""
    texts = {
        options.draw: lambda: str(graph.draw()),
        options.html: lambda: page(summarize(graph), str(graph.draw()), options.model),
    }
    for path, text in texts.items():
        if path is not None:
            try:
                Path(path).write_text(text(), encoding="utf-8")
            except OSError as error:
                raise UsageError(f"{path!r} cannot be written: {error.strerror}") from error


def shown(graph: ETraceGraph, options: argparse.Namespace) -> str:
    """The report, or the diagnostics that were selected, with the advice of plugins about them."""
    selected = bool(options.weight or options.hidden or options.kind)
    records = _selected(graph, options) if selected else graph.diagnostics
    said = [(record, services.advice(host(), record)) for record in records]
    if options.json:
        data = []
        for record, advice in said:
            more = {"advice": {"family": advice[0], "text": advice[1]}} if advice else {}
            data.append(record_data(record) | more)
        return as_json(data if selected else {**to_data(summarize(graph)), "diagnostics": data})
    lines = [] if selected else [graph.report()]
    for record, advice in said:
        text = "advice of {}: {}".format(*advice) if advice else ""
        if selected:
            lines += [str(record), *([f"  {text}"] if text else [])]
        elif text and text not in lines:
            lines.append(text)
    return "\n".join(lines) or "no diagnostic fits"


def _selected(graph: ETraceGraph, options: argparse.Namespace) -> Sequence[CompilationRecord]:
    states = [slot.path for slot in graph.module_info.slots]
    every = [*DiagnosticKind]  # behind this one stand those of braintrace 0.2: no record has one
    kinds = {k.value: k for k in every[: 1 + every.index(DiagnosticKind.CREDIT_STOPS)]}
    if options.kind and options.kind.lower() not in kinds:
        raise UsageError(f"--kind {options.kind!r} is unknown{hint(options.kind, kinds, 'kinds')}")
    return graph.explain(
        weight_path=_path("--weight", options.weight, graph.coverage()),
        hidden_path=_path("--hidden", options.hidden, states),
        kind=kinds[options.kind.lower()] if options.kind else None,
    )


def _path(option: str, text: str | None, paths: Iterable[StatePath]) -> Any:
    """The path that is written ``layers[0].weight`` or ``layers.0.weight``."""
    if text is None:
        return None
    known = {_dotted(show_path(path)): path for path in paths}
    if _dotted(text) not in known:
        near = hint(text, map(show_path, known.values()), "names")
        raise UsageError(f"{option} {text!r} is not in the model{near}")
    return known[_dotted(text)]


def _dotted(text: str) -> str:
    return re.sub(r"\[(\d+)\]", r".\1", text).removeprefix(".")
