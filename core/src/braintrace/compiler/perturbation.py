# SPDX-License-Identifier: Apache-2.0
"""The perturbed step: the program whose ordinary gradients are the learning signals.

Ordinary reverse mode of one step counts every path. The algorithms need the paths sorted:

- ``l_g``: from a new hidden value to the loss, the other members of its group held fixed, the
  rest of the step varying;
- ``e_g``: from an old hidden value to the loss, all new values of its group held fixed;
- the direct part: from a parameter to the loss, without the paths
  ``w -> y -> h_g`` of a relation, whose credit is in ``f``, ``D`` and the trace.

One program has all three as its gradients with respect to zero perturbations of the new hidden
values, to the old hidden values, and to the parameters. Each variable is read in a *context*:

- ``hold``: groups whose old values are read as constants, because the variable is computed on
  the way to one of their new values (which ``e_g`` holds fixed);
- ``near``: the group towards whose members the variable is computed without crossing an ETP
  operation. In it, members of that group are read unperturbed (their dependence on one another is
  in ``f`` and ``D``) and the operands of its relations are constants.

Crossing an ETP operation, or reading a hidden state of another group, leaves ``near``. An equation
is emitted once per context that makes a difference to it; its value is the same in all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.errors import NotSupportedError
from ..base.former import without_former_options
from ..base.types import Path
from ..base.versions import Atom, Jaxpr, Var
from ..jaxprs.depends import Along, depends, operands_behind
from ..published import PerturbationViews
from .contexts import Instruction, Read, plan_backward, run_in_contexts
from .groups import Groups, HiddenGroup, find_hidden_groups_from_minfo, member_of
from .module_info import ModuleInfo, StateKind, is_barrier
from .relation import Relations, analyse_operations
from .tracing.extract import extract_module_info

#: How often a step may be written out on average before the model is refused.
MOST_COPIES = 50


@dataclass(frozen=True, eq=False)
class HiddenPerturbation(PerturbationViews):
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
    old_reads
        Groups whose old value reaches an output while their new value is held fixed: for all
        others ``e_g`` is structurally zero.
    direct_leaves
        Parameter leaf variables with a direct gradient.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
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
    old_reads: frozenset[int]
    direct_leaves: frozenset[Var]

    @property
    def perturb_hidden_paths(self) -> tuple[Path, ...]:
        """The hidden states, each of which has a perturbation, in this order."""
        return tuple(path for group in self.groups for path in group.hidden_paths)

    @property
    def late_reads(self) -> frozenset[int]:
        """The former name of ``old_reads``."""
        versions.warn("HiddenPerturbation.late_reads is called old_reads now", DeprecationWarning)
        return self.old_reads

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
            return self.eval_jaxpr(values[: len(inputs)], values[len(inputs) :])

        with versions.types_of([*inputs, *perturb]):
            return versions.make_jaxpr(run, *inputs, *perturb)

    @property
    def perturb_vars(self) -> tuple[Var, ...]:
        """The inputs of :attr:`perturb_jaxpr` that are perturbations, one per hidden state."""
        return tuple(self.perturb_jaxpr.invars[len(self.minfo.jaxpr.invars) :])

    def run(
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


@without_former_options
def add_hidden_perturbation_from_minfo(minfo: ModuleInfo) -> HiddenPerturbation:
    """The perturbed step of a traced model.

    Parameters
    ----------
    minfo
        A traced model.

    Returns
    -------
    HiddenPerturbation

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
    >>> minfo = braintrace.extract_module_info(cell, jnp.ones((2, 3)))
    >>> perturb = braintrace.add_hidden_perturbation_from_minfo(minfo)
    >>> sorted(perturb.perturb_hidden_paths), perturb.init_perturb_data()[0].shape
    ([('h',)], (2, 4))
    """
    groups, _ = find_hidden_groups_from_minfo(minfo)
    return perturb_hidden(minfo, groups, analyse_operations(minfo, groups)[-1])


def add_hidden_perturbation_in_module(
    model: brainstate.nn.Module, *args: Any
) -> HiddenPerturbation:
    """The perturbed step of ``extract_module_info(model, *args)``.

    Parameters
    ----------
    model, *args
        As in :func:`extract_module_info`.

    Returns
    -------
    HiddenPerturbation

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = brainstate.nn.init_all_states(braintrace.nn.GRUCell(3, 4), batch_size=2)
    >>> perturb = braintrace.add_hidden_perturbation_in_module(cell, jnp.ones((2, 3)))
    >>> sorted(perturb.perturb_hidden_paths), perturb.init_perturb_data()[0].shape
    ([('h',)], (2, 4))
    """
    return add_hidden_perturbation_from_minfo(extract_module_info(model, *args))


class Context(NamedTuple):
    """How a variable is read; the text at the top of the file says what it means."""

    hold: frozenset[int]
    near: int | None


class _Reads:
    """How operands are read in the contexts of a perturbed step."""

    def __init__(self, minfo: ModuleInfo, groups: Groups, relations: Relations) -> None:
        self.minfo, self.member = minfo, member_of(groups)
        facts = ((r.eqn_index, r.group_alignments, r.trainables) for r in relations)
        self.traced = {i: (frozenset(to), {t.position for t in of}) for i, to, of in facts}
        self.perturbation = {v: k for k, v in enumerate(self.member)}
        self.old = {v: g.index for g in groups for v in g.hidden_invars}
        none: frozenset[int] = frozenset()
        olds = depends(minfo.eqns, {v: frozenset({g}) for v, g in self.old.items()})
        own = {v: frozenset({g}) for v, g in self.member.items()}
        cut = {i for i, eqn in enumerate(minfo.eqns) if is_barrier(eqn)}
        driven = {v: to for i, (to, _) in self.traced.items() for v in minfo.eqns[i].outvars}
        ends = own | {v: own.get(v, none) | to for v, to in driven.items()}
        nears = depends(minfo.eqns, {}, lambda i, *_: i not in cut, ends, own.get)
        # what makes a difference to an equation: groups whose old values are behind it, by any
        # path, and those near which it is read otherwise than elsewhere
        self.matters = [
            [none.union(*(found.get(v, none) for v in eqn.outvars)) for found in (olds, nears)]
            for eqn in minfo.eqns
        ]

    def read(self, atom: Atom, hold: frozenset[int], near: int | None, stop: bool = False) -> Read:
        """How ``atom`` is read by an equation that runs with ``hold`` and ``near``."""
        if not versions.is_var(atom):
            return Read(atom)
        i, perturb = self.minfo.producers.get(atom), None
        if i is None:
            return Read(atom, stop=stop or self.old.get(atom) in hold)
        g = self.member.get(atom)
        if g is not None and g != near:
            hold, near, perturb = hold | {g}, g, self.perturbation[atom]
        olds, nears = self.matters[i]
        return Read(atom, Context(hold & olds, near if near in nears else None), perturb, stop)

    def operands(self, i: int, context: Context) -> tuple[Read, ...]:
        """Operands of equation ``i`` in ``context``."""
        eqn, (hold, near) = self.minfo.eqns[i], context
        driven, positions = self.traced.get(i, (frozenset(), ()))
        if near is not None:
            hold |= {near}
        outside = None if is_barrier(eqn) else near
        weight, other = (None, near in driven), (outside, False)
        hows = (weight if k in positions else other for k in range(len(eqn.invars)))
        return tuple(self.read(a, hold, *how) for a, how in zip(eqn.invars, hows, strict=True))


def perturb_hidden(minfo: ModuleInfo, groups: Groups, relations: Relations) -> HiddenPerturbation:
    """The perturbed step of a compiled model, from the results of the earlier passes."""
    reads = _Reads(minfo, groups, relations)
    outputs = tuple(reads.read(a, frozenset(), None) for a in minfo.jaxpr.outvars)
    most = MOST_COPIES * len(minfo.eqns)
    plain = Context(frozenset(), None)
    backward = [*islice(plan_backward(minfo.eqns, outputs, reads.operands, plain), most + 1)]
    if len(backward) > most:
        raise NotSupportedError(
            f"the {len(groups)} hidden groups of the model read one another's old values in so "
            f"many ways that its step would be written out more than {MOST_COPIES} times. Let "
            "fewer layers read the old states of others"
        )
    live = _live(minfo, backward, outputs)
    made = ((step.context, minfo.eqns[step.eqn].outvars) for step in reversed(backward))
    return HiddenPerturbation(
        minfo,
        tuple(groups),
        tuple(reversed(backward)),
        outputs,
        anywhere={var: Read(var, context) for context, results in made for var in results},
        old_reads=frozenset(g for var, g in reads.old.items() if var in live),
        direct_leaves=live.intersection(minfo.parameter_leaves.values()),
    )


def _live(
    minfo: ModuleInfo, backward: Sequence[Instruction], outputs: Sequence[Read]
) -> frozenset[Var]:
    """Input variables with a differentiable path to the result or to a state but a parameter."""
    reached: set[tuple[Atom, Any]] = set()

    def follow(refs: Iterable[Read]) -> None:
        moving = (ref for ref in refs if versions.is_var(ref.atom) and not ref.stop)
        reached.update((r.atom, r.context) for r in moving if versions.is_float(r.atom.aval))

    params = {minfo.num_out + i for slot in minfo.slots_of(StateKind.PARAM) for i in slot.leaves}
    follow(ref for k, ref in enumerate(outputs) if k not in params)
    for step in backward:
        eqn = minfo.eqns[step.eqn]
        results = [k for k, v in enumerate(eqn.outvars) if (v, step.context) in reached]
        if results:
            follow(step.operands[k] for k in operands_behind(eqn, results, Along.DERIVATIVES))
    return frozenset(atom for atom, context in reached if context is None)
