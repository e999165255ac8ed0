# SPDX-License-Identifier: Apache-2.0
"""Learning signals other than the gradient of the loss."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..executor.layout import Positions
from ..executor.step import ETraceGraphExecutor
from ..executor.whole import WholeGroup
from ..ops.operation import Arrays
from .rule import Block, LateSignals, LearningRule, Operands, Traces


class SignalSource(ABC):
    """What takes the place of ``l`` and ``e`` of a block.

    Examples
    --------
    Signals of half the size:

    >>> from braintrace.algorithms import SignalSource
    >>> class Halved(SignalSource):
    ...     def replaced(self, block):
    ...         half = [0.5 * signal for signal in block.signal]
    ...         late = [None if signal is None else 0.5 * signal for signal in block.late]
    ...         return block._replace(signal=tuple(half), late=tuple(late))
    ...
    ...     def at_boundary(self, signal):
    ...         return tuple(None if s is None else 0.5 * s for s in signal)
    >>> Halved().at_boundary((1.0, None))
    (0.5, None)
    """

    @abstractmethod
    def replaced(self, block: Block) -> Block:
        """The block with other signals."""

    @abstractmethod
    def at_boundary(self, signal: LateSignals) -> LateSignals:
        """What takes the place of a signal [S, *V] at the old values of a window."""


@dataclass(frozen=True, eq=False)
class Resignalled(LearningRule):
    """A learning rule whose traces meet other signals; all else is the rule's own.

    Parameters
    ----------
    rule
        The learning rule.
    source
        What makes the other signals.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.ThreeFactor(cell)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> from braintrace.algorithms import ParamDimRule, Resignalled
    >>> isinstance(learner.rule, Resignalled), isinstance(learner.rule.rule, ParamDimRule)
    (True, True)
    """

    rule: LearningRule
    source: SignalSource

    @property
    def executor(self) -> ETraceGraphExecutor:  # type: ignore[override]
        """The rule's executor."""
        return self.rule.executor

    @property
    def name(self) -> str:
        """What the rule is called in reports."""
        return f"{self.rule.name}, {type(self.source).__name__}"

    def init(self) -> Traces:
        """The rule's traces of zeros."""
        return self.rule.init()

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> list[Arrays]:
        """The rule's cotangents, from other signals."""
        return self.rule.solve(traces, self.source.replaced(block), operands)

    def boundary(self, traces: Traces, signal: LateSignals, operands: Operands) -> list[Arrays]:
        """The rule's cotangents at the start of a window, from other signals."""
        return self.rule.boundary(traces, self.source.at_boundary(signal), operands)

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """The rule's traces after a block."""
        return self.rule.update(traces, block, operands)

    def solve_after(
        self, traces: Traces | None, new: Traces, block: Block, operands: Operands
    ) -> list[Arrays]:
        """As :meth:`solve`, where the traces after the block are known."""
        return self.rule.solve_after(traces, new, self.source.replaced(block), operands)

    def advance(
        self, traces: Traces | None, block: Block, operands: Operands
    ) -> tuple[list[Arrays], Traces]:
        """The rule's cotangents, from other signals, and its traces."""
        return self.rule.advance(traces, self.source.replaced(block), operands)

    def of_link(self, traces: Traces, index: int) -> dict[str, Any]:
        """What the rule's traces hold for a link."""
        return self.rule.of_link(traces, index)

    def held_by(self, traces: Traces, index: int) -> dict[str, Any]:
        """What the rule holds for a link."""
        return self.rule.held_by(traces, index)

    @property
    def bytes_per_step(self) -> int:
        """What the rule takes."""
        return self.rule.bytes_per_step


