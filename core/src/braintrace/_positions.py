# SPDX-License-Identifier: Apache-2.0
"""Which positions of a result depend on which positions of a source.

The algorithms need derivatives such as ``d h[p] / d y[p]``. One sweep of reverse mode (or of
forward mode) with all-ones gives them *if and only if* every position ``p`` of ``h`` depends on a
single position of ``y``. This module decides that from the structure of the program.

Each axis of a source (of size above one) is a symbol. A variable that depends on the source
carries, per axis, the symbol whose index that axis shares, or ``None``. A symbol is *lost* at an
equation whose output mixes positions along it (a reduction, a dense product, a roll, ...).
While no symbol is lost, an element of a variable depends only on the source elements that share
its indices; the axes of the result that carry no symbol see the source broadcast along them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from . import _jax
from ._jax import JaxprEqn, Var, jaxp
from ._jaxpr import differentiable
from ._primitive import is_etp_primitive

Labels = tuple[int | None, ...]


class PositionsMixed(Exception):
    """Raised by a rule when its equation mixes positions."""


@dataclass(frozen=True)
class Alignment:
    """How the axes of a source lie in the axes of a result.

    ``axes[i]`` is the axis of the result that the source's axis ``i`` runs along; ``None`` for a
    source axis of size one. ``offence`` is the equation that mixes positions, if there is one.
    """

    axes: tuple[int | None, ...]
    offence: JaxprEqn | None = None

    @property
    def position_wise(self) -> bool:
        """Whether every position of the result depends on one position of the source."""
        return self.offence is None

    def is_identity(self, source: Sequence[int], result: Sequence[int]) -> bool:
        """Whether source and result have the same shape and the axes correspond in order."""
        return tuple(source) == tuple(result) and all(
            axis in (None, i) for i, axis in enumerate(self.axes)
        )


def align(
    eqns: Sequence[JaxprEqn], source: Var, targets: Sequence[Var], ndim: int, source_ndim: int
) -> Alignment | None:
    """How ``source`` lies in every target; ``None`` when it reaches none of them.

    Parameters
    ----------
    eqns
        The equations between the source and the targets, in order.
    source
        The variable to follow.
    targets
        The variables to reach.
    ndim, source_ndim
        How many leading axes of the targets, and of the source, are positions. (The axes behind
        them hold the several states of one position.)
    """
    shape = source.aval.shape[:source_ndim]
    first = tuple(i if n > 1 else None for i, n in enumerate(shape))
    labels: dict[Var, Labels] = {source: first + (None,) * (source.aval.ndim - source_ndim)}
    symbols = {i for i, n in enumerate(shape) if n > 1}
    for eqn in eqns:
        operands = [labels.get(a) if _jax.is_var(a) else None for a in eqn.invars]
        if not any(o is not None for o in operands) or not differentiable(eqn):
            continue
        try:
            found = _labels_of(eqn, operands)
            _require(symbols, found)
        except PositionsMixed:
            return Alignment((), offence=eqn)
        for var, label in zip(eqn.outvars, found, strict=True):
            if label is not None and _jax.is_float(var.aval):
                labels[var] = label
    placed: set[tuple[int | None, ...]] = set()
    for target in targets:
        if target in labels:
            where = {s: k for k, s in enumerate(labels[target][:ndim]) if s is not None}
            placed.add(tuple(where.get(i) for i in range(len(shape))))
            if set(where) != symbols:
                return Alignment((), offence=_producer(eqns, target))
    if len(placed) > 1:
        return Alignment((), offence=eqns[-1])
    return Alignment(placed.pop()) if placed else None


def _producer(eqns: Sequence[JaxprEqn], var: Var) -> JaxprEqn:
    return next((eqn for eqn in eqns if var in eqn.outvars), eqns[-1])


def _require(symbols: set[int], found: Sequence[Labels | None]) -> None:
    for label in found:
        if label is not None and {s for s in label if s is not None} != symbols:
            raise PositionsMixed


def _labels_of(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    if eqn.primitive in ELEMENTWISE:
        return _elementwise(eqn, operands)
    if eqn.primitive in RULES:
        return RULES[eqn.primitive](eqn, operands)
    if eqn.primitive is jaxp.custom_jvp_call_p:
        return _custom_jvp(eqn, operands)
    if eqn.primitive is jaxp.custom_vjp_call_p:
        return _custom_vjp(eqn, operands)
    if is_etp_primitive(eqn.primitive):
        impl = _jax.make_jaxpr(
            lambda *a: eqn.primitive.spec.impl(*a, **eqn.params), *(v.aval for v in eqn.invars)
        )
        return _through(impl, operands)
    raise PositionsMixed


def _through(jaxpr: Any, operands: list[Labels | None]) -> list[Labels | None]:
    """Labels at the outputs of a sub-program."""
    labels = {v: o for v, o in zip(jaxpr.invars, operands, strict=True) if o is not None}
    for eqn in jaxpr.eqns:
        inner = [labels.get(a) if _jax.is_var(a) else None for a in eqn.invars]
        if not any(o is not None for o in inner) or not differentiable(eqn):
            continue
        if eqn.primitive in _jax.CALL_PRIMITIVES:
            found = _through(_jax.sub_jaxpr(eqn), inner)
        else:
            found = _labels_of(eqn, inner)
        labels.update({v: f for v, f in zip(eqn.outvars, found, strict=True) if f is not None})
    return [labels.get(v) if _jax.is_var(v) else None for v in jaxpr.outvars]


def _custom_jvp(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """The user's rule decides, not the function: follow the tangents through its JVP."""
    moving = [i for i, o in enumerate(operands) if o is not None]

    def tangents(primals: list[Any], dots: list[Any]) -> Any:
        def call(*values: Any) -> list[Any]:
            full = list(primals)
            for i, value in zip(moving, values, strict=True):
                full[i] = value
            return _jax.bind_equation(eqn, full)

        return jax.jvp(call, [primals[i] for i in moving], dots)[1]

    avals = [v.aval for v in eqn.invars]
    jaxpr = _jax.make_jaxpr(tangents, avals, [avals[i] for i in moving])
    return _through(jaxpr, [*(None for _ in avals), *(operands[i] for i in moving)])


