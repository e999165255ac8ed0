# SPDX-License-Identifier: Apache-2.0
"""Which hidden group every ETP operation reaches, and with which parameters: the first pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..base import versions
from ..base.errors import CompilationError
from ..base.types import Path
from ..base.versions import Atom, JaxprEqn, Var
from ..jaxprs.depends import Along, slice_to
from ..jaxprs.sites import etp_equations
from .groups import Groups, member_of
from .module_info import DYNAMIC, Marks, ModuleInfo, is_barrier

Leaf = tuple[Path, int]
"""A parameter's path and the index of one of its leaves."""


@dataclass(frozen=True, eq=False)
class TrainableOperand:
    """An operand of an ETP equation but ``x``, and the parameter leaves it is made from.

    ``leaves`` are those that it has a derivative of; ``held`` are the other ones, which are behind
    ``stop_gradient`` or of integers. ``chain`` holds the indices of the parameter-only equations
    that lead from all of them to it.
    """

    key: str
    position: int
    atom: Atom
    leaves: tuple[Leaf, ...]
    chain: tuple[int, ...]
    held: tuple[Leaf, ...] = ()


@dataclass(frozen=True, eq=False)
class Reach:
    """An ETP equation whose output is read, and where that leads.

    Attributes
    ----------
    eqn_index, eqn
        The equation and its place in the program.
    operands
        Its operands but ``x``.
    near, far
        Groups that it reaches without crossing another ETP operation, and by any differentiable
        path. A path that passes a hidden state of one group is near to no other: the rest of it
        belongs to that state's learning signal.
    crossing
        New values of hidden states that it reaches through a further ETP operation.
    """

    eqn_index: int
    eqn: JaxprEqn
    operands: tuple[TrainableOperand, ...]
    near: frozenset[int]
    far: frozenset[int]
    crossing: frozenset[Var]

    @property
    def traced(self) -> bool:
        """Whether the operation becomes a relation."""
        return bool(self.near) and any(operand.leaves for operand in self.operands)


def find_reach(minfo: ModuleInfo, groups: Groups) -> tuple[Reach, ...]:
    """What the ETP equations of a step reach.

    Those whose output nothing reads are left out: ``vmap`` over functions with states leaves copies
    of equations behind that run for nothing.
    """
    eqns, member = minfo.eqns, member_of(groups)
    etp = {i: frozenset({(i, None)}) for i in etp_equations(eqns)}
    barriers = {var: i for i in etp if is_barrier(eqns[i]) for var in eqns[i].outvars}

    def starts(i: int, eqn: JaxprEqn) -> Marks:
        return etp.get(i, frozenset())

    def ends(var: Var, marks: Marks) -> Marks:
        g = member.get(var)
        return marks if g is None else frozenset((i, g) for i, via in marks if via in (None, g))

    def crosses(var: Var, marks: Marks) -> Marks:
        at = barriers.get(var)
        return marks if at is None else marks | {(i, True) for i, _ in marks if i != at}

    every = minfo.credit({}, emits=starts, through=crosses)
    near, far = _turned(member, minfo.credit({}, minfo.near, starts, ends)), _turned(member, every)
    found = []
    for i in sorted(etp.keys() & slice_to(eqns, minfo.jaxpr.outvars)):
        crossing = frozenset(var for var in far[i] if (i, True) in every[var])
        groups_at = (frozenset(member[var] for var in news[i]) for news in (near, far))
        found.append(Reach(i, eqns[i], weight_operands(minfo, i), *groups_at, crossing))
    return tuple(found)


def _turned(news: Iterable[Var], marks: Mapping[Var, Marks]) -> dict[int, set[Var]]:
    """The new values that each equation reaches, from the marks of the equations behind each."""
    found: dict[int, set[Var]] = defaultdict(set)
    for var in news:
        for i, _ in marks.get(var, ()):
            found[i].add(var)
    return found


def weight_operands(minfo: ModuleInfo, eqn_index: int) -> tuple[TrainableOperand, ...]:
    """Every operand but ``x``, with the parameter leaves behind the trainable ones."""
    eqn = minfo.eqns[eqn_index]
    spec = eqn.primitive.spec
    keys = {position: key for key, position in spec.resolve_trainable_invars(eqn.params).items()}
    missing = [position for position in keys if position >= len(eqn.invars)]
    if missing:
        raise CompilationError(
            f"the primitive {spec.name!r} names operand {missing[0]} ({keys[missing[0]]!r}) as "
            f"trainable, but at {versions.source_of(eqn)} it is bound with {len(eqn.invars)} "
            "operands; give it a trainable_invars_fn that says where its trainable operands stand"
        )
    others = ((k, atom) for k, atom in enumerate(eqn.invars) if k != spec.x_invar_index)
    return tuple(_operand(minfo, keys.get(k, ""), k, atom) for k, atom in others)


def _operand(minfo: ModuleInfo, key: str, position: int, atom: Atom) -> TrainableOperand:
    behind, trained = minfo.behind(atom), minfo.trained_by(atom)
    known: Iterable[Leaf] = behind - {DYNAMIC} if key else ()
    if len(behind) > 1:
        known = [leaf for leaf in minfo.parameter_leaves if leaf in known]
    leaves = tuple(leaf for leaf in known if leaf in trained)
    held = tuple(leaf for leaf in known if leaf not in trained)
    computed = versions.is_var(atom) and atom in minfo.producers and DYNAMIC not in behind
    chain = (
        slice_to(minfo.eqns[: minfo.producers[atom] + 1], [atom], along=Along.EQUATIONS)
        if computed
        else ()
    )
    return TrainableOperand(key, position, atom, leaves, tuple(chain), held)
