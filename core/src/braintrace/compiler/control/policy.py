# SPDX-License-Identifier: Apache-2.0
"""What to do with ETP operations in branches and loops."""

from __future__ import annotations

from dataclasses import dataclass


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
