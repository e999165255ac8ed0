# SPDX-License-Identifier: Apache-2.0
"""What layers emit: the last values that follow a group position by position.

There, behind the derivative ``dz / dh``, is the filter of e-prop, which stands for a leak above.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from ...base import versions
from ...base.errors import NotSupportedError
from ...base.types import Path, show_path
from ...base.versions import Atom, JaxprEqn, Var
from ...jaxprs.depends import Along, depends, differentiable, slice_to
from ...jaxprs.linear import PRODUCTS, is_elementwise, is_sum
from ...jaxprs.positions.alignment import align
from ...ops.primitive import is_etp_primitive
from ..groups import HiddenGroup
from ..module_info import ModuleInfo

#: Number of an equation, or ``RESULT``, and the position of the operand, or of the result.
Place = tuple[int, int]
RESULT = -1


def keeps_positions(eqn: JaxprEqn, operand: int) -> bool:
    """Whether all results lie like an operand, and depend on it position by position."""
    atom, shape = eqn.invars[operand], eqn.invars[operand].aval.shape
    if not versions.is_var(atom) or any(var.aval.shape != shape for var in eqn.outvars):
        return False
    if is_elementwise(eqn):
        return True
    found = align([eqn], atom, eqn.outvars, len(shape), len(shape))
    return found is not None and found.is_identity


@dataclass(frozen=True, eq=False)
class Emitted:
    """Where a step reads what its layers emit.

    ``uniform`` are the states whose leaks are moved, and how many filters with a derivative are in
    front of each.
    """

    minfo: ModuleInfo
    path_to_group: Mapping[Path, HiddenGroup]
    uniform: Mapping[Path, int]

    @cached_property
    def member(self) -> dict[Var, HiddenGroup]:
        """The group of each new value."""
        info = self.minfo
        return {var: self.path_to_group[path] for var, path in info.outvar_to_hidden_path.items()}

    @cached_property
    def _marks(self) -> dict[Var, frozenset[int]]:
        """The groups that variables follow position by position."""
        info = self.minfo
        own = {var: frozenset({g.index}) for var, g in self.member.items()}
        olds = {v: self.path_to_group[p].index for p, v in info.hidden_path_to_invar.items()}
        return depends(
            info.eqns,
            {var: frozenset({g}) for var, g in olds.items()},
            passes=lambda i, eqn, k: differentiable(eqn) and keeps_positions(eqn, k),
            emits=own,
            through=lambda var, marks: own.get(var, marks),
            along=Along.DERIVATIVES,
        )

    def layer(self, var: Var) -> Path:
        """The first state of the layer that emits a value."""
        (number,) = self._marks[var]
        groups = self.path_to_group.values()
        return next(g.hidden_paths[0] for g in groups if g.index == number)

    def places(self) -> dict[Place, Var]:
        """What is emitted, by where another layer, or who reads the result, takes it.

        Raises
        ------
        NotSupportedError
            When another layer depends on a state whose positions do not lie like its values.
        """
        found: dict[Place, Var] = {}
        for group in dict.fromkeys(self.path_to_group.values()):
            own = self._places(group)
            if not self._is_readout(group, own):
                found |= own
        return found

    def _places(self, group: HiddenGroup) -> dict[Place, Var]:
        info, number = self.minfo, group.index
        moved = {info.hidden_path_to_outvar[path] for path in self.uniform}
        ends = {v for v, g in self.member.items() if g is group} | moved
        others = [v for v, g in self.member.items() if g is not group and v not in moved]
        results = info.jaxpr.outvars[: info.num_out]

        def passes(atom: Atom) -> bool:
            return versions.is_var(atom) and atom not in ends

        outside = slice_to(
            info.eqns,
            [*filter(passes, results), *others],
            lambda i, eqn, k: passes(eqn.invars[k]),
            Along.DERIVATIVES,
        )
        found = {(RESULT, k): a for k, a in enumerate(results) if self._follows(a, number)}
        for i in outside:
            eqn = info.eqns[i]
            stays = all(self._marks.get(v) == frozenset({number}) for v in eqn.outvars)
            for k, atom in enumerate(eqn.invars):
                if self._follows(atom, number) and not (stays and keeps_positions(eqn, k)):
                    found[i, k] = atom
        for atom in found.values():
            if atom.aval.shape != group.varshape:
                names = ", ".join(map(show_path, group.hidden_paths))
                raise NotSupportedError(
                    f"a filter with kappa stands behind what a layer emits, and {names} is read as "
                    f"{atom.aval.str_short()}, which is no value for each position"
                )
        return found

    def _follows(self, atom: Atom, number: int) -> bool:
        return versions.is_var(atom) and self._marks.get(atom) == frozenset({number})

    def _is_readout(self, group: HiddenGroup, places: Mapping[Place, Var]) -> bool:
        """Whether a group is a leaky sum of what other layers emit, read as it is or as a whole.

        As it is: scaled, moved, in another unit. As a whole: by a softmax.
        """
        info = self.minfo
        if not any(self.uniform.get(path) for path in group.hidden_paths):
            return False
        values = {info.hidden_path_to_invar[p]: frozenset({0}) for p in group.hidden_paths}
        values |= {info.hidden_path_to_outvar[p]: frozenset({0}) for p in group.hidden_paths}

        def is_scaled(i: int, eqn: JaxprEqn, k: int) -> bool:
            return is_sum(eqn) or k in PRODUCTS.get(eqn.primitive.name, ())

        scaled = depends(info.eqns, values, is_scaled)
        whole = (info.eqns[i] for i, _ in places if i != RESULT)
        return not scaled.keys().isdisjoint(places.values()) or any(map(_sums_up, whole))


def _sums_up(eqn: JaxprEqn) -> bool:
    """Whether an equation mixes positions, and is no product."""
    product = is_etp_primitive(eqn.primitive) or eqn.primitive.name in PRODUCTS
    return not product and not all(keeps_positions(eqn, k) for k in range(len(eqn.invars)))
