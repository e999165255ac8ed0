# SPDX-License-Identifier: Apache-2.0
"""What is claimed of positions holds in the numerical Jacobian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from braintrace.jaxprs.depends import differentiable, slice_to
from braintrace.jaxprs.positions.alignment import Alignment, align
from braintrace.jaxprs.run import flatten

Shape = tuple[int, ...]


def claim(
    fun: Callable[[Any], Any], shape: Shape, ndim: int | None = None, source_ndim: int | None = None
) -> Alignment | None:
    """What ``align`` says of ``fun`` from an array of ``shape``."""
    closed = jax.make_jaxpr(fun)(jax.ShapeDtypeStruct(shape, "float64"))
    flat = flatten(closed, [0], list(range(len(closed.out_avals))), range(len(closed.out_avals)))
    ndim = len(flat.out_avals[0].shape) if ndim is None else ndim
    source_ndim = len(shape) if source_ndim is None else source_ndim
    kept = slice_to(flat.eqns, flat.outvars, lambda i, eqn, operand: differentiable(eqn))
    eqns = [flat.eqns[i] for i in kept]
    return align(eqns, flat.invars[0], flat.outvars, ndim, source_ndim)


def jacobian(fun: Callable[[Any], Any], shape: Shape) -> np.ndarray:
    x = np.random.default_rng(0).uniform(0.2, 0.8, size=shape)
    return np.asarray(jax.jacobian(lambda v: fun(v))(jnp.asarray(x)))


def off_positions(found: Alignment, out_shape: Shape, shape: Shape) -> np.ndarray:
    """Mask [*out, *source] of entries that are zero if the claim is right."""
    indices = np.indices((*out_shape, *shape))
    out, source = indices[: len(out_shape)], indices[len(out_shape) :]
    off = np.zeros((*out_shape, *shape), bool)
    for axis, place in enumerate(found.axes):
        if place is not None:
            off |= out[place] != source[axis]
    if found.elements is not None:
        positions = np.arange(np.prod(found.result, dtype=int)).reshape(found.result)
        reached = found.elements[tuple(source[: len(found.source)])]
        off |= positions[tuple(out[: len(found.result)])] != reached
    return off


def assert_holds(fun: Callable[[Any], Any], shape: Shape, found: Alignment) -> None:
    matrix = jacobian(fun, shape)
    off = off_positions(found, matrix.shape[: matrix.ndim - len(shape)], shape)
    assert not matrix[off].any(), "the Jacobian is not zero off the claimed positions"
    assert matrix[~off].any(), "the claim is vacuous"


@jax.custom_jvp
def spike(v: Any) -> Any:
    return (v > 0.0).astype(v.dtype)


spike.defjvps(lambda t, ans, v: t / (1.0 + 4.0 * v**2))


@jax.custom_vjp
def spike_vjp(v: Any) -> Any:
    return (v > 0.0).astype(v.dtype)


spike_vjp.defvjp(
    lambda v: (spike_vjp(v), v), lambda v, g: (g * 0.7 * jnp.maximum(0.0, 1.0 - jnp.abs(v)),)
)


@jax.custom_jvp
def centred_slope(v: Any) -> Any:
    """Element-wise in value, mixing in its derivative."""
    return jnp.sin(v)


centred_slope.defjvps(lambda t, ans, v: t * jnp.cos(v) - t.mean())


@jax.custom_vjp
def centred_slope_vjp(v: Any) -> Any:
    return jnp.sin(v)


centred_slope_vjp.defvjp(lambda v: (jnp.sin(v), v), lambda v, g: (g * jnp.cos(v) - g.mean(),))


@jax.custom_vjp
def row_mean_vjp(v: Any) -> Any:
    """What is left of the axis that is summed over has size one."""
    return v.mean(-1, keepdims=True)


row_mean_vjp.defvjp(
    lambda v: (v.mean(-1, keepdims=True), v),
    lambda v, g: (jnp.broadcast_to(g / v.shape[-1], v.shape),),
)


@jax.custom_jvp
def rotated(v: Any) -> Any:
    return jnp.flip(jnp.sin(v), -1)


rotated.defjvps(lambda t, ans, v: jnp.flip(t * jnp.cos(v), -1))


def windows(computation: Any, start: float, *options: Any) -> Callable[[Any], Any]:
    return lambda v: jax.lax.reduce_window(v, start, computation, *options)


ROW = np.arange(1.0, 4.0)
MIX = np.array([[0.3, 0.2], [-0.5, 0.7]])

#: name -> (function, shape of the source, position axes of target and source (None: all), axes)
POSITION_WISE: dict[str, tuple[Callable[[Any], Any], Shape, int | None, int | None, Any]] = {
    "sin": (jnp.sin, (2, 3), None, None, (0, 1)),
    "arithmetic": (lambda v: jnp.exp(v) * v - v / 3.0 + 2.0**v, (2, 3), None, None, (0, 1)),
    "times a row": (lambda v: v * ROW, (2, 3), None, None, (0, 1)),
    "size one, broadcast": (lambda v: v + np.ones((2, 3)), (1, 3), None, None, (None, 1)),
    "size one times another": (lambda v: v * jnp.ones((2, 3)), (2, 1), None, None, (0, None)),
    "broadcast over a batch": (lambda v: jnp.broadcast_to(v, (2, 3)), (3,), None, None, (1,)),
    "broadcast behind": (lambda v: jnp.broadcast_to(v[:, None], (3, 2)), (3,), None, None, (0,)),
    "a scalar": (lambda v: v * np.ones((2, 3)), (), None, None, ()),
    "one element": (lambda v: v * np.ones((2, 3)), (1,), None, None, (None,)),
    "transpose": (lambda v: jnp.transpose(v, (2, 0, 1)), (2, 3, 4), None, None, (1, 2, 0)),
    "swap twice": (lambda v: jnp.sin(v.T).T, (2, 3), None, None, (0, 1)),
    "reshape adds one": (lambda v: v.reshape(2, 1, 3), (2, 3), None, None, (0, 2)),
    "reshape drops one": (lambda v: v.reshape(2, 3), (2, 1, 3), None, None, (0, None, 1)),
    "squeeze": (lambda v: jnp.squeeze(v, 1), (2, 1, 3), None, None, (0, None, 1)),
    "expand dims": (lambda v: jnp.expand_dims(v, (0, 3)), (2, 3), None, None, (1, 2)),
    "stack on a state axis": (lambda v: jnp.stack([v, jnp.cos(v)], -1), (2, 3), 2, None, (0, 1)),
    "stack with another": (lambda v: jnp.stack([v, jnp.ones(3)], -1), (3,), 1, None, (0,)),
    "concatenate states": (lambda v: jnp.concatenate([v, v**2], -1), (3, 2), 1, 1, (0,)),
    "split states": (lambda v: sum(jnp.split(v, 2, -1)), (3, 4), 1, 1, (0,)),
    "index a state": (lambda v: v[..., 0] * jnp.sin(v[..., 1]), (2, 3, 2), None, 2, (0, 1)),
    "negative index": (lambda v: v[..., -1], (2, 3, 2), None, 2, (0, 1)),
    "gather states": (lambda v: v[..., np.array([1, 0, 1])], (3, 2), 1, 1, (0,)),
    "slice states": (lambda v: v[..., 1:], (3, 4), 1, 1, (0,)),
    "dynamic slice of states": (
        lambda v: jax.lax.dynamic_slice_in_dim(v, 1, 2, 1), (3, 4), 1, 1, (0,),
    ),
    "write a state": (
        lambda v: jax.lax.dynamic_update_slice(v, jnp.sin(v[:, 1:]), (0, 0)), (3, 2), 1, 1, (0,),
    ),
    "product over states": (lambda v: v @ MIX, (2, 3, 2), 2, 2, (0, 1)),
    "product from the left": (lambda v: jnp.einsum("ij,bj->bi", MIX, v), (3, 2), 1, 1, (0,)),
    "einsum": (lambda v: jnp.einsum("bps,st->bpt", v, MIX), (2, 3, 2), 2, 2, (0, 1)),
    "product per position": (
        lambda v: jnp.einsum("ps,pst->pt", v, np.ones((3, 2, 2))), (3, 2), 1, 1, (0,),
    ),
    "sum over states": (lambda v: v.sum(-1), (2, 3, 2), None, 2, (0, 1)),
    "max over states": (lambda v: v.max(-1), (2, 3, 2), None, 2, (0, 1)),
    "softmax over states": (lambda v: jax.nn.softmax(v, -1), (3, 2), 1, 1, (0,)),
    "reverse states": (lambda v: jnp.flip(v, -1), (3, 2), 1, 1, (0,)),
    "cumsum over states": (lambda v: jnp.cumsum(v, -1), (3, 2), 1, 1, (0,)),
    "cumprod over states": (lambda v: jnp.cumprod(v, -1), (3, 2), 1, 1, (0,)),
    "pad states": (lambda v: jnp.pad(v, ((0, 0), (1, 2))), (3, 2), 1, 1, (0,)),
    "clamp": (lambda v: jnp.clip(v, 0.3, 0.7), (2, 3), None, None, (0, 1)),
    "clamp between arrays": (lambda v: jax.lax.clamp(0.3, v, 0.7), (2, 3), None, None, (0, 1)),
    "select": (lambda v: jnp.where(v > 0.5, v, 2 * v), (2, 3), None, None, (0, 1)),
    "select with a constant": (lambda v: jnp.where(ROW > 1, v, 0.0), (2, 3), None, None, (0, 1)),
    "relu": (jax.nn.relu, (2, 3), None, None, (0, 1)),
    "softplus": (jax.nn.softplus, (2, 3), None, None, (0, 1)),
    "gelu": (jax.nn.gelu, (2, 3), None, None, (0, 1)),
    "spike": (spike, (2, 3), None, None, (0, 1)),
    "spike of custom_vjp": (spike_vjp, (2, 3), None, None, (0, 1)),
    "reset": (lambda v: v * (1 - spike(v - 0.5)), (2, 3), None, None, (0, 1)),
    "jit": (lambda v: jax.jit(jnp.sin)(v), (2, 3), None, None, (0, 1)),
    "checkpoint": (lambda v: jax.checkpoint(jnp.sin)(v), (2, 3), None, None, (0, 1)),
    "stopped sum": (
        lambda v: v * jax.lax.stop_gradient(v.sum(-1, keepdims=True)), (2, 3), None, None, (0, 1),
    ),
    "integer sum": (lambda v: v * (v > 0.5).sum(), (2, 3), None, None, (0, 1)),
    "halves apart": (
        lambda v: jnp.concatenate([jnp.sin(v[:, :1]), 2 * v[:, 1:]], -1),
        (2, 3), None, None, (0, 1),
    ),
    "windows of a dilated array": (
        windows(jax.lax.add, 0.0, (2,), (2,), ((0, 1),), (2,), (1,)), (3,), None, None, (0,),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", POSITION_WISE)
def test_position_wise(name: str) -> None:
    fun, shape, ndim, source_ndim, axes = POSITION_WISE[name]
    found = claim(fun, shape, ndim, source_ndim)
    assert found is not None
    assert not found.mixed, found.offence
    assert found.axes == axes
    assert found.elements is None
    assert_holds(fun, shape, found)


#: What axes do not tell, elements do: each of the source reaches one position at most.
MOVED: dict[str, tuple[Callable[[Any], Any], Shape, int | None, int | None]] = {
    "reshape folds": (lambda v: v.reshape(6), (2, 3), None, None),
    "reshape moves": (lambda v: v.reshape(3, 2), (2, 3), None, None),
    "sum": (lambda v: v.sum(-1), (2, 3), None, None),
    "concatenate shifted": (
        lambda v: jnp.concatenate([v[1:], v[:1]], 0), (3, 2), None, None,
    ),
    "split positions": (lambda v: sum(jnp.split(v, 2, 0)), (4, 3), None, None),
    "reverse": (lambda v: v[..., ::-1], (2, 3), None, None),
    "roll": (lambda v: jnp.roll(v, 1, -1), (2, 3), None, None),
    "split into unequal parts": (lambda v: v[:, :2] * v[:, 3:5], (2, 5), None, None),
    "gates by reshape": (
        lambda v: jnp.exp(v.reshape(2, 3, 2)).sum(axis=1), (2, 6), None, None,
    ),
    "gates by unstack": (
        lambda v: sum(jnp.sin(g) for g in jnp.unstack(v.reshape(2, 3, 2), axis=1)),
        (2, 6), None, None,
    ),
    "every other": (lambda v: v[:, ::2] * v[:, 1::2], (2, 4), None, None),
    "pooled": (lambda v: v.reshape(2, 2, 3).max(-1), (2, 6), None, None),
    "pooling windows": (
        windows(jax.lax.max, -jnp.inf, (1, 2), (1, 2), "VALID"), (2, 5), None, None,
    ),
    "padded windows with gaps": (
        windows(jax.lax.add, 0.0, (2,), (3,), ((1, 1),)), (5,), None, None,
    ),
    "dilated windows": (
        windows(jax.lax.add, 0.0, (2,), (2,), ((1, 0),), (1,), (3,)), (6,), None, None,
    ),
    "part of it": (lambda v: jnp.sin(v[1:3]), (4,), None, None),
    "transposed and folded": (lambda v: v.T.reshape(-1), (2, 3), None, None),
    "folded, with states behind": (
        lambda v: jnp.stack([v, jnp.sin(v)], -1).reshape(2, 3, 2), (6,), 2, None,
    ),
    "tiled, then summed": (lambda v: jnp.stack([v, 2 * v]).sum(0)[::-1], (3,), None, None),
    "custom_jvp body moves": (rotated, (2, 3), None, None),
    "spikes of gates": (
        lambda v: spike(v[:2] - 0.5) * spike_vjp(v[2:] - 0.5) + v[:2], (4,), None, None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOVED)
def test_elements_that_move(name: str) -> None:
    fun, shape, ndim, source_ndim = MOVED[name]
    found = claim(fun, shape, ndim, source_ndim)
    assert found is not None and found.elements is not None
    assert not found.mixed and not found.extra
    assert_holds(fun, shape, found)


Mixed = tuple[Callable[[Any], Any], Shape, int | None, int | None, tuple[int | None, ...]]

#: name -> (as above, and the axes that are kept all the same)
MIXED: dict[str, Mixed] = {
    "sum and broadcast": (lambda v: v - v.mean(-1, keepdims=True), (2, 3), None, None, (0, None)),
    "max": (lambda v: v - v.max(), (2, 3), None, None, (None, None)),
    "logsumexp": (lambda v: jax.nn.log_softmax(v, -1), (2, 3), None, None, (0, None)),
    "stack positions": (lambda v: jnp.stack([v, v]).reshape(4, 3), (2, 3), None, None, (None, 1)),
    "concatenate positions": (lambda v: jnp.concatenate([v, v], 0), (2, 3), None, None, (None, 1)),
    "gather positions": (lambda v: v[np.array([1, 0, 2])], (3, 2), None, None, (None, 1)),
    "same size gather": (
        lambda v: jnp.take(v, np.array([2, 1, 0]), axis=1), (2, 3), None, None, (0, None),
    ),
    "one position": (lambda v: v + v[:, :1], (2, 3), None, None, (0, None)),
    "scatter positions": (
        lambda v: jnp.zeros((3, 2)).at[np.array([2, 0, 1])].add(v), (3, 2), None, None, (None, 1)),
    "write a position": (lambda v: v.at[0].set(v[1]), (3, 2), None, None, (None, 1)),
    "dense product": (lambda v: v @ np.ones((3, 3)), (2, 3), None, None, (0, None)),
    "product from the left": (lambda v: np.ones((2, 2)) @ v, (2, 3), None, None, (None, 1)),
    "with itself": (lambda v: v @ v.T, (3, 3), None, None, (None, None)),
    "outer product": (lambda v: v[:, None] * v[None, :], (3,), None, None, (None,)),
    "plus its transpose": (lambda v: v + v.T, (3, 3), None, None, (None, None)),
    "cumsum": (lambda v: jnp.cumsum(v, 0), (3, 2), None, None, (None, 1)),
    "cumlogsumexp": (lambda v: jax.lax.cumlogsumexp(v, 0), (3, 2), None, None, (None, 1)),
    "pad positions": (lambda v: jnp.pad(v, ((1, 0), (0, 0)))[:-1], (3, 2), None, None, (None, 1)),
    "negative pad": (
        lambda v: jax.lax.pad(v, 0.0, [(1, -1, 0), (0, 0, 0)]), (3, 2), None, None, (None, 1)),
    "sort": (lambda v: jnp.sort(v, -1), (2, 3), None, None, (0, None)),
    "fft": (lambda v: jnp.fft.fft(v).real, (3,), None, None, (None,)),
    "convolution": (lambda v: jnp.convolve(v, ROW, "same"), (4,), None, None, (None,)),
    "select of a reversed": (lambda v: jnp.where(v > 0.5, v, v[::-1]), (3,), None, None, (None,)),
    "select with a transpose": (
        lambda v: jnp.where(v > 0.5, v, v.T), (3, 3), None, None, (None, None),
    ),
    "scan": (
        lambda v: jax.lax.scan(lambda c, r: (c + r, c * r), jnp.zeros(2), v)[1], (3, 2), None, None,
        (None, 1),
    ),
    "custom_jvp rule mixes": (centred_slope, (3,), None, None, (None,)),
    "custom_vjp rule mixes": (centred_slope_vjp, (3,), None, None, (None,)),
    "custom_vjp sums an axis": (lambda v: v - row_mean_vjp(v), (2, 3), None, None, (0, None)),
    "spike, then reversed": (
        lambda v: v + spike(v - 0.5)[..., ::-1], (2, 3), None, None, (0, None),
    ),
    "spike, then a product": (
        lambda v: v + spike_vjp(v - 0.5) @ np.ones((3, 3)), (2, 3), None, None, (0, None)),
    "states folded into positions": (lambda v: v.reshape(6), (3, 2), 1, 1, (None,)),
    "states become positions": (lambda v: v.T, (2, 2), 1, 1, (None,)),
    "examples apart in a convolution": (
        lambda v: jax.lax.conv_general_dilated(v, np.ones((1, 1, 2)), (1,), "VALID"),
        (2, 1, 3), None, None, (0, None, None),
    ),
    "pooling windows that overlap": (
        lambda v: jax.lax.reduce_window(v, 0.0, jax.lax.add, (1, 2), (1, 1), "VALID"),
        (2, 3), None, None, (0, None),
    ),
    "attention over heads": (
        lambda v: jnp.einsum("hij,hjk->hik", v, v), (2, 3, 3), None, None, (0, None, None),
    ),
    "triangular solve": (
        lambda v: jnp.linalg.solve(np.eye(2) * 3.0 + np.ones((2, 2)), v), (2, 2), None, None,
        (None, None),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MIXED)
def test_mixed_positions(name: str) -> None:
    fun, shape, ndim, source_ndim, axes = MIXED[name]
    found = claim(fun, shape, ndim, source_ndim)
    assert found is not None and found.offence is not None
    assert found.mixed and found.elements is None
    assert found.axes == axes
    assert_holds(fun, shape, found)


def test_the_offence_is_the_equation_that_mixes() -> None:
    found = claim(lambda v: jnp.sin(jnp.cumsum(jnp.cos(v))) * 2.0, (3,))
    assert found is not None and found.offence is not None
    assert found.offence.primitive.name == "cumsum"


@pytest.mark.parametrize(
    "fun",
    [
        lambda v: jnp.ones(3),
        lambda v: jax.lax.stop_gradient(v) * 2.0,
        lambda v: (v > 0.5).astype(v.dtype),
    ],
)
def test_nothing_is_reached(fun: Callable[[Any], Any]) -> None:
    assert claim(fun, (3,)) is None


def test_several_targets_must_agree() -> None:
    def both(v: Any) -> Any:
        return jnp.sin(v), jnp.cos(v)

    def crossed(v: Any) -> Any:
        return jnp.sin(v), jnp.cos(v).T

    agreed, refused = claim(both, (3, 3)), claim(crossed, (3, 3))
    assert agreed is not None and agreed.axes == (0, 1)
    assert refused is not None and refused.mixed


def test_identity() -> None:
    assert Alignment((2, 3), (2, 3), (0, 1)).is_identity
    assert Alignment((2, 1), (2, 1), (0, None)).is_identity
    assert not Alignment((3, 3), (3, 3), (1, 0)).is_identity
    assert not Alignment((3,), (2, 3), (1,)).is_identity
    assert Alignment((3,), (3,), (None,), elements=np.array([0, -1, 2])).is_identity
    assert not Alignment((3,), (3,), (None,), elements=np.array([0, 2, 1])).is_identity


# --- random compositions ----------------------------------------------------------------------

SIDE = 2


def _axis(v: Any, k: int) -> int:
    return k % v.ndim


STEPS: list[Callable[[Any, int], Any]] = [
    lambda v, k: jnp.sin(v),
    lambda v, k: v * jnp.arange(1.0, v.size + 1.0).reshape(v.shape),
    lambda v, k: jnp.moveaxis(v, _axis(v, k), 0),
    lambda v, k: jnp.expand_dims(v, _axis(v, k)) if v.ndim < 4 else v,
    lambda v, k: v.reshape(tuple(n for n in v.shape if n > 1)),
    lambda v, k: jnp.stack([v, jnp.cos(v)], _axis(v, k)) if v.ndim < 4 else v,
    lambda v, k: v.sum(_axis(v, k)) if v.ndim > 1 else v,
    lambda v, k: jax.lax.index_in_dim(v, 0, _axis(v, k), keepdims=False) if v.ndim > 1 else v,
    lambda v, k: jnp.flip(v, _axis(v, k)),
    lambda v, k: jnp.tensordot(v, jnp.asarray(MIX), 1) if v.shape[-1] == 2 else v,
    lambda v, k: jnp.cumsum(v, _axis(v, k)),
    lambda v, k: jnp.where(v > 0.5, v, 2.0 * v),
    lambda v, k: v + jnp.swapaxes(v, 0, -1) if v.shape[0] == v.shape[-1] else v,
    lambda v, k: v.reshape(-1) if v.size <= 8 else v,
    lambda v, k: v.reshape((2, -1)) if v.size % 2 == 0 else v,
    lambda v, k: v - spike(v - 0.5),
    lambda v, k: v + spike_vjp(v - 0.5)[..., ::-1],
    lambda v, k: jnp.roll(v, 1, _axis(v, k)),
    lambda v, k: jnp.broadcast_to(v, (2, *v.shape)) if v.ndim < 4 else v,
    lambda v, k: jax.nn.softmax(v, _axis(v, k)),
    lambda v, k: jnp.concatenate([v, v], _axis(v, k)) if v.size <= 16 else v,
    lambda v, k: jax.lax.slice_in_dim(v, 0, 1, axis=_axis(v, k)),
    lambda v, k: v[..., np.array([0] * v.shape[-1])],
]


@settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(
    shape=st.sampled_from([(2,), (2, 2), (2, 1, 2), (2, 2, 2), (3, 2), (1, 3)]),
    source_ndim=st.integers(1, 3),
    program=st.lists(
        st.tuples(st.integers(0, len(STEPS) - 1), st.integers(0, 3)), min_size=1, max_size=5
    ),
)
def test_no_claim_is_wrong(shape: Shape, source_ndim: int, program: list[tuple[int, int]]) -> None:
    def fun(v: Any) -> Any:
        for step, k in program:
            v = STEPS[step](v, k)
        return v

    source_ndim = min(source_ndim, len(shape))
    found = claim(fun, shape, None, source_ndim)
    matrix = jacobian(fun, shape)
    if found is None:
        assert not matrix.any()
        return
    out_shape = matrix.shape[: matrix.ndim - len(shape)]
    assert not matrix[off_positions(found, out_shape, shape)].any()


@pytest.mark.parametrize(
    ("function", "axes"),
    [
        (lambda y: jnp.stack([y[0], y[1]]), (0, 1)),
        (lambda y: jnp.stack([y[0], y[1][::-1]]), (None, None)),
        (lambda y: jnp.stack([y[0][::-1], y[1][::-1]]), (0, None)),
        (lambda y: jnp.stack([y[0, 0], y[1, 1]]), (None, None)),
        (lambda y: jnp.stack([y[0, :1], y[1, 1:]]), (None, None)),
    ],
)
def test_an_axis_runs_along_another_when_the_rest_is_the_same_at_all_indices(function, axes):
    program = jax.make_jaxpr(function)(jnp.ones((2, 2)))
    jaxpr = program.jaxpr if hasattr(program, "jaxpr") else program
    (target,) = jaxpr.outvars
    found = align(jaxpr.eqns, jaxpr.invars[0], [target], target.aval.ndim, 2)
    assert found.axes == axes
