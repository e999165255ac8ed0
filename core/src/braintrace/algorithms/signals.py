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
from ..base.precision import sum_dtype, widened
from ..base.types import how_many
from ..compiler.batch_states import is_batched
from ..compiler.groups import HiddenGroup
from ..executor.executor import Executor
from ..executor.layout import Positions
from .base import Block, Cotangents, LearningRule, OldSignals, Operands, Traces, accept_old_name


class SignalSource(ABC):
    """What takes the place of ``l`` and ``e`` of a block.

    Examples
    --------
    Signals of half the size:

    >>> from braintrace.algorithms import SignalSource
    >>> class Halved(SignalSource):
    ...     def replaced(self, block):
    ...         half = [0.5 * signal for signal in block.signal]
    ...         old = [None if signal is None else 0.5 * signal for signal in block.old_signal]
    ...         return block._replace(signal=tuple(half), old_signal=tuple(old))
    ...
    ...     def at_start(self, signal):
    ...         return tuple(None if s is None else 0.5 * s for s in signal)
    >>> Halved().at_start((1.0, None))
    (0.5, None)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        accept_old_name(cls, "at_boundary", "at_start")

    @abstractmethod
    def replaced(self, block: Block) -> Block:
        """The block with other signals."""

    @abstractmethod
    def at_start(self, signal: OldSignals) -> OldSignals:
        """What takes the place of a signal [S, *V] at the old values of a window."""


def _of_rule(method: Any) -> Any:
    """A method of the rule of a :class:`Resignalled`, which sees a block with other signals."""

    def call(self: Resignalled, *args: Any, **named: Any) -> Any:
        def seen(given: Any) -> Any:
            signals = isinstance(given, Block) and given.signal != ()
            return self.source.replaced(given) if signals else given

        own = getattr(self.rule, method.__name__)
        return own(*map(seen, args), **{name: seen(value) for name, value in named.items()})

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    return call


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
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.ThreeFactor, x, batch_size=2)
    >>> from braintrace.algorithms import ParamDimRule, Resignalled
    >>> isinstance(learner.rule, Resignalled), isinstance(learner.rule.rule, ParamDimRule)
    (True, True)
    """

    rule: LearningRule
    source: SignalSource

    init = _of_rule(LearningRule.init)
    solve = _of_rule(LearningRule.solve)
    solve_after = _of_rule(LearningRule.solve_after)
    advance = _of_rule(LearningRule.advance)
    of_link = _of_rule(LearningRule.of_link)
    held_by = _of_rule(LearningRule.held_by)
    parted = _of_rule(LearningRule.parted)
    joined = _of_rule(LearningRule.joined)
    executor = property(lambda self: self.rule.executor)  # type: ignore[assignment]
    jacobians = property(lambda self: self.rule.jacobians)  # type: ignore[assignment]
    bytes_per_step = property(lambda self: self.rule.bytes_per_step)  # type: ignore[assignment]

    @property
    def name(self) -> str:
        return f"{self.rule.name}, {type(self.source).__name__}"

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """The rule's traces, which signals do not enter."""
        return self.rule.update(traces, block, operands)

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        """The rule's cotangents at the start of a window, from other signals."""
        return self.rule.solve_at_start(traces, self.source.at_start(signal), operands)


@dataclass(frozen=True, eq=False)
class RandomFeedback(SignalSource):
    """Signals through a fixed random matrix: ``l B``, with ``B`` [n, n] over the last axis [n].

    An axis of examples is not one of these: a single number per example is multiplied by one.
    The entries of ``B`` are normal with variance ``1 / n``. All states and all other positions
    share it, and each group has its own (random feedback: Lillicrap et al., Nature Communications
    7:13276, 2016; in e-prop: Bellec et al. 2020).
    """

    executor: Executor
    seed: Any

    @cached_property
    def matrices(self) -> tuple[jax.Array, ...]:
        """``B`` of every group."""

        def drawn(index: int, size: int) -> jax.Array:
            key = jax.random.fold_in(versions.random_bits_of(self.seed), index)
            return jax.random.normal(key, (size, size), jnp.float32) / math.sqrt(size)

        with jax.ensure_compile_time_eval():
            groups = self.executor.graph.hidden_groups
            return tuple(drawn(g.index, math.prod(_units(g)[-1:])) for g in groups)

    def _fed_back(self, index: int, signal: jax.Array) -> jax.Array:
        """``signal`` [.., S, *V] through the matrix of a group."""
        group = self.executor.groups[index]
        signal = widened(signal, group.wide)
        matrix = self.matrices[index].astype(signal.dtype)
        if not _units(group.group):
            return signal * matrix[0, 0]
        lead = signal.ndim - 1 - group.ndim
        return group.joined(group.parted(signal, lead) @ matrix, lead)

    def replaced(self, block: Block) -> Block:
        """``l`` and ``e`` through the matrices, unless they stem from an error fed back already."""
        if block.given is not None:
            return block
        signal = tuple(self._fed_back(g, s) for g, s in enumerate(block.signal))
        return block._replace(signal=signal, old_signal=self.at_start(block.old_signal))

    def at_start(self, signal: OldSignals) -> OldSignals:
        """The signal through the matrices."""
        return tuple(None if s is None else self._fed_back(g, s) for g, s in enumerate(signal))


def _units(group: HiddenGroup) -> tuple[int, ...]:
    """The positions of a group without an axis of examples that is known as one."""
    return group.varshape[is_batched(group.hidden_states[0]) :]


@dataclass(frozen=True, eq=False)
class Modulated(SignalSource):
    """Signals that the caller gives: a modulator for every state, [] or like the positions."""

    executor: Executor

    def replaced(self, block: Block) -> Block:
        """The modulator in place of ``l``, and no ``e``."""
        if block.given is None:
            raise ValueError(
                "the rule needs a modulator, and this learner passes none; ThreeFactor(model, "
                "config=...) and compile(model, config, ...) give learners that take one"
            )
        triples = zip(block.given, block.signal, self.executor.groups, strict=True)
        signal = tuple(_spread(m.astype(sum_dtype(s.dtype)), group) for m, s, group in triples)
        return block._replace(signal=signal, old_signal=(None,) * len(block.old_signal))

    def at_start(self, signal: OldSignals) -> OldSignals:
        """Windows contain the gradient of the loss, which no modulator can replace."""
        raise NotImplementedError("a modulated rule has no windows")


def _spread(given: jax.Array, positions: Positions) -> jax.Array:
    """A modulator [K, *V of the group], or [K] for all, for every state: [K, S, *V]."""
    group, steps = positions.group, given.shape[0]
    axes = len(group.varshape)
    if given.ndim not in (1, 1 + axes, 2 + axes):
        raise ValueError(
            f"a modulator of {how_many(steps, 'step')} has shape {given.shape}; it must be "
            f"[K], [K, *V] or [K, S, *V] with all axes of the positions {group.varshape}"
        )
    missing = (1,) * (2 + axes - given.ndim)
    wide = given.reshape(steps, *missing, *given.shape[1:])
    laid = jnp.broadcast_to(wide, (steps, group.num_state, *group.varshape))
    return positions.joined(laid, 1)


@dataclass(frozen=True, eq=False)
class TracelessRule(LearningRule):
    """No traces: nothing from before a window reaches it, whose gradient is of reverse mode."""

    executor: Executor

    def init(self) -> Traces:
        return ()

    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:
        raise NotImplementedError("a rule without traces learns in windows")

    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        return self.summed([{} for _ in self.links], operands)

    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        return ()

    def of_link(self, traces: Traces, index: int) -> dict[str, Any]:
        return {}
