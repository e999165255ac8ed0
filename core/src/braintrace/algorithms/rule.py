# SPDX-License-Identifier: Apache-2.0
"""What a learning rule is to the drivers: pure functions of its traces and a block of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..executor.jacobians import StepJacobians
from ..executor.layout import Link
from ..executor.step import ETraceGraphExecutor
from ..ops.operation import Arrays

Traces = tuple[Any, ...]
"""A pytree of arrays of unchanging shapes and dtypes; a learner holds each entry in a state."""

Operands = Sequence[Sequence[Any]]
"""Per relation, the values of its operands (``None`` at ``x``)."""


Signals = tuple[jax.Array, ...]
LateSignals = tuple[jax.Array | None, ...]


class Block(NamedTuple):
    """``K`` steps as an algorithm sees them; every array has a leading axis of ``K`` steps.

    Attributes
    ----------
    jacobians
        ``x`` per relation, ``f`` per link, ``D`` per group.
    signal, late
        ``l`` and ``e`` per group, [K, S, *V]; ``e`` is ``None`` where structurally zero.
    given
        What the caller passed to the learner besides the model's arguments, such as a modulator.

    Examples
    --------
    >>> from braintrace.algorithms import Block
    >>> Block._fields
    ('jacobians', 'signal', 'late', 'given')
    """

    jacobians: StepJacobians
    signal: Signals
    late: LateSignals
    given: Any = None


class LearningRule(ABC):
    """A learning rule for one compiled model.

    Weights do not change inside a block, and how steps are divided into blocks changes no number
    beyond round-off. Traces before a block may be given as ``None``, which stands for
    :meth:`init`.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.D_RTRL(cell)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> from braintrace.algorithms import LearningRule
    >>> isinstance(learner.rule, LearningRule), len(learner.rule.links), len(learner.rule.init())
    (True, 2, 2)
    """

    executor: ETraceGraphExecutor

    @property
    def name(self) -> str:
        """What the rule is called in reports."""
        return type(self).__name__

    @property
    def links(self) -> tuple[Link, ...]:
        """The relations in their groups."""
        return self.executor.links

    @abstractmethod
    def init(self) -> Traces:
        """Traces of zeros."""

    @abstractmethod
    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> list[Arrays]:
        """Cotangents of the traced operands of every relation, summed over a block."""

    @abstractmethod
    def boundary(self, traces: Traces, signal: LateSignals, operands: Operands) -> list[Arrays]:
        """Cotangents of the traced operands from a signal at the hidden states as they are.

        Parameters
        ----------
        signal
            Per group, the gradient with respect to its values [S, *V]; ``None`` for zero.
        """

    @abstractmethod
    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """Traces after a block; its signals are not read and may be left empty."""

    def advance(
        self, traces: Traces | None, block: Block, operands: Operands
    ) -> tuple[list[Arrays], Traces]:
        """:meth:`solve` and :meth:`update`, for rules in which they share work."""
        new = self.update(traces, block, operands)
        return self.solve_after(traces, new, block, operands), new

    def solve_after(
        self, traces: Traces | None, new: Traces, block: Block, operands: Operands
    ) -> list[Arrays]:
        """:meth:`solve`, where the traces after the block are known: ``new``.

        For a single step, a rule that reads ``new`` only lets them be written in place of the old
        ones. By default ``new`` is not looked at.
        """
        return self.solve(traces, block, operands)

    @abstractmethod
    def of_link(self, traces: Traces, index: int) -> dict[str, Any]:
        """What the traces hold for a link, with the state axis last."""

    def held_by(self, traces: Traces, index: int) -> dict[str, Any]:
        """The arrays that are held for a link."""
        return self.of_link(traces, index)

    @property
    def bytes_per_step(self) -> int:
        """Memory that a gradient takes for each step of a block, besides the block itself."""
        return 0


def by_relation(
    rule: LearningRule, found: Sequence[Arrays], weights: Sequence[Arrays]
) -> list[Arrays]:
    """Cotangents per link, in the dtypes of the weights, summed over the links of a relation."""
    total: dict[int, Arrays] = {}
    for link, one, like in zip(rule.links, found, weights, strict=True):
        cast = {key: leaf.astype(like[key].dtype) for key, leaf in one.items()}
        r = link.relation.index
        total[r] = add(total[r], cast) if r in total else cast
    return [total[r] for r in sorted(total)]


def add(a: Arrays, b: Arrays) -> Arrays:
    """The sum of two dicts of arrays."""
    return jax.tree.map(jnp.add, a, b)
