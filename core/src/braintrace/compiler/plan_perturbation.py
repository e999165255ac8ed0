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

from collections.abc import Sequence
from typing import Any

import brainstate

from ..base import versions
from ..base.errors import NotSupportedError
from ..base.versions import Atom, JaxprEqn, Var
from ..jaxprs.depends import Along, depends, operands_behind
from .find_relations import analyse_operations
from .groups import HiddenGroup, find_hidden_groups_from_minfo, member_of
from .module_info import ModuleInfo
from .near import is_barrier
from .perturbation import Context, HiddenPerturbation, Instruction, Read
from .program import StateKind
from .relation import HiddenParamOpRelation
from .tracing.extract import extract_module_info

#: How often a step may be written out on average before the model is refused.
MOST_COPIES = 50


def perturb_hidden(
    minfo: ModuleInfo,
    groups: Sequence[HiddenGroup],
    relations: Sequence[HiddenParamOpRelation],
) -> HiddenPerturbation:
    """The perturbed step of a compiled model.

    Parameters
    ----------
    minfo, groups, relations
        Results of the earlier passes.
    """
    return _Planner(minfo, tuple(groups), tuple(relations)).plan()


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
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> minfo = braintrace.extract_module_info(cell, jnp.ones((2, 3)))
    >>> perturb = braintrace.add_hidden_perturbation_from_minfo(minfo)
    >>> sorted(perturb.perturb_hidden_paths), perturb.init_perturb_data()[0].shape
    ([('h',)], (2, 4))
    """
    groups, _ = find_hidden_groups_from_minfo(minfo)
    relations, _, _ = analyse_operations(minfo, groups)
    return perturb_hidden(minfo, groups, relations)


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
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> perturb = braintrace.add_hidden_perturbation_in_module(cell, jnp.ones((2, 3)))
    >>> sorted(perturb.perturb_hidden_paths), perturb.init_perturb_data()[0].shape
    ([('h',)], (2, 4))
    """
    return add_hidden_perturbation_from_minfo(extract_module_info(model, *args))


