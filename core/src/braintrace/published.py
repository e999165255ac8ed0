# SPDX-License-Identifier: Apache-2.0
"""What the records of a compiled model answer to code that looks at them, and nothing else asks.

In ``braintrace`` 0.2 they were named tuples, whose fields are ``_fields`` here, in that order. One
class for each record holds them, with the attributes and methods that published code uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax

from .base import versions
from .base.former import FormerAttributes
from .base.types import Path, State, show_path
from .base.versions import Atom, Jaxpr, Var

Values = Mapping[Path, Any] | Sequence[Any] | None


class NamedFields:
    """``_asdict()``, ``dict()``, ``_replace()`` (of what is stored) and unpacking."""

    _fields: ClassVar[tuple[str, ...]]

    def _asdict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._fields}

    def _replace(self, **changes: Any) -> Any:
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._asdict().values())

    dict = _asdict


class StepViews(NamedFields):
    """Of a ``ModuleInfo``."""

    _fields = tuple(
        "stateful_model closed_jaxpr retrieved_model_states compiled_model_states state_id_to_path "
        "state_tree_invars state_tree_outvars hidden_path_to_invar hidden_path_to_outvar "
        "invar_to_hidden_path outvar_to_hidden_path hidden_outvar_to_invar weight_invars "
        "weight_path_to_invars invar_to_weight_path num_var_out num_var_state control_flow".split()
    )

    @property
    def closed_jaxpr(self: Any) -> Jaxpr:
        """The same as ``jaxpr``."""
        return self.jaxpr

    @property
    def num_var_out(self: Any) -> int:
        """The same as ``num_out``."""
        return self.num_out

    @property
    def num_var_state(self: Any) -> int:
        """Number of leaves of the states."""
        return sum(len(slot.leaves) for slot in self.slots)

    def _trees(self: Any, variables: Callable[[Any], Any], *kinds: str) -> list[Any]:
        slots = [slot for slot in self.as_read() if not kinds or slot.kind.value in kinds]
        return [slot.treedef.unflatten(variables(slot)) for slot in slots]

    @property
    def state_tree_invars(self: Any) -> list[Any]:
        """Of each state, its old value as a tree of variables."""
        return self._trees(self.invars_of)

    @property
    def state_tree_outvars(self: Any) -> list[Any]:
        """Of each state, its new value as a tree of variables."""
        return self._trees(self.outvars_of)

    def split_state_outvars(self: Any) -> tuple[list[Any], ...]:
        """``state_tree_outvars`` of parameters, of hidden states and of other states."""
        return tuple(self._trees(self.outvars_of, kind) for kind in ("param", "hidden", "other"))

    @property
    def hidden_path_to_invar(self: Any) -> dict[Path, Var]:
        """Old value of each hidden state."""
        slots = (slot for slot in self.as_read() if slot.kind.value == "hidden")
        return {slot.path: self.invars_of(slot)[0] for slot in slots}

    @property
    def outvar_to_hidden_path(self: Any) -> dict[Var, Path]:
        """Which hidden state a new-value variable belongs to."""
        return {var: path for path, var in self.hidden_path_to_outvar.items()}

    @property
    def invar_to_weight_path(self: Any) -> dict[Var, Path]:
        """Which parameter a leaf variable belongs to."""
        return {v: path for path, vs in self.weight_path_to_invars.items() for v in vs}

    @property
    def state_id_to_path(self: Any) -> dict[State, Path]:
        """Path of each state of the step. The key is the state itself, which is its identity."""
        return {slot.state: slot.path for slot in self.as_read()}

    @property
    def invar_to_hidden_path(self: Any) -> dict[Var, Path]:
        """Which hidden state an old-value variable belongs to."""
        return {var: path for path, var in self.hidden_path_to_invar.items()}

    @property
    def hidden_outvar_to_invar(self: Any) -> dict[Var, Var]:
        """The old value of each new value."""
        olds = self.hidden_path_to_invar
        return {var: olds[path] for var, path in self.outvar_to_hidden_path.items()}

    @property
    def weight_invars(self: Any) -> list[Var]:
        """The leaf variables of all parameters."""
        return [*self.invar_to_weight_path]

    def add_jaxpr_outs(self: Any, jax_vars: Sequence[Var]) -> Any:
        """The same step with the values of further variables among its outputs."""
        outvars = [*self.jaxpr.outvars, *jax_vars]
        return dataclasses.replace(self, jaxpr=versions.with_outvars(self.jaxpr, outvars))

    def jaxpr_call(self: Any, *args: Any, old_state_vals: Values = None) -> tuple[Any, ...]:
        """Run the step as it was traced; no state is written.

        Parameters
        ----------
        *args
            Arguments like those it was traced for.
        old_state_vals
            Values of the states, by path or all in the order of ``compiled_model_states``; those
            that are missing are the current ones.

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
        return self._results(versions.jaxpr_as_fun(self.jaxpr)(*self._inputs(args, old_state_vals)))

    def _inputs(self: Any, args: tuple[Any, ...], states: Values) -> list[Any]:
        leaves, treedef = jax.tree.flatten(self.with_environment(args))
        if treedef != self.arg_treedef:
            raise ValueError(
                f"the arguments have structure {treedef}; the step was traced for "
                f"{self.arg_treedef}"
            )
        if not isinstance(states, Mapping):
            states = dict(zip(self.compiled_model_states, states or (), strict=False))
        values = {slot.path: slot.state.value for slot in self.slots}
        if unknown := [path for path in states if path not in values]:
            raise ValueError(f"{show_path(unknown[0])} is not a state of the step")
        values |= states
        return [*leaves, *(v for s in self.slots for v in jax.tree.leaves(values[s.path]))]

    def _results(self: Any, results: Sequence[Any]) -> tuple[Any, ...]:
        out, new = results[: self.num_out], results[self.num_out :]
        states: dict[str, dict[Path, Any]] = {"hidden": {}, "other": {}, "param": {}}
        for slot in self.as_read():
            states[slot.kind.value][slot.path] = slot.treedef.unflatten(
                [new[i] for i in slot.leaves]
            )
        pairs = zip(self.jaxpr.outvars[self.num_out :], new, strict=True)
        values = {var: value for var, value in pairs if versions.is_var(var)}
        return self.out_treedef.unflatten(out), states["hidden"], states["other"], values


