# SPDX-License-Identifier: Apache-2.0
"""The record of a perturbed step: each reader of a hidden state sees its own perturbation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.types import Path
from ..base.versions import Jaxpr, Var
from .contexts import Instruction, Read, run_in_contexts
from .groups import HiddenGroup
from .module_info import ModuleInfo


@dataclass(frozen=True, eq=False)
class HiddenPerturbation:
    """The perturbed step as a list of instructions.

    Attributes
    ----------
    minfo, groups
        What it was made from.
    instructions
        Equations in the contexts in which they are needed, in order.
    outputs
        How the outputs of the step are read.
    anywhere
        For every computed variable, one read of its value.
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
    instructions: tuple[Instruction, ...]
    outputs: tuple[Read, ...]
    anywhere: Mapping[Var, Read]
    late_reads: frozenset[int]
    direct_leaves: frozenset[Var]

    @property
    def perturb_hidden_paths(self) -> tuple[Path, ...]:
        """The hidden states, each of which has a perturbation, in this order."""
        return tuple(path for group in self.groups for path in group.hidden_paths)

    @property
    def perturb_hidden_states(self) -> tuple[brainstate.HiddenState, ...]:
        """The hidden states in the order of :attr:`perturb_hidden_paths`."""
        return tuple(state for group in self.groups for state in group.hidden_states)

    @property
    def _perturb_types(self) -> list[Any]:
        return [var.aval for group in self.groups for var in group.hidden_outvars]

    def init_perturb_data(self) -> list[jax.Array]:
        """Zero perturbations, one per hidden state."""
        return [jnp.zeros(aval.shape, aval.dtype) for aval in self._perturb_types]

    @cached_property
    def perturb_jaxpr(self) -> Jaxpr:
        """The perturbed step as a closed jaxpr ``[*inputs of the step, *perturbations]``."""
        inputs = [var.aval for var in self.minfo.jaxpr.invars]
        perturb = self._perturb_types

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
        given = versions.start_env(jaxpr, inputs)
        wanted = (*self.outputs, *(self.anywhere.get(var, Read(var)) for var in extra))
        values = run_in_contexts(jaxpr.eqns, self.instructions, given, wanted, perturb)
        return values[: len(self.outputs)], values[len(self.outputs) :]
