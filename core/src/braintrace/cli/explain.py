# SPDX-License-Identifier: Apache-2.0
"""``braintrace explain``: compile a model and show what the compiler found."""

from __future__ import annotations

import argparse
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import OK, Refusal, UsageError, as_json, hint
from .model import arguments, build, file_and_name, import_file, parse_shape, told

if TYPE_CHECKING:
    from ..base.diagnostics import CompilationRecord
    from ..base.types import Path as StatePath
    from ..compiler.graph import ETraceGraph


def declare(parser: argparse.ArgumentParser) -> None:
    """The arguments of the command."""
    add = parser.add_argument
    add("model", metavar="FILE:MODEL",
        help="a Python file and the name of a model in it: an instance, a Module class without "
        "required arguments, or a function without required arguments that returns model or "
        "(model, *example_args)")  # fmt: skip
    add("--batch-size", type=int, metavar="N", help="initialise the states with it")
    add("--input", action="append", default=[], metavar="SHAPE[:DTYPE]",
        help="an argument of one step, e.g. 64,10:float32; repeat it for more")  # fmt: skip
    add("--frozen", action="append", default=[], metavar="NAME",
        help="a parameter that may have no gradient; repeat it for more")  # fmt: skip
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
    model, args = build(module, file, name)
    graph = _compile(model, arguments(model, args, shapes, options.batch_size), options, file)
    _write(graph, options)
    records = _selected(graph, options)
    print(as_json(_as_data(graph, records)) if options.json else _as_text(graph, records))
    return OK


def _compile(model: Any, args: tuple[Any, ...], options: Any, file: Path) -> ETraceGraph:
    import brainstate

    from ..base.errors import CompilationError
    from ..compiler.compile import compile_etrace_graph
    from ..compiler.control.rewrite import ControlFlowPolicy

    limit = options.scan_unroll_limit
    policy = ControlFlowPolicy(**({} if limit is None else {"scan_unroll_limit": limit}))
    fresh = not brainstate.graph.states(model, brainstate.HiddenState)
    try:
        if options.batch_size is not None or fresh:
            brainstate.nn.init_all_states(model, batch_size=options.batch_size)
        with warnings.catch_warnings():  # they are in the report
            warnings.filterwarnings("ignore", r"(info|warning): ", UserWarning)
            chosen = {"frozen": options.frozen, "recurrence_scope": options.recurrence_scope}
            return compile_etrace_graph(model, *args, control_flow=policy, **chosen)
    except CompilationError as error:
        code = getattr(type(model).update, "__code__", None)
        where = f"{code.co_filename}:{code.co_firstlineno}" if code else str(file)
        raise Refusal(f"{where}: {error}") from error
    except Exception as error:
        raise Refusal(told(error, file)) from error


def _write(graph: ETraceGraph, options: argparse.Namespace) -> None:
    from ..compiler.graph import summarize
    from ..show.report import page

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


def _advice(record: CompilationRecord) -> dict[str, str] | None:
    """What a plugin has to say about a diagnostic, if one has."""
    from ..plugins import services
    from ..plugins.process import host

    said = services.advice(host(), record)
    return said and {"family": said[0], "text": said[1]}


def _as_text(graph: ETraceGraph, records: list[CompilationRecord] | None) -> str:
    lines = [graph.report()] if records is None else []
    for record in graph.diagnostics if records is None else records:
        said = _advice(record)
        text = "advice of {family}: {text}".format(**said) if said else ""
        if records is not None:
            lines += [str(record), *([f"  {text}"] if text else [])]
        elif text and text not in lines:
            lines.append(text)
    return "\n".join(lines) or "no diagnostic fits"


def _as_data(graph: ETraceGraph, records: list[CompilationRecord] | None) -> Any:
    from ..compiler.graph import summarize
    from ..show.facts import record_data, to_data

    data = [
        record_data(record) | ({"advice": said} if (said := _advice(record)) else {})
        for record in (graph.diagnostics if records is None else records)
    ]
    return {**to_data(summarize(graph)), "diagnostics": data} if records is None else data