class _Planner:
    """One backward sweep over the equations: which are needed, in which contexts."""

    def __init__(
        self,
        minfo: ModuleInfo,
        groups: tuple[HiddenGroup, ...],
        relations: tuple[HiddenParamOpRelation, ...],
    ) -> None:
        self.minfo = minfo
        self.groups = groups
        self.traced = {
            r.eqn_index: (frozenset(r.group_alignments), {t.position for t in r.trainables})
            for r in relations
        }
        self.member = member_of(groups)
        self.paths = tuple(path for g in groups for path in g.hidden_paths)
        rank = {path: k for k, path in enumerate(self.paths)}
        self.perturbation = {
            var: rank[path]
            for g in groups
            for var, path in zip(g.hidden_outvars, g.hidden_paths, strict=True)
        }
        self.producer = {v: i for i, eqn in enumerate(minfo.eqns) for v in eqn.outvars}
        self.olds = self._old_groups_behind()
        self.nears = self._near_groups_of()

    def _old_groups_behind(self) -> dict[Var, frozenset[int]]:
        """Groups whose old values are behind a variable, by any path."""
        return depends(
            self.minfo.eqns,
            {v: frozenset({g.index}) for g in self.groups for v in g.hidden_invars},
        )

    def _near_groups_of(self) -> dict[Var, frozenset[int]]:
        """Groups for which reading a variable *near* differs from reading it elsewhere."""

        def through(var: Var, marks: frozenset[int]) -> frozenset[int]:
            g = self.member.get(var)
            return marks if g is None else frozenset({g})

        return depends(
            self.minfo.eqns,
            {},
            lambda i, eqn, operand: not is_barrier(eqn),
            emits=lambda i, eqn: self._emitted(i, eqn),
            through=through,
        )

    def _emitted(self, i: int, eqn: JaxprEqn) -> frozenset[int]:
        traced = self.traced[i][0] if i in self.traced else frozenset()
        return traced | frozenset(self.member[v] for v in eqn.outvars if v in self.member)

    def _context(self, var: Var, hold: frozenset[int], near: int | None) -> Context:
        """The context in which the equation of ``var`` runs, without what makes no difference."""
        outvars = self.minfo.eqns[self.producer[var]].outvars
        nears = frozenset().union(*(self._raw_nears(v) for v in outvars))
        olds = frozenset().union(*(self.olds.get(v, frozenset()) for v in outvars))
        return Context(hold & olds, near if near in nears else None)

    def _raw_nears(self, var: Var) -> frozenset[int]:
        return self.nears.get(var, frozenset())

    def read(self, atom: Atom, hold: frozenset[int], near: int | None, stop: bool = False) -> Read:
        """How ``atom`` is read by an equation that runs with ``hold`` and ``near``."""
        if not versions.is_var(atom):
            return Read(atom)
        g = self.member.get(atom)
        if g is not None and g != near:
            context = self._context(atom, hold | {g}, g)
            return Read(atom, context, self.perturbation[atom], stop)
        if atom not in self.producer:
            return Read(atom, Context(hold & self.olds.get(atom, frozenset())), None, stop)
        return Read(atom, self._context(atom, hold, near), None, stop)

    def operands(self, i: int, context: Context) -> tuple[Read, ...]:
        """Operands of equation ``i`` in ``context``."""
        eqn = self.minfo.eqns[i]
        hold, near = context.hold, context.near
        if context.near is not None:
            hold = hold | {context.near}
        driven, positions = self.traced.get(i, (frozenset(), set()))
        stop = near is not None and near in driven
        outside = None if is_barrier(eqn) else near
        return tuple(
            self.read(atom, hold, None, stop) if k in positions else self.read(atom, hold, outside)
            for k, atom in enumerate(eqn.invars)
        )

    def plan(self) -> HiddenPerturbation:
        """Sweep backward from the outputs, collecting the contexts each equation needs."""
        outputs = tuple(self.read(a, frozenset(), None) for a in self.minfo.jaxpr.outvars)
        needed: dict[int, dict[Context, None]] = {}

        def need(ref: Read) -> None:
            if versions.is_var(ref.atom) and ref.atom in self.producer:
                needed.setdefault(self.producer[ref.atom], {})[ref.context] = None

        for ref in outputs:
            need(ref)
        backward: list[Instruction] = []
        for i in range(len(self.minfo.eqns) - 1, -1, -1):
            self._refuse_explosion(len(backward))
            for context in needed.get(i, {}):
                step = Instruction(i, context, self.operands(i, context))
                backward.append(step)
                for ref in step.operands:
                    need(ref)
        instructions = tuple(backward[::-1])
        anywhere = {
            var: step.context for step in instructions for var in self.minfo.eqns[step.eqn].outvars
        }
        live = self._live(instructions, outputs)
        leaves = {v for vs in self.minfo.weight_path_to_invars.values() for v in vs}
        states = {
            path: s
            for g in self.groups
            for path, s in zip(g.hidden_paths, g.hidden_states, strict=True)
        }
        return HiddenPerturbation(
            minfo=self.minfo,
            groups=self.groups,
            perturb_hidden_paths=self.paths,
            perturb_hidden_states=tuple(states[path] for path in self.paths),
            instructions=instructions,
            outputs=outputs,
            anywhere=anywhere,
            late_reads=frozenset(
                g.index for g in self.groups if any(v in live for v in g.hidden_invars)
            ),
            direct_leaves=frozenset(v for v in leaves if v in live),
        )

    def _refuse_explosion(self, count: int) -> None:
        if count > MOST_COPIES * len(self.minfo.eqns):
            raise NotSupportedError(
                f"the {len(self.groups)} hidden groups of the model read one another's old values "
                f"in so many ways that its step would be written out more than {MOST_COPIES} "
                "times. Let fewer layers read the old states of others"
            )

    def _live(self, instructions: tuple[Instruction, ...], outputs: tuple[Read, ...]) -> set[Var]:
        """Input variables with a differentiable path to the result or to a hidden state."""
        old = {v: g.index for g in self.groups for v in g.hidden_invars}
        reached: set[tuple[Var, Context]] = set()
        live: set[Var] = set()

        def follow(ref: Read) -> None:
            if not versions.is_var(ref.atom) or ref.stop or not versions.is_float(ref.atom.aval):
                return
            if ref.atom in self.producer:
                reached.add((ref.atom, ref.context))
            elif old.get(ref.atom) not in ref.context.hold:
                live.add(ref.atom)

        params = {
            self.minfo.num_out + i
            for slot in self.minfo.slots_of(StateKind.PARAM)
            for i in slot.leaves
        }
        for k, ref in enumerate(outputs):
            if k not in params:
                follow(ref)
        for step in reversed(instructions):
            eqn = self.minfo.eqns[step.eqn]
            results = [k for k, v in enumerate(eqn.outvars) if (v, step.context) in reached]
            for k in operands_behind(eqn, results, Along.DERIVATIVES) if results else ():
                follow(step.operands[k])
        return live
