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
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import saiunit

from . import _jax, _storage
from ._checks import options_of
from ._compile import ETraceGraph, StateKind, show_path
from ._errors import CompilationError

State = brainstate.State[Any]

#: Libraries whose objects, unless they are modules, hold no states, or states of others.
WITHOUT_STATES = (
    "brainstate braintrace builtins functools jax jaxlib ml_dtypes numpy optax saiunit".split()
)


class Learner(Protocol):
    """What is used of an ``ETraceAlgorithm``."""

    model: brainstate.nn.Module
    traces: tuple[Any, ...]

    @property
    def executor(self) -> Any:
        """What runs a step, with the options it was made with."""

    @property
    def graph(self) -> ETraceGraph:
        """What the compiler found."""

    @property
    def rule(self) -> Any:
        """The learning rule."""


# --- for users -----------------------------------------------------------------------------------


def save_learner(learner: Learner, path: str | os.PathLike[str], optimizer: Any = None) -> None:
    """Save where a learner stands, to go on from there in another process.

    Saved are all states of the model, the traces, the learner's own states such as
    ``running_index``, the random state of ``brainstate.random``, and the states of the optimizer:
    values, shapes, dtypes and units. The program is not; it is made anew by ``compile_graph``.

    Parameters
    ----------
    learner
        A compiled learner.
    path
        Of the file, a zip archive that ``numpy.load`` opens. One that is there is replaced, and
        stays as it is when saving fails or the process ends in the middle of it.
    optimizer
        What holds its state in ``brainstate`` states: a ``brainstate.nn.Module``, an optimizer of
        ``braintools``, a state, or a dict, list or tuple of these.

    Raises
    ------
    CompilationError
        Before ``compile_graph``, or when states of the model were made anew since.
    TypeError
        When a state holds something else than arrays and numbers, or for another optimizer.
    OSError
        When the folder does not exist or the file cannot be written.
    RuntimeError
        Inside ``jit`` or another transformation.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp, os, tempfile
    >>> from braintrace._saved import restore_learner, save_learner
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, "d_rtrl", x, batch_size=2)
    >>> path = os.path.join(tempfile.mkdtemp(), "learner.npz")
    >>> save_learner(learner, path)
    >>> first = learner(x)
    >>> restore_learner(learner, path)
    >>> bool((learner(x) == first).all())
    True
    """
    _check_outside("saved")
    held = _held(learner, optimizer)
    manifest = {
        "braintrace": _version(),
        "made_with": {"brainstate": brainstate.__version__, "jax": jax.__version__},
        "description": _description(learner, optimizer),
        "kinds": {leaf.name: leaf.kind for leaf in held},
        "units": {leaf.name: leaf.unit for leaf in held if leaf.unit},
    }
    types = [_type_of(leaf) for leaf in held]
    arrays = (
        (leaf.name, found, _storage.encoded(leaf.value))
        for leaf, found in zip(held, types, strict=True)
    )
    _storage.write(path, manifest, arrays)


def restore_learner(learner: Learner, path: str | os.PathLike[str], optimizer: Any = None) -> None:
    """Go on from where a saved learner stood, bit for bit.

    The learner, its model and the optimizer are made and compiled as for the one that was saved;
    then their states take the saved values, and so does the random state of ``brainstate.random``.
    Either all of them do, or, when anything does not fit, none.

    Parameters
    ----------
    learner
        A compiled learner.
    path
        Of a file that :func:`save_learner` wrote.
    optimizer
        As for :func:`save_learner`; required where one was saved.

    Raises
    ------
    ValueError
        When the file is that of another learner, model, series of versions (0.1, 0.2) or shape,
        with all the differences; or when it is damaged or none that was saved here.
    CompilationError, TypeError, RuntimeError
        As for :func:`save_learner`.
    OSError
        When the file cannot be read.

    Examples
    --------
    See :func:`save_learner`.
    """
    _check_outside("restored")
    held = _held(learner, optimizer)
    content = _storage.read(path)
    found = [
        *_changed_version(content),
        *_changed_description(content, _description(learner, optimizer)),
        *_changed_leaves(content, held),
    ]
    if found:
        lines = "".join(f"\n  {line}" for line in found)
        raise ValueError(
            f"{_storage.file_name(path)} was saved from another learner than this one; nothing was "
            f"restored. What differs:{lines}"
        )
    _assign(_values(content, held, path))