@dataclass(frozen=True, eq=False)
class RandomFeedback(SignalSource):
    """Signals through a fixed random matrix: ``l B``, with ``B`` [n, n] over the last axis [n].

    The entries of ``B`` are normal with variance ``1 / n``. All states and all other positions
    share it, and each group has its own (random feedback: Lillicrap et al., Nature Communications
    7:13276, 2016; in e-prop: Bellec et al. 2020).
    """

    executor: ETraceGraphExecutor
    seed: Any

    @cached_property
    def matrices(self) -> tuple[jax.Array, ...]:
        """``B`` of every group."""
        with jax.ensure_compile_time_eval():
            bits = versions.random_bits_of(self.seed)
            return tuple(
                self._drawn(jax.random.fold_in(bits, group.index), group.varshape[-1:])
                for group in self.executor.graph.hidden_groups
            )

    @staticmethod
    def _drawn(key: jax.Array, last: tuple[int, ...]) -> jax.Array:
        size = last[0] if last else 1
        return jax.random.normal(key, (size, size), jnp.float32) / math.sqrt(size)

    def _fed_back(self, index: int, signal: jax.Array) -> jax.Array:
        """``signal`` [.., S, *V] through the matrix of a group."""
        group = self.executor.graph.hidden_groups[index]
        matrix = self.matrices[index].astype(signal.dtype)
        if not group.varshape:
            return signal * matrix[0, 0]
        whole = _whole_of(self.executor, index)
        if whole is None:
            return signal @ matrix
        lead = signal.ndim - 1 - whole.ndim
        return whole.joined(whole.parted(signal, lead) @ matrix, lead)

    def replaced(self, block: Block) -> Block:
        """``l`` and ``e`` through the matrices, unless they stem from an error fed back already."""
        if block.given is not None:
            return block
        signal = tuple(self._fed_back(g, s) for g, s in enumerate(block.signal))
        return block._replace(signal=signal, late=self.at_boundary(block.late))

    def at_boundary(self, signal: LateSignals) -> LateSignals:
        """The signal through the matrices."""
        return tuple(None if s is None else self._fed_back(g, s) for g, s in enumerate(signal))


def _whole_of(executor: ETraceGraphExecutor, index: int) -> WholeGroup | None:
    groups = getattr(executor, "whole", None)
    return None if groups is None else groups[index]


@dataclass(frozen=True, eq=False)
class Modulated(SignalSource):
    """Signals that the caller gives: a modulator for every state, [] or like the positions."""

    executor: ETraceGraphExecutor

    def replaced(self, block: Block) -> Block:
        """The modulator in place of ``l``, and no ``e``."""
        if block.given is None:
            raise ValueError(
                "the rule needs a modulator, and this learner passes none; ThreeFactor(model, "
                "config=...) and compile(model, config, ...) give learners that take one"
            )
        signal = tuple(
            self._spread(given, like, group)
            for given, like, group in zip(
                block.given, block.signal, self.executor.graph.hidden_groups, strict=True
            )
        )
        return block._replace(signal=signal, late=(None,) * len(block.late))

    def _spread(self, given: jax.Array, like: jax.Array, group: Positions) -> jax.Array:
        """A modulator [K, *V], or [K] for all, for every state: [K, S, *V]."""
        given = given.astype(like.dtype)
        wide = given.reshape(
            given.shape[0], *(1,) * (1 + group.ndim - (given.ndim - 1)), *given.shape[1:]
        )
        states = group.num_state
        laid = jnp.broadcast_to(wide, (given.shape[0], states, *group.varshape))
        whole = _whole_of(self.executor, group.index)
        return laid if whole is None else whole.joined(laid, 1)

    def at_boundary(self, signal: LateSignals) -> LateSignals:
        """Windows contain the gradient of the loss, which no modulator can replace."""
        raise NotImplementedError("a modulated rule has no windows")


@dataclass(frozen=True, eq=False)
class TracelessRule(LearningRule):
    """No traces: nothing from before a window reaches it."""

    executor: ETraceGraphExecutor

    def init(self) -> Traces:
        """Nothing."""
        return ()

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> list[Arrays]:
        """Not used: a window's gradient is that of reverse mode."""
        raise NotImplementedError("a rule without traces learns in windows")

    def boundary(self, traces: Traces, signal: LateSignals, operands: Operands) -> list[Arrays]:
        """Zeros."""
        relations = self.executor.graph.hidden_param_op_relations
        return [
            {t.key: jnp.zeros_like(operands[r.index][t.position]) for t in r.trainables}
            for r in relations
        ]

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """Nothing."""
        return ()

    def of_link(self, traces: Traces, index: int) -> dict[str, Any]:
        """Nothing."""
        return {}
