# SPDX-License-Identifier: Apache-2.0
"""From a model to one flat program over its arguments and states."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import brainstate
import jax

from .. import _jax
from .._errors import CompilationError
from .._jax import Jaxpr, JaxprEqn, Var
from .._jaxpr import depends, flatten, refuse_nested_operations
from ._diagnostics import Path, show_path

DYNAMIC = "dynamic"


class StateKind(enum.Enum):
    """What the compiler does with a state."""

    HIDDEN = "hidden"
    PARAM = "param"
    OTHER = "other"


@dataclass(frozen=True, eq=False)
class StateSlot:
    """Where the leaves of one state stand among the state leaves of the program.

    ``leaves`` counts from the first state leaf; the tree structure belongs to the state's value.
    """

    path: Path
    state: brainstate.State[Any]
    kind: StateKind
    treedef: Any
    leaves: range


@dataclass(frozen=True, eq=False)
class ModuleInfo:
    """One step of a model as a flat jaxpr.

    Inputs are the leaves of the arguments, then those of the states; outputs are the leaves of the
    model's result, then those of the states. Calls are inlined. Every hidden state's new value is
    a variable of its own.

    Attributes
    ----------
    jaxpr
        The closed jaxpr.
    slots
        The states the program reads or writes, in a stable order.
    arg_treedef, out_treedef
        Structure of the arguments and of the result.
    num_args, num_out
        Number of leaves of the arguments and of the result.
    unread_parameters
        Parameters of the model that the step does not read.
    """

    jaxpr: Jaxpr
    slots: tuple[StateSlot, ...]
    arg_treedef: Any
    out_treedef: Any
    num_args: int
    num_out: int
    unread_parameters: tuple[Path, ...] = ()

    @cached_property
    def origins(self) -> dict[Var, frozenset[Any]]:
        """For each variable: the parameter leaves ``(path, k)`` behind it, and ``DYNAMIC``.

        ``DYNAMIC`` stands for everything that is neither a parameter nor a constant.
        """
        seeds: dict[Var, frozenset[Any]] = {v: frozenset({DYNAMIC}) for v in self.jaxpr.invars}
        for slot in self.slots_of(StateKind.PARAM):
            for k, var in enumerate(self.invars_of(slot)):
                seeds[var] = frozenset({(slot.path, k)})
        return depends(self.eqns, seeds)

    @property
    def eqns(self) -> Sequence[JaxprEqn]:
        """The equations of the step."""
        return self.jaxpr.eqns

    def slots_of(self, kind: StateKind) -> tuple[StateSlot, ...]:
        """The states of one kind."""
        return tuple(slot for slot in self.slots if slot.kind is kind)

    def invars_of(self, slot: StateSlot) -> tuple[Var, ...]:
        """Variables of a state's old leaves."""
        return tuple(self.jaxpr.invars[self.num_args + i] for i in slot.leaves)

    def outvars_of(self, slot: StateSlot) -> tuple[Any, ...]:
        """Variables (or literals) of a state's new leaves."""
        return tuple(self.jaxpr.outvars[self.num_out + i] for i in slot.leaves)

    @property
    def compiled_model_states(self) -> dict[Path, brainstate.State[Any]]:
        """The states that the step reads or writes, by path."""
        return {slot.path: slot.state for slot in self.slots}

    @property
    def hidden_path_to_invar(self) -> dict[Path, Var]:
        """Old value of each hidden state."""
        return {s.path: self.invars_of(s)[0] for s in self.slots_of(StateKind.HIDDEN)}

    @property
    def hidden_path_to_outvar(self) -> dict[Path, Var]:
        """New value of each hidden state."""
        return {s.path: self.outvars_of(s)[0] for s in self.slots_of(StateKind.HIDDEN)}

    @property
    def outvar_to_hidden_path(self) -> dict[Var, Path]:
        """Which hidden state a new-value variable belongs to."""
        return {var: path for path, var in self.hidden_path_to_outvar.items()}

    @property
    def weight_path_to_invars(self) -> dict[Path, tuple[Var, ...]]:
        """Leaves of each parameter."""
        return {s.path: self.invars_of(s) for s in self.slots_of(StateKind.PARAM)}

    @property
    def invar_to_weight_path(self) -> dict[Var, Path]:
        """Which parameter a leaf variable belongs to."""
        return {v: path for path, vs in self.weight_path_to_invars.items() for v in vs}


