# SPDX-License-Identifier: Apache-2.0
"""How each primitive moves positions: from the numbers of its results to those of an operand.

``ALONG`` names the pairs of axes of an operand and of the results along which a result depends on
the operand's element of the same index alone; whatever else is possible is taken to happen.
``MOVES`` are the primitives that cut, join, fold or turn axes: they move the numbers themselves.
A primitive in neither table mixes all positions, unless it only carries its operands (``CARRIES``
in ``depends``), or its rule of differentiation tells.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from itertools import takewhile
from typing import Any

import numpy as np

from ...base import versions
from ...base.versions import JaxprEqn, jaxp
from .places import NOTHING, Numbers, Pairs, join, merge, merge_axes, whole

# --- along which axes a result depends on an operand ---------------------------------------------


def elementwise(eqn: JaxprEqn, k: int) -> Pairs:
    """Operands have the shape of the result, up to axes of size one, or are scalars."""
    ndim = eqn.invars[k].aval.ndim
    lead = eqn.outvars[0].aval.ndim - ndim
    return ((i, lead + i) for i in range(ndim))


def _in_place(keeps: Callable[[JaxprEqn, int], bool]) -> Callable[[JaxprEqn, int], Pairs]:
    """Those axes of an operand that the equation keeps where they are."""
    return lambda eqn, k: ((i, i) for i in range(eqn.invars[k].aval.ndim) if keeps(eqn, i))


def _reduce(eqn: JaxprEqn, k: int) -> Pairs:
    kept = (i for i in range(eqn.invars[0].aval.ndim) if i not in eqn.params["axes"])
    return ((i, out) for out, i in enumerate(kept))


def _gather(eqn: JaxprEqn, k: int) -> Pairs:
    """``h[..., i]``: axes taken whole, and those along which each index reads its own part."""
    numbers, sizes = eqn.params["dimension_numbers"], eqn.params["slice_sizes"]
    shape, own = eqn.invars[0].aval.shape, numbers.operand_batching_dims
    if k != 0:
        return ()
    kept = (i for i in range(len(shape)) if i not in (*numbers.collapsed_slice_dims, *own))
    pairs = zip(kept, numbers.offset_dims, strict=True)
    whole = [p for p in pairs if sizes[p[0]] == shape[p[0]]]  # they start at zero, or are filled
    ndim = eqn.outvars[0].aval.ndim
    others = [i for i in range(ndim) if i not in numbers.offset_dims]
    return [*whole, *((i, others[j]) for i, j in zip(own, _batching(numbers), strict=True))]


def _scatter(eqn: JaxprEqn, k: int) -> Pairs:
    """``h.at[..., i].set(v)``: axes written whole, or by each index in its own part.

    ``h`` itself stays in place.
    """
    numbers, ndim = eqn.params["dimension_numbers"], eqn.invars[0].aval.ndim
    if k != 2:
        return ((i, i) for i in range(ndim) if k == 0)
    own = numbers.operand_batching_dims
    window = (i for i in range(ndim) if i not in (*numbers.inserted_window_dims, *own))
    whole = zip(numbers.update_window_dims, window, strict=True)
    taken = numbers.update_window_dims
    others = [i for i in range(eqn.invars[2].aval.ndim) if i not in taken]
    return [*whole, *((others[j], i) for i, j in zip(own, _batching(numbers), strict=True))]


def _batching(numbers: Any) -> Sequence[int]:
    """The axes of the indices along which each reads or writes its own part."""
    names = "start_indices_batching_dims", "scatter_indices_batching_dims"
    found = (getattr(numbers, name, None) for name in names)
    return next((axes for axes in found if axes is not None), ())


def _dot_general(eqn: JaxprEqn, k: int) -> Pairs:
    """Axes of results: those of the batch, then the free ones of both operands."""
    contracted, batch = eqn.params["dimension_numbers"]
    used = [(*contracted[o], *batch[o]) for o in (0, 1)]
    free = [[i for i in range(v.aval.ndim) if i not in used[o]] for o, v in enumerate(eqn.invars)]
    first = len(batch[0]) + (len(free[0]) if k else 0)
    axes = (*enumerate(batch[k]), *enumerate(free[k], first))
    return ((i, out) for out, i in axes)


def _conv(eqn: JaxprEqn, k: int) -> Pairs:
    """A convolution keeps the examples of a batch apart."""
    if k != 0 or eqn.params["batch_group_count"] != 1:
        return ()
    numbers = eqn.params["dimension_numbers"]
    return ((numbers.lhs_spec[0], numbers.out_spec[0]),)


# --- equations that move elements: numbers of the results -> numbers of an operand ---------------


def _reshape(eqn: JaxprEqn, k: int, outs: Sequence[Numbers]) -> Numbers:
    shape, result = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    backward = zip(reversed(result), reversed(shape), strict=False)
    tail = sum(1 for _ in takewhile(lambda sizes: sizes[0] == sizes[1], backward))
    head = len(result) - tail
    numbers = whole(outs[0], result, range(head))
    return numbers.reshape(*shape[: len(shape) - tail], *numbers.shape[head:])


def _slice(eqn: JaxprEqn, k: int, outs: Sequence[Numbers]) -> Numbers:
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    strides = eqn.params["strides"] or (1,) * len(start)
    shape, result = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
    cut = [i for i, n in enumerate(shape) if result[i] != n]
    few = whole(outs[0], result, cut)
    found = np.full([n if i in cut else few.shape[i] for i, n in enumerate(shape)], NOTHING)
    read = zip(start, limit, strides, strict=True)
    found[tuple(slice(*r) if i in cut else slice(None) for i, r in enumerate(read))] = few
    return found


def _concatenate(eqn: JaxprEqn, k: int, outs: Sequence[Numbers]) -> Numbers:
    axis = eqn.params["dimension"]
    sizes = [v.aval.shape[axis] for v in eqn.invars]
    numbers = whole(outs[0], eqn.outvars[0].aval.shape, (axis,))
    return numbers[(slice(None),) * axis + (slice(sum(sizes[:k]), sum(sizes[: k + 1])),)]


def _stack(eqn: JaxprEqn, k: int, outs: Sequence[Numbers]) -> Numbers:
    axis = eqn.params["axis"]
    return whole(outs[0], eqn.outvars[0].aval.shape, (axis,)).take(k, axis)


def _unstack(eqn: JaxprEqn, k: int, outs: Sequence[Numbers]) -> Numbers:
    axis = eqn.params["axis"]
    return join([np.expand_dims(out, axis) for out in outs], axis, [1] * len(outs))


def _window(eqn: JaxprEqn, k: int, outs: Sequence[Numbers]) -> Numbers:
    """An element reaches what comes of the windows that it is in."""
    params, shape, numbers = eqn.params, eqn.invars[k].aval.shape, reduce(merge, outs)
    low, high = zip(*params["padding"], strict=True)
    if len(shape) != numbers.ndim or min(*low, *high) < 0:  # an initial value; a cropped operand
        return merge_axes(numbers, range(numbers.ndim)).reshape((1,) * len(shape))
    window, steps = params["window_dimensions"], params["window_strides"]
    apart, between = params["base_dilation"], params["window_dilation"]
    axes = enumerate(zip(window, steps, apart, params["padding"], strict=True))
    cut = [i for i, axis in axes if axis != (1, 1, 1, (0, 0))]
    few = whole(numbers, eqn.outvars[0].aval.shape, cut)
    own = [n if i in cut else few.shape[i] for i, n in enumerate(shape)]
    sizes = zip(own, apart, low, high, strict=True)
    padded = np.full([a + (n - 1) * d + 1 + b for n, d, a, b in sizes], NOTHING)
    for offset in np.ndindex(*window):
        start = [i * d for i, d in zip(offset, between, strict=True)]
        read = _every(start, few.shape, steps)
        padded[read] = merge(padded[read], few)
    return padded[_every(low, own, apart)]


def _every(start: Sequence[int], sizes: Sequence[int], steps: Sequence[int]) -> tuple[slice, ...]:
    """Along each axis, so many indices in steps."""
    axes = zip(start, sizes, steps, strict=True)
    return tuple(slice(first, first + n * step, step) for first, n, step in axes)


# --- the tables -----------------------------------------------------------------------------------


def _table(rules: Mapping[str, Any]) -> dict[Any, Any]:
    """Rules by those primitives, of names behind one another, that the installed JAX has."""
    own = versions.rearranging()
    named = {name: rule for names, rule in rules.items() for name in names.split()}
    found = {getattr(jaxp, f"{n}_p", own.get(n)): rule for n, rule in named.items()}
    return {primitive: rule for primitive, rule in found.items() if primitive is not None}


ALONG: dict[Any, Callable[[JaxprEqn, int], Pairs]] = _table(
    {
        "abs acos acosh add add_jaxvals asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt "
        "ceil clamp complex conj convert_element_type cos cosh digamma div erf erf_inv erfc "
        "exp exp2 expm1 floor igamma igammac imag integer_pow lgamma log log1p log2 logistic max "
        "min mul neg nextafter one_minus_square polygamma polynomial pow real "
        "reduce_precision regularized_incomplete_beta rem round rsqrt select_n sign sin sinh sqrt "
        "square sub tan tanh zeta": elementwise,
        "cumsum cumprod cummax cummin cumlogsumexp": _in_place(
            lambda eqn, i: i != eqn.params["axis"]
        ),
        "sort": _in_place(lambda eqn, i: i != eqn.params["dimension"]),
        "dynamic_slice dynamic_update_slice tile": _in_place(lambda eqn, i: True),
        "pad": _in_place(lambda eqn, i: not any(eqn.params["padding_config"][i])),
        "cholesky triangular_solve lu qr eigh svd": _in_place(  # but for those of the matrices
            lambda eqn, i: i < min(v.aval.ndim for v in eqn.invars) - 2
        ),
        "reduce_sum reduce_max reduce_min reduce_prod": _reduce,
        "broadcast_in_dim": lambda eqn, k: enumerate(eqn.params["broadcast_dimensions"]),
        "transpose": lambda eqn, k: ((i, out) for out, i in enumerate(eqn.params["permutation"])),
        "gather": _gather,
        "scatter scatter_add scatter_mul scatter_min scatter_max": _scatter,
        "dot_general": _dot_general,
        "conv_general_dilated": _conv,
    }
)

MOVES: dict[Any, Callable[[JaxprEqn, int, Sequence[Numbers]], Numbers]] = _table(
    {
        "reshape squeeze": _reshape,
        "slice": _slice,
        "rev": lambda eqn, k, outs: np.flip(outs[0], eqn.params["dimensions"]),
        "concatenate": _concatenate,
        "split": lambda eqn, k, outs: join(outs, eqn.params["axis"], eqn.params["sizes"]),
        "stack": _stack,
        "unstack": _unstack,
        "reduce_window reduce_window_sum reduce_window_max reduce_window_min": _window,
    }
)
