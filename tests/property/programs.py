# SPDX-License-Identifier: Apache-2.0
"""Random cells as data: small records that hypothesis draws and shrinks.

Every value of a cell has the shape ``[batch, WIDTH]`` (or ``[WIDTH]``), and every layer the same
width, so that any value can stand anywhere and no shape tells groups apart.

A *reference* says which value is read: 0 is the newest, 1 the one before it, and so on; -1 is the
input, -2 and below are the old states and a constant. References wrap around, so that each one
means something in every program.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


# --- strategies ------------------------------------------------------------------------------

OFTEN = ("product", "affine", "leak")

REFS = st.one_of(st.integers(0, 4), st.integers(-6, -1))
USES = st.builds(Use, st.integers(0, 2), st.sampled_from(PROCESSES))
WRITES = st.builds(Write, st.sampled_from(KEEPS), st.tuples(REFS, REFS), USES)


def some(item: st.SearchStrategy[Any], *counts: int) -> st.SearchStrategy[tuple[Any, ...]]:
    """A tuple whose length is one of ``counts``, each as likely as the others."""
    return st.sampled_from(counts).flatmap(lambda n: st.tuples(*[item] * n))


@st.composite
def makes(draw: st.DrawFn, kinds: Sequence[str]) -> Make:
    kind = draw(st.one_of(st.sampled_from(OFTEN), st.sampled_from(kinds), st.sampled_from(kinds)))
    found = KINDS[kind]
    args = tuple(draw(REFS) for _ in range(found.arity))
    return Make(kind, args, tuple(draw(USES) for _ in found.leaves))


def states(kinds: Sequence[str], *counts: int) -> st.SearchStrategy[State]:
    """A state with so many items in its body."""
    make = makes(kinds)
    call = st.builds(Call, st.sampled_from(["jit", "jit jit", "checkpoint"]), some(make, 1, 2, 3))
    return st.builds(
        State,
        st.sampled_from(["plain"] * 5 + ["group", "group", "other"]),
        some(st.one_of(make, make, make, call), *counts),
        some(WRITES, *[1] * 8, 0, 2),
    )


def programs(mixing: bool = False) -> st.SearchStrategy[Program]:
    kinds = [*POSITION_WISE, *MIXING] if mixing else POSITION_WISE
    first, second = states(kinds, 1, 2, 3), states(kinds, 0, 1, 2)
    return st.builds(
        Program,
        batch=st.sampled_from([None, 2, 1]),
        container=st.sampled_from(["list", "dict", "attributes"]),
        trees=st.tuples(st.booleans(), st.booleans()),
        layers=some(st.one_of(st.tuples(first), st.tuples(first, second)), 1, 2, 3),
        outputs=some(REFS, 0, 1, 2).map(lambda more: (0, *more)),
        readout=st.sampled_from(["sum", "plain", "etp"]),
    )


SEQUENCES = [(1, 3, 1), (1, 3, 3), (1, 4, 2), (1, 4, 3), (2, 2, 2), (2, 2, 1), (3, 1, 1), (1, 5, 2)]


def sequences() -> st.SearchStrategy[Way]:
    jit = st.sampled_from([False] * 5 + [True])
    return st.builds(lambda s, jit: Way("sequence", *s, jit), st.sampled_from(SEQUENCES), jit)


def single_steps() -> st.SearchStrategy[Way]:
    return st.sampled_from(
        [
            Way("step", 3, 1, 1, True),
            Way("step", 4, 1, 1, True),
            Way("loop", 2, 2, 1, True),
        ]
    )
