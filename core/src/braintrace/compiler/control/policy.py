# SPDX-License-Identifier: Apache-2.0
"""What to do with ETP operations in branches and loops, and the record of what was done."""

from __future__ import annotations

from dataclasses import dataclass

from ...base import versions
from ...base.types import Path, show_path
from ...base.versions import JaxprEqn, jaxp

CONTROL_PRIMITIVES = frozenset({jaxp.cond_p, jaxp.scan_p, jaxp.while_p})


@dataclass(frozen=True)
class ControlFlowPolicy:
    """What the compiler does with an ETP operation inside control flow.

    Parameters
    ----------
    cond
        ``'convert'``: cut the branches of a ``cond`` or ``switch`` at their ETP operations, in a
        way that is safe when the branch not taken has no finite value or derivative.
        ``'refuse'``: raise ``NotSupportedError``.
    scan_unroll_limit
        The longest ``scan`` (or ``fori_loop`` with static bounds) that is written out, in
        iterations. Zero: none is. Every iteration of every operation has a trace of its own.

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> import braintrace as bt
    >>> bt.ControlFlowPolicy(scan_unroll_limit=32)
    ControlFlowPolicy(cond='convert', scan_unroll_limit=32)
    """

    cond: str = "convert"
    scan_unroll_limit: int = 16

    def __post_init__(self) -> None:
        if self.cond not in ("convert", "refuse"):
            raise ValueError(f"cond must be 'convert' or 'refuse', got {self.cond!r}")
        limit = self.scan_unroll_limit
        if isinstance(limit, bool) or not isinstance(limit, int):
            raise TypeError(f"scan_unroll_limit must be an integer, got {limit!r}")
        if limit < 0:
            raise ValueError(f"scan_unroll_limit must not be negative, got {limit}")


@dataclass(frozen=True)
class Rewrite:
    """Something that was found in a call, a branch or a loop, or done to it.

    Attributes
    ----------
    kind
        The value of a ``DiagnosticKind``: ``'control_flow_rewritten'`` (a branch was cut or a loop
        written out), ``'primitive_inside_control_flow'`` (an ETP operation in one, which it
        concerns), ``'primitive_inside_nested_jit'`` (an ETP operation in a call that was inlined),
        ``'weight_in_control_flow'`` (a parameter is read plainly in a branch or loop).
    source
        The user's ``file:line (function)``.
    primitive
        Name of the primitive: of the control flow in the first and the last case, of the ETP
        operation in the others.
    description
        For people.
    weight_path
        The parameter, in the last case.
    """

    kind: str
    source: str
    primitive: str
    description: str
    weight_path: Path | None = None


def rewrite_record(eqn: JaxprEqn, how: str) -> Rewrite:
    name = eqn.primitive.name
    return Rewrite("control_flow_rewritten", versions.source_of(eqn), name, f"{name}: {how}")


def inside_call(operation: JaxprEqn) -> Rewrite:
    """The record of an ETP operation in a call that was inlined."""
    name = operation.primitive.name
    return Rewrite(
        "primitive_inside_nested_jit",
        versions.source_of(operation),
        name,
        f"{name} stood inside a nested jit or checkpoint, which is inlined",
    )


def weight_inside(eqn: JaxprEqn, path: Path) -> Rewrite:
    """The record of a parameter that a branch or loop reads."""
    name = eqn.primitive.name
    text = (
        f"{name} reads the parameter {show_path(path)} other than by an ETP operation; that part "
        "of its gradient is that of the current step"
    )
    return Rewrite("weight_in_control_flow", versions.source_of(eqn), name, text, path)
