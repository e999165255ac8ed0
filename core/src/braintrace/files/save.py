# SPDX-License-Identifier: Apache-2.0
"""What of a learner is saved, and when a saved one may take the place of another.

Every state that a learner goes on from is saved, by name: those of the model, the traces, the
learner's own, the optimizer's, and the random state from which ``brainstate.random`` draws, because
a training loop can draw from it wherever it likes. Beside them stands a description of the learner
in text. A file is restored only where names, types, units and description agree.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import saiunit

import braintrace

from ..base import versions
from ..base.types import Path, State, restore_values, show_path
from . import storage
from .arrays import Leaf, is_opened, leaves_of, named, parts_of, unit_of


def save_learner(learner: Any, path: str | os.PathLike[str], optimizer: Any = None) -> None:
    """``learner.save(path, optimizer)``, for an optimizer that holds brainstate states."""
    _check_outside("saved")
    leaves = leaves_of(learner, optimizer)
    manifest = {
        "braintrace": str(braintrace.__version__),
        "made_with": {"brainstate": brainstate.__version__, "jax": jax.__version__},
        "description": description_of(learner, optimizer),
        "kinds": {leaf.name: leaf.kind for leaf in leaves},
        "units": {leaf.name: leaf.unit for leaf in leaves if leaf.unit},
    }
    storage.write(path, manifest, [(leaf.name, leaf.type, leaf.value) for leaf in leaves])


def restore_learner(
    learner: Any, path: str | os.PathLike[str], optimizer: Any = None, only: str | None = None
) -> None:
    """``learner.restore(path, optimizer)``: all states take the saved values, or none does."""
    _check_outside("restored")
    if only not in (None, "parameters"):
        raise ValueError(f"only must be 'parameters' or None, got {only!r}")
    if only and optimizer is not None:
        raise ValueError("only='parameters' restores no optimizer; leave it out")
    leaves, ours = leaves_of(learner, optimizer), description_of(learner, optimizer)
    if only:
        leaves, ours = [leaf for leaf in leaves if leaf.kind == "param"], {}
    frozen = {f"[{path!r}]" for path in learner.graph.frozen}  # their moments were saved once
    with storage.opened(path) as file:
        content = _parameters(file) if only else file
        found = _differences(content, leaves, ours, frozen)
        if lines := "".join(f"\n  {line}" for line in found):
            raise ValueError(
                f"{storage.file_name(path)} was saved from another learner than this one; nothing "
                f"was restored. What differs:{lines}{'' if only else _remedies(file, leaves)}"
            )
        values = _values(content, leaves, path)
    before = {state: state.value for state in values}
    try:
        for state, value in values.items():
            state.restore_value(value)
    except BaseException:
        restore_values(before)
        raise


def _remedies(content: storage.Content, leaves: list[Leaf]) -> str:
    """What to do with a file of an earlier version, or of a learner whose parameters fit."""
    said, description = "", content.manifest.get("description")
    if isinstance(description, dict) and "option downstream" not in description:
        said = "\nAn earlier version saved it: its learners go on with downstream='step'"
    own = [leaf for leaf in leaves if leaf.kind == "param"]
    if not [*_differences(_parameters(content), own, {}, set())]:
        said += "\nThe parameters are alike: restore(path, only='parameters') takes them alone"
    return said


def _parameters(content: storage.Content) -> storage.Content:
    """What a file says of parameters alone, whatever learner they were saved from."""
    kinds = content.manifest.get("kinds")
    kinds = kinds if isinstance(kinds, dict) else {}
    types = {n: found for n, found in content.types.items() if kinds.get(n) == "param"}
    return content._replace(manifest={**content.manifest, "description": {}}, types=types)


def _check_outside(done: str) -> None:
    """A program that is being traced would hold the values of the moment it was traced."""
    if versions.is_traced(jnp.zeros(())):
        raise RuntimeError(
            f"a learner cannot be {done} inside jit, for_loop or another transformation; do it "
            "between the calls of what is compiled"
        )


def _values(
    content: storage.Content, leaves: list[Leaf], path: str | os.PathLike[str]
) -> dict[State, Any]:
    """The new value of every state."""
    found: dict[State, list[Any]] = {}
    arrays = content.arrays([leaf.name for leaf in leaves])
    for leaf in leaves:
        raw, stored = arrays[leaf.name], content.types[leaf.name]
        try:
            value = storage.decoded(raw, stored, leaf.value)
            if _widens(stored, leaf):
                value = jnp.asarray(value, leaf.type.dtype)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{storage.file_name(path)} is damaged: {leaf.name} cannot be read: {error}"
            ) from error
        found.setdefault(leaf.state, []).append(value)
    return {
        state: jax.tree.unflatten(jax.tree.structure(state.value), new)
        for state, new in found.items()
    }


# --- what differs --------------------------------------------------------------------------------


def _differences(
    content: storage.Content, leaves: list[Leaf], ours: Mapping[str, str], frozen: Iterable[str]
) -> Iterator[str]:
    """Another version or text, and arrays that one side lacks or that are of another type."""

    def mapping(name: str) -> Mapping[str, Any]:
        found = content.manifest.get(name)
        return found if isinstance(found, dict) else {}

    theirs, here = str(content.manifest.get("braintrace")), str(braintrace.__version__)
    if theirs.split(".")[:2] != here.split(".")[:2]:  # in a series, arrays mean the same
        yield f"version of braintrace: {theirs} in the file, {here} here"
    before = {name: "'step'" for name in ours if name == "option downstream"}
    texts = {**before, **mapping("description")}
    for name in {**texts, **ours}:
        if texts.get(name) != ours.get(name):
            there, here = texts.get(name, "nothing"), ours.get(name, "nothing")
            yield f"{name}: {there} in the file, {here} here"
    kinds, units = mapping("kinds"), mapping("units")
    for leaf in leaves:
        name, stored = leaf.name, content.types.get(leaf.name)
        if stored is None:
            yield f"{name}: not in the file"
            continue
        for what, *pair in (
            ("kind", kinds.get(name), leaf.kind),
            ("shape", stored.shape, leaf.type.shape),
            ("dtype", stored.dtype, leaf.type.dtype),
            ("unit", units.get(name, "none"), leaf.unit or "none"),
        ):
            (there, _, meant_there), (here, _, meant_here) = (_unit_parts(v) for v in pair)
            if meant_there != meant_here and not (what == "dtype" and _widens(stored, leaf)):
                yield f"{name}: {what} {there} in the file, {here} here"
    known = {leaf.name for leaf in leaves}
    extra = (name for name in content.types if name not in known)
    yield from (f"{name}: only in the file" for name in extra if not any(k in name for k in frozen))


def _widens(stored: storage.ArrayType, leaf: Leaf) -> bool:
    """Whether a trace was saved in half precision, as it was kept once, and is wider here."""
    try:
        there, here = jnp.dtype(stored.dtype), jnp.dtype(leaf.type.dtype)
    except TypeError:  # a key's, or none at all
        return False
    floats = all(jnp.issubdtype(dtype, jnp.floating) for dtype in (there, here))
    return leaf.kind == "trace" and floats and there.itemsize < min(here.itemsize, 4)


def _unit_parts(value: Any) -> tuple[str, str, str]:
    """Of a unit how it is written, and what it is: another spelling is no other unit."""
    text = str(value)
    return text.partition(" = ") if " = " in text else (text, "", text)


# --- what a learner is, as text that a file keeps beside its arrays ------------------------------


def description_of(learner: Any, optimizer: Any) -> dict[str, str]:
    """What decides about how the states of a learner go on, besides their values, in text."""
    graph, rule = learner.graph, learner.rule
    groups = {g.index: ", ".join(map(show_path, g.hidden_paths)) for g in graph.hidden_groups}
    nodes = [*brainstate.graph.nodes(learner.model).items()]
    holders = [] if optimizer is None else [one for one in parts_of(optimizer) if _holds(one[1])]
    return {
        "learner": type(learner).__name__,
        **_texts("option", {**_compiling(learner), **learner.own_options, **_moved(graph)}),
        **_texts("config", _fields(getattr(learner, "config", None))),
        "learning rule": _name(rule),
        **_texts("learning rule", _fields(rule)),
        **_classes("model", nodes),
        **{k: v for path, node in nodes for k, v in _chosen(named("model", path), node)},
        **_texts("setting", graph.module_info.settings),
        **{f"hidden group {i}": paths for i, paths in groups.items()},
        **{f"link {i}": _link(link) for i, link in enumerate(rule.links)},
        **({} if optimizer is None else _classes("optimizer", [((), optimizer), *holders])),
    }


def _compiling(learner: Any) -> dict[str, Any]:
    """The options of compiling but the one that the learning rule decides about."""
    return {k: v for k, v in learner.executor.options.items() if k != "keeps_traces"}


def _moved(graph: Any) -> dict[str, str]:
    """How far credit goes, where that is farther than in files that do not say it."""
    far = "exact" if graph.exact is not None else "linear"
    return {"downstream": "step" if graph.filtered is None else far}


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
    return {named(owner, path): type(part).__name__ for path, part in parts}


def _chosen(name: str, node: Any) -> Iterable[tuple[str, str]]:
    """What a layer says in ``saved_options`` that its states depend on."""
    return _texts(f"option of {name}:", getattr(node, "saved_options", {})).items()


def _holds(part: Any) -> bool:
    """Whether an object has states as attributes."""
    return is_opened(part) and any(isinstance(v, brainstate.State) for v in vars(part).values())


def _link(link: Any) -> str:
    """``etp_mm(cell.W.weight) in hidden group 0``, and options of its trace."""
    paths = ", ".join(map(show_path, link.relation.parameter_paths))
    text = f"{link.relation.primitive.name}({paths}) in hidden group {link.group.index}"
    return f"{text}, {link.options}" if link.options else text


def _text(value: Any) -> str:
    """A value as text that is the same in every process, without addresses."""
    if isinstance(value, np.dtype | enum.Enum):
        return value.name
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