# --- what is held --------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Held:
    """One array that a learner goes on from.

    Attributes
    ----------
    name
        The path of its state, and that inside of the state's value.
    kind
        ``'param'``, ``'hidden'``, ``'other'``, ``'trace'``, ``'learner'``, ``'optimizer'`` or
        ``'random'``.
    unit
        Its unit, as text that is the same for equal units only; empty without one.
    state
        The state.
    value
        The array, without its unit.
    """

    name: str
    kind: str
    unit: str
    state: State
    value: Any


def _held(learner: Learner, optimizer: Any) -> list[Held]:
    """All arrays of a learner, by name, in an order that depends on their paths alone."""
    states = _states(learner, optimizer)
    held = [leaf for state, (name, kind) in states.items() for leaf in _leaves(state, name, kind)]
    if len({leaf.name for leaf in held}) < len(held):
        names = [leaf.name for leaf in held]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two arrays of the learner have the name {twice}")
    if any(_jax.is_traced(leaf.value) for leaf in held):
        raise RuntimeError("a learner whose states are being traced cannot be saved or restored")
    return held


def _states(learner: Learner, optimizer: Any) -> dict[State, tuple[str, str]]:
    """Every state with its name and kind; one that is met twice has the first name."""
    info = _compiled(learner).module_info
    kinds = {slot.state: slot.kind.value for slot in info.slots}
    found: dict[State, tuple[str, str]] = {brainstate.random.DEFAULT: ("random/default", "random")}
    for path, state in brainstate.graph.states(learner.model).items():
        found.setdefault(state, (_named("model", path), kinds.get(state) or _kind(state)))
    for i, state in enumerate(learner.traces):
        found.setdefault(state, (f"trace/{i}", "trace"))
    for path, state in brainstate.graph.states(learner).items():
        found.setdefault(state, (_named("learner", path), "learner"))
    outside = [slot for slot in info.slots if slot.state not in found]
    for i, slot in enumerate(outside):
        found[slot.state] = (f"outside/{i}", slot.kind.value)
    for path, state in _states_of_optimizer(optimizer).items():
        found.setdefault(state, (_named("optimizer", path), "optimizer"))
    return found


def _compiled(learner: Learner) -> ETraceGraph:
    """The graph of a learner whose states are those it was compiled with.

    Raises
    ------
    CompilationError
        When it is not compiled, or the states were made anew since.
    """
    if not learner.executor.is_compiled:
        raise CompilationError(
            "call compile_graph(*example_inputs) before saving or restoring a learner"
        )
    present = {*brainstate.graph.states(learner.model).values()}
    for slot in learner.graph.module_info.slots:
        if slot.kind is not StateKind.OTHER and slot.state not in present:
            raise CompilationError(
                f"the {slot.kind.value} state {show_path(slot.path)} was initialised again, "
                "replaced or deleted after compile_graph; call compile_graph again before saving "
                "or restoring the learner"
            )
    return learner.graph


def _kind(state: State) -> str:
    """The kind of a state that the step does not use."""
    kind = StateKind.PARAM if isinstance(state, brainstate.ParamState) else StateKind.OTHER
    return kind.value


def _named(owner: str, path: tuple[Any, ...]) -> str:
    """``model/layers/0/weight``; a part that is neither a name nor a number is quoted."""
    names = (p if isinstance(p, str) and p.isidentifier() else repr(p) for p in path)
    return "/".join([owner, *names])


def _leaves(state: State, name: str, kind: str) -> Iterator[Held]:
    """The arrays of a state, in the order of its tree structure."""
    tree = jax.tree_util.tree_leaves_with_path(state.value, is_leaf=saiunit.math.is_quantity)
    for path, node in tree:
        unit = _unit(node.unit) if saiunit.math.is_quantity(node) else ""
        leaves = jax.tree.leaves(node)
        for i, leaf in enumerate(leaves):
            place = jax.tree_util.keystr(path) + (f"[{i}]" if len(leaves) > 1 else "")
            yield Held(f"{name}{place}", kind, unit, state, leaf)


def _unit(unit: saiunit.Unit) -> str:
    """``mV = 1.0 * 10.0^-3.0 m^2 kg s^-3 A^-1``: how a unit is written is not what it is."""
    return (
        f"{unit} = {float(unit.factor)!r} * {float(unit.base)!r}^{float(unit.scale)!r} {unit.dim}"
    )


