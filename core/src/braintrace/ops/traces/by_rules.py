# SPDX-License-Identifier: Apache-2.0
"""A trace in the structure of the operation's own rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...base import versions
from ...base.precision import start_of_sum, widened_dtype
from ...base.types import bytes_of
from ..operation import Arrays, split
from .base import (
    UNROLL_PRODUCTS,
    UNROLL_STATES,
    TraceRules,
    is_parted,
    stacked,
    sum_over_steps,
)

#: How many examples are added up in one pass over a gradient, on processors.
EXAMPLES_AT_ONCE = 4

#: From how many numbers for an example on that pays.
LARGE_EXAMPLE = 4096

#: The memory of arrays of so many bytes is new at each call, and the operating system clears it.
FRESH = 16 * 2**20

#: Off a CPU, a turn of a loop over examples takes as many as have traces of so many bytes.
TURN = 64 * 2**20


class StructuredTrace(TraceRules):
    """Leaves are [S, *E, *rule's own leaf]. Rules see one state and no axis ``E`` at a time."""

    @cached_property
    def types(self) -> dict[str, jax.ShapeDtypeStruct]:
        head, own, wide = (self.num_state, *self.extra), self._own, self.operation.wide
        return {
            key: jax.ShapeDtypeStruct(
                (*head, *own[key].shape[:-1]), widened_dtype(own[key].dtype, wide)
            )
            for key in self.operation.traced
        }

    @property
    def has_parts(self) -> bool:
        return 1 < self.num_state <= UNROLL_STATES

    @property
    def adds_contractions(self) -> bool:
        spec = self.operation.spec
        return spec.increments_drtrl is None and spec.instant_drtrl is None

    def parted(self, trace: Arrays) -> dict[str, Any]:
        if not self.has_parts or is_parted(trace):
            return trace
        return {key: tuple(leaf) for key, leaf in trace.items()}

    def _each(self, rule: Callable[..., Arrays], axis: int = 0) -> Callable[..., Arrays]:
        """``rule`` for every index of the axes ``E``, which start at ``axis`` of the arguments."""
        for _ in self.extra:
            rule = jax.vmap(rule, in_axes=axis)
        return rule

    def scale(self, operands: Sequence[Any]) -> Callable[[jax.Array, Arrays], Arrays]:
        operands = self.operation.widened([*operands])
        return self._each(self._on_whole(self.operation.written("yw_to_w", operands)))

    def _on_whole(self, rule: Callable[..., Arrays]) -> Callable[[jax.Array, Arrays], Arrays]:
        """``rule(factor, trace)``, which sees a trace with all trainable keys, for the traced ones.

        A weight that is held constant, or no parameter, has no trace: the rule gets zeros for it.
        """

        def run(factor: jax.Array, trace: Arrays) -> Arrays:
            untraced = {k: v for k, v in self._own.items() if k not in self.operation.traced}
            zeros = {k: jnp.zeros(v.shape[:-1], v.dtype) for k, v in untraced.items()}
            found = rule(factor, {**zeros, **trace})
            return {key: found[key] for key in trace}

        return run

    @cached_property
    def _own(self) -> Arrays:
        """Types of the family's own leaves, with the state axis last, traced or not."""
        found: Arrays = self.operation.initial_types("init_drtrl", self.num_state)
        return found

    def increments(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        x, f, operands = self.operation.widened((x, f, [*operands]))
        if self.operation.spec.batched and self._takes_blocks(f.shape[0]):
            return self._over_examples(x, f, operands)
        return self._of_all(x, f, operands)

    @property
    def by_example(self) -> bool:
        spec = self.operation.spec  # several devices have their own examples
        written = spec.batched and spec.increments_drtrl is not None
        return (written or self._is_large) and not versions.several_devices()

    @cached_property
    def _is_large(self) -> bool:
        """Whether a block writes over a trace, where processors compute it from ``xy_to_dw``."""
        spec = self.operation.spec
        own = spec.increments_drtrl is not None or spec.instant_drtrl is not None
        if own or not self.has_examples or spec.x_invar_index is None:
            return False
        leaves = self.types.values()
        example = max(math.prod(v.shape[2:]) for v in leaves)
        return example >= LARGE_EXAMPLE and bytes_of([*leaves]) >= FRESH

    def moved(
        self, whole: jax.Array, trace: Arrays, x: Any, f: jax.Array, operands: Sequence[Any]
    ) -> Arrays:
        """The same, one example after the other: each is written over itself."""
        x, f, whole, held = self.operation.widened((x, f, whole, [*operands]))
        axis, types = 1 + len(self.extra), self.types
        same = not is_parted(trace) and all(v.dtype == types[k].dtype for k, v in trace.items())
        several = self._takes_blocks(len(f)) or (self._is_large and len(f) > 1)
        at_once = partial(super().moved, operands=operands)
        if not (same and several and self.by_example and whole.shape[axis + 1] == x.shape[1]):
            return at_once(whole, trace, x, f)

        many = self._in_a_turn(x.shape[1])

        def place(k: Any, trace: Arrays, columns: Any, x: Any, f: jax.Array) -> Arrays:
            def of(array: jax.Array, axis: int) -> jax.Array:
                return jax.lax.dynamic_slice_in_dim(array, many * k, many, axis)

            def put(all_of: jax.Array, kept: jax.Array, new: jax.Array) -> jax.Array:
                one = (kept + new).astype(all_of.dtype)
                return jax.lax.dynamic_update_slice_in_dim(all_of, one, many * k, axis)

            kept = {key: of(leaf, axis) for key, leaf in trace.items()}
            moving = [of(column, axis + 1) for column in columns]
            kept = self._by_columns(moving, kept, operands)
            return jax.tree.map(put, trace, kept, self._of_all(of(x, 1), of(f, 1 + axis), held))

        def in_place(whole: Any, trace: Arrays, x: Any, f: jax.Array) -> Arrays:
            few = self.num_state <= UNROLL_PRODUCTS
            columns = jnp.split(whole, self.num_state, 1) if few else [whole]
            step = partial(place, columns=columns, x=x, f=f)
            return jax.lax.fori_loop(0, x.shape[1] // many, step, trace)

        if not self._is_large:
            return in_place(whole, trace, x, f)
        return versions.on_processors(whole, trace, x, f, cpu=in_place, default=at_once)

    def _in_a_turn(self, examples: int) -> int:
        """How many examples a turn of a loop over them takes, a divisor."""
        if jax.default_backend() == "cpu":
            return 2 if self._is_large and examples % 2 == 0 else 1
        most = TURN * examples // max(1, bytes_of([*self.types.values()]))
        return max(n for n in range(1, examples + 1) if examples % n == 0 and n <= max(1, most))

    def _by_columns(
        self, columns: Sequence[jax.Array], trace: Arrays, operands: Sequence[Any]
    ) -> Arrays:
        """``D . eps`` of the columns of ``D``, each [S, 1, *E, *Y], or of ``D`` alone.

        Where a loop cuts examples out of columns, XLA's CPU backend vectorises their products. It
        does not where it cuts them out of ``D``.
        """
        if len(columns) == 1:
            return self.propagate(columns[0], trace, operands)
        scale = jax.vmap(self.scale(operands), (0, None))
        states = [{key: leaf[j] for key, leaf in trace.items()} for j in range(self.num_state)]
        terms = [scale(D[:, 0], state) for D, state in zip(columns, states, strict=True)]
        return jax.tree.map(lambda *leaves: sum(leaves), *terms)

    def _takes_blocks(self, steps: int) -> bool:
        """Whether the family's own rule for several steps is used."""
        spec = self.operation.spec
        return spec.increments_drtrl is not None and (steps > 1 or spec.instant_drtrl is None)

    def _over_examples(self, x: jax.Array, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        """Increments, some examples after the others: the rule takes the memory of these alone."""
        axis, examples = 1 + len(self.extra), x.shape[1]
        many = self._in_a_turn(examples)
        if versions.several_devices():  # each has its own examples

            def alone(x_b: jax.Array, f_b: jax.Array) -> Arrays:
                found = self._of_all(x_b[:, None], jnp.expand_dims(f_b, 1 + axis), operands)
                return jax.tree.map(lambda v: jnp.squeeze(v, axis), found)

            return jax.vmap(alone, (1, 1 + axis), axis)(x, f)

        def some(k: Any) -> Arrays:
            x_k = jax.lax.dynamic_slice_in_dim(x, many * k, many, 1)
            f_k = jax.lax.dynamic_slice_in_dim(f, many * k, many, 1 + axis)
            return self._of_all(x_k, f_k, operands)

        def place(k: Any, whole: Arrays) -> Arrays:
            put = jax.lax.dynamic_update_slice_in_dim
            return jax.tree.map(lambda v, new: put(v, new, many * k, axis), whole, some(k))

        zeros = {
            key: jnp.zeros((*v.shape[:axis], examples, *v.shape[axis + 1 :]), v.dtype)
            for key, v in jax.eval_shape(some, 0).items()
        }
        return jax.lax.fori_loop(0, examples // many, place, zeros)

    def _of_all(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        one_state = self._increment_rule(x, f.shape[0], operands)
        if self.num_state > UNROLL_STATES:
            return jax.vmap(one_state, in_axes=1)(f)
        rows = [one_state(f[:, s]) for s in range(self.num_state)]
        return stacked([{key: row[key] for key in self.operation.traced} for row in rows])

    def _increment_rule(
        self, x: Any, steps: int, operands: Sequence[Any]
    ) -> Callable[[jax.Array], Arrays]:
        """Increments of one state, from its factors [K, *E, *Y].

        By default a trace is shaped like the weights, once per example, so the increments of an
        example over ``K`` steps are what ``xy_to_dw`` gives when the steps are its batch.
        """
        op = self.operation
        if self._takes_blocks(steps):
            rule = partial(op.written("increments_drtrl", operands), weights=op.weights(operands))
            return self._each(lambda f: rule(x, f), axis=1)
        if op.spec.instant_drtrl is not None:
            own = partial(op.written("instant_drtrl", operands), weights=op.weights(operands))

            def step(x_k: Any, f_k: jax.Array) -> Arrays:
                return self._each(lambda g: own(x_k, g))(f_k)

            return lambda f: sum_over_steps(step, x, f)
        if x is None:
            return lambda f: self._each(lambda g: op.xy_to_dw(None, g, operands))(f.sum(0))
        if not op.spec.batched:
            return self._each(lambda g: op.contract(x, g, operands), axis=1)

        def one_example(x_b: jax.Array, g: jax.Array) -> Arrays:
            return op.contract(x_b[:, None], g[:, None], operands)

        examples = jax.vmap(one_example, in_axes=(1, 1))
        return self._each(lambda g: examples(x, g), axis=1)

    def solve(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        op, extra = self.operation, len(self.extra)
        signal, operands = op.widened((signal, [*operands]))
        if op.spec.solve_drtrl is not None:
            return self.solve_at_once(signal, trace, operands)
        rule, whole = self.scale(operands), partial(self.solve_at_once, operands=operands)
        large: list[str] = []
        alone = not versions.several_devices()  # else each device adds up its own examples
        if op.spec.batched and not extra and alone:  # the second axis of a leaf is of the examples
            sizes = {key: math.prod(v.shape[2:]) for key, v in self.types.items()}
            large = [key for key in trace if sizes[key] >= LARGE_EXAMPLE]
        if not large:
            return whole(signal, trace)

        def by_example(signal: jax.Array, trace: Arrays) -> Arrays:
            each, small = self.sum_over_states(rule, signal, trace), trace.keys() - {*large}
            found = self._summed_by_example(rule, signal, trace, large)
            return found | {key: _sum_leading(each[key], 1) for key in small}

        return versions.on_processors(signal, trace, cpu=by_example, default=whole)

    def solve_in_parts(
        self, signal: jax.Array, trace: Arrays, operands: Sequence[Any], parts: int
    ) -> Arrays:
        op, axis = self.operation, len(self.extra)
        if not op.in_parts(parts) or op.spec.solve_drtrl is not None:
            return super().solve_in_parts(signal, trace, operands, parts)
        signal, operands = op.widened((signal, [*operands]))
        each = self.sum_over_states(self.scale(operands), signal, trace)  # [*E, B, *W]
        return {
            key: split(leaf, axis, parts).sum((*range(1, axis + 2),)) for key, leaf in each.items()
        }

    def solve_at_once(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        op, extra = self.operation, len(self.extra)
        if op.spec.solve_drtrl is not None:
            own = partial(op.written("solve_drtrl", operands), weights=op.weights(operands))
            return self._summed(self._each(self._on_whole(own)), signal, trace, extra)
        return self._summed(self.scale(operands), signal, trace, extra + op.spec.batched)

    @property
    def has_examples(self) -> bool:
        """Whether the second axis of leaves, of factors and of inputs is of examples."""
        return self.operation.spec.batched and not self.extra

    def _summed(
        self, rule: Callable[..., Arrays], signal: jax.Array, trace: Arrays, axes: int
    ) -> Arrays:
        """``rule`` summed over states and leading axes."""
        total = self.sum_over_states(rule, signal, trace)
        return {key: _sum_leading(leaf, axes) for key, leaf in total.items()}

    def _summed_by_example(
        self, rule: Callable[..., Arrays], signal: jax.Array, trace: Arrays, keys: Sequence[str]
    ) -> Arrays:
        """``rule`` summed over states and examples, for some keys.

        XLA's CPU backend runs this at the speed of the memory, in contrast to a sum over a leading
        axis, as long as every term is cut out of the whole arrays by itself.
        """
        many = self.num_state > UNROLL_STATES  # a program for each of them would be long

        @partial(jax.jit, static_argnums=() if many else 0)  # traced once for all examples
        def term(state: Any, example: Any, signal: Any, trace: Any) -> Arrays:
            def cut(array: jax.Array, *start: Any) -> jax.Array:
                one, rest = (1,) * len(start), array.shape[len(start) :]
                where = (*start, *(np.int32(0),) * len(rest))
                return jax.lax.dynamic_slice(
                    array, where, (*one, *rest), allow_negative_indices=False
                )

            def at(array: Any) -> jax.Array:
                if isinstance(array, tuple):
                    return cut(array[state], example)
                return cut(array, state if many else np.int32(state), example)[0]

            one = rule(at(signal), {key: at(leaf) for key, leaf in trace.items()})
            return {key: one[key][0] for key in keys}

        def added(total: Arrays, state: Any, examples: Iterable[Any]) -> Arrays:
            for s, b in product(own, examples):
                new = term(state + s, b, signal, trace)
                total = jax.tree.map(jnp.add, total, new)
            return total

        def add(total: Arrays, at: Any) -> tuple[Arrays, None]:
            state, example = at if many else (0, at)
            return added(total, state, [example + b for b in range(EXAMPLES_AT_ONCE)]), None

        def add_first(total: Arrays, state: Any) -> tuple[Arrays, None]:
            return added(total, state, np.arange(rest, dtype=np.int32)), None

        own, examples = range(1 if many else self.num_state), signal.shape[1]
        rest = examples % EXAMPLES_AT_ONCE
        groups = np.arange(rest, examples, EXAMPLES_AT_ONCE, dtype=np.int32)
        states = np.arange(self.num_state, dtype=np.int32)
        like = term.eval_shape(np.int32(0) if many else 0, np.int32(0), signal, trace)
        total = jax.tree.map(start_of_sum, like)
        total, _ = jax.lax.scan(add_first, total, states) if many else add_first(total, 0)
        pairs = np.repeat(states, len(groups)), np.tile(groups, len(states))
        if len(groups):  # outside of jit, no loop may be empty
            total, _ = jax.lax.scan(add, total, pairs if many else groups)
        return jax.tree.map(lambda v, one: v.astype(one.dtype), total, like)


def _sum_leading(array: Any, axes: int) -> jax.Array:
    """Sum over leading axes by halves.

    Each halving is an element-wise addition of large arrays, which compilers vectorise; XLA's CPU
    backend runs a plain sum over a leading axis as strided scalar loops, 200 times slower. Halves
    of an axis that lies on several devices would be sent from one to another.
    """
    if versions.several_devices():
        return array.sum(tuple(range(axes)))
    for _ in range(axes):
        rest = None
        while array.shape[0] > 1:
            half = array.shape[0] // 2
            if array.shape[0] % 2:
                rest = array[-1] if rest is None else rest + array[-1]
            array = array[:half] + array[half : 2 * half]
        array = array.sum(0) if rest is None else array.sum(0) + rest
    return array
