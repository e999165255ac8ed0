# SPDX-License-Identifier: Apache-2.0
"""``braintrace explain``: compile a model and show what the compiler found."""

from __future__ import annotations

import argparse
import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import OK, Command, Refusal, UsageError, hint
from .model import arguments, build, file_and_name, import_file, parse_shape, told

if TYPE_CHECKING:
    from ..base.diagnostics import CompilationRecord
    from ..base.types import Path as StatePath
    from ..compiler.control.policy import ControlFlowPolicy
    from ..compiler.graph import ETraceGraph


def _declare(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--frozen",
        action="append",
        metavar="NAME",
        help="a parameter that may have no gradient; repeat it for more",
    )
    parser.add_argument(
        "--recurrence-scope",
        choices=("diagonal", "coupled"),
        default="diagonal",
        help="which paths are in the transition (default: %(default)s)",
    )
    parser.add_argument(
        "--scan-unroll-limit",
        type=int,
        metavar="N",
        help="the longest loop with an operation inside that is written out",
    )
    parser.add_argument("--draw", metavar="OUT.svg", help="write the drawing")
    parser.add_argument("--html", metavar="OUT.html", help="write drawing and tables")
    parser.add_argument("--json", action="store_true", help="print data instead of a report")
    parser.add_argument("--weight", metavar="PATH", help="only diagnostics about this parameter")
    parser.add_argument("--hidden", metavar="PATH", help="only diagnostics about this hidden state")
    parser.add_argument("--kind", metavar="KIND", help="only diagnostics of this kind")


def explain(options: argparse.Namespace) -> int:
    """Compile a model and show what the compiler found."""
    file, name = file_and_name(options.model)
    shapes = [parse_shape(text) for text in options.input or ()]
    if options.batch_size is not None and options.batch_size < 1:
        raise UsageError(f"--batch-size must be at least 1, got {options.batch_size}")
    if options.scan_unroll_limit is not None and options.scan_unroll_limit < 0:
        raise UsageError(
            f"--scan-unroll-limit must not be negative, got {options.scan_unroll_limit}"
        )
    module = import_file(file)
    model, args = build(module, file, name)
    graph = _compile(model, arguments(model, args, shapes, options.batch_size), options, file)
    _write(graph, options)
    records = _selected(graph, options)
    print(_as_json(graph, records) if options.json else _as_text(graph, records))
    return OK


# --- compiling ------------------------------------------------------------------------------------


def _compile(model: Any, args: tuple[Any, ...], options: Any, file: Path) -> ETraceGraph:
    import brainstate

    from ..base.errors import CompilationError
    from ..compiler.compile import compile_etrace_graph

    fresh = not brainstate.graph.states(model, brainstate.HiddenState)
    try:
        if options.batch_size is not None or fresh:
            brainstate.nn.init_all_states(model, batch_size=options.batch_size)
        with warnings.catch_warnings():  # they are in the report
            warnings.filterwarnings("ignore", r"(info|warning): ", UserWarning)
            return compile_etrace_graph(
                model,
                *args,
                frozen=options.frozen or (),
                recurrence_scope=options.recurrence_scope,
                control_flow=_policy(options.scan_unroll_limit),
            )
    except CompilationError as error:
        raise Refusal(f"{_place_of(model, file)}: {error}") from error
    except Exception as error:
        raise Refusal(told(error, file)) from error


def _policy(limit: int | None) -> ControlFlowPolicy:
    from ..compiler.control.policy import ControlFlowPolicy

    return ControlFlowPolicy() if limit is None else ControlFlowPolicy(scan_unroll_limit=limit)


def _place_of(model: Any, file: Path) -> str:
    """Where the step of a model is written."""
    code = getattr(type(model).update, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else str(file)


# --- output ---------------------------------------------------------------------------------------


def _write(graph: ETraceGraph, options: argparse.Namespace) -> None:
    from ..compiler.summary import summarize
    from ..show.html import page

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
    from ..base.diagnostics import DiagnosticKind

    if not (options.weight or options.hidden or options.kind):
        return None
    states = [slot.path for slot in graph.module_info.slots]
    kinds = {kind.value: kind for kind in DiagnosticKind}
    if options.kind and options.kind.lower() not in kinds:
        raise UsageError(f"--kind {options.kind!r} is unknown{hint(options.kind, kinds, 'kinds')}")
    return graph.explain(
        weight_path=_path("--weight", options.weight, graph.coverage()),
        hidden_path=_path("--hidden", options.hidden, states),
        kind=kinds[options.kind.lower()] if options.kind else None,
    )


def _path(option: str, text: str | None, paths: Iterable[StatePath]) -> Any:
    """The path that is written ``layers[0].weight`` or ``layers.0.weight``."""
    from ..base.types import show_path

    if text is None:
        return None
    known = {_dotted(show_path(path)): path for path in paths}
    if _dotted(text) not in known:
        near = hint(text, map(show_path, known.values()), "names")
        raise UsageError(f"{option} {text!r} is not in the model{near}")
    return known[_dotted(text)]


def _dotted(text: str) -> str:
    return re.sub(r"\[(\d+)\]", r".\1", text).removeprefix(".")


def _as_text(graph: ETraceGraph, records: list[CompilationRecord] | None) -> str:
    if records is None:
        said = [f"advice of {by}: {text}" for _, by, text in _advised(graph.diagnostics)]
        return "\n".join([graph.report(), *dict.fromkeys(said)])
    lines = []
    for record in records:
        lines.append(str(record))
        lines += [f"  advice of {by}: {text}" for _, by, text in _advised([record])]
    return "\n".join(lines) or "no diagnostic fits"


def _advised(records: Iterable[CompilationRecord]) -> list[tuple[CompilationRecord, str, str]]:
    """The diagnostics that a plugin has advice for: record, family, sentence."""
    from ..plugins import services
    from ..plugins.process import host

    found = ((record, services.advice(host(), record)) for record in records)
    return [(record, *said) for record, said in found if said]


def _as_json(graph: ETraceGraph, records: list[CompilationRecord] | None) -> str:
    from ..compiler.summary import summarize
    from ..show.facts import to_data

    if records is not None:
        data: Any = [_data(record) for record in records]
    else:
        data = to_data(summarize(graph))
        data |= {"diagnostics": [_data(record) for record in graph.diagnostics]}
    return json.dumps(data, indent=2, ensure_ascii=False)


def _data(record: CompilationRecord) -> dict[str, Any]:
    from ..show.facts import record_data

    said = [{"family": by, "text": text} for _, by, text in _advised([record])]
    return record_data(record) | ({"advice": said[0]} if said else {})


COMMAND = Command(
    "compile a model and print, draw or save what the compiler found", _declare, explain
)