def _states_of_optimizer(optimizer: Any) -> dict[Any, State]:
    """The states of an optimizer, by path.

    Raises
    ------
    TypeError
        When there are none, or it holds bare arrays, which could not be restored in their place.
    """
    if optimizer is None:
        return {}
    bare = _bare_part(optimizer, "optimizer")
    found = {path: part for path, part in _parts(optimizer) if isinstance(part, brainstate.State)}
    if bare or not found:
        raise TypeError(
            f"{bare or f'optimizer (a {type(optimizer).__name__}) holds no brainstate states'}; "
            "pass what holds its state in brainstate states: a brainstate.nn.Module, an optimizer "
            "of braintools, a State, or a dict, list or tuple of these. For optax that is "
            "learner.optimizer(transformation)"
        )
    return found


def _bare_part(part: Any, name: str) -> str | None:
    """What among the parts of an optimizer holds no state, if anything does."""
    if isinstance(part, Mapping):
        return _first(_bare_part(value, f"{name}[{key!r}]") for key, value in part.items())
    if isinstance(part, list | tuple):
        return _first(_bare_part(value, f"{name}[{i}]") for i, value in enumerate(part))
    if any(isinstance(inner, brainstate.State) for _, inner in _parts(part)):
        return None
    return f"{name} (a {type(part).__name__}) holds no brainstate states"


def _parts(part: Any, path: tuple[Any, ...] = (), seen: set[int] | None = None) -> Iterator[Any]:
    """An object and those it holds, with their paths, each once.

    More than ``brainstate.graph`` finds: a schedule of braintools is a plain object with states.
    """
    seen = set() if seen is None else seen
    if id(part) not in seen:
        seen.add(id(part))
        yield path, part
        for name, inner in _inside(part):
            yield from _parts(inner, (*path, name), seen)


def _inside(part: Any) -> Iterable[tuple[Any, Any]]:
    """What an object holds; those of libraries that know nothing of states are left alone."""
    if isinstance(part, Mapping):
        return part.items()
    if isinstance(part, list | tuple):
        return enumerate(part)
    return sorted(vars(part).items()) if _is_opened(part) else ()


def _is_opened(part: Any) -> bool:
    if isinstance(part, brainstate.State | type) or not hasattr(part, "__dict__"):
        return False
    library = type(part).__module__.partition(".")[0]
    return isinstance(part, brainstate.graph.Node) or library not in WITHOUT_STATES


def _first(found: Iterator[str | None]) -> str | None:
    return next((text for text in found if text is not None), None)


def _type_of(leaf: Held) -> _storage.ArrayType:
    try:
        return _storage.type_of(leaf.value)
    except TypeError as error:
        raise TypeError(
            f"{leaf.name} cannot be saved: {error}. Keep what is no array in an attribute"
        ) from None


# --- what is described ---------------------------------------------------------------------------


def _description(learner: Learner, optimizer: Any) -> dict[str, str]:
    """What decides about how the states of a learner go on, besides their values, in text."""
    graph, own = learner.graph, options_of(type(learner))
    options = {k: v for k, v in vars(learner).items() if k in own and k != "config"}
    config = _fields(getattr(learner, "config", None))
    groups = enumerate(graph.hidden_groups)
    return {
        "learner": type(learner).__name__,
        **{f"option {k}": _text(v) for k, v in {**learner.executor.options, **options}.items()},
        **{f"config {k}": _text(v) for k, v in config.items()},
        "learning rule": type(learner.rule).__name__,
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
        if field.init and field.name != "executor"
    }


def _classes(model: brainstate.nn.Module) -> dict[str, str]:
    """Classes of a model and of the modules inside of it, by path."""
    nodes = brainstate.graph.nodes(model).items()
    return {_named("model", path): type(node).__name__ for path, node in nodes}


