# SPDX-License-Identifier: Apache-2.0
"""Traces of many states that follow others: moved on one example after the other, in place.

What an example takes stays close to the processor, where each state reads all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.precision import start_of_sum
from ..executor.cascade import Cascade
from ..ops.operation import Arrays
from ..ops.traces.base import TraceRules, add


def goes_by_example(rules: TraceRules, moving: Any) -> bool:
    """Whether a trace is moved on in this way by a transition."""
    large = isinstance(moving, Cascade) and moving.is_large
    return large and rules.has_examples and not versions.several_devices()


def moved_by_example(
    rules: TraceRules,
    moving: Cascade,
    trace: Arrays,
    operands: Sequence[Any],
    driven: tuple[Any, jax.Array] | None = None,
    signal: jax.Array | None = None,
) -> tuple[Arrays, Arrays]:
    """``D . eps + f (x) x``, and what a ``signal`` [S, *Y] finds in it.

    Parameters
    ----------
    moving
        ``D``, laid out as ``y`` is, but for the leak.
    driven
        ``x`` [1, ..] and ``f`` [1, H, *Y] of the first states, where these are driven.
    """
    moving, signal = rules.operation.widened((moving, signal))
    one, scale = rules.of_states(1), rules.scale(operands)
    types = {key: leaf.dtype for key, leaf in trace.items()}

    def heard(signal: jax.Array, row: Arrays) -> Arrays:
        return one.solve_at_once(signal[None], {k: v[None] for k, v in row.items()}, operands)

    def example(trace: Arrays, b: Any) -> tuple[Arrays, Arrays]:
        """Its trace, and what is heard of it.

        It is the result of a loop over states: XLA would compute a plain array again for each of
        its readers, from a copy of the whole trace.
        """
        base, terms = _parts(rules, _at(b, moving), _at(b, trace), operands, _at(b, driven))

        def row(found: Arrays, now: Any) -> tuple[Arrays, Arrays]:
            new, factors, own = now
            for factor, (_, source) in zip(factors, terms, strict=True):
                new = add(new, scale(factor, source))
            new = {key: v.astype(types[key]) for key, v in new.items()}
            return (found if own is None else add(found, heard(own, new))), new

        zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), like)
        factors = [factor for factor, _ in terms]
        found, new = jax.lax.scan(row, zeros, (base, factors, _at(b, signal)))
        return new, found

    def step(b: Any, carried: tuple[Arrays, Arrays]) -> tuple[Arrays, Arrays]:
        trace, found = carried
        new, own = example(trace, b)
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=b, axis=1)
        return jax.tree.map(put, trace, new), add(found, own)

    like: Arrays = {}
    if signal is not None:
        like = jax.eval_shape(heard, signal[0, :1], {k: v[0, :1] for k, v in trace.items()})
    start = trace, jax.tree.map(start_of_sum, like)
    trace, found = jax.lax.fori_loop(0, moving.first.shape[2], step, start)
    return trace, jax.tree.map(lambda v, own: v.astype(own.dtype), found, like)


def _parts(
    rules: TraceRules, moving: Cascade, trace: Arrays, operands: Sequence[Any], driven: Any
) -> tuple[Arrays, list[tuple[jax.Array, Arrays]]]:
    """The new trace of an example without what the filters follow, and that.

    It is a factor for each state [S, *Y] and what it is multiplied with.
    """
    states, leaks = moving.num_first, moving.last.shape[:2]
    first = rules.of_states(states)
    olds = {key: leaf[:states] for key, leaf in trace.items()}
    news = first.propagate(moving.first, olds, operands)
    if driven is not None:
        x, f = driven
        news = add(news, first.increments(x, f, operands))
    leak = moving.last.reshape(leaks)
    kept = {key: jnp.tensordot(leak, leaf[states:], 1) for key, leaf in trace.items()}
    base = {key: jnp.concatenate([v, kept[key].astype(v.dtype)]) for key, v in news.items()}
    above = jnp.zeros_like(moving.between, shape=(states, *moving.between.shape[2:]))
    terms = []
    for matrix, source in ((moving.between, news), (moving.old, olds)):
        for j in range(0 if matrix is None else states):
            factor = jnp.concatenate([above, matrix[:, j]])
            terms.append((factor, {key: leaf[j] for key, leaf in source.items()}))
    return base, terms


def _at(b: Any, tree: Any) -> Any:
    """An example of a trace or signal [S, B, ..], of a transition, or of ``x`` and ``f``."""
    if isinstance(tree, Cascade):
        last = _cut(b, 2, tree.last) if tree.last.shape[2] > 1 else tree.last
        first, between, old = (_cut(b, 2, v) for v in (tree.first, tree.between, tree.old))
        return Cascade(first, last, between, tree.follows, old)
    if isinstance(tree, tuple):
        return _cut(b, 1, tree[0]), _cut(b, 2, tree[1])
    return _cut(b, 1, tree)


def _cut(b: Any, axis: int, tree: Any) -> Any:
    cut = partial(jax.lax.dynamic_slice_in_dim, start_index=b, slice_size=1, axis=axis)
    return jax.tree.map(cut, tree)