class GroupViews(NamedFields):
    """Of a ``HiddenGroup``; ``snap`` and ``descent`` are nothing that a group holds here."""

    _fields = tuple(
        "index hidden_paths hidden_states hidden_invars hidden_outvars transition_jaxpr "
        "transition_jaxpr_constvars is_diagonal_recurrence snap descent".split()
    )
    snap = descent = None

    @property
    def trace_state_width(self: Any) -> int:
        """The same as ``num_state``."""
        return self.num_state

    def check_consistent_varshape(self: Any) -> None:
        """Nothing: the members of a group have one shape of positions."""

    @property
    def is_diagonal_recurrence(self: Any) -> bool:
        """Whether no position depends on another along paths that cross no ETP operation."""
        return not self.mixed_axes

    def full_jacobian(self: Any, old_values: Sequence[Any], free_values: Sequence[Any]) -> Any:
        """``d new[p, i] / d old[q, j]`` [*V, S, *V, S]; the arguments are as for ``transition``."""
        return jax.jacrev(self.without_operations(free_values))(self.concat_hidden(old_values))


class PathClassification:
    """How paths from an operation to a hidden state go: by other ETP operations or not.

    ``MIXED``: some do. The operation of ``ALL_THROUGH_OTHER_ETP`` is no relation.

    Examples
    --------
    >>> import braintrace
    >>> braintrace.PathClassification.MIXED
    'mixed'
    """

    ALL_DIRECT = "all_direct"
    MIXED = "mixed"
    ALL_THROUGH_OTHER_ETP = "all_through_other_etp"


