# SPDX-License-Identifier: Apache-2.0
"""What the two forms of an operation's trace have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Self

import jax
import jax.numpy as jnp

from ..operation import Arrays, Operation, fits_parts, split
from .bands import Bands

#: Up to how many states loops over them are written out.
UNROLL_STATES = 4
#: And products with a trace, which is large: row by row, it would be read once for each of them.
UNROLL_PRODUCTS = 12


@lru_cache(maxsize=256)
def zeros_of(shape: tuple[int, ...], dtype: Any) -> Callable[[], jax.Array]:
    """What makes zeros, compiled once: ``jnp.zeros`` takes ten times as long for a small array."""
    return jax.jit(lambda: jnp.zeros(shape, dtype))


@dataclass(eq=False)
class TraceRules(ABC):
    """The parameter-dimension trace of one operation in one hidden group.

    It is no narrower than ``operation.wide``, and neither is what is computed for it or from it.
    Factors ``f`` and signals are laid out as [S, *E, *Y]; a transition as [S, S, *E, *Y]. The
    state axis leads in every trace leaf, too.
    """

    operation: Operation
    extra: tuple[int, ...]
    num_state: int

    @property
    def has_examples(self) -> bool:
        """Whether traces can be taken example by example; see :class:`StructuredTrace`."""
        return False

    @property
    @abstractmethod
    def types(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a trace."""

    @property
    def options(self) -> str:
        """What users chose for this trace besides its types, as they write it."""
        return ""

    def of_states(self, num_state: int) -> Self:
        """The same rules for another number of states."""
        return replace(self, num_state=num_state)

    @property
    def adds_contractions(self) -> bool:
        """Whether what a step with an input adds is ``operation.contract``, example by example."""
        return False

    def init(self) -> Arrays:
        """A trace of zeros."""
        return {key: zeros_of(v.shape, v.dtype)() for key, v in self.types.items()}

    @property
    def has_parts(self) -> bool:
        """Whether :meth:`parted` has another form."""
        return False

    def parted(self, trace: Arrays) -> dict[str, Any]:
        """A trace whose leaves are tuples of an array for each of several states, if it may be."""
        return trace

    @abstractmethod
    def scale(self, operands: Sequence[Any]) -> Callable[[jax.Array, Arrays], Arrays]:
        """``(factor, trace)``: one state of a trace times a factor by position [*E, *Y]."""

    def propagate_by_bands(
        self, transition: Bands, trace: Arrays, x: Any, f: Any, operands: Sequence[Any]
    ) -> Arrays:
        """``D . eps + f (x) x`` of one step, with ``D`` by its bands: one state after the other.

        Without ``f``, it is ``D . eps``.

        A shift of a whole array with many states, which is not vectorised, would be the slower way.
        """
        scale, transition = self.scale(operands), self.operation.widened(transition)
        rules, x = self.of_states(1), None if x is None else x[None]
        several = [k for k, band in enumerate(transition.bands) if band.is_row]
        columns, factors = transition.by_row()

        def one(state: Any) -> Arrays:
            f_now, now, entries = state
            types = {key: rules.types[key] for key in trace}
            total = jax.tree.map(lambda v: jnp.zeros(v.shape[1:], v.dtype), types)
            if f is not None:
                new = rules.increments(x, f_now[None, None], operands)
                total = jax.tree.map(lambda v: v[0], new)
            for column, factor in zip(now, entries, strict=True):
                part = scale(factor, jax.tree.map(lambda v, column=column: v[column], trace))
                total = jax.tree.map(jnp.add, total, part)
            return total

        new = jax.lax.map(one, (f, columns, factors))
        for k in several:
            band, values = transition.bands[k], transition.values[k]
            part = jax.tree.map(lambda v, band=band: v[band.columns], trace)
            zero = jax.tree.map(lambda v: jnp.zeros(v.shape[1:], v.dtype), new)

            def add(total: Arrays, entry: Any) -> tuple[Arrays, None]:
                return jax.tree.map(jnp.add, total, scale(*entry)), None

            found, _ = jax.lax.scan(add, zero, (values, part))
            new = jax.tree.map(lambda v, own, band=band: v.at[band.row].add(own), new, found)
        return new

    def propagate(self, transition: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        """``D . eps``."""
        scale, transition = self.scale(operands), self.operation.widened(transition)
        if self.num_state == 1:  # without a reshape the new trace can take the place of the old one
            return jax.vmap(scale)(transition[0], trace)
        if self.num_state > UNROLL_PRODUCTS:
            return jax.lax.map(lambda row: self.sum_over_states(scale, row, trace), transition)
        rows = [self.sum_over_states(scale, row, trace) for row in transition]
        return by_state(rows) if is_parted(trace) else stacked(rows)

    def sum_over_states(
        self, rule: Callable[..., Arrays], factor: jax.Array, trace: Arrays
    ) -> Arrays:
        """``sum_s rule(factor[s], trace[s])``."""
        if self.num_state > UNROLL_PRODUCTS:
            return jax.tree.map(lambda leaf: leaf.sum(0), jax.vmap(rule)(factor, trace))
        states = [{key: leaf[s] for key, leaf in trace.items()} for s in range(self.num_state)]
        terms = [rule(factor[s], state) for s, state in enumerate(states)]
        return jax.tree.map(lambda *leaves: sum(leaves), *terms)

    def scaled(self, factor: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        """Every state of ``eps`` times its own factor by position: ``factor`` [S, *E, *Y]."""
        return jax.vmap(self.scale(operands))(self.operation.widened(factor), trace)

    @abstractmethod
    def increments(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        """``sum_k f^k (x) x^k`` for ``f`` [K, S, *E, *Y], in the structure of the trace."""

    def plus(self, trace: Arrays, other: Arrays | None) -> Arrays:
        """The sum of two traces of the same steps; ``None`` is zero."""
        return trace if other is None else jax.tree.map(jnp.add, trace, other)

    def spread(self, trace: Arrays, places: Any) -> Arrays:
        """The trace of some states, at their places, with zeros for the others."""
        return {
            key: jnp.zeros((self.num_state, *v.shape[1:]), v.dtype).at[places].set(v)
            for key, v in trace.items()
        }

    def joined(self, kept: Arrays | None, new: Arrays) -> Arrays:
        """The trace ``kept``, moved on already, and the increments ``new``; ``None`` is zero."""
        new = self.parted(new) if kept and is_parted(kept) else new
        return new if kept is None else jax.tree.map(jnp.add, new, kept)

    @property
    def by_example(self) -> bool:
        """Whether :meth:`moved` goes through the examples of a block, each of which is small."""
        return False

    def moved(
        self, whole: jax.Array, trace: Arrays, x: Any, f: jax.Array, operands: Sequence[Any]
    ) -> Arrays:
        """``P . eps + sum_k f^k (x) x^k``, the trace after a block, with ``P`` [S, S, *E, *Y]."""
        kept = self.propagate(whole, trace, operands)
        return self.joined(kept, self.increments(x, f, operands))

    @abstractmethod
    def solve(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        """``< signal, eps >``: cotangents of the traced operands."""

    def solve_in_parts(
        self, signal: jax.Array, trace: Arrays, operands: Sequence[Any], parts: int
    ) -> Arrays:
        """The same of parts of the examples [parts, *W], where they can be told apart."""
        axis = 1 + len(self.extra)
        if not self.operation.in_parts(parts):
            axis = 1  # examples may be along the axes E
            if not fits_parts(self.extra, parts):
                return self.solve(signal, trace, operands)

        def of_parts(leaf: Any) -> Any:
            own = axis - isinstance(leaf, tuple)
            return jax.tree.map(lambda v: split(v, own, parts), leaf)

        run = jax.vmap(partial(self.solve_at_once, operands=operands))
        return run(split(signal, axis, parts), {key: of_parts(v) for key, v in trace.items()})

    def solve_at_once(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        """:meth:`solve`, all examples together."""
        return self.solve(signal, trace, operands)


def stacked(rows: Sequence[Arrays]) -> Arrays:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *rows)


def by_state(rows: Sequence[Arrays]) -> dict[str, Any]:
    """The parted trace of several states."""
    return {key: tuple(row[key] for row in rows) for key in rows[0]}


def is_parted(trace: Mapping[str, Any]) -> bool:
    """Whether a trace is in the form of :meth:`TraceRules.parted`."""
    return any(isinstance(leaf, tuple) for leaf in trace.values())


def add(a: Arrays, b: Arrays) -> Arrays:
    """The sum of two dicts of arrays; an empty one is zero."""
    return jax.tree.map(added, a, b) if a and b else a or b


def added(a: Any, b: Any) -> Any:
    """The sum of two arrays, of which either may be in parts [parts, ..]."""
    ndim = min(a.ndim, b.ndim)
    return jnp.add(together(a, ndim), together(b, ndim))


def together(array: Any, ndim: int) -> Any:
    """An array of ``ndim`` axes, the sum of its parts if it has one more."""
    return array.sum(0) if array.ndim > ndim else array


def sum_over_steps(rule: Callable[[Any, jax.Array], Arrays], x: Any, f: jax.Array) -> Arrays:
    """``sum_k rule(x[k], f[k])`` without holding more than one term."""
    shapes = jax.eval_shape(lambda a, b: rule(jax.tree.map(lambda v: v[0], a), b[0]), x, f)

    def add(total: Arrays, step: Any) -> tuple[Arrays, None]:
        return jax.tree.map(jnp.add, total, rule(*step)), None

    return jax.lax.scan(add, jax.tree.map(jnp.zeros_like, shapes), (x, f))[0]
