# SPDX-License-Identifier: Apache-2.0
"""What a learner is, as text that a file keeps beside its arrays."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import numpy as np
import saiunit

import braintrace

from ..base.types import show_path
from . import storage
from .held import Learner, is_opened, named_leaves, parts_of, unit_of

# --- what is described ---------------------------------------------------------------------------


def description_of(learner: Learner, optimizer: Any) -> dict[str, str]:
    """What decides about how the states of a learner go on, besides their values, in text."""
    graph = learner.graph
    options = {**learner.executor.options, **learner.own_options}
    config = _fields(getattr(learner, "config", None))
    groups = enumerate(graph.hidden_groups)
    return {
        "learner": type(learner).__name__,
        **{f"option {k}": _text(v) for k, v in options.items()},
        **{f"config {k}": _text(v) for k, v in config.items()},
        "learning rule": _name(learner.rule),
        **{f"learning rule {k}": _text(v) for k, v in _fields(learner.rule).items()},
        **_classes(learner.model),
        **{f"setting {k}": _text(v) for k, v in graph.module_info.settings.items()},
        **{f"hidden group {i}": ", ".join(map(show_path, g.hidden_paths)) for i, g in groups},
        **{f"link {i}": _link(link) for i, link in enumerate(learner.rule.links)},
        **({} if optimizer is None else _classes_of_optimizer(optimizer)),
    }


def _fields(record: Any) -> dict[str, Any]:
    """What a dataclass was made with; what a learning rule runs on does not belong to it."""
    if not dataclasses.is_dataclass(record):
        return {}
    return {
        field.name: getattr(record, field.name)
        for field in dataclasses.fields(record)
        if field.init and field.repr and field.name != "executor"
    }


def _name(record: Any) -> str:
    """The name of the class of a record, or what it is called in files since it had another one."""
    return str(getattr(record, "saved_as", type(record).__name__))


def _classes(model: brainstate.nn.Module) -> dict[str, str]:
    """Classes of a model and of the modules inside of it, by path."""
    nodes = brainstate.graph.nodes(model).items()
    return {named_leaves("model", path): type(node).__name__ for path, node in nodes}


def _classes_of_optimizer(optimizer: Any) -> dict[str, str]:
    """Classes of an optimizer and of what holds states inside of it, by path."""
    inside = {
        named_leaves("optimizer", path): type(part).__name__
        for path, part in parts_of(optimizer)
        if is_opened(part) and any(isinstance(v, brainstate.State) for v in vars(part).values())
    }
    return {"optimizer": type(optimizer).__name__, **inside}


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


def version_of() -> str:
    return str(braintrace.__version__)
