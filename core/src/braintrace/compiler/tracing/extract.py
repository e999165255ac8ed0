# SPDX-License-Identifier: Apache-2.0
"""From a model to one flat program over its arguments and states."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import accumulate
from types import ModuleType
from typing import Any

import brainstate
import jax
from brainstate.util import FlattedDict

from ...base import versions
from ...base.diagnostics import CompilationRecord
from ...base.errors import CompilationError, NotSupportedError, behind
from ...base.types import (
    Path,
    State,
    check_module,
    named_leaves,
    restore_values,
    show_path,
    unit_change,
)
from ...jaxprs.run import first_nested_operation, flatten, holds, nested
from ...ops.primitive import compiling, is_etp_primitive
from ..batch_states import arguments_of_one, batch_size_of, in_batch, one_example
from ..control.loops import loops_without_derivative
from ..control.reverse import with_reverse_mode
from ..control.rewrite import ControlFlowPolicy, Rewriting
from ..control.selects import with_selects
from ..environment import moving_values, recorded_settings
from ..findings.record import IN_CALL, OPAQUE, WEIGHT_IN_WHILE, WEIGHT_INSIDE
from ..keywords import run_with
from ..module_info import DYNAMIC, ModuleInfo, StateKind, StateSlot
from .derivatives import operations_without_derivative
from .effects import holds_a_reference, with_kept_effects
from .moving import with_constant_weights


def extract_module_info(
    model: brainstate.nn.Module,
    *args: Any,
    control_flow: ControlFlowPolicy | None = None,
    vmap: bool = False,
) -> ModuleInfo:
    """Trace one call ``model(*args)`` to a flat program over arguments and states.

    Calls (``jit``, ``checkpoint``) are inlined; ETP operations are taken out of branches and
    loops.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` whose states are initialised.
    *args
        Example arguments: arrays, quantities or pytrees of them.
    control_flow
        What to do with ETP operations in branches and loops; default: ``ControlFlowPolicy()``.
    vmap
        Whether the model is written for one example. Its states and the arguments have a leading
        axis of examples, and so has everything in the program but parameters and scalar arguments.

    Raises
    ------
    CompilationError
        When a state is missing, made by the step itself, changes its shape, dtype or unit, or holds
        no elements, or a parameter is written; with ``vmap``, when a state has no axis of examples.
    NotSupportedError
        When an ETP operation stands inside a loop that is not written out or a custom
        differentiation rule, a derivative would have to pass through a ``while``, a hidden state
        is complex, or the step has an effect that cannot be kept to happen once: writes to a
        reference of outside, callbacks with results.
    TypeError
        When the model is no module, an argument no array or an option of another type.
    ValueError
        With ``vmap``, when an argument does not have as many examples as the states.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
    >>> minfo = braintrace.extract_module_info(cell, jnp.ones((2, 3)))
    >>> out, *_ = minfo.jaxpr_call(jnp.ones((2, 3)))
    >>> out.shape
    (2, 4)
    """
    policy = ControlFlowPolicy() if control_flow is None else control_flow
    if not isinstance(policy, ControlFlowPolicy):
        raise TypeError(f"control_flow must be a ControlFlowPolicy, got {type(policy).__name__}")
    if not isinstance(vmap, bool):
        raise TypeError(f"vmap must be True or False, got {vmap!r}")
    check_module(model)
    for place, leaf in named_leaves(args):
        if not (hasattr(leaf, "dtype") or isinstance(leaf, bool | int | float | complex)):
            raise TypeError(
                f"argument{place} is a {type(leaf).__name__}; a step takes "
                "arrays and pytrees of them. Keep what is no array in an attribute of the model"
            )
    if not vmap:
        return _trace(model, args, policy)
    size = batch_size_of(model)
    of_one, mapped = arguments_of_one(args, size)
    with one_example(model):
        info = _trace(model, of_one, policy)
    return in_batch(info, mapped, size)


def _trace(
    model: brainstate.nn.Module, args: tuple[Any, ...], policy: ControlFlowPolicy
) -> ModuleInfo:
    """Trace a step; settings that move and that it reads are its last argument, in a dict."""
    here: dict[str, Any] = {}

    def step(*inputs: Any, **moving: Any) -> Any:
        here.update(moving)
        with brainstate.environ.context(**moving):
            return run_with(model, inputs)

    moving = moving_values()
    stateful: Any = brainstate.transform.StatefulFunction(step, return_only_write=False)
    states, settings = _run(model, partial(stateful.make_jaxpr, *args, **moving), here)
    key = stateful.get_arg_cache_key(*args, **moving)
    jaxpr = stateful.get_jaxpr_by_cache(key)
    out, new_values = stateful.get_out_shapes_by_cache(key)
    traced = stateful.get_state_trace_by_cache(key).states
    order, slots = _arrange(states, traced, new_values)
    number = {slot.state: k for k, slot in enumerate(slots)}
    first, end = len(jax.tree.leaves(args)), len(jax.tree.leaves((args, moving)))
    names = [place[0].key for place, _ in jax.tree_util.tree_leaves_with_path(moving)]
    atoms = (*jaxpr.outvars, *(atom for eqn in jaxpr.eqns for atom in eqn.invars))
    used = set(filter(versions.is_var, atoms))
    read = {name for name, var in zip(names, jaxpr.invars[first:], strict=False) if var in used}
    read |= moving.keys() & settings.keys()  # whether it is there can decide, without its value
    places = [place for place, name in enumerate(names, first) if name in read]
    if environment := tuple(name for name in moving if name in read):
        args = (*args, {name: moving[name] for name in environment})
    num_args, num_out = first + len(places), len(jax.tree.leaves(out))
    own = [num_out + i for s in slots if s.kind is StateKind.HIDDEN for i in s.leaves]
    records: list[CompilationRecord] = []
    inputs = [*range(first), *places, *(end + i for i in order)]
    outputs = [*range(num_out), *(num_out + i for i in order)]
    flat = flatten(jaxpr, inputs, outputs, own, lambda eqn: records.append(IN_CALL(eqn)))
    if (kept := with_kept_effects(flat)) is not flat:
        flat = flatten(kept, range(len(kept.invars)), range(len(kept.outvars)), own)
    fixed = [False] * num_args + [s.kind is StateKind.PARAM for s in slots for _ in s.leaves]
    opened = with_selects(Rewriting(policy, records.append).open(flat, fixed))
    if policy.while_hidden != "error":
        opened = with_reverse_mode(opened, lambda eqn: records.append(OPAQUE(eqn)))
    opened = with_constant_weights(opened, fixed)
    if opened is not flat:  # what was the result of a branch may now be an input of the step
        flat = flatten(opened, range(len(opened.invars)), range(len(opened.outvars)), own)
    info = ModuleInfo(
        jaxpr=flat,
        slots=slots,
        num_args=num_args,
        num_out=num_out,
        arg_treedef=jax.tree.structure(args),
        out_treedef=jax.tree.structure(out),
        retrieved_model_states=FlattedDict(states),
        rewrites=tuple(records),
        environment=environment,
        settings={name: value for name, value in settings.items() if name not in environment},
        read_order=tuple(number[state] for state in traced),
        stateful_model=stateful,
        control_flow=policy,
    )
    _check(info)
    _check_effects(info)
    return replace(info, rewrites=(*info.rewrites, *_weights_in_control_flow(info)))


def _run(
    model: brainstate.nn.Module, trace: Callable[[], Any], given: Mapping[str, Any]
) -> tuple[dict[Path, State], dict[str, Any]]:
    """Trace a step: the states of the model, and the settings that it reads, ``given`` ones too."""
    before = {state: state.value for state in brainstate.graph.states(model).values()}
    outside = compiling.set(True)
    try:
        with recorded_settings(given) as settings:
            trace()
    except Exception as outer:
        error = behind(outer)
        after = {state: jax.tree.structure(state.value) for state in before}
        restore_values(before)
        if isinstance(error, ValueError):
            for path, state in brainstate.graph.states(model).items():
                _same_structure(path, jax.tree.structure(state.value), after[state])
        if isinstance(error, CompilationError) and error is not outer:
            raise error from None
        if not isinstance(error, AttributeError):
            raise
        remedy = (
            ". If a state is missing, initialise the model first with "
            "brainstate.nn.init_all_states(model, batch_size=...) or use braintrace.compile(...)"
        )
        remedy = "" if isinstance(error.obj, ModuleType) else remedy
        raise CompilationError(f"the model could not be run: {error}{remedy}") from error
    finally:
        compiling.reset(outside)
    states = dict(brainstate.graph.states(model))
    made = [path for path, state in states.items() if state not in before]
    if made:
        raise CompilationError(
            f"the step makes the state {show_path(made[0])}, which then keeps nothing from step to "
            "step. Make it in __init__ or init_state, and assign to its .value in the step"
        )
    return states, settings


def _same_structure(path: Path, before: Any, after: Any) -> None:
    if before == after:
        return
    change = unit_change(before, after)
    raise CompilationError(
        f"the state {show_path(path)} has {change} after a step; both must be the same. Convert "
        "what the model assigns to it, or initialise it in the unit that the model computes"
        if change
        else f"the state {show_path(path)} changes its structure in one step: it was {before} and "
        f"becomes {after}"
    )


def _arrange(
    states: Mapping[Path, Any], traced: Sequence[Any], new_values: Sequence[Any]
) -> tuple[list[int], tuple[StateSlot, ...]]:
    """Slots of the traced states in the model's own order, and the permutation of their leaves."""
    paths = {state: path for path, state in states.items()}
    rank = {state: i for i, state in enumerate(paths)}
    treedefs: list[Any] = [jax.tree.structure(state.value) for state in traced]
    starts = [0, *accumulate(treedef.num_leaves for treedef in treedefs)]
    order: list[int] = []
    slots: list[StateSlot] = []
    for i in sorted(range(len(traced)), key=lambda i: rank.get(traced[i], len(rank))):
        state, first, kind = traced[i], len(order), StateKind.OTHER
        path = paths.get(state, ("<outside the model>", len(slots)))
        _same_structure(path, treedefs[i], jax.tree.structure(new_values[i]))
        types = map(jax.typeof, jax.tree.leaves(state.value))
        if isinstance(state, brainstate.ParamState):
            kind = StateKind.PARAM
        elif isinstance(state, brainstate.HiddenState) and any(map(versions.is_float, types)):
            kind = StateKind.HIDDEN  # one of integers or booleans carries no derivative
        if kind is not StateKind.OTHER and state not in paths:
            raise CompilationError(
                f"the model uses a {type(state).__name__} that is not reachable from it "
                f"({state.name or 'no name'}, value {jax.tree.map(jax.numpy.shape, state.value)}). "
                "Make the module that owns it an attribute of the model"
            )
        order.extend(range(starts[i], starts[i + 1]))
        slots.append(StateSlot(path, state, kind, treedefs[i], range(first, len(order))))
    return order, tuple(slots)


def _check(info: ModuleInfo) -> None:
    """What no step may do; a hidden state is one array of real numbers that has positions."""
    for slot in info.slots:
        name, old, new = show_path(slot.path), info.invars_of(slot), info.outvars_of(slot)
        if slot.kind is StateKind.PARAM and any(a is not b for a, b in zip(old, new, strict=True)):
            raise NotSupportedError(
                f"the model writes its parameter {name} during a step{_computed_at(info, *new)}. "
                "Keep values that change by themselves in a brainstate.State of another kind"
            )
        hidden = old if slot.kind is StateKind.HIDDEN else ()
        if len(hidden) > 1:
            raise CompilationError(
                f"the hidden state {name} holds {len(old)} arrays; it must hold one (use a "
                "HiddenTreeState for several)"
            )
        for k, aval in enumerate(var.aval for var in hidden):
            if 0 in aval.shape:
                raise CompilationError(
                    f"the hidden state {name} has shape {aval.shape}, which holds no elements. "
                    "Leave a layer of no units, or an empty batch, out"
                )
            if jax.numpy.issubdtype(aval.dtype, jax.numpy.complexfloating):
                raise NotSupportedError(
                    f"the hidden state {name} has the complex dtype {aval.dtype}"
                    f"{_computed_at(info, new[k])}; eligibility traces are defined for real "
                    "numbers. Keep real and imaginary parts in two states: (a + ib)(x + iy) is "
                    "ax - by in one and bx + ay in the other"
                )
        for a, b in zip(old, new, strict=True):
            if (a.aval.shape, a.aval.dtype) != (b.aval.shape, b.aval.dtype):
                raise CompilationError(
                    f"the state {name} is {a.aval.str_short()} before a step and "
                    f"{b.aval.str_short()} after it{_computed_at(info, b)}; both must be the "
                    "same. Initialise it with the shape (batch included) and dtype that the model "
                    f"computes{_wider_input(info, a.aval.dtype, b.aval.dtype)}"
                )
    for eqn in loops_without_derivative(info.jaxpr):
        raise NotSupportedError(
            f"a derivative would have to pass through {eqn.primitive.name!r} at "
            f"{versions.source_of(eqn)}, and JAX has no reverse mode for a loop whose number of "
            "iterations is not known before it runs. Use jax.lax.scan, or fori_loop with static "
            "bounds; leave ControlFlowPolicy(while_hidden='opaque-fwd'), which is the default; or, "
            "if no derivative is wanted, put jax.lax.stop_gradient around what enters the loop or "
            "leaves it"
        )
    for eqn, said in operations_without_derivative(info):
        raise NotSupportedError(
            f"a derivative would have to pass through {eqn.primitive.name!r} at "
            f"{versions.source_of(eqn)}, and JAX cannot take it in reverse mode: {said}. Put it "
            "into a function with a rule of its own (jax.custom_vjp); or, if no derivative is "
            "wanted, put jax.lax.stop_gradient around what enters it"
        )


def _check_effects(info: ModuleInfo) -> None:
    """Prints and callbacks stay; no other effect would happen once per step.

    One inside of what has results would happen again where these are differentiated.
    """
    for eqn in info.eqns:
        kinds = {type(effect).__name__ for effect in eqn.effects} - versions.DEBUG_EFFECTS
        if kinds or (eqn.effects and eqn.outvars):
            inside = [sub for sub in nested(eqn) if sub.effects and not [*nested(sub)]]
            name = (inside or [eqn])[0].primitive.name
            if holds_a_reference(eqn):
                remedy = (
                    "A reference (jax.new_ref) may be made and used within a step, outside of "
                    "loops and branches and with slices and single indices; keep values that last "
                    "longer in a brainstate.State"
                )
            elif name == "io_callback":
                remedy = (
                    "io_callback may stand in a step if it returns nothing, outside of loops and "
                    "branches; call one that returns something around the learner, and pass its "
                    "result as an argument of the model"
                )
            else:
                remedy = (
                    "jax.debug.print and jax.debug.callback may stand in a step, outside of loops "
                    "and branches with results; put other effects around the learner"
                )
            raise NotSupportedError(
                f"the step does more than to compute, by {name!r} at {versions.source_of(eqn)}, "
                f"which cannot be kept to happen once per step. {remedy}"
            )


def _wider_input(info: ModuleInfo, before: Any, after: Any) -> str:
    """What to do when a step has another dtype because an argument or a parameter has."""
    arguments = [("an argument", var) for var in info.jaxpr.invars[: info.num_args]]
    params = info.parameter_leaves.items()
    inputs = [*arguments, *((f"the parameter {show_path(path)}", var) for (path, _), var in params)]
    name = next((name for name, var in inputs if var.aval.dtype == after != before), None)
    if name is None:
        return ""
    return (
        f". Here {name} is {after}: convert it to {before}, or make the whole model in {after}, "
        f"by brainstate.environ.set(precision={8 * after.itemsize}) before it is made"
    )


def _computed_at(info: ModuleInfo, *atoms: Any) -> str:
    """Where in the user's source the first of these is computed, if it is."""
    made = next(filter(None, map(info.producer, atoms)), None)
    where = versions.source_of(made) if made else ""
    return f" (computed at {where})" if where else ""


def _weights_in_control_flow(info: ModuleInfo) -> Iterator[CompilationRecord]:
    """Parameters that a branch or loop reads, other than what an ETP operation makes of them."""
    control = {versions.jaxp.cond_p, versions.jaxp.scan_p, versions.jaxp.while_p}
    control |= {versions.jaxp.custom_vjp_call_p}  # what a while with a reverse mode is
    plain = [e for e in info.eqns if e.primitive in control and first_nested_operation(e) is None]
    cut = {var for eqn in info.eqns if is_etp_primitive(eqn.primitive) for var in eqn.outvars}
    for eqn in plain:
        atoms = (a for a in eqn.invars if versions.is_var(a) and a not in cut)
        read = [marks for marks in map(info.behind, atoms) if DYNAMIC not in marks]
        loop = holds(eqn, versions.jaxp.while_p)
        if not loop and eqn.primitive is versions.jaxp.custom_vjp_call_p:
            continue
        for path in sorted({path for marks in read for path, _ in marks}, key=show_path):
            yield (WEIGHT_IN_WHILE if loop else WEIGHT_INSIDE)(eqn, path)
