# SPDX-License-Identifier: Apache-2.0
"""What the search for uniform states asks about a step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ...base import versions
from ...base.types import Path
from ...base.versions import Atom, JaxprEqn, Var
from ...jaxprs.depends import Along, depends, slice_to
from ...jaxprs.linear import affine_part, same_along
from ...jaxprs.run import read, run_equations
from ..groups import HiddenGroup
from ..module_info import DYNAMIC, ModuleInfo


def closed(behind: Mapping[Path, frozenset[Path]]) -> dict[Path, frozenset[Path]]:
    """What is behind each in any number of steps, from what is in one."""
    while True:
        wider = {path: own.union(*(behind[p] for p in own)) for path, own in behind.items()}
        if wider == behind:
            return wider
        behind = wider


@dataclass(eq=False)
class Step:
    """A step, with its groups; ``cuts``: whether recurrent input is held."""

    minfo: ModuleInfo
    path_to_group: Mapping[Path, HiddenGroup]
    cuts: bool
    _same: dict[Var, frozenset[int]] = field(default_factory=dict)
    _affine: dict[Var, frozenset[int] | None] = field(default_factory=dict)

    @cached_property
    def state_of(self) -> dict[Var, Path]:
        """Which hidden state an old or new value belongs to."""
        info = self.minfo
        old = {var: path for path, var in info.hidden_path_to_invar.items()}
        return old | dict(info.outvar_to_hidden_path)

    @cached_property
    def _eqns(self) -> dict[Var, JaxprEqn]:
        return {var: self.minfo.eqns[i] for var, i in self.minfo.producers.items()}

    @cached_property
    def _constants(self) -> dict[Var, Any]:
        return versions.constants(self.minfo.jaxpr)

    def constant(self, atom: Atom) -> np.ndarray:
        """The value of an operand that depends on no input of the step."""
        eqns, env = self.minfo.eqns, dict(self._constants)
        with jax.ensure_compile_time_eval():
            run_equations([eqns[i] for i in slice_to(eqns, [atom])], env)
            return np.asarray(read(env, atom))

    def varying(self, atom: Atom) -> frozenset[int]:
        """Axes along which a value may differ."""
        same = same_along(atom, self._eqns, self._constants, self._same)
        return frozenset(range(len(atom.aval.shape))) - same

    def credit(self, atom: Atom) -> bool:
        """Whether an operand has a derivative of a hidden state or a parameter."""
        return versions.is_var(atom) and atom in self.minfo.with_derivative

    def moves(self, atom: Atom) -> bool:
        """Whether an operand changes from step to step."""
        return DYNAMIC in self.minfo.behind(atom)

    def affine(self, eqn: JaxprEqn) -> frozenset[int] | None:
        """:func:`affine_part` of an ETP equation in its input."""
        x, var = eqn.primitive.spec.x_invar_index, eqn.outvars[0]
        if var not in self._affine:
            self._affine[var] = None if x is None else affine_part(eqn, x)
        return self._affine[var]

    @cached_property
    def _near(self) -> dict[Var, frozenset[Path]]:
        """The hidden states whose old or new value leads to a variable across no barrier."""
        return self._behind(self.minfo.near)

    @cached_property
    def _far(self) -> dict[Var, frozenset[Path]]:
        """Those whose old or new value leads to it in any way."""
        return self._behind(lambda i, eqn, operand: True)

    def _behind(self, passes: Callable[[int, JaxprEqn, int], bool]) -> dict[Var, frozenset[Path]]:
        info, states = self.minfo, self.state_of
        return depends(
            info.eqns,
            {var: frozenset({path}) for path, var in info.hidden_path_to_invar.items()},
            passes,
            emits={var: frozenset({path}) for var, path in states.items()},
            through=lambda v, marks: marks | {states[v]} if v in states else marks,
            along=Along.DERIVATIVES,
        )

    def near(self, atom: Atom) -> frozenset[Path]:
        """The hidden states whose values lead to an operand across no barrier."""
        return self._near.get(atom, frozenset()) if versions.is_var(atom) else frozenset()

    @cached_property
    def _ever_near(self) -> dict[Path, frozenset[Path]]:
        """The states that lead to each across no barrier, over any number of steps."""
        news = self.minfo.hidden_path_to_outvar
        return closed({path: self.near(var) | {path} for path, var in news.items()})

    def recurs(self, atom: Atom, path: Path) -> bool:
        """Whether a state leads to a value across no barrier, over any number of steps."""
        return any(path in self._ever_near[p] for p in self.near(atom))

    def has_further_credit(self, atom: Atom, path: Path) -> bool:
        """Whether a value depends on parameters, or on states that the one at a path is not in."""
        far = self._far.get(atom, frozenset())
        others = any(path not in self._ever_near[p] for p in far)
        return others or bool(self.minfo.trained_by(atom))
