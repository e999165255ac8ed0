# SPDX-License-Identifier: Apache-2.0
"""What is measured: sizes, contenders and how long; plain data that crosses process borders."""

from __future__ import annotations

from typing import NamedTuple


class Sizes(NamedTuple):
    """Steps T, batch B, input features and recurrent units (per layer)."""

    steps: int
    batch: int
    inputs: int
    units: int

    def __str__(self) -> str:
        return f"{self.inputs} -> {self.units}, batch {self.batch}, T {self.steps}"


SIZES = {
    "gru": Sizes(100, 64, 64, 256),
    "lstm": Sizes(100, 64, 64, 256),
    "lif": Sizes(1000, 16, 64, 256),
    "stack": Sizes(1000, 16, 64, 128),
}
SHORT = Sizes(24, 4, 8, 16)
SHORT_CASES = ("gru", "lif")


class Contender(NamedTuple):
    """One way to compute the gradient of a sequence.

    ``kind`` is ``bptt``, ``sequence`` (``etrace_grad`` with ``block_size`` and ``carry_trace``) or
    ``steps`` (``learner(x)`` under ``grad``, step by step).
    """

    name: str
    kind: str
    block_size: int | str = "auto"
    carry_trace: bool = True


BPTT = Contender("BPTT", "bptt")
PEER = Contender("peer, per step", "steps")
OURS = (
    *(
        Contender(f"block {size}, {text}", "sequence", size, carry)
        for size in ("auto", 20, 50)
        for carry, text in ((True, "trace carried"), (False, "not carried"))
    ),
    Contender("per step", "steps"),
)
SHORT_OURS = (OURS[0], OURS[3], OURS[-1])


class Effort(NamedTuple):
    """Rounds of alternating runs, and the seconds after which a contender sits out the rest."""

    rounds: int
    seconds: float


FULL = Effort(15, 30.0)
QUICK = Effort(3, 5.0)
