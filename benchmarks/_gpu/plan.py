# SPDX-License-Identifier: Apache-2.0
"""What is measured on a GPU, the most important first, and how much time is left for it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from _bench.settings import (
    BPTT,
    DEFAULT,
    FRESH,
    PEER_PP,
    PEER_SCAN,
    PEER_SEQUENCE,
    PLAIN,
    PP,
    STEP_BY_STEP,
    UPDATE,
    Contender,
    Effort,
    Sizes,
    model_of,
)

FORMAT = 1  # of the file of results
FLOAT32, DEFAULT_PRECISION = "float32", "default"  # of products; JAX's default may be TF32
ONLINE_STEPS = 100
RATE, CHECK_RATE = 1e-3, 0.1  # of learning; where the weights' change is compared, it is larger
EFFORT, QUICK_EFFORT = Effort(7, 1.5), Effort(2, 1.0)
SECONDS = 420.0  # that a run takes at most, unless told
START_S, PREPARE_S, RUN_S = 120.0, 60.0, 25.0  # the longest that an answer is waited for
CASE_S, RESERVE_S = 20.0, 12.0  # no case is begun with less; left for the end
# Of all the time, for all checks at first, and for one case of many.
CHECKS_PART, CASE_PART = 0.35, 0.25

OURS = (BPTT, DEFAULT, FRESH, PP, UPDATE)
SMALL = (BPTT, DEFAULT, STEP_BY_STEP, *OURS[2:])  # whose steps may be run in stages
PEERS = (PEER_SEQUENCE, PEER_PP)


class Case(NamedTuple):
    """A model and its sizes; ``kind`` is ``time`` or ``profile``."""

    name: str
    sizes: Sizes
    team: tuple[Contender, ...] = OURS
    precision: str = FLOAT32
    kind: str = "time"


def _named(model: str, sizes: Sizes, **more: object) -> Case:
    name = f"{model}-{sizes.units}-b{sizes.batch}-t{sizes.steps}"
    case = Case(name, sizes)._replace(**more)
    suffix = {"profile": "-profile"}.get(case.kind, "")
    return case._replace(name=name + suffix + ("" if case.precision == FLOAT32 else "-default"))


WITH_PLAIN = (BPTT, PLAIN, *SMALL[1:], *PEERS)  # gates of one product
PROFILED = (BPTT, DEFAULT, STEP_BY_STEP, PP, UPDATE)
CASES = (
    _named("gru", Sizes(100, 64, 64, 256), team=(*WITH_PLAIN, PEER_SCAN)),
    _named("lif", Sizes(1000, 16, 64, 256), team=(*SMALL, *PEERS)),
    _named("forward", Sizes(1000, 16, 64, 256), team=(*SMALL, *PEERS)),
    _named("lstm", Sizes(100, 64, 64, 256), team=WITH_PLAIN),
    _named("conv", Sizes(50, 16, 2, 16), team=(*OURS, *PEERS)),
    _named("gru", Sizes(10_000, 1, 64, 256), team=SMALL),
    _named("gru", Sizes(100, 256, 64, 1024), team=(*OURS, PEER_PP)),
    _named("lif", Sizes(100, 16, 64, 4096), team=(*OURS, PEER_PP)),
    _named("forward", Sizes(10_000, 1, 64, 256), team=SMALL),
    _named("gru", Sizes(100, 64, 64, 256), team=PROFILED, kind="profile"),
    _named("gru", Sizes(100, 64, 64, 256), precision=DEFAULT_PRECISION),
    _named("gru", Sizes(100, 16, 64, 4096)),
    _named("lstm", Sizes(100, 64, 64, 1024)),
    _named("conv", Sizes(100, 32, 2, 64)),
    _named("forward", Sizes(1000, 256, 64, 1024)),
    _named("lif", Sizes(1000, 256, 64, 1024)),
    _named("forward", Sizes(1000, 16, 64, 256), team=PROFILED, kind="profile"),
    _named("gru", Sizes(100, 256, 64, 1024), precision=DEFAULT_PRECISION),
    _named("lstm", Sizes(10_000, 1, 64, 256), team=SMALL),
    _named("gru", Sizes(1000, 16, 64, 1024)),
)

#: Small enough for the CPU's float64, and for few spikes near the threshold.
CHECKS = {
    "gru": Sizes(50, 4, 16, 64),
    "lstm": Sizes(50, 4, 16, 64),
    "lif": Sizes(50, 4, 16, 64),
    "forward": Sizes(50, 4, 16, 64),
    "conv": Sizes(12, 2, 2, 4),
}
SPIKELESS = ("gru", "lstm")  # with the default precision, too: rounding changes no spikes


def quick(cases: Sequence[Case]) -> list[Case]:
    """The first case of every model, kind and precision, with tiny sizes."""
    found: dict[tuple[str, ...], Case] = {}
    for case in cases:
        model = model_of(case.name)
        tiny = Sizes(6, 2, 2, 3) if model == "conv" else Sizes(20, 4, 8, 16)
        found.setdefault((model, case.kind, case.precision), case._replace(sizes=tiny))
    return [*found.values()]


@dataclass(frozen=True)
class Budget:
    """Seconds that a run may take, from when it is made.

    ``patience``: how many times as long as usual an answer is waited for, while there is time.
    """

    seconds: float
    clock: Callable[[], float] = time.monotonic
    reserve: float = RESERVE_S
    patience: float = 1.0
    start: float = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", self.clock())

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self.clock() - self.start

    @property
    def left(self) -> float:
        """Seconds until everything must have stopped, less what the end itself takes."""
        return self.seconds - self.reserve - self.spent

    def part(self, share: float) -> Budget:
        """A budget of that share of the whole that begins now and ends with this at the latest."""
        whole = max(0.0, min(share * self.seconds, self.left))
        return Budget(whole, self.clock, 0.0, self.patience)

    def at_most(self, seconds: float) -> float:
        """That many seconds, with patience, or those that are left."""
        return max(0.0, min(self.patience * seconds, self.left))
