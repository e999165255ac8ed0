# SPDX-License-Identifier: Apache-2.0
"""The program of one step of a model, with what it was made from: the record all passes read."""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.diagnostics import CompilationRecord
from ..base.errors import CompilationError
from ..base.types import Path, State
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..jaxprs.credit import across_p
from ..jaxprs.depends import Along, depends, differentiable
from ..jaxprs.run import between
from ..ops.primitive import is_etp_primitive
from ..published import StepViews
from .environment import UNSET, changed_setting, moving_values

DYNAMIC = "dynamic"

#: Of a delay line of one step: it has no axis of steps.
ONE_STEP = -1

Marks = frozenset[Any]


class StateKind(enum.Enum):
    """What the compiler does with a state."""

    HIDDEN = "hidden"
    PARAM = "param"
    OTHER = "other"


class CreditFilter(brainstate.HiddenState):
    """A state of the credit of a model, and none of the model (see ``filters``)."""

    of: Path = ()  # the state that it stands for


@dataclass(frozen=True, eq=False)
class StateSlot:
    """Where the leaves of one state stand among the state leaves of the program.

    ``steps_along`` is the axis of a delay line along which its steps lie, which are states of one
    position (``ONE_STEP``: it has no such axis); ``None`` for every other state.
    """

    path: Path
    state: State
    kind: StateKind
    treedef: Any
    leaves: range
    steps_along: int | None = None

    @property
    def varshape(self) -> tuple[int, ...]:
        """The shape ``[*V]`` of the positions of a hidden state."""
        if self.steps_along is None:
            return tuple(self.state.varshape)  # type: ignore[attr-defined]
        shape = self.shape
        if self.steps_along == ONE_STEP:
            return shape
        return (*shape[: self.steps_along], *shape[self.steps_along + 1 :])

    @property
    def num_state(self) -> int:
        """How many states a hidden state holds at each position."""
        if self.steps_along is None:
            return int(self.state.num_state)  # type: ignore[attr-defined]
        return 1 if self.steps_along == ONE_STEP else self.shape[self.steps_along]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a state of one array."""
        (leaf,) = jax.tree.leaves(self.state.value)
        return tuple(leaf.shape)

    @property
    def is_filter(self) -> bool:
        """Whether it is no state of the model."""
        return isinstance(self.state, CreditFilter)


def filter_slot(
    path: Path,
    of: Path,
    like: jax.ShapeDtypeStruct,
    place: int,
    kind: StateKind = StateKind.HIDDEN,
    steps_along: int | None = None,
) -> StateSlot:
    """A filter of the type ``like``, which starts at zero, for a place among the leaves."""
    with jax.ensure_compile_time_eval():  # a model that is traced for one device ends there
        state = CreditFilter(jnp.zeros(like.shape, like.dtype))
    state.of = of
    one_leaf = jax.tree.structure(0)
    return StateSlot(path, state, kind, one_leaf, range(place, place + 1), steps_along)


def is_barrier(eqn: JaxprEqn) -> bool:
    """Whether hidden-to-hidden paths are cut at an equation."""
    if is_etp_primitive(eqn.primitive):
        return not eqn.primitive.spec.gradient_enabled
    return eqn.primitive is across_p


@dataclass(frozen=True, eq=False)
class ModuleInfo(StepViews):
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
    retrieved_model_states
        All states of the model, by path, read by the step or not.
    rewrites
        What was done to calls, branches and loops, and what stands in those that stayed.
    environment
        Names of ``brainstate.environ`` that change from step to step and that the step reads.
        Their values, in a dict, are the last argument of the program.
    settings
        Further settings of ``brainstate.environ`` that the step reads, with their values: they are
        constants of the program.
    read_order
        Numbers of the slots in the order in which the step first reads or writes them. Mappings by
        path and by variable are in this order.
    stateful_model
        The traced ``brainstate.transform.StatefulFunction``.
    control_flow
        The policy for branches and loops.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
    >>> minfo = braintrace.extract_module_info(cell, jnp.ones((2, 3)))
    >>> [*minfo.weight_path_to_invars]
    [('Wz', 'weight'), ('Wr', 'weight'), ('Wh', 'weight')]
    >>> minfo.hidden_path_to_invar[("h",)].aval.shape
    (2, 4)
    """

    jaxpr: Jaxpr
    slots: tuple[StateSlot, ...]
    num_args: int
    num_out: int
    arg_treedef: Any
    out_treedef: Any
    retrieved_model_states: Mapping[Path, State] = field(default_factory=dict)
    rewrites: tuple[CompilationRecord, ...] = ()
    environment: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    read_order: tuple[int, ...] = ()
    stateful_model: Any = field(default=None, repr=False)
    control_flow: Any = None

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

    def outvars_of(self, slot: StateSlot) -> tuple[Atom, ...]:
        """Variables (or literals) of a state's new leaves."""
        return tuple(self.jaxpr.outvars[self.num_out + i] for i in slot.leaves)

    @cached_property
    def parameter_leaves(self) -> dict[tuple[Path, int], Var]:
        """Every parameter leaf ``(path, k)`` in order, with its variable."""
        slots = self.slots_of(StateKind.PARAM)
        return {(s.path, k): var for s in slots for k, var in enumerate(self.invars_of(s))}

    @cached_property
    def producers(self) -> dict[Var, int]:
        """Index of the equation that computes each variable."""
        return {var: i for i, eqn in enumerate(self.eqns) for var in eqn.outvars}

    def producer(self, atom: Atom) -> JaxprEqn | None:
        """The equation that computes an operand; ``None`` for an input, constant or literal."""
        i = self.producers.get(atom) if versions.is_var(atom) else None
        return None if i is None else self.eqns[i]

    def behind(self, atom: Atom) -> Marks:
        """The parameter leaves ``(path, k)`` that lead to an operand, and ``DYNAMIC``.

        ``DYNAMIC`` stands for everything that is neither a parameter nor a constant.
        """
        return self._leads[0].get(atom, frozenset()) if versions.is_var(atom) else frozenset()

    def trained_by(self, atom: Atom) -> Marks:
        """The parameter leaves ``(path, k)`` that an operand has a derivative of."""
        return self._leads[1].get(atom, frozenset()) if versions.is_var(atom) else frozenset()

    @cached_property
    def _leads(self) -> tuple[dict[Var, Marks], dict[Var, Marks]]:
        """What leads to each variable along values, and along derivatives."""
        moving = {var: frozenset({DYNAMIC}) for var in self.jaxpr.invars}
        marked = {var: frozenset({leaf}) for leaf, var in self.parameter_leaves.items()}
        return depends(self.eqns, moving | marked), self.credit(marked)

    @property
    def credit(self) -> Callable[..., dict[Var, Marks]]:
        """Which marks reach each variable along derivatives: ``depends`` of the step."""
        return partial(depends, self.eqns, along=Along.DERIVATIVES)

    @cached_property
    def with_derivative(self) -> set[Var]:
        """The variables with a derivative of a hidden state's old value or of a parameter."""
        seeds = (*self.hidden_path_to_invar.values(), *self.parameter_leaves.values())
        return set(self.credit(dict.fromkeys(seeds, frozenset({0}))))

    @cached_property
    def _near(self) -> dict[JaxprEqn, Collection[int | None]]:
        """The operands of each equation through which a path may stay near."""
        return {eqn: self._near_operands(eqn) for eqn in self.eqns}

    def _near_operands(self, eqn: JaxprEqn) -> Collection[int | None]:
        if is_barrier(eqn) or not differentiable(eqn):
            return ()
        if is_etp_primitive(eqn.primitive):
            spec = eqn.primitive.spec
            positions = spec.resolve_trainable_invars(eqn.params).values()
            atoms = (eqn.invars[k] for k in positions if k < len(eqn.invars))
            if any(self.behind(atom) - {DYNAMIC} for atom in atoms):
                return (spec.x_invar_index,)
        return range(len(eqn.invars))

    def near(self, index: int, eqn: JaxprEqn, operand: int) -> bool:
        """Whether a path stays *near* through an operand of an equation of the step.

        It does through differentiable equations that are no ETP operation, and through a
        gradient-enabled one, unless it enters by a trainable operand that parameters lead to: that
        belongs to the relation of the operation.
        """
        return operand in self._near[eqn]

    @property
    def model_parameters(self) -> dict[Path, State]:
        """All parameters of the model, by path, read by the step or not."""
        states = self.retrieved_model_states.items()
        return {path: s for path, s in states if isinstance(s, brainstate.ParamState)}

    @contextmanager
    def as_when_traced(self) -> Iterator[tuple[Any, ...]]:
        """Types of the arguments; inside, ``brainstate.environ`` is as when the step was traced.

        Raises
        ------
        CompilationError
            When a setting is there now that was not there then: it cannot be taken away.
        """
        inputs = (var.aval for var in self.jaxpr.invars[: self.num_args])
        types = (jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in inputs)
        args, moving = self.arg_treedef.unflatten(types), {}
        if self.environment:
            *args, moving = args
            moving = jax.tree.map(lambda v: np.zeros(v.shape, v.dtype), moving)
        known = {key: value for key, value in self.settings.items() if value is not UNSET}
        with brainstate.environ.context(**known, **moving):
            if changed := changed_setting(self.settings):
                raise CompilationError(
                    f"the model reads {changed}; use the copy without that setting first, or call "
                    "compile_graph on it"
                )
            yield tuple(args)

    @property
    def compiled_model_states(self) -> dict[Path, State]:
        """The states that the step reads or writes, by path."""
        return {slot.path: slot.state for slot in self.as_read()}

    def as_read(self, *kinds: StateKind) -> tuple[StateSlot, ...]:
        """The slots, or those of some kinds, in the order in which the step reads them."""
        slots = (self.slots[k] for k in self.read_order or range(len(self.slots)))
        return tuple(slot for slot in slots if not kinds or slot.kind in kinds)

    @property
    def hidden_path_to_outvar(self) -> dict[Path, Var]:
        """New value of each hidden state."""
        return {s.path: self.outvars_of(s)[0] for s in self.as_read(StateKind.HIDDEN)}

    @property
    def weight_path_to_invars(self) -> dict[Path, tuple[Var, ...]]:
        """Leaves of each parameter."""
        return {s.path: self.invars_of(s) for s in self.as_read(StateKind.PARAM)}

    def with_environment(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments of a call, followed by those that come from ``brainstate.environ``.

        Raises
        ------
        CompilationError
            When one that was there when the step was traced is not set now.
        """
        moving = moving_values(self.environment)
        if missing := [name for name in self.environment if name not in moving]:
            raise CompilationError(
                f"the step was compiled with {missing[0]!r} in brainstate.environ, which is not "
                f"set now; call it inside brainstate.environ.context({missing[0]}=...)"
            )
        return (*args, moving) if moving else args

    def trace_to_param(self, var: Var) -> tuple[Path | None, tuple[versions.Primitive, ...]]:
        """The first parameter that leads to a variable, and the primitives crossed, in order.

        ``(None, ())`` when none does. When several do, it is the first in the order of the states.
        """
        behind = self.behind(var)
        path = next((leaf[0] for leaf in self.parameter_leaves if leaf in behind), None)
        if path is None:
            return None, ()
        crossed = between(self.eqns, self.weight_path_to_invars[path], [var]).eqns
        return path, tuple(eqn.primitive for eqn in crossed)