def _custom_vjp(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """The user's rule decides: every cotangent must keep its position on the way back."""
    moving = [i for i, o in enumerate(operands) if o is not None]

    def cotangents(primals: list[Any], dots: list[Any]) -> Any:
        _, pull = jax.vjp(lambda *values: _jax.bind_equation(eqn, values), *primals)
        found = pull(dots)
        return [found[i] for i in moving]

    outs = [v.aval for v in eqn.outvars]
    jaxpr = _jax.make_jaxpr(cotangents, [v.aval for v in eqn.invars], outs)
    result: list[Labels | None] = []
    for k, out in enumerate(outs):
        own = tuple(i if n > 1 else None for i, n in enumerate(out.shape))
        seeds: list[Labels | None] = [None] * len(jaxpr.invars)
        seeds[len(eqn.invars) + k] = own
        found = [o for o in zip(_through(jaxpr, seeds), moving, strict=True) if o[0] is not None]
        if any(label != own for label, _ in found):
            raise PositionsMixed
        known = [operands[i] for _, i in found]
        result.append(tuple(_meet(c) for c in zip(*known, strict=True)) if known else None)  # type: ignore[arg-type]
    return result


# --- rules: labels of the operands (None: no dependence) -> labels of the outputs --------------


def _elementwise(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """Operands have the shape of the output, up to axes of size one, or are scalars."""
    ndim = len(eqn.outvars[0].aval.shape)
    known = [(None,) * (ndim - len(o)) + o for o in operands if o is not None]
    return [tuple(_meet(column) for column in zip(*known, strict=True))] * len(eqn.outvars)


def _meet(column: Sequence[int | None]) -> int | None:
    return column[0] if len(set(column)) == 1 else None


def _only(operands: list[Labels | None], position: int = 0) -> Labels:
    """The labels of the one operand that may depend on the source."""
    label = operands[position]
    if label is None or any(o is not None for i, o in enumerate(operands) if i != position):
        raise PositionsMixed
    return label


def _broadcast(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    out: list[int | None] = [None] * len(eqn.params["shape"])
    for label, axis in zip(_only(operands), eqn.params["broadcast_dimensions"], strict=True):
        out[axis] = label
    return [tuple(out)]


def _reshape(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """Axes keep their symbols where the same row-major factor stands before and behind them."""
    label, old = _only(operands), eqn.invars[0].aval.shape
    new = eqn.outvars[0].aval.shape
    places = {
        (math.prod(old[:i]), n): s for i, (n, s) in enumerate(zip(old, label, strict=True)) if n > 1
    }
    return [
        tuple(places.get((math.prod(new[:i]), n)) if n > 1 else None for i, n in enumerate(new))
    ]


def _transpose(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    label = _only(operands)
    return [tuple(label[axis] for axis in eqn.params["permutation"])]


def _squeeze(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    dropped = eqn.params["dimensions"]
    return [tuple(s for i, s in enumerate(_only(operands)) if i not in dropped)]


def _reduce(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    dropped = eqn.params["axes"]
    return [tuple(s for i, s in enumerate(_only(operands)) if i not in dropped)]


def _concatenate(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    axis = eqn.params["dimension"]
    known = [o for o in operands if o is not None]
    joined = [_meet(column) for column in zip(*known, strict=True)]
    joined[axis] = None
    return [tuple(joined)]


def _stack(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    axis = eqn.params["axis"]
    joined = [_meet(c) for c in zip(*(o for o in operands if o is not None), strict=True)]
    return [(*joined[:axis], None, *joined[axis:])]


def _resized(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """Slices and pads: an axis keeps its symbol only if its size is unchanged."""
    label, old = _only(operands), eqn.invars[0].aval.shape
    return [
        tuple(s if n == m else None for s, n, m in zip(label, old, var.aval.shape, strict=True))
        for var in eqn.outvars
    ]


def _slice(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    return _resized(eqn, operands)


def _pad(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    moved = [lo != 0 or hi != 0 or gap != 0 for lo, hi, gap in eqn.params["padding_config"]]
    label = _only(operands)
    return [tuple(None if m else s for s, m in zip(label, moved, strict=True))]


def _dynamic_update_slice(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """Writing a block that spans every labelled axis keeps positions in place."""
    shape, block = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    known = [o for o in operands[:2] if o is not None]
    meet = [_meet(column) for column in zip(*known, strict=True)]
    return [tuple(s if n == m else None for s, n, m in zip(meet, shape, block, strict=True))]


def _rev(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    turned = eqn.params["dimensions"]
    return [tuple(None if i in turned else s for i, s in enumerate(_only(operands)))]


def _cumulative(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    return [tuple(None if i == eqn.params["axis"] else s for i, s in enumerate(_only(operands)))]


def _select(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """The predicate carries no derivative and may be a scalar."""
    known = [o for o in operands[1:] if o is not None]
    return [tuple(_meet(column) for column in zip(*known, strict=True))]


def _clamp(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """``clamp(low, x, high)``; the bounds may be scalars and do not depend on the source."""
    return [_only(operands, 1)]


def _gather(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """``h[..., i]``: axes taken whole keep their symbols."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    label, shape = _only(operands), eqn.invars[0].aval.shape
    if tuple(getattr(numbers, "operand_batching_dims", ())):
        raise PositionsMixed
    kept = [i for i in range(len(shape)) if i not in numbers.collapsed_slice_dims]
    out: list[int | None] = [None] * len(eqn.outvars[0].aval.shape)
    for axis, i in zip(numbers.offset_dims, kept, strict=True):
        whole = sizes[i] == shape[i] and i not in numbers.start_index_map
        out[axis] = label[i] if whole else None
    return [tuple(out)]


def _dot_general(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """A product over axes without symbols (a mixing of the states of one position) is fine."""
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    ndims = [len(v.aval.shape) for v in eqn.invars]
    free = [
        [i for i in range(ndims[0]) if i not in (*lc, *lb)],
        [i for i in range(ndims[1]) if i not in (*rc, *rb)],
    ]
    which = 0 if operands[0] is not None else 1
    label = _only(operands, which)
    batch = [label[i] for i in (lb, rb)[which]]
    own = [label[i] for i in free[which]]
    other: list[int | None] = [None] * len(free[1 - which])
    return [(*batch, *own, *other) if which == 0 else (*batch, *other, *own)]


def _primitives(*names: str) -> frozenset[Any]:
    """The primitives of these names that the installed JAX has."""
    return frozenset(p for n in names if (p := getattr(jaxp, f"{n}_p", None)) is not None)


ELEMENTWISE = _primitives(
    *"abs acos acosh add add_jaxvals asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil "
    "complex conj convert_element_type copy cos cosh digamma div erf erf_inv erfc exp exp2 "
    "expm1 floor igamma igammac imag integer_pow lgamma log log1p log2 logistic max min mul name "
    "neg nextafter one_minus_square polygamma polynomial pow real reduce_precision "
    "regularized_incomplete_beta rem round rsqrt sign sin sinh sqrt square sub tan tanh "
    "zeta".split()
)

Rule = Callable[[JaxprEqn, list[Labels | None]], list[Labels | None]]

RULES: dict[Any, Rule] = {
    jaxp.broadcast_in_dim_p: _broadcast,
    jaxp.reshape_p: _reshape,
    jaxp.transpose_p: _transpose,
    jaxp.squeeze_p: _squeeze,
    jaxp.concatenate_p: _concatenate,
    jaxp.slice_p: _slice,
    jaxp.pad_p: _pad,
    jaxp.dynamic_slice_p: _resized,
    jaxp.dynamic_update_slice_p: _dynamic_update_slice,
    jaxp.rev_p: _rev,
    jaxp.gather_p: _gather,
    jaxp.dot_general_p: _dot_general,
    jaxp.select_n_p: _select,
    jaxp.clamp_p: _clamp,
    _jax.SPLIT: _resized,
    _jax.STACK: _stack,
    _jax.TILE: _resized,
    **dict.fromkeys(_primitives("reduce_sum", "reduce_max", "reduce_min", "reduce_prod"), _reduce),
    **dict.fromkeys(
        _primitives("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative
    ),
}
