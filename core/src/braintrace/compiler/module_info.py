# SPDX-License-Identifier: Apache-2.0
"""The program of one step of a model, with what it was made from: the record all passes read."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import brainstate
import jax
import numpy as np

from ..base import versions
from ..base.diagnostics import CompilationRecord
from ..base.errors import CompilationError
from ..base.records import NamedFields
from ..base.types import Path, State, show_path
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..jaxprs.depends import Along, depends, differentiable
from ..jaxprs.run import between
from ..ops.primitive import is_etp_primitive
from .environment import UNSET, changed_setting, moving_values

DYNAMIC = "dynamic"

Marks = frozenset[Any]


class StateKind(enum.Enum):
    """What the compiler does with a state."""

    HIDDEN = "hidden"
    PARAM = "param"
    OTHER = "other"


class CreditFilter(brainstate.HiddenState):
    """A state of the credit of a model, and none of the model (see ``filters``)."""


@dataclass(frozen=True, eq=False)
class StateSlot:
    """Where the leaves of one state stand among the state leaves of the program."""

    path: Path
    state: State
    kind: StateKind
    treedef: Any
    leaves: range

    @property
    def is_filter(self) -> bool:
        """Whether it is no state of the model."""
        return isinstance(self.state, CreditFilter)


def is_barrier(eqn: JaxprEqn) -> bool:
    """Whether hidden-to-hidden paths are cut at an equation."""
    return is_etp_primitive(eqn.primitive) and not eqn.primitive.spec.gradient_enabled


#: What a ``ModuleInfo`` was a named tuple of.
FIELDS = """
stateful_model closed_jaxpr retrieved_model_states compiled_model_states state_id_to_path
state_tree_invars state_tree_outvars hidden_path_to_invar hidden_path_to_outvar invar_to_hidden_path
outvar_to_hidden_path hidden_outvar_to_invar weight_invars weight_path_to_invars
invar_to_weight_path num_var_out num_var_state control_flow
"""


@dataclass(frozen=True, eq=False)
class ModuleInfo(NamedFields, fields=FIELDS):
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

    def near(self, index: int, eqn: JaxprEqn, operand: int) -> bool:
        """Whether a path stays *near* through an operand of an equation of the step.

        It does through differentiable equations that are no ETP operation, and through a
        gradient-enabled one, unless it enters by a trainable operand that parameters lead to: that
        belongs to the relation of the operation.
        """
        if not differentiable(eqn) or is_barrier(eqn):
            return False
        if not is_etp_primitive(eqn.primitive) or operand == eqn.primitive.spec.x_invar_index:
            return True
        positions = eqn.primitive.spec.resolve_trainable_invars(eqn.params).values()
        atoms = (eqn.invars[k] for k in positions if k < len(eqn.invars))
        return not any(self.behind(atom) - {DYNAMIC} for atom in atoms)

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
        return {slot.path: slot.state for slot in self._as_read()}

    def _as_read(self, *kinds: StateKind) -> tuple[StateSlot, ...]:
        """The slots, or those of some kinds, in the order in which the step reads them."""
        slots = (self.slots[k] for k in self.read_order or range(len(self.slots)))
        return tuple(slot for slot in slots if not kinds or slot.kind in kinds)

    @property
    def closed_jaxpr(self) -> Jaxpr:
        """The same as :attr:`jaxpr`."""
        return self.jaxpr

    @property
    def num_var_out(self) -> int:
        """The same as :attr:`num_out`."""
        return self.num_out

    @property
    def num_var_state(self) -> int:
        """Number of leaves of the states."""
        return sum(len(slot.leaves) for slot in self.slots)

    @property
    def state_tree_invars(self) -> list[Any]:
        """Of each state, its old value as a tree of variables."""
        return [slot.treedef.unflatten(self.invars_of(slot)) for slot in self._as_read()]

    @property
    def state_tree_outvars(self) -> list[Any]:
        """Of each state, its new value as a tree of variables (or literals)."""
        return [slot.treedef.unflatten(self.outvars_of(slot)) for slot in self._as_read()]

    def split_state_outvars(self) -> tuple[list[Any], list[Any], list[Any]]:
        """:attr:`state_tree_outvars` of parameters, of hidden states and of other states."""
        kinds = (StateKind.PARAM, StateKind.HIDDEN, StateKind.OTHER)
        parts = ([s.treedef.unflatten(self.outvars_of(s)) for s in self._as_read(k)] for k in kinds)
        weights, hidden, other = parts
        return weights, hidden, other

    @property
    def hidden_path_to_invar(self) -> dict[Path, Var]:
        """Old value of each hidden state."""
        return {s.path: self.invars_of(s)[0] for s in self._as_read(StateKind.HIDDEN)}

    @property
    def hidden_path_to_outvar(self) -> dict[Path, Var]:
        """New value of each hidden state."""
        return {s.path: self.outvars_of(s)[0] for s in self._as_read(StateKind.HIDDEN)}

    @property
    def invar_to_hidden_path(self) -> dict[Var, Path]:
        """Which hidden state an old-value variable belongs to."""
        return {var: path for path, var in self.hidden_path_to_invar.items()}

    @property
    def hidden_outvar_to_invar(self) -> dict[Var, Var]:
        """The old value of each new value."""
        olds = self.hidden_path_to_invar
        return {var: olds[path] for var, path in self.outvar_to_hidden_path.items()}

    @property
    def outvar_to_hidden_path(self) -> dict[Var, Path]:
        """Which hidden state a new-value variable belongs to."""
        return {var: path for path, var in self.hidden_path_to_outvar.items()}

    @property
    def weight_path_to_invars(self) -> dict[Path, tuple[Var, ...]]:
        """Leaves of each parameter."""
        return {s.path: self.invars_of(s) for s in self._as_read(StateKind.PARAM)}

    @property
    def weight_invars(self) -> list[Var]:
        """The leaf variables of all parameters."""
        return [*self.invar_to_weight_path]

    @property
    def invar_to_weight_path(self) -> dict[Var, Path]:
        """Which parameter a leaf variable belongs to."""
        return {v: path for path, vs in self.weight_path_to_invars.items() for v in vs}

    @property
    def state_id_to_path(self) -> dict[State, Path]:
        """Path of each state of the step. The key is the state itself, which is its identity."""
        return {slot.state: slot.path for slot in self._as_read()}

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

    def jaxpr_call(
        self, *args: Any, old_state_vals: Mapping[Path, Any] | Sequence[Any] | None = None
    ) -> tuple[Any, dict[Path, Any], dict[Path, Any], dict[Var, Any]]:
        """Run the step as it was traced; no state is written.

        Parameters
        ----------
        *args
            Arguments like those it was traced for.
        old_state_vals
            Values of the states, by path or all in the order of :attr:`compiled_model_states`;
            those that are missing are the current ones.

        Returns
        -------
        out, hidden, other, values
            The model's result; the new values of hidden states and of those that are neither hidden
            nor parameters, by path; the values of all variables of new states and of
            :meth:`add_jaxpr_outs`.

        Raises
        ------
        ValueError
            When the arguments have another structure, or a path is not a state of the step.
        """
        results = versions.jaxpr_as_fun(self.jaxpr)(*self.inputs(args, old_state_vals))
        return self.outputs(results)

    def inputs(
        self, args: tuple[Any, ...], states: Mapping[Path, Any] | Sequence[Any] | None = None
    ) -> list[Any]:
        """Values of the inputs of the step; the arguments are as for :meth:`jaxpr_call`."""
        leaves, treedef = jax.tree.flatten(self.with_environment(args))
        if treedef != self.arg_treedef:
            raise ValueError(
                f"the arguments have structure {treedef}; the step was traced for "
                f"{self.arg_treedef}"
            )
        if not isinstance(states, Mapping):
            states = dict(zip(self.compiled_model_states, states or (), strict=False))
        values = {slot.path: slot.state.value for slot in self.slots}
        unknown = [path for path in states if path not in values]
        if unknown:
            raise ValueError(f"{show_path(unknown[0])} is not a state of the step")
        values |= states
        return [*leaves, *(v for s in self.slots for v in jax.tree.leaves(values[s.path]))]

    def outputs(
        self, results: Sequence[Any]
    ) -> tuple[Any, dict[Path, Any], dict[Path, Any], dict[Var, Any]]:
        """What :meth:`jaxpr_call` returns, from the outputs of the step."""
        out, new = results[: self.num_out], results[self.num_out :]
        hidden, other = (
            {s.path: s.treedef.unflatten([new[i] for i in s.leaves]) for s in self._as_read(kind)}
            for kind in (StateKind.HIDDEN, StateKind.OTHER)
        )
        pairs = zip(self.jaxpr.outvars[self.num_out :], new, strict=True)
        values = {var: value for var, value in pairs if versions.is_var(var)}
        return self.out_treedef.unflatten(out), hidden, other, values

    def add_jaxpr_outs(self, jax_vars: Sequence[Var]) -> ModuleInfo:
        """The same step with the values of further variables among its outputs."""
        outvars = [*self.jaxpr.outvars, *jax_vars]
        return dataclasses.replace(self, jaxpr=versions.with_outvars(self.jaxpr, outvars))

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