def extract_module_info(model: brainstate.nn.Module, *args: Any) -> ModuleInfo:
    """Trace one call ``model(*args)`` to a flat program over arguments and states.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` whose states are initialised.
    *args
        Example arguments: arrays, quantities or pytrees of them.

    Raises
    ------
    CompilationError
        When a state is missing or changes its shape, dtype or unit, or a parameter is written.
    NotSupportedError
        When an ETP operation stands inside control flow or a custom differentiation rule.
    """
    if not isinstance(model, brainstate.nn.Module):
        raise TypeError(f"model must be a brainstate.nn.Module, got {type(model).__name__}")
    stateful = brainstate.transform.StatefulFunction(model, return_only_write=False)
    before = {state: state.value for state in brainstate.graph.states(model).values()}
    try:
        stateful.make_jaxpr(*args)
    except Exception as error:
        for state, value in before.items():
            with suppress(ValueError):  # brainstate refuses a state whose structure was changed
                state.restore_value(value)
        if not isinstance(error, AttributeError):
            raise
        raise CompilationError(
            f"the model could not be run: {error}. If a state is missing, initialise the model "
            "first with brainstate.nn.init_all_states(model, batch_size=...) or use "
            "braintrace.compile(...)"
        ) from error
    jaxpr = stateful.get_jaxpr(*args)
    traced = tuple(stateful.get_state_trace(*args).states)
    out_treedef, new_treedefs = _output_trees(stateful, args)
    arg_leaves, arg_treedef = jax.tree.flatten(args)
    order, slots = _arrange(model, traced, new_treedefs)
    num_args, num_out = len(arg_leaves), out_treedef.num_leaves
    hidden = [s for s in slots if s.kind is StateKind.HIDDEN]
    flat = flatten(
        jaxpr,
        inputs=[*range(num_args), *(num_args + i for i in order)],
        outputs=[*range(num_out), *(num_out + i for i in order)],
        own=[num_out + i for slot in hidden for i in slot.leaves],
    )
    read = {slot.path for slot in slots}
    parameters = brainstate.graph.states(model, brainstate.ParamState)
    unread = tuple(path for path in parameters if path not in read)
    info = ModuleInfo(flat, slots, arg_treedef, out_treedef, num_args, num_out, unread)
    _check_states(info)
    refuse_nested_operations(flat)
    return info


def _output_trees(stateful: Any, args: tuple[Any, ...]) -> tuple[Any, list[Any]]:
    """Structure of the result, and of every state's new value."""
    out, states = stateful.get_out_shapes(*args)
    return jax.tree.structure(out), [jax.tree.structure(value) for value in states]


def _arrange(
    model: brainstate.nn.Module, traced: Sequence[Any], new_treedefs: Sequence[Any]
) -> tuple[list[int], tuple[StateSlot, ...]]:
    """Slots of the traced states in the model's own order, and the permutation of their leaves."""
    paths = {state: path for path, state in brainstate.graph.states(model).items()}
    known = {state: i for i, state in enumerate(paths)}
    ranked = sorted(range(len(traced)), key=lambda i: known.get(traced[i], len(known) + i))
    starts, count = [], 0
    for state in traced:
        starts.append(count)
        count += len(jax.tree.leaves(state.value))
    order: list[int] = []
    slots: list[StateSlot] = []
    for i in ranked:
        state = traced[i]
        path = paths.get(state, ("<outside the model>", len(slots)))
        leaves, treedef = jax.tree.flatten(state.value)
        if treedef != new_treedefs[i]:
            raise CompilationError(
                f"the state {show_path(path)} changes its structure or unit in one step: it was "
                f"{treedef} and becomes {new_treedefs[i]}"
            )
        kind = _kind(state, path, state in paths)
        slots.append(
            StateSlot(path, state, kind, treedef, range(len(order), len(order) + len(leaves)))
        )
        order.extend(range(starts[i], starts[i] + len(leaves)))
    return order, tuple(slots)


def _kind(state: Any, path: Path, inside: bool) -> StateKind:
    kind = StateKind.OTHER
    if isinstance(state, brainstate.HiddenState):
        kind = StateKind.HIDDEN
    elif isinstance(state, brainstate.ParamState):
        kind = StateKind.PARAM
    if kind is not StateKind.OTHER and not inside:
        raise CompilationError(
            f"the model uses a {type(state).__name__} that is not reachable from it "
            f"({state.name or 'no name'}, value {jax.tree.map(jax.numpy.shape, state.value)}). "
            "Make the module that owns it an attribute of the model"
        )
    return kind


def _check_states(info: ModuleInfo) -> None:
    for slot in info.slots:
        old, new = info.invars_of(slot), info.outvars_of(slot)
        if slot.kind is StateKind.PARAM and any(a is not b for a, b in zip(old, new, strict=True)):
            raise CompilationError(
                f"the model writes its parameter {show_path(slot.path)} during a step. Keep values "
                "that change by themselves in a brainstate.State of another kind"
            )
        if slot.kind is StateKind.HIDDEN and len(slot.leaves) != 1:
            raise CompilationError(
                f"the hidden state {show_path(slot.path)} holds {len(slot.leaves)} arrays; it must "
                "hold one (use a HiddenTreeState for several)"
            )
        if slot.kind is StateKind.HIDDEN and not _jax.is_float(old[0].aval):
            raise CompilationError(
                f"the hidden state {show_path(slot.path)} has dtype {old[0].aval.dtype}; a hidden "
                "state must be of a floating-point dtype (keep counters in a ShortTermState)"
            )
        for a, b in zip(old, new, strict=True):
            if (a.aval.shape, a.aval.dtype) != (b.aval.shape, b.aval.dtype):
                raise CompilationError(
                    f"the state {show_path(slot.path)} is {a.aval.str_short()} before a step and "
                    f"{b.aval.str_short()} after it; both must be the same. Initialise it with the "
                    "shape (batch included) and dtype that the model computes"
                )