class RelationViews(NamedFields):
    """Of a ``HiddenParamOpRelation``, whose operation stands in no branch or loop here."""

    _fields = tuple(
        "primitive x_var y_var hidden_groups y_to_hidden_group_jaxprs connected_hidden_paths "
        "eqn_params path_classification trainable_vars trainable_paths trainable_leaf_indices "
        "trainable_param_states trainable_processing_chains control_flow_context".split()
    )
    control_flow_context = None

    @property
    def x(self: Any) -> Atom | None:
        """The same as ``x_var``."""
        return self.x_var

    @property
    def y(self: Any) -> Var:
        """The same as ``y_var``."""
        return self.y_var

    @property
    def trainable_vars(self: Any) -> dict[str, Atom]:
        """The operand of each trainable key."""
        return {t.key: t.atom for t in self.trainables}

    @property
    def trainable_leaf_indices(self: Any) -> dict[str, int]:
        """Which leaf of its parameter's value (in the order of ``jax.tree``) each key is."""
        return {t.key: t.leaves[0][1] for t in self.trainables}

    @property
    def trainable_param_states(self: Any) -> dict[str, State]:
        """The ``ParamState`` behind each trainable key."""
        states = self.module_info.compiled_model_states
        return {key: states[path] for key, path in self.trainable_paths.items()}

    @property
    def trainable_processing_chains(self: Any) -> dict[str, tuple[versions.Primitive, ...]]:
        """The primitives between the parameter and the operand of each trainable key, in order."""
        eqns = self.module_info.eqns
        return {t.key: tuple(eqns[i].primitive for i in t.chain) for t in self.trainables}


class PerturbationViews(FormerAttributes, NamedFields):
    """Of a ``HiddenPerturbation``."""

    _fields = ("perturb_vars", "perturb_hidden_paths", "perturb_hidden_states", "perturb_jaxpr")

    @property
    def perturb_hidden_states(self: Any) -> tuple[Any, ...]:
        """The hidden states in the order of :attr:`perturb_hidden_paths`."""
        return tuple(state for group in self.groups for state in group.hidden_states)

    def eval_jaxpr(self: Any, inputs: Sequence[Any], perturb_data: Sequence[Any]) -> list[Any]:
        """The outputs of the perturbed step, for the inputs of the step and its perturbations."""
        return self.run(inputs, perturb_data)[0]

    def perturb_data_to_hidden_group_data(
        self: Any, perturb_data: Sequence[Any], hidden_groups: Sequence[Any]
    ) -> list[jax.Array]:
        """Per group, one array [*V, S] of the perturbations of its members."""
        of_path = dict(zip(self.perturb_hidden_paths, perturb_data, strict=True))
        return [g.concat_hidden([of_path[path] for path in g.hidden_paths]) for g in hidden_groups]


class ConfigViews:
    """Of an ``ETraceConfig``; of a factorized one, ``x`` leaks and ``f`` follows the Jacobian."""

    def replace(self: Any, **changes: Any) -> Any:
        """A copy with other values, checked again."""
        return dataclasses.replace(self, **changes)

    def describe(self: Any) -> str:
        """The coordinates that are not the default, in one line."""
        usual = {f.name: f.default for f in dataclasses.fields(self)}
        if self.downstream == dataclasses.replace(self, downstream="").downstream:
            usual["downstream"] = self.downstream  # follows from the others
        fields = ((name, getattr(self, name)) for name in usual)
        return ", ".join(f"{k}={v!r}" for k, v in fields if v is not usual[k]) or "default"

    @property
    def is_factorized(self: Any) -> bool:
        """Whether the trace is a filtered input and a filtered factor."""
        return self.trace_factorization == "io_factorized"

    @property
    def include_recurrent_mixing(self: Any) -> bool:
        """Whether ``D`` holds something of recurrent ETP operations."""
        return self.recurrence_scope != "diagonal"

    def __getattr__(self, name: str) -> Any:
        values = {"recursion_x": "scalar_leak", "recursion_f": "jacobian"}
        if name in ("decay_x", "decay_f", *values) and self.is_factorized:
            return values.get(name) or self.decays[name == "decay_f"]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


class GraphViews(NamedFields):
    """Of an ``ETraceGraph``."""

    _fields = tuple(
        "module_info hidden_groups hid_path_to_group hidden_param_op_relations hidden_perturb "
        "diagnostics".split()
    )

    def call_hidden_perturb(
        self: Any, args: tuple[Any, ...], perturb_data: Sequence[Any], old_state_vals: Values = None
    ) -> tuple[Any, ...]:
        """Run the perturbed step; as :meth:`ModuleInfo.jaxpr_call`, of arguments in a tuple."""
        step = self.module_info
        inputs = step._inputs(args, old_state_vals)
        return step._results(self.perturbed.eval_jaxpr(inputs, perturb_data))
