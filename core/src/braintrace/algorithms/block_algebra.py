# SPDX-License-Identifier: Apache-2.0
"""The algebra of a block of steps during which the weights do not change.

D-RTRL's trace obeys ``eps^t = D^t eps^{t-1} + f^t (x) x^t``, and the gradient of a block of ``K``
steps is ``sum_t <l^t, eps^t> + <e^t, eps^{t-1}>``. Unrolling the recursion and collecting what
multiplies each ``f^t (x) x^t`` gives an *accumulated signal* that runs backward,

    a^t = l^t + c^t,    c^t = e^{t+1} + (D^{t+1})^T a^{t+1},    c^K = 0,

and the same gradient as a sum over steps, which is one product:

    sum_t xy_to_dw(x^t, sum_s f^t a^t) + < c^0, eps^0 >.

Likewise the trace that leaves the block, with the suffix products ``P^t = D^K ... D^{t+1}``:

    eps^K = P^0 . eps^0 + sum_t (P^t f^t) (x) x^t.

The recursions touch arrays of the size of the hidden state only. No division occurs, so a zero in
``D`` (a hard reset) is like any other value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp

from ..base.precision import sum_dtype
from ..compiler.reach import Pattern
from ..executor.cascade import Cascade, joined
from ..executor.pulled import Pulled
from ..jaxprs.run import scan
from ..ops.traces.bands import Bands, bands_of_products, identity, product
from ..ops.traces.base import UNROLL_STATES


def accumulate(
    transition: jax.Array | Bands | Cascade | None,
    signal: jax.Array,
    old_signal: jax.Array | None,
    passing: Pattern | None = None,
) -> tuple[jax.Array, jax.Array | None]:
    """The accumulated signal of one group, ``a^t`` [K, S, *V], and ``c^0`` [S, *V].

    It is that of ``D`` [K, S, S, *V], ``l`` and ``e`` [K, S, *V], ``None`` where structurally zero,
    as ``c^0`` is. ``passing`` says which entries of ``D`` are not [S][S]; ``None``: any may be.
    Of a :class:`Cascade`, ``a`` is that of the first states, which is all that ``f`` meets.
    """
    if isinstance(transition, Cascade):
        parts = transition.parted(signal, 1), transition.parted(old_signal, 1)
        start = jax.tree.map(lambda v: jnp.zeros_like(v[0]), parts[0])
        back = _cascade_backward(passing)
        ends, accumulated = scan(back, start, (transition, *parts), reverse=True)
        return accumulated, jnp.concatenate(ends)
    if transition is not None:
        rows, start = (transition, signal, old_signal), jnp.zeros_like(signal[0])
        entry, accumulated = scan(_backward(passing), start, rows, reverse=True)
        return accumulated, entry
    if old_signal is None:
        return signal, None
    shifted = jnp.concatenate([old_signal[1:], jnp.zeros_like(old_signal[:1])])
    return signal + shifted, old_signal[0]


def accumulate_pulled(
    pulled: Pulled, signal: jax.Array, old_signal: jax.Array | None
) -> tuple[dict[int, jax.Array], jax.Array]:
    """``sum_s f^t a^t`` of each link [K, *Y], and ``c^0`` [S, *V], without looking at ``D``."""
    rows = pulled, signal, old_signal
    start = jnp.zeros_like(signal[0])
    entry, found = scan(_pull_backward, start, rows, reverse=True)
    return found, entry


# Bodies of scans are made once: outside of jit, a new function is compiled at each call.


def _pull_backward(
    carried: jax.Array, now: tuple[Pulled, jax.Array, Any]
) -> tuple[jax.Array, dict[int, jax.Array]]:
    pulled, signal, old_signal = now
    carried, found = pulled(signal + carried)
    return (carried if old_signal is None else carried + old_signal), found


@lru_cache
def _backward(passing: Pattern | None) -> Callable[..., tuple[jax.Array, jax.Array]]:
    backward = None if passing is None else tuple(zip(*passing, strict=True))

    def step(carried: jax.Array, now: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        transition, signal, old_signal = now
        total = signal + carried
        carried = apply(turned(transition), total, backward)
        return (carried if old_signal is None else carried + old_signal), total

    return step


@lru_cache
def _cascade_backward(passing: Pattern | None) -> Callable[..., Any]:
    """``a`` of the filters is a filter, and what it finds of the first states belongs to theirs."""

    def step(carried: tuple[Any, Any], now: tuple[Cascade, Any, Any]) -> tuple[Any, jax.Array]:
        D, signal, old = now
        first, last = (own + c for own, c in zip(signal, carried, strict=True))
        first = first + apply(turned(D.between), last, tuple(zip(*D.follows, strict=True)))
        of_first, of_last = D.patterns(passing and tuple(zip(*passing, strict=True)))
        new = apply(turned(D.first), first, of_first), apply(turned(D.last), last, of_last)
        if D.old is not None:
            new = new[0] + apply(turned(D.old), last), new[1]
        return (new if old is None else (new[0] + old[0], new[1] + old[1])), first

    return step


def suffix_products(
    transition: jax.Array | Cascade, decays: jax.Array | None = None
) -> tuple[jax.Array, jax.Array | Cascade]:
    """``P^t`` for t = 1..K [K, S, S, *V] (the last is the identity), and ``P^0``.

    With ``decays`` [K], ``Q^t = decays^t + Q^{t+1} D^{t+1}`` in place of ``P^t``, and ``Q^1 D^1``.
    Of a :class:`Cascade`, ``P^t`` is for ``f`` of the first states [K, S, H, *V], and ``P^0`` is
    one, too, if it is large; its filters then follow nothing but old values.
    """
    if isinstance(transition, Cascade):
        return _products_of_cascade(transition)
    dtype = sum_dtype(transition.dtype)
    identity = _identity(transition[0]).astype(dtype)
    start = identity if decays is None else jnp.zeros_like(identity)
    decays = None if decays is None else decays.astype(dtype)
    whole, products = scan(_multiplied, start, (transition, decays), reverse=True)
    return products, whole


def products_by_bands(transition: Bands, factors: jax.Array) -> tuple[jax.Array, Bands] | None:
    """``P^t f^t`` [K, S, ..], and ``P^0``, of ``D`` [K, ..] by its bands, laid out as ``f`` is.

    ``None`` where a product would have too many entries.
    """
    like = jax.tree.map(lambda v: v[0], transition)
    if (bands := bands_of_products(like.bands, like.num_state)) is None:
        return None
    start = identity(bands, like, sum_dtype(jnp.result_type(*like.values)))
    whole, driven = scan(_multiplied_bands, start, (transition, factors), reverse=True)
    return driven, whole


def _multiplied_bands(total: Bands, now: tuple[Bands, jax.Array]) -> tuple[Bands, jax.Array]:
    moving, f = now
    new = product(total, moving, total.bands)
    return jax.tree.map(lambda v, like: v.astype(like.dtype), new, total), total.times(f)


def _multiplied(product: jax.Array, now: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
    transition, decay = now
    if decay is not None:
        product = product + decay * _identity(product)
    return compose(product, transition), product


def _products_of_cascade(moving: Cascade) -> tuple[jax.Array, jax.Array | Cascade]:
    """``P^t`` for ``f`` of the first states, and ``P^0``.

    Backward, with ``L^t`` the product of the filters' leaks after step t: ``P^t`` is
    ``P^{t+1} D^{t+1}`` and, in the rows of the filters, ``L^t N^t`` besides, and ``L^t M^t`` before
    the step.
    """
    dtype = sum_dtype(moving.first.dtype)
    one, leak = (_identity(v[0]).astype(dtype) for v in (moving.first, moving.last))
    states, filters = len(one), len(leak)
    below = jnp.zeros((filters, *one.shape[1:]), dtype)
    ends, products = scan(_multiplied_cascade, (one, below, leak), moving, reverse=True)
    one, below, leak = ends
    products = jnp.concatenate(products, 1)
    if moving.is_large:
        nothing = ((False,) * states,) * filters
        return products, Cascade(one, leak, jnp.zeros_like(below), nothing, below)
    return products, joined(one, below, leak)


def _multiplied_cascade(carried: tuple[Any, Any, Any], now: Cascade) -> tuple[Any, Any]:
    one, below, leak = carried
    below = below + compose(leak, now.between)
    new = compose(one, now.first), compose(below, now.first), compose(leak, now.last)
    if now.old is not None:
        new = new[0], new[1] + compose(leak, now.old), new[2]
    return tuple(map(jnp.astype, new, (v.dtype for v in carried))), (one, below)


def _identity(like: jax.Array) -> jax.Array:
    """The identity [S, S, *V] at every position."""
    eye = jnp.eye(like.shape[0], dtype=like.dtype)
    return jnp.broadcast_to(eye.reshape(*eye.shape, *(1,) * (like.ndim - 2)), like.shape)


def turned(matrix: jax.Array | Bands) -> jax.Array | Bands:
    """The transposed matrices [S, S, ..]."""
    return matrix.turned if isinstance(matrix, Bands) else jnp.swapaxes(matrix, 0, 1)


def apply(
    matrix: jax.Array | Bands, vector: jax.Array, passing: Pattern | None = None
) -> jax.Array:
    """``matrix`` [S, S', ..] times ``vector`` [S', ..], position by position.

    ``passing`` says which entries are not structurally zero.
    """
    if isinstance(matrix, Bands):
        return matrix.times(vector)
    if min(matrix.shape[:2]) > UNROLL_STATES:
        if matrix.shape[2:] != vector.shape[1:]:
            return by_example(matrix, vector)
        return jnp.einsum("ij...,j...->i...", matrix, vector)
    columns = [*enumerate(vector)]
    if len(matrix) > UNROLL_STATES:
        return _summed([matrix[:, j] * v for j, v in columns], matrix[:, 0])
    terms = [
        [matrix[i, j] * v for j, v in columns if passing is None or passing[i][j]]
        for i in range(len(matrix))
    ]
    return jnp.stack([_summed(row, columns[0][1]) for row in terms])


def by_example(matrix: jax.Array, vector: jax.Array) -> jax.Array:
    """``matrix`` [S, S', B or 1, 1, ..] times ``vector`` [S', B, ..], example by example."""
    examples = matrix.shape[2]
    flat = vector.reshape(len(vector), examples, -1)
    found = jnp.einsum("ijb,jbn->ibn", matrix.reshape(*matrix.shape[:2], examples), flat)
    return found.reshape(len(matrix), *vector.shape[1:])


def meet(f: jax.Array, signal: jax.Array, driving: Sequence[bool] | None = None) -> jax.Array:
    """``sum_s f^k_s a^k_s`` of ``f`` and ``signal`` [K, S, ..].

    ``driving`` says which states of ``f`` are not structurally zero.
    """
    states = f.shape[1]
    if states > UNROLL_STATES:
        return (f * signal).sum(1)
    chosen = [s for s in range(states) if driving is None or driving[s]]
    return _summed([f[:, s] * signal[:, s] for s in chosen], f[:, 0])


def _summed(terms: Sequence[jax.Array], like: jax.Array) -> jax.Array:
    """The sum of some terms; zeros without any."""
    return sum(terms[1:], terms[0]) if terms else jnp.zeros_like(like)


def compose(a: jax.Array, b: jax.Array) -> jax.Array:
    """``a`` times ``b`` for matrices [S, S, ..], position by position."""
    return jax.vmap(lambda column: apply(a, column), in_axes=1, out_axes=1)(b)
