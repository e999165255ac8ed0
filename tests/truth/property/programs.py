# SPDX-License-Identifier: Apache-2.0
"""Random cells as data: small records that hypothesis draws and shrinks.

Every value of a cell has the shape ``[batch, WIDTH]`` (or ``[WIDTH]``), and every layer the same
width, so that any value can stand anywhere and no shape tells groups apart.

A *reference* says which value is read: 0 is the newest, 1 the one before it, and so on; -1 is the
input, -2 the old value of the state that is being computed, -3 and below are those of the states
after it, then of the first ones, and a constant. References wrap around, so that each one means
something in every program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from .kinds import KEEPS, KINDS, MIXING, POSITION_WISE, PROCESSES

Ref = int


@dataclass(frozen=True)
class Use:
    """A parameter as an operand: which, and how it is processed."""

    parameter: int
    process: str


@dataclass(frozen=True)
class Make:
    """A new value: the operation ``kind`` of values and parameters."""

    kind: str
    args: tuple[Ref, ...]
    uses: tuple[Use, ...]


@dataclass(frozen=True)
class Call:
    """Values made inside a call: ``'jit'``, ``'jit jit'`` (one in another) or ``'checkpoint'``."""

    wrap: str
    body: tuple[Make, ...]


@dataclass(frozen=True)
class Write:
    """What a state becomes: ``keep`` of its old value and of the values read."""

    keep: str
    args: tuple[Ref, Ref]
    use: Use


@dataclass(frozen=True)
class State:
    """A state, the values made before it is written, and what is written (the last one counts).

    ``kind``: ``'plain'``, ``'group'`` (two states in one array) or ``'other'`` (no hidden state).
    """

    kind: str
    body: tuple[Make | Call, ...]
    writes: tuple[Write, ...]


@dataclass(frozen=True)
class Program:
    """A cell and its readout.

    ``container``: where the layers are kept. ``trees``: for each parameter, whether it is one
    pytree rather than several states. ``readout``: ``'sum'`` of the outputs, then perhaps a
    ``'plain'`` or an ``'etp'`` product.
    """

    batch: int | None
    container: str
    trees: tuple[bool, ...]
    layers: tuple[tuple[State, ...], ...]
    outputs: tuple[Ref, ...]
    readout: str

    @property
    def makes(self) -> Iterator[Make]:
        """Every value made."""
        for states in self.layers:
            for state in states:
                for item in state.body:
                    yield from item.body if isinstance(item, Call) else (item,)

    @property
    def mixes(self) -> bool:
        """Whether something in it mixes positions."""
        return any(make.kind in MIXING for make in self.makes)


@dataclass(frozen=True)
class Way:
    """How the gradient is taken.

    ``calls`` of ``steps`` steps each, with the trace carried from one to the next;
    ``driver``: ``'sequence'`` (``etrace_grad`` with ``block``), ``'step'`` (``learner(x)`` under
    ``grad``, step by step) or ``'loop'`` (one ``grad`` around all steps of a call). Without
    ``jit``, the gradient is computed operation by operation, which takes a third of the time.
    """

    driver: str
    calls: int
    steps: int
    block: int
    jit: bool

    @property
    def total(self) -> int:
        """Steps in all."""
        return self.calls * self.steps


# --- drawing ---------------------------------------------------------------------------------
#
# A program is read off a block of random bytes in which every part has a place of its own. Byte 0
# is the simplest choice, and making one part simpler moves no other: that is what shrinking needs.
# Strategies nested like the records would be easier to read, but hypothesis makes most of its
# examples from parts of earlier ones, and the cells of one run would look alike.

REFS: tuple[Ref, ...] = (0, 0, 0, 1, 1, 2, 3, 4, -1, -2, -2, -3, -3, -4, -4, -5)
INPUTS: tuple[Ref, ...] = (0, 0, 1, -1, -2, -2, -2, -3, -4)
NEWEST: tuple[Ref, ...] = (0,) * 8 + REFS
OFTEN = ("product", "affine", "leak")
STATES = ("plain",) * 5 + ("group", "group", "other")
CALLS = ("jit", "jit jit", "checkpoint")


class Choices:
    """Choices read off bytes, one each."""

    def __init__(self, data: bytes) -> None:
        self.left = data

    def pick(self, options: Sequence[Any]) -> Any:
        first, self.left = self.left[0], self.left[1:]
        return options[first % len(options)]

    def part(self, size: int) -> Choices:
        """The choices of the next ``size`` bytes, used or not."""
        part, self.left = Choices(self.left[:size]), self.left[size:]
        return part

    def some(
        self, counts: Sequence[int], size: int, make: Callable[[Choices], Any]
    ) -> tuple[Any, ...]:
        """As many parts as picked, with room for the most."""
        count = self.pick(counts)
        parts = [self.part(size) for _ in range(max(counts))]
        return tuple(make(part) for part in parts[:count])


USE, MAKE, WRITE = 2, 10, 5
ITEM = 2 + 3 * MAKE
STATE = 4 + 3 * ITEM + MAKE + 2 * WRITE
LAYER = 1 + 2 * STATE
PROGRAM = 10 + 3 * LAYER


def use(choices: Choices) -> Use:
    return Use(choices.pick(range(3)), choices.pick(PROCESSES))


def make(choices: Choices, kinds: Sequence[str]) -> Make:
    kind = choices.pick(kinds)
    found = KINDS[kind]
    args = [choices.pick(INPUTS if "matrix" in found.leaves else REFS) for _ in range(3)]
    uses = [use(choices) for _ in range(2)]
    return Make(kind, tuple(args[: found.arity]), tuple(uses[: len(found.leaves)]))


def item(choices: Choices, kinds: Sequence[str]) -> Make | Call:
    wrap = choices.pick((None,) * 7 + CALLS)
    made = choices.some((1, 2, 3), MAKE, lambda part: make(part, part.pick([OFTEN, kinds, kinds])))
    return made[0] if wrap is None else Call(wrap, made)


def write(choices: Choices) -> Write:
    return Write(choices.pick(KEEPS), (choices.pick(NEWEST), choices.pick(REFS)), use(choices))


def state(choices: Choices, kinds: Sequence[str], counts: Sequence[int]) -> State:
    kind = choices.pick(STATES)
    body = choices.some(counts, ITEM, lambda part: item(part, kinds))
    drive = choices.some((0, 1), MAKE, lambda part: make(part, ("product", "affine")))
    return State(kind, body + drive, choices.some((1,) * 8 + (0, 2), WRITE, write))


def layer(choices: Choices, kinds: Sequence[str]) -> tuple[State, ...]:
    count = choices.pick((1, 2, 2))
    first = state(choices.part(STATE), kinds, (1, 1, 2, 3))
    second = state(choices.part(STATE), kinds, (0, 0, 1, 1, 2))
    return (first, second)[:count]


def program(data: bytes, kinds: Sequence[str]) -> Program:
    choices = Choices(data)
    return Program(
        batch=choices.pick((None, 2, 1)),
        container=choices.pick(("list",) * 3 + ("dict", "attributes")),
        trees=(choices.pick((False, True)), choices.pick((False, True))),
        readout=choices.pick(("sum", "plain", "etp")),
        outputs=(0, *choices.some((0, 1, 2), 1, lambda part: part.pick(REFS))),
        layers=choices.some((1, 2, 2, 3), LAYER, lambda part: layer(part, kinds)),
    )


#: Calls, steps of each, steps of a block; two have a shorter last block.
SHAPES = ((1, 3, 1), (1, 3, 3), (1, 4, 2), (2, 2, 2), (2, 2, 1), (3, 1, 1), (1, 4, 3), (1, 5, 2))
SINGLE = (("step", 3, 1, 1), ("step", 4, 1, 1), ("loop", 2, 2, 1))


def sequence(choices: Choices) -> Way:
    return Way("sequence", *choices.pick(SHAPES), choices.pick((False,) * 5 + (True,)))


def single_steps(choices: Choices) -> Way:
    return Way(*choices.pick(SINGLE), True)


def cases(
    way: Callable[[Choices], Way], mixing: bool = False
) -> st.SearchStrategy[tuple[Program, Way]]:
    """Programs and how their gradient is taken."""
    kinds = [*POSITION_WISE, *MIXING] if mixing else POSITION_WISE
    size = PROGRAM + 2
    return st.binary(min_size=size, max_size=size).map(
        lambda data: (program(data[:PROGRAM], kinds), way(Choices(data[PROGRAM:])))
    )