def _classes_of_optimizer(optimizer: Any) -> dict[str, str]:
    """Classes of an optimizer and of what holds states inside of it, by path."""
    inside = {
        _named("optimizer", path): type(part).__name__
        for path, part in _parts(optimizer)
        if _is_opened(part) and any(isinstance(v, brainstate.State) for v in vars(part).values())
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
        return f"{_text(value.mantissa)} {_unit(value.unit)}"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_text(k)}: {_text(v)}' for k, v in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"({', '.join(map(_text, value))})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = ", ".join(f"{k}={_text(v)}" for k, v in _fields(value).items())
        return f"{type(value).__name__}({parts})"
    if isinstance(value, np.dtype | enum.Enum):
        return value.name
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _digest(array: Any) -> str:
    """A number as such; of an array, what tells it from others."""
    try:
        found, raw = _storage.type_of(array), _storage.encoded(array)
    except TypeError:  # of text, or of objects
        return repr(array)
    if raw.shape == () and raw.dtype.name == found.dtype:
        return repr(raw.item())
    return f"{found.dtype}{list(found.shape)} {hashlib.sha256(raw.tobytes()).hexdigest()[:16]}"


def _version() -> str:
    return str(sys.modules[str(__package__)].__version__)


# --- what differs --------------------------------------------------------------------------------


def _changed_version(content: _storage.Content) -> list[str]:
    """Versions of one series agree about what their arrays mean."""
    theirs, ours = str(content.manifest.get("braintrace")), _version()
    same = theirs.split(".")[:2] == ours.split(".")[:2]
    return [] if same else [f"version of braintrace: {theirs} in the file, {ours} here"]


def _changed_description(content: _storage.Content, ours: Mapping[str, str]) -> list[str]:
    theirs = _mapping(content, "description")
    return [
        f"{name}: {theirs.get(name, 'nothing')} in the file, {ours.get(name, 'nothing')} here"
        for name in {**theirs, **ours}
        if theirs.get(name) != ours.get(name)
    ]


def _changed_leaves(content: _storage.Content, held: list[Held]) -> list[str]:
    """Arrays that only one side has, and those of another kind, shape, dtype or unit."""
    kinds, units = _mapping(content, "kinds"), _mapping(content, "units")
    names = {leaf.name for leaf in held}
    found = []
    for leaf in held:
        stored = content.types.get(leaf.name)
        if stored is None:
            found.append(f"{leaf.name}: not in the file")
            continue
        ours = _type_of(leaf)
        pairs = {
            "kind": (kinds.get(leaf.name), leaf.kind),
            "shape": (stored.shape, ours.shape),
            "dtype": (stored.dtype, ours.dtype),
            "unit": (units.get(leaf.name, "none"), leaf.unit or "none"),
        }
        found += [
            f"{leaf.name}: {what} {_shown(a, what)} in the file, {_shown(b, what)} here"
            for what, (a, b) in pairs.items()
            if _compared(a, what) != _compared(b, what)
        ]
    return [*found, *(f"{name}: only in the file" for name in content.types if name not in names)]


def _shown(value: Any, what: str) -> str:
    return str(value).split(" = ")[0] if what == "unit" else str(value)


def _compared(value: Any, what: str) -> Any:
    return str(value).split(" = ")[-1] if what == "unit" else value


def _mapping(content: _storage.Content, name: str) -> Mapping[str, Any]:
    found = content.manifest.get(name)
    return found if isinstance(found, dict) else {}


# --- what is written -----------------------------------------------------------------------------


def _values(
    content: _storage.Content, held: list[Held], path: str | os.PathLike[str]
) -> dict[State, Any]:
    """The new value of every state."""
    leaves: dict[State, list[Any]] = {}
    for leaf in held:
        raw, stored = content.arrays[leaf.name], content.types[leaf.name]
        try:
            value = _storage.decoded(raw, stored, leaf.value)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{_storage.file_name(path)} is damaged: {leaf.name} cannot be read: {error}"
            ) from error
        leaves.setdefault(leaf.state, []).append(value)
    return {
        state: jax.tree.unflatten(jax.tree.structure(state.value), new)
        for state, new in leaves.items()
    }


def _assign(values: Mapping[State, Any]) -> None:
    """Set all states, or none when one of them refuses its value."""
    before = {state: state.value for state in values}
    try:
        for state, value in values.items():
            state.restore_value(value)
    except BaseException:
        for state, value in before.items():
            state.restore_value(value)
        raise


def _check_outside(done: str) -> None:
    """A program that is being traced would hold the values of the moment it was traced."""
    if _jax.is_traced(jnp.zeros(())):
        raise RuntimeError(
            f"a learner cannot be {done} inside jit, for_loop or another transformation; do it "
            "between the calls of what is compiled"
        )
