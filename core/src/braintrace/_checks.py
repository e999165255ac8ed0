# SPDX-License-Identifier: Apache-2.0
"""What a learner requires of what it is given: as it was when the model was compiled."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from . import _jax
from ._compile import ModuleInfo, StateKind, changed_setting, show_path
from ._errors import CompilationError
from ._execute import compile_options
from ._units import in_units_of, unit_change

Path = tuple[Any, ...]

OBSOLETE = {
    "fast_solve": "the fast way is always taken where there is one, with the same numbers",
    "chunked_trace": "block_size of the drivers says how many steps are evaluated together",
    "snap_max_jacobian_elements": "the size of traces is in learner.report",
}


def options_of(learner: type) -> dict[str, inspect.Parameter]:
    """Options of a class of learners and of its bases, by name."""
    found: dict[str, inspect.Parameter] = {}
    for base in reversed(learner.__mro__):
        if issubclass(base, brainstate.nn.Module) and "__init__" in vars(base):
            found.update(inspect.signature(base.__init__).parameters)  # type: ignore[misc]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: p for name, p in found.items() if p.kind in named and name not in ("self", "model")
    }


def check_options(learner: type, options: Collection[str]) -> None:
    """Names of options that no base of a learner has taken must be those of compiling.

    Raises
    ------
    TypeError
        When one is not.
    """
    unknown, known = sorted({*options} - compile_options()), {*options_of(learner)} - {"name"}
    if unknown:
        raise TypeError(
            f"unknown option {unknown[0]!r}; options of {learner.__name__} are "
            f"{sorted({*known, *compile_options()})}"
        )


def without_obsolete(learner: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those of version 0.2 that say how to compute, not what; a warning for each.

    Parameters
    ----------
    learner
        The class of the learner, whose own options are left in.
    """
    obsolete = {*OBSOLETE} & {*options} - {*options_of(learner)}
    for name in sorted(obsolete):
        _jax.warn(f"the option {name} of braintrace 0.2 has no effect: {OBSOLETE[name]}")
    return {name: value for name, value in options.items() if name not in obsolete}


def check_required(learner: type, options: Collection[str]) -> None:
    """Options of a class of learners that have no default must be there.

    Raises
    ------
    TypeError
        When one is missing.
    """
    required = {k for k, p in options_of(learner).items() if p.default is p.empty}
    if missing := sorted(required - {*options}):
        raise TypeError(
            f"{learner.__name__} needs the option {missing[0]!r}: pass {missing[0]}=... to "
            f"compile; help({learner.__name__}) says which values it takes"
        )


def warn_of_unreset(model: Any, info: ModuleInfo, before: Mapping[Any, Any]) -> None:
    """Say so when hidden states were left as they were, as their module resets nothing.

    Parameters
    ----------
    before
        Values of the states before the model was reset.
    """
    kept = [
        slot.path
        for slot in info.slots_of(StateKind.HIDDEN)
        if slot.state.value is before[slot.state] and not _resets(_owner(model, slot.path))
    ]
    if kept:
        owner = type(_owner(model, kept[0])).__name__
        _jax.warn(
            f"model_states=True leaves the hidden state {show_path(kept[0])} as it is, because "
            f"{owner} has no reset_state. Define reset_state(batch_size=None) beside init_state"
        )


def _owner(model: Any, path: Path) -> Any:
    """The innermost module that holds the state at a path."""
    along = (_lookup(model, path[:k]) for k in reversed(range(len(path))))
    return next((found for found in along if isinstance(found, brainstate.nn.Module)), model)


def _resets(module: Any) -> bool:
    return type(module).reset_state is not brainstate.nn.Module.reset_state


