# SPDX-License-Identifier: Apache-2.0
"""How branches and loops move positions: the labels of their operands -> those of their results.

A branch or a body is a program, so the rules of its own equations say what it does. Two programs
that may both have run agree on what both keep; a loop agrees with all of its iterations. A label
only ever loses symbols, so going round a loop again ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ...base import versions
from ...base.versions import Jaxpr, JaxprEqn, jaxp

Labels = tuple[int | None, ...]
Through = Callable[[Jaxpr, list[Labels | None]], list[Labels | None]]
Rule = Callable[[JaxprEqn, list[Labels | None]], list[Labels | None]]


def control_rules(through: Through) -> Mapping[Any, Rule]:
    """Rules for ``cond``, ``scan`` and ``while``, given what labels become through a program."""

    def cond(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
        branches = [through(versions.close(b), operands[1:]) for b in eqn.params["branches"]]
        return [_agreed(*column) for column in zip(*branches, strict=True)]

    def scan(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
        consts, carried = versions.scan_counts(eqn)
        outside, start = operands[:consts], operands[consts : consts + carried]
        each = [None if label is None else label[1:] for label in operands[consts + carried :]]
        body = versions.sub_jaxpr(eqn)
        end, inside = _settled(lambda now: through(body, [*outside, *now, *each]), start)
        if eqn.params["length"] == 0:
            end, inside = start, [*start, *(None for _ in inside[carried:])]
        return [*end, *(None if label is None else (None, *label) for label in inside[carried:])]

    def loop(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
        skipped, consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        outside, start = operands[skipped : skipped + consts], operands[skipped + consts :]
        body = versions.close(eqn.params["body_jaxpr"])
        return _settled(lambda now: through(body, [*outside, *now]), start)[0]

    return {jaxp.cond_p: cond, jaxp.scan_p: scan, jaxp.while_p: loop}


def _agreed(*labels: Labels | None) -> Labels | None:
    """What programs of which any may have run keep in common."""
    known = [label for label in labels if label is not None]
    if not known:
        return None
    return tuple(c[0] if len(set(c)) == 1 else None for c in zip(*known, strict=True))


def _settled(
    body: Callable[[Sequence[Labels | None]], list[Labels | None]], start: list[Labels | None]
) -> tuple[list[Labels | None], list[Labels | None]]:
    """Labels of the carried values that no further iteration changes, and what the body makes."""
    now = list(start)
    while True:
        made = body(now)
        after = [_agreed(a, b) for a, b in zip(now, made, strict=False)]
        if after == now:
            return now, made
        now = after
