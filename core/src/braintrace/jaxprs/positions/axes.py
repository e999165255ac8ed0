# SPDX-License-Identifier: Apache-2.0
"""How each primitive moves positions: the labels of its operands -> those of its results.

A *label* names, per axis of a variable, the axis of the source that it runs along, or ``None``:
an element depends on those source elements alone that share its index along the named axes. A
label of ``None`` as a whole means that the variable does not depend on the source.

Losing a symbol is always allowed: it says less. A rule that does not know what its equation does
raises :class:`PositionsMixed`, and everything is lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ...base import versions
from ...base.versions import JaxprEqn, jaxp
from ...ops.primitive import is_etp_primitive
from ..depends import depends, differentiable
from .control import control_rules

Labels = tuple[int | None, ...]


class PositionsMixed(Exception):
    """Raised by a rule when its equation mixes positions."""


def labels_of(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """Labels of the results; every result of an equation that no rule knows has lost all."""
    try:
        return _by_rule(eqn, operands)
    except PositionsMixed:
        return [(None,) * len(var.aval.shape) for var in eqn.outvars]


def _by_rule(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    if eqn.primitive in ELEMENTWISE:
        return _elementwise(eqn, operands)
    if eqn.primitive in RULES:
        return RULES[eqn.primitive](eqn, operands)
    if eqn.primitive is jaxp.custom_jvp_call_p:
        return _custom_jvp(eqn, operands)
    if eqn.primitive is jaxp.custom_vjp_call_p:
        return _custom_vjp(eqn, operands)
    if is_etp_primitive(eqn.primitive):
        impl = versions.make_jaxpr(
            lambda *a: eqn.primitive.spec.impl(*a, **eqn.params), *(v.aval for v in eqn.invars)
        )
        return through(impl, operands)
    if eqn.primitive in versions.JVP_RULES:
        return _foreign(eqn, operands)
    raise PositionsMixed


def through(jaxpr: Any, operands: list[Labels | None]) -> list[Labels | None]:
    """Labels at the outputs of a sub-program."""
    labels = {v: o for v, o in zip(jaxpr.invars, operands, strict=True) if o is not None}
    for eqn in jaxpr.eqns:
        inner = [labels.get(a) if versions.is_var(a) else None for a in eqn.invars]
        if not any(o is not None for o in inner) or not differentiable(eqn):
            continue
        if eqn.primitive in versions.CALL_PRIMITIVES:
            found = through(versions.sub_jaxpr(eqn), inner)
        else:
            found = labels_of(eqn, inner)
        moved = zip(eqn.outvars, found, strict=True)
        labels.update({v: f for v, f in moved if f is not None and versions.is_float(v.aval)})
    return [labels.get(v) if versions.is_var(v) else None for v in jaxpr.outvars]


def _custom_jvp(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """The user's rule decides, not the function: follow the tangents through its JVP."""
    return through(*_tangents(eqn, operands))