def checked_args(
    info: ModuleInfo,
    args: tuple[Any, ...],
    remedy: str = "for another batch size, call reset_state(batch_size=..., model_states=True)",
) -> list[Any]:
    """The leaves of the arguments of a step, as arrays of the compiled types.

    Parameters
    ----------
    remedy
        What to do about an argument of another shape.

    Raises
    ------
    TypeError, ValueError
        When one has another type than the compiled one.
    """
    args = in_units_of(info.arg_treedef, info.with_environment(args))
    leaves, treedef = jax.tree.flatten(args)
    if treedef != info.arg_treedef:
        change = unit_change(info.arg_treedef, treedef)
        raise ValueError(
            f"the arguments have {change}, for which the learner was compiled"
            if change
            else f"the arguments have structure {treedef}, but the learner was compiled for "
            f"{info.arg_treedef}"
        )
    names = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(args)]
    checked = []
    for name, leaf, var in zip(names, leaves, info.jaxpr.invars, strict=False):
        aval = var.aval
        try:
            leaf = jnp.asarray(leaf)
        except (TypeError, ValueError):
            raise TypeError(
                f"argument{name} is a {type(leaf).__name__}; expected an array of shape "
                f"{aval.shape} and dtype {aval.dtype}"
            ) from None
        if leaf.shape != aval.shape or leaf.dtype != aval.dtype:
            raise ValueError(
                f"argument{name} has shape {leaf.shape} and dtype {leaf.dtype}, but the "
                f"learner was compiled for shape {aval.shape} and dtype {aval.dtype}; "
                + ("convert it" if leaf.shape == aval.shape else remedy)
            )
        checked.append(leaf)
    return checked


def check_states(model: Any, info: ModuleInfo) -> None:
    """States must be those that were compiled, of the same shapes.

    Raises
    ------
    CompilationError, ValueError
        When they are not.
    """
    check_same_states(model, info)
    for slot in info.slots:
        leaves, treedef = jax.tree.flatten(slot.state.value)
        if treedef != slot.treedef:
            change = unit_change(slot.treedef, treedef)
            raise ValueError(
                f"the state {show_path(slot.path)} has {change or f'structure {treedef}'}, "
                "unlike when the learner was compiled; assign it as it was, or compile again"
            )
        for leaf, var in zip(leaves, info.invars_of(slot), strict=True):
            if jnp.shape(leaf) != var.aval.shape:
                raise ValueError(
                    f"the state {show_path(slot.path)} has shape {jnp.shape(leaf)}, but the "
                    f"learner was compiled for shape {var.aval.shape}; compile again"
                )
            if jnp.result_type(leaf) != var.aval.dtype:
                raise ValueError(
                    f"the state {show_path(slot.path)} has dtype {jnp.result_type(leaf)}, but "
                    f"the learner was compiled for {var.aval.dtype}; convert what is assigned "
                    "to it, or compile again"
                )


def check_same_states(model: Any, info: ModuleInfo) -> None:
    """States made anew after compiling would be left behind silently.

    Raises
    ------
    CompilationError
        When a state was replaced, or a setting that the model reads has changed.
    """
    for slot in (*info.slots_of(StateKind.HIDDEN), *info.slots_of(StateKind.PARAM)):
        if _lookup(model, slot.path) is not slot.state:
            raise CompilationError(
                f"the {slot.kind.value} state {show_path(slot.path)} was initialised again, "
                "replaced or deleted after compile_graph; call compile_graph again. To reset "
                "states or change the batch size, use reset_state(batch_size=..., "
                "model_states=True) in place of init_all_states"
            )
    changed = changed_setting(info.settings)
    if changed is not None:
        key, then, now = changed
        raise CompilationError(
            f"the model reads {key!r} from brainstate.environ, which was {then} when the "
            f"learner was compiled and is {now} now; call compile_graph again, or call the "
            "model itself to evaluate it"
        )


def require_callable(step_fn: Any) -> None:
    """A function of a step must be callable and hashable; raises ``TypeError``."""
    if not callable(step_fn):
        raise TypeError(f"step_fn must be callable, got {type(step_fn).__name__}")
    try:
        hash(step_fn)
    except TypeError:
        raise TypeError(
            f"step_fn must be hashable, because it is compiled once; {type(step_fn).__name__} is "
            "not. Wrap it in a function"
        ) from None


def checked_weights(weights: Any) -> dict[Any, brainstate.State[Any]]:
    """Parameter states by any key; raises ``TypeError`` for anything else."""
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"weights must be a mapping from any key to ParamState, got {type(weights).__name__}"
        )
    for key, state in weights.items():
        if not isinstance(state, brainstate.ParamState):
            raise TypeError(f"weights[{key!r}] must be a ParamState, got {type(state).__name__}")
    return dict(weights)


def _lookup(model: Any, path: Path) -> Any:
    """The object at a state's path in a model."""
    found = model
    for part in path:
        by_key = isinstance(found, Mapping) and part in found
        by_index = isinstance(found, Sequence) and isinstance(part, int)
        found = found[part] if by_key or by_index else getattr(found, str(part), None)
    return found
