# SPDX-License-Identifier: Apache-2.0
"""The record of a perturbed step: each reader of a hidden state sees its own perturbation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.types import Path
from ..base.versions import Atom, Jaxpr, Var
from .groups import HiddenGroup
from .module_info import ModuleInfo


@dataclass(frozen=True)
class Context:
    """How a variable is read; see the module's docstring."""

    hold: frozenset[int] = frozenset()
    near: int | None = None


@dataclass(frozen=True)
class Read:
    """An operand: a variable in a context, a hidden perturbation to add, a gradient to stop."""

    atom: Atom
    context: Context = Context()
    perturb: int | None = None
    stop: bool = False


@dataclass(frozen=True)
class Instruction:
    """Run equation ``eqn`` in ``context`` on ``operands``."""

    eqn: int
    context: Context
    operands: tuple[Read, ...]


@dataclass(frozen=True, eq=False)
class HiddenPerturbation:
    """The perturbed step as a list of instructions.

    Attributes
    ----------
    minfo, groups
        What it was made from.
    perturb_hidden_paths, perturb_hidden_states
        One perturbation per hidden state, in this order.
    instructions
        Equations in the contexts in which they are needed, in order.
    outputs
        How the outputs of the step are read.
    anywhere
        For every computed variable, one context in which its value is at hand.
    late_reads
        Groups whose old value reaches an output while their new value is held fixed: for all
        others ``e_g`` is structurally zero.
    direct_leaves
        Parameter leaf variables with a direct gradient.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> minfo = braintrace.extract_module_info(cell, jnp.ones((2, 3)))
    >>> perturb = braintrace.add_hidden_perturbation_from_minfo(minfo)
    >>> sorted(perturb.perturb_hidden_paths), perturb.init_perturb_data()[0].shape
    ([('h',)], (2, 4))
    """

    minfo: ModuleInfo
    groups: tuple[HiddenGroup, ...]
    perturb_hidden_paths: tuple[Path, ...]
    perturb_hidden_states: tuple[brainstate.HiddenState, ...]
    instructions: tuple[Instruction, ...]
    outputs: tuple[Read, ...]
    anywhere: Mapping[Var, Context]
    late_reads: frozenset[int] = frozenset()
    direct_leaves: frozenset[Var] = field(default_factory=frozenset)

    def init_perturb_data(self) -> list[jax.Array]:
        """Zero perturbations, one per hidden state."""
        outvars = self.minfo.hidden_path_to_outvar
        return [
            jnp.zeros(outvars[path].aval.shape, outvars[path].aval.dtype)
            for path in self.perturb_hidden_paths
        ]

    @cached_property
    def perturb_jaxpr(self) -> Jaxpr:
        """The perturbed step as a closed jaxpr ``[*inputs of the step, *perturbations]``."""
        inputs = [var.aval for var in self.minfo.jaxpr.invars]
        outvars = self.minfo.hidden_path_to_outvar
        perturb = [outvars[path].aval for path in self.perturb_hidden_paths]

        def run(*values: Any) -> list[Any]:
            return self.eval_jaxpr(values[: len(inputs)], values[len(inputs) :])[0]

        with versions.types_of([*inputs, *perturb]):
            return versions.make_jaxpr(run, *inputs, *perturb)

    @property
    def perturb_vars(self) -> tuple[Var, ...]:
        """The inputs of :attr:`perturb_jaxpr` that are perturbations, one per hidden state."""
        return tuple(self.perturb_jaxpr.invars[len(self.minfo.jaxpr.invars) :])

    def eval_jaxpr(
        self, inputs: Sequence[Any], perturb: Sequence[Any], extra: Sequence[Var] = ()
    ) -> tuple[list[Any], list[Any]]:
        """Run the perturbed step.

        Parameters
        ----------
        inputs
            Leaves of the arguments and of the states, as for ``minfo.jaxpr``.
        perturb
            One array per hidden state, added to its new value.
        extra
            Variables whose values are wanted besides the outputs.

        Returns
        -------
        outputs, extras
            The outputs of ``minfo.jaxpr``, and the values of ``extra``.
        """
        jaxpr = self.minfo.jaxpr
        env: dict[tuple[Var, Context], Any] = {}
        inputs_by_var = dict(versions.constants(jaxpr))
        inputs_by_var.update(zip(jaxpr.invars, inputs, strict=True))
        old = {v: g.index for g in self.groups for v in g.hidden_invars}

        def value(ref: Read) -> Any:
            if not versions.is_var(ref.atom):
                return ref.atom.val
            if ref.atom in inputs_by_var:
                found = inputs_by_var[ref.atom]
                stop = ref.stop or old.get(ref.atom) in ref.context.hold
            else:
                found, stop = env[ref.atom, ref.context], ref.stop
            if ref.perturb is not None:
                found = found + perturb[ref.perturb]
            return jax.lax.stop_gradient(found) if stop else found

        for step in self.instructions:
            eqn = jaxpr.eqns[step.eqn]
            values = versions.bind_equation(eqn, [value(ref) for ref in step.operands])
            for var, result in zip(eqn.outvars, values, strict=True):
                env[var, step.context] = result
        extras = [value(Read(var, self.anywhere.get(var, Context()))) for var in extra]
        return [value(ref) for ref in self.outputs], extras
