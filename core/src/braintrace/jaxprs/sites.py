# SPDX-License-Identifier: Apache-2.0
"""Where ETP operations are in a jaxpr, those nested in other equations included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..base import versions
from ..base.versions import JaxprEqn
from ..ops.primitive import is_etp_primitive

# --- ETP operations -----------------------------------------------------------------------------


def etp_equations(eqns: Sequence[JaxprEqn]) -> list[int]:
    """Indices of the ETP equations."""
    return [i for i, eqn in enumerate(eqns) if is_etp_primitive(eqn.primitive)]


def holds(eqn: JaxprEqn, primitive: Any) -> bool:
    """Whether an equation is of a primitive, or holds one that is, at any depth."""
    return eqn.primitive is primitive or any(
        holds(sub, primitive) for inner in versions.inner_jaxprs(eqn) for sub in inner.eqns
    )


def first_nested_operation(eqn: JaxprEqn) -> JaxprEqn | None:
    """The first ETP equation inside an equation that holds programs, at any depth."""
    return next(_nested_etp(eqn), None)


def _nested_etp(eqn: JaxprEqn) -> Iterator[JaxprEqn]:
    for inner in versions.inner_jaxprs(eqn):
        for sub in inner.eqns:
            if is_etp_primitive(sub.primitive):
                yield sub
            yield from _nested_etp(sub)