def _foreign(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """A primitive of another library, such as a surrogate spike, is what its JVP rule makes it."""
    try:
        jaxpr, labels = _tangents(eqn, operands)
    except (TypeError, ValueError, NotImplementedError):  # the rule is there to refuse
        raise PositionsMixed from None
    moving = {v: frozenset({0}) for v, o in zip(jaxpr.invars, labels, strict=True) if o is not None}
    behind = depends(jaxpr.eqns, moving)
    for inner in jaxpr.eqns:
        if inner.primitive is eqn.primitive and any(v in behind for v in inner.outvars):
            raise PositionsMixed  # linear: its tangents go through itself
    return through(jaxpr, labels)


def _tangents(eqn: JaxprEqn, operands: list[Labels | None]) -> tuple[Any, list[Labels | None]]:
    """The program ``operands, tangents -> tangents of the results``, and labels for its inputs."""
    moving = [i for i, o in enumerate(operands) if o is not None]

    def tangents(primals: list[Any], dots: list[Any]) -> Any:
        def call(*values: Any) -> list[Any]:
            full = list(primals)
            for i, value in zip(moving, values, strict=True):
                full[i] = value
            return versions.bind_equation(eqn, full)

        return jax.jvp(call, [primals[i] for i in moving], dots)[1]

    avals = [v.aval for v in eqn.invars]
    jaxpr = versions.make_jaxpr(tangents, avals, [avals[i] for i in moving])
    return jaxpr, [*(None for _ in avals), *(operands[i] for i in moving)]


def _custom_vjp(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """The user's rule decides: every cotangent must keep its position on the way back."""
    moving = [i for i, o in enumerate(operands) if o is not None]

    def cotangents(primals: list[Any], dots: list[Any]) -> Any:
        _, pull = jax.vjp(lambda *values: versions.bind_equation(eqn, values), *primals)
        found = pull(dots)
        return [found[i] for i in moving]

    outs = [v.aval for v in eqn.outvars]
    jaxpr = versions.make_jaxpr(cotangents, [v.aval for v in eqn.invars], outs)
    result: list[Labels | None] = []
    for k, out in enumerate(outs):
        own = tuple(i if n > 1 else None for i, n in enumerate(out.shape))
        seeds: list[Labels | None] = [None] * len(jaxpr.invars)
        seeds[len(eqn.invars) + k] = own
        back = zip(through(jaxpr, seeds), moving, strict=True)
        known = [_kept(own, label, operands[i]) for label, i in back if label is not None]
        result.append(_meet_all(known) if known else None)
    return result


def _kept(own: Labels, back: Labels, operand: Labels | None) -> Labels:
    """What a result may say of an operand whose cotangent carries the labels ``back``.

    An axis of size one (``None`` in ``own``) may be what is left of an axis that was summed over.
    """
    if operand is None or len(back) != len(own):
        return (None,) * len(own)
    same = zip(own, back, operand, strict=True)
    return tuple(
        label if axis is not None and axis == there else None for axis, there, label in same
    )


# --- rules: labels of the operands (None: no dependence) -> labels of the outputs --------------


def _elementwise(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """Operands have the shape of the output, up to axes of size one, or are scalars."""
    ndim = len(eqn.outvars[0].aval.shape)
    known = [(None,) * (ndim - len(o)) + o for o in operands if o is not None]
    return [_meet_all(known)] * len(eqn.outvars)


def _meet(column: Sequence[int | None]) -> int | None:
    return column[0] if len(set(column)) == 1 else None


def _meet_all(known: Sequence[Labels]) -> Labels:
    return tuple(_meet(column) for column in zip(*known, strict=True))


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


def _unstack(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    axis, label = eqn.params["axis"], _only(operands)
    return [(*label[:axis], *label[axis + 1 :])] * len(eqn.outvars)


def _resized(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """Slices and pads: an axis keeps its symbol only if its size is unchanged."""
    label, old = _only(operands), eqn.invars[0].aval.shape
    return [
        tuple(s if n == m else None for s, n, m in zip(label, old, var.aval.shape, strict=True))
        for var in eqn.outvars
    ]


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
    return [_meet_all([o for o in operands[1:] if o is not None])]


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


def _scatter(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """``h.at[..., i].set(v)``: axes written whole keep their symbols."""
    numbers = eqn.params["dimension_numbers"]
    operand, _, update = operands
    shape, written = eqn.invars[0].aval.shape, eqn.invars[2].aval.shape
    if tuple(getattr(numbers, "operand_batching_dims", ())):
        raise PositionsMixed
    window = [i for i in range(len(shape)) if i not in numbers.inserted_window_dims]
    out: list[int | None] = [None] * len(shape)
    for axis, i in zip(numbers.update_window_dims, window, strict=True):
        if written[axis] == shape[i]:
            moving = ((operand, i), (update, axis))
            out[i] = _meet([label[k] for label, k in moving if label is not None])
    return [tuple(out)]


def _dot_general(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """A product over axes without symbols (a mixing of the states of one position) is fine."""
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    contracted, batch = (lc, rc), (lb, rb)
    ndims = [len(v.aval.shape) for v in eqn.invars]
    free = [[i for i in range(ndims[k]) if i not in (*contracted[k], *batch[k])] for k in (0, 1)]
    blank: list[Labels] = [(None,) * n for n in ndims]
    labels = [blank[k] if o is None else o for k, o in enumerate(operands)]
    known = [k for k in (0, 1) if operands[k] is not None]
    shared = _meet_all([tuple(labels[k][i] for i in batch[k]) for k in known])
    # with both operands moving, a free axis of one runs along every element of the other
    alone = len(known) == 1
    own = [labels[k][i] if alone else None for k in (0, 1) for i in free[k]]
    return [(*shared, *own)]


def _conv(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """A convolution keeps the examples of a batch apart."""
    if eqn.params["batch_group_count"] != 1 or operands[1] is not None:
        raise PositionsMixed
    numbers = eqn.params["dimension_numbers"]
    out: list[int | None] = [None] * len(eqn.outvars[0].aval.shape)
    out[numbers.out_spec[0]] = _only(operands)[numbers.lhs_spec[0]]
    return [tuple(out)]


def _window(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """Axes along which the window is a single element stay as they are."""
    params, label = eqn.params, _only(operands)
    parts = (
        params["window_dimensions"],
        params["window_strides"],
        params.get("base_dilation", (1,) * len(label)),
    )
    plain = [all(n == 1 for n in part) for part in zip(*parts, strict=True)]
    unpadded = [tuple(pad) == (0, 0) for pad in params["padding"]]
    return [tuple(s if p and u else None for s, p, u in zip(label, plain, unpadded, strict=True))]


def _sort(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    axis, known = eqn.params["dimension"], _meet_all([o for o in operands if o is not None])
    return [tuple(None if i == axis else s for i, s in enumerate(known))] * len(eqn.outvars)


def _matrices(eqn: JaxprEqn, operands: list[Labels | None]) -> list[Labels | None]:
    """Linear algebra on the last two axes keeps the axes in front of them apart."""
    known = [o for o in operands if o is not None]
    leading = min(len(o) for o in known) - 2
    shared = _meet_all([o[:leading] for o in known])
    return [
        (*shared, *(None,) * (len(var.aval.shape) - leading))
        if len(var.aval.shape) >= leading
        else (None,) * len(var.aval.shape)
        for var in eqn.outvars
    ]


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

REDUCTIONS = _primitives("reduce_sum", "reduce_max", "reduce_min", "reduce_prod")

SCATTERS = _primitives("scatter", "scatter_add", "scatter_mul", "scatter_min", "scatter_max")

WINDOWS = _primitives(
    "reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"
)

Rule = Callable[[JaxprEqn, list[Labels | None]], list[Labels | None]]


def _rearranging(**rules: Rule) -> dict[Any, Rule]:
    """Rules by the primitives of these names that the installed JAX has."""
    return {p: rules[name] for name, p in versions.rearranging().items()}


RULES: dict[Any, Rule] = {
    jaxp.broadcast_in_dim_p: _broadcast,
    jaxp.reshape_p: _reshape,
    jaxp.transpose_p: _transpose,
    jaxp.squeeze_p: _squeeze,
    jaxp.concatenate_p: _concatenate,
    jaxp.slice_p: _resized,
    jaxp.pad_p: _pad,
    jaxp.dynamic_slice_p: _resized,
    jaxp.dynamic_update_slice_p: _dynamic_update_slice,
    jaxp.rev_p: _rev,
    jaxp.gather_p: _gather,
    **dict.fromkeys(SCATTERS, _scatter),
    jaxp.conv_general_dilated_p: _conv,
    **dict.fromkeys(WINDOWS, _window),
    jaxp.sort_p: _sort,
    **dict.fromkeys(
        _primitives("cholesky", "triangular_solve", "lu", "qr", "eigh", "svd"), _matrices
    ),
    jaxp.dot_general_p: _dot_general,
    jaxp.select_n_p: _select,
    jaxp.clamp_p: _clamp,
    **_rearranging(split=_resized, stack=_stack, unstack=_unstack, tile=_resized),
    **dict.fromkeys(REDUCTIONS, _reduce),
    **dict.fromkeys(
        _primitives("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"), _cumulative
    ),
    **control_rules(through),
}
