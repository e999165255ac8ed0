# SPDX-License-Identifier: Apache-2.0
"""Where ETP operations are in a jaxpr, those nested in other equations included."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ..base import versions
from ..base.versions import JaxprEqn
from ..ops.primitive import is_etp_primitive


def etp_equations(eqns: Sequence[JaxprEqn]) -> list[int]:
    """Indices of the ETP equations."""
    return [i for i, eqn in enumerate(eqns) if is_etp_primitive(eqn.primitive)]


def nested(eqn: JaxprEqn) -> Iterator[JaxprEqn]:
    """The equations of the programs that an equation holds, at any depth."""
    for inner in versions.inner_jaxprs(eqn):
        for sub in inner.eqns:
            yield sub
            yield from nested(sub)


def holds(eqn: JaxprEqn, primitive: Any) -> bool:
    """Whether an equation is of a primitive, or holds one that is, at any depth."""
    return any(sub.primitive is primitive for sub in (eqn, *nested(eqn)))


def first_nested_operation(eqn: JaxprEqn) -> JaxprEqn | None:
    """The first ETP equation inside an equation that holds programs, at any depth."""
    return next((sub for sub in nested(eqn) if is_etp_primitive(sub.primitive)), None)
