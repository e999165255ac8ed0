# SPDX-License-Identifier: Apache-2.0
"""What is measured: sizes, contenders and how long; plain data that crosses process borders."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple


class Sizes(NamedTuple):
    """Steps T, batch B, input features and recurrent units (per layer).

    Features and units of a convolution are channels.
    """

    steps: int
    batch: int
    inputs: int
    units: int

    def __str__(self) -> str:
        return f"{self.inputs} -> {self.units}, batch {self.batch}, T {self.steps}"


SIZES = {
    "gru": Sizes(100, 64, 64, 256),
    "lstm": Sizes(100, 64, 64, 256),
    "lru": Sizes(1000, 16, 64, 128),
    "lif": Sizes(1000, 16, 64, 256),
    "alif": Sizes(1000, 16, 64, 256),
    "stack": Sizes(1000, 16, 64, 128),
    "conv": Sizes(50, 16, 2, 16),
    "sparse": Sizes(100, 16, 64, 512),
    "lora": Sizes(100, 16, 64, 512),
    "groups": Sizes(100, 16, 64, 512),
    "table": Sizes(100, 16, 256, 64),
    "table-large": Sizes(100, 16, 4096, 64),
    "gru-small": Sizes(10_000, 1, 16, 64),
    "gru-wide": Sizes(100, 16, 64, 1024),
    "lif-batch": Sizes(100, 128, 64, 256),
}
SHORT_CASES = {"gru": Sizes(24, 4, 8, 16), "conv": Sizes(6, 2, 2, 3)}
SHORT_SIZES = Sizes(12, 4, 8, 16)
PARTS = ("cases", "compile", "import", "memory")
SWEEP = {"units": (64, 256, 1024), "batch": (1, 16, 128), "steps": (100, 1000, 10_000)}
ONLINE_STEPS = 20  # steps of the part with an update at every step
SHORT_ONLINE_STEPS = 5


FORMAT = 2  # of the file that a run is written to


def sweep(model: str) -> Iterator[tuple[str, Sizes]]:
    """Cases of a model: each size varied on its own, with the batch of most cases otherwise."""
    seen = set()
    for field, values in SWEEP.items():
        for value in values:
            change: Any = {"batch": 16, field: value}
            sizes = SIZES[model]._replace(**change)
            if sizes not in seen:
                seen.add(sizes)
                yield f"{model}-{field}-{value}", sizes


def model_of(case: str) -> str:
    """The model of a case: ``gru`` for ``gru-small``."""
    return case.partition("-")[0]


class Contender(NamedTuple):
    """One way to do the work of a case.

    Attributes
    ----------
    kind
        ``bptt``; ``sequence``, ``etrace_grad`` with ``block``, ``carry`` and ``chunk``; ``steps``,
        ``learner(x)`` under ``grad`` in a scan. With weights that change at every step:
        ``update``, ``etrace_update``; ``scan``, ``learner(x)`` and an update in a scan; ``calls``,
        the same as one call of a compiled program per step, whose states are donated.
    rule
        The learner; ``plain`` for a network of brainstate's own layers.
    traced
        Gradients of those weights only that have a trace, as the peer gives them.
    stages
        ``False``: blocks are run step by step, also where stages would be taken.
    """

    name: str
    kind: str
    rule: str = "D_RTRL"
    block: int | str = "auto"
    carry: bool = True
    chunk: int | None = None
    peer: bool = False
    traced: bool = False
    stages: bool = True

    @property
    def work(self) -> str:
        """``gradient`` of a sequence or ``online``, an update at every step."""
        return "online" if self.kind in ("update", "scan", "calls") else "gradient"


BPTT = Contender("BPTT", "bptt", rule="")
PLAIN = Contender("BPTT, brainstate layers", "bptt", rule="plain")
DEFAULT = Contender("D-RTRL", "sequence")
FRESH = Contender("D-RTRL, trace not kept", "sequence", carry=False)
BLOCKS = tuple(
    Contender(f"D-RTRL, block {size}{text}", "sequence", block=size, carry=carry)
    for size in (20, 50)
    for carry, text in ((True, ""), (False, ", trace not kept"))
)
STEP_BY_STEP = Contender("D-RTRL, no stages", "sequence", stages=False)
STEPS = Contender("D-RTRL, per step", "steps")
PP = Contender("pp_prop", "sequence", "pp_prop")
PP_BLOCK = Contender("pp_prop, block 20", "sequence", "pp_prop", block=20)
PP_TRACED = Contender("pp_prop, weights with a trace", "sequence", "pp_prop", traced=True)
PP_STEPS = Contender("pp_prop, per step", "steps", "pp_prop")
UPDATE = Contender("online, etrace_update", "update")
SCAN = Contender("online, learner(x)", "scan")
CALLS = Contender("online, a call per step", "calls")

PEER_SEQUENCE = Contender("peer D-RTRL", "sequence", peer=True)
PEER_WINDOWS = Contender("peer D-RTRL, windows of 50", "sequence", chunk=50, peer=True)
PEER_PP = Contender("peer pp_prop", "sequence", "pp_prop", peer=True)
PEER_SCAN = Contender("peer online, learner(x)", "scan", peer=True)

ESSENTIAL = (DEFAULT, FRESH, STEPS, PP, PP_TRACED, UPDATE, CALLS)
OURS = (DEFAULT, FRESH, *BLOCKS, STEPS, PP, PP_TRACED, PP_BLOCK, PP_STEPS, UPDATE, SCAN, CALLS)
PEERS = (PEER_SEQUENCE, PEER_PP, PEER_SCAN)
SHORT = {"gru": (PLAIN, DEFAULT, BLOCKS[1], STEPS, PP, UPDATE, CALLS)}

EXACT = ("lru",)  # of which D-RTRL is BPTT: the recurrence runs position by position
UNKNOWN = ("lru",)  # models of which brainstate has no layer
UNFILTERED = ("table",)  # models whose inputs are indices, which pp_prop cannot filter
#: All ours; in the other cases, the essential ones.
THOROUGH = ("gru", "lstm")
#: Traces at every step are too slow here to be waited for, above all the peer's.
LARGE = ("gru-wide", "lif-batch", "gru-small")


def contenders(case: str, short: bool = False) -> tuple[Contender, ...]:
    """Who takes part in a case, the peer's last."""
    bases = (BPTT,) if model_of(case) in UNKNOWN else (BPTT, PLAIN)
    if short:
        return (BPTT, *SHORT.get(case, (DEFAULT, UPDATE)))
    if case not in SIZES:  # of a sweep
        return (*bases, DEFAULT, FRESH, PP, PP_TRACED, UPDATE, PEER_PP)
    if case in LARGE:
        return (*bases, DEFAULT, FRESH, PP, PP_TRACED, UPDATE, CALLS, PEER_PP)
    ours = OURS if case in THOROUGH else ESSENTIAL
    windows = (PEER_WINDOWS,) if case in ("gru", "lstm") else ()
    team = (*bases, *ours, *PEERS, *windows)
    filtered = model_of(case) not in UNFILTERED
    return tuple(one for one in team if filtered or one.rule != "pp_prop")


def reference(contender: Contender, case: str) -> Contender | None:
    """The contender whose results these must be, if any."""
    exact = contender.rule == "D_RTRL" and model_of(case) in EXACT
    if contender.kind == "bptt" or (exact and contender.work == "gradient"):
        return BPTT
    if contender.work == "online":
        return UPDATE
    if contender.chunk is not None:
        return None
    return DEFAULT if contender.rule == "D_RTRL" else PP


#: Where arrays of the peer that have a gradient at all have the same one. Elsewhere it is another:
#: twice that of one step of an LSTM, and another filter of operations without an input.
PEER_DIFFERS = {"D_RTRL": ("lstm",), "pp_prop": ("lstm", "lru")}
PP_DECAY = 0.9


class Effort(NamedTuple):
    """Rounds of alternating runs, and the seconds after which a contender sits out the rest."""

    rounds: int
    seconds: float


FULL = Effort(9, 2.5)
QUICK = Effort(2, 5.0)
