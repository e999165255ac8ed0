# SPDX-License-Identifier: Apache-2.0
"""What the two forms of an operation's trace have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp

from ..operation import Arrays, Operation

#: Up to how many states loops over them are written out.
UNROLL_STATES = 4


class TraceRules(ABC):
    """The parameter-dimension trace of one operation in one hidden group.

    Factors ``f`` and signals are laid out as [S, *E, *Y]; a transition as [S, S, *E, *Y]. The
    state axis leads in every trace leaf, too.
    """

    def __init__(self, operation: Operation, extra: tuple[int, ...], num_state: int) -> None:
        self.operation = operation
        self.extra = extra
        self.num_state = num_state

    @property
    @abstractmethod
    def types(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a trace."""

    def of_states(self, num_state: int) -> Self:
        """The same rules for another number of states."""
        return type(self)(self.operation, self.extra, num_state)

    def init(self) -> Arrays:
        """A trace of zeros."""
        return {key: jnp.zeros(leaf.shape, leaf.dtype) for key, leaf in self.types.items()}

    @abstractmethod
    def propagate(self, transition: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        """``D . eps``."""

    @abstractmethod
    def scaled(self, factor: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        """Every state of ``eps`` times its own factor by position: ``factor`` [S, *E, *Y]."""

    @abstractmethod
    def increments(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        """``sum_k f^k (x) x^k`` for ``f`` [K, S, *E, *Y], in the structure of the trace."""

    @abstractmethod
    def solve(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        """``< signal, eps >``: cotangents of the traced operands."""


def sum_of(trace: Arrays) -> Arrays:
    """The sum over the leading axis of every leaf."""
    return {key: leaf.sum(0) for key, leaf in trace.items()}


def state_of(trace: Arrays, s: int) -> Arrays:
    return {key: leaf[s] for key, leaf in trace.items()}


def stack_states(rows: Sequence[Arrays], keys: Sequence[str]) -> Arrays:
    return {key: jnp.stack([row[key] for row in rows]) for key in keys}


def sum_over_steps(rule: Callable[[Any, jax.Array], Arrays], x: Any, f: jax.Array) -> Arrays:
    """``sum_k rule(x[k], f[k])`` without holding more than one term."""
    shapes = jax.eval_shape(lambda a, b: rule(jax.tree.map(lambda v: v[0], a), b[0]), x, f)

    def add(total: Arrays, step: Any) -> tuple[Arrays, None]:
        return jax.tree.map(jnp.add, total, rule(*step)), None

    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
    return jax.lax.scan(add, zeros, (x, f))[0]
