# SPDX-License-Identifier: Apache-2.0
"""Which paths from old to new values a recurrence scope keeps."""

from __future__ import annotations

from collections.abc import Callable

from ..base.versions import JaxprEqn
from ..jaxprs.depends import differentiable
from ..ops.primitive import is_etp_primitive
from .module_info import ModuleInfo
from .program import DYNAMIC


def is_barrier(eqn: JaxprEqn) -> bool:
    """Whether hidden-to-hidden paths are cut at an equation."""
    return is_etp_primitive(eqn.primitive) and not eqn.primitive.spec.gradient_enabled


def near_paths(minfo: ModuleInfo) -> Callable[[int, JaxprEqn, int], bool]:
    """The rule by which a path stays *near* through an operand of an equation.

    It does through differentiable equations that are no ETP operation, and through a
    gradient-enabled one, unless it enters by a trainable operand that parameters lead to: that
    belongs to the relation of the operation.
    """

    def passes(index: int, eqn: JaxprEqn, operand: int) -> bool:
        if not differentiable(eqn) or is_barrier(eqn):
            return False
        if not is_etp_primitive(eqn.primitive):
            return True
        return operand == eqn.primitive.spec.x_invar_index or not has_parameters(minfo, eqn)

    return passes


def has_parameters(minfo: ModuleInfo, eqn: JaxprEqn) -> bool:
    """Whether parameters lead to a trainable operand of an ETP equation."""
    positions = eqn.primitive.spec.resolve_trainable_invars(eqn.params).values()
    atoms = [eqn.invars[k] for k in positions if k < len(eqn.invars)]
    return any(minfo.behind(atom) - {DYNAMIC} for atom in atoms)
