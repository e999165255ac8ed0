# SPDX-License-Identifier: Apache-2.0
"""What a learner is, as text that a file keeps beside its arrays."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

import brainstate
import jax
import numpy as np
import saiunit

from ..base.types import Path, show_path
from . import storage
from .arrays import is_opened, named, parts_of, unit_of


def description_of(learner: Any, optimizer: Any) -> dict[str, str]:
    """What decides about how the states of a learner go on, besides their values, in text."""
    graph, rule = learner.graph, learner.rule
    groups = {g.index: ", ".join(map(show_path, g.hidden_paths)) for g in graph.hidden_groups}
    holders = [] if optimizer is None else [one for one in parts_of(optimizer) if _holds(one[1])]
    return {
        "learner": type(learner).__name__,
        **_texts("option", {**learner.executor.options, **learner.own_options}),
        **_texts("config", _fields(getattr(learner, "config", None))),
        "learning rule": _name(rule),
        **_texts("learning rule", _fields(rule)),
        **_classes("model", brainstate.graph.nodes(learner.model).items()),
        **_texts("setting", graph.module_info.settings),
        **{f"hidden group {i}": paths for i, paths in groups.items()},
        **{f"link {i}": _link(link) for i, link in enumerate(rule.links)},
        **({} if optimizer is None else _classes("optimizer", [((), optimizer), *holders])),
    }


def _texts(what: str, values: Mapping[str, Any]) -> dict[str, str]:
    return {f"{what} {name}": _text(value) for name, value in values.items()}


def _fields(record: Any) -> dict[str, Any]:
    """What a dataclass was made with; what a learning rule runs on does not belong to it."""
    if not dataclasses.is_dataclass(record):
        return {}
    fields = dataclasses.fields(record)
    made_with = [f.name for f in fields if f.init and f.metadata.get("saved", True)]
    return {name: getattr(record, name) for name in made_with if name != "executor"}


def _name(record: Any) -> str:
    """The name of the class of a record, or what it is called in files since it had another one."""
    return str(getattr(record, "saved_as", type(record).__name__))


def _classes(owner: str, parts: Iterable[tuple[Path, Any]]) -> dict[str, str]:
    """Classes of objects, by path."""
    return {named(owner, path): type(part).__name__ for path, part in parts}


def _holds(part: Any) -> bool:
    """Whether an object has states as attributes."""
    return is_opened(part) and any(isinstance(v, brainstate.State) for v in vars(part).values())


def _link(link: Any) -> str:
    """``etp_mm(cell.W.weight) in hidden group 0``."""
    paths = ", ".join(map(show_path, link.relation.parameter_paths))
    return f"{link.relation.primitive.name}({paths}) in hidden group {link.group.index}"


def _text(value: Any) -> str:
    """A value as text that is the same in every process, without addresses."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return _digest(value)
    if value is None or isinstance(value, bool | int | float | complex | str):
        return repr(value)
    if saiunit.math.is_quantity(value):
        return f"{_text(value.mantissa)} {unit_of(value.unit)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(k)}: {_text(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ", ".join(f"{k}={_text(v)}" for k, v in _fields(value).items())
        return f"{_name(value)}({parts})"
    if isinstance(value, np.dtype | enum.Enum):
        return value.name
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _digest(array: Any) -> str:
    """A number as such; of an array, what tells it from others."""
    try:
        found, raw = storage.type_of(array), storage.encoded(array)
    except TypeError:  # of text, or of objects
        return repr(array)
    if raw.shape == () and raw.dtype.name == found.dtype:
        return repr(raw.item())
    return f"{found.dtype}{list(found.shape)} {hashlib.sha256(raw.tobytes()).hexdigest()[:16]}"
