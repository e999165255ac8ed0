# SPDX-License-Identifier: Apache-2.0
"""Layers without states: ``Linear`` and the two whose weight is processed before the product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import saiunit
from brainstate.nn import init

from braintrace.plugin_api import (
    ArrayLike,
    Initializer,
    ParameterFn,
    Size,
    as_size,
    by_rows,
    initial_value,
    keyword_key,
    seeded,
)

from ._ops import matmul

KAIMING: Initializer = init.KaimingNormal()
ZEROS: Initializer = init.ZeroInit()


def dense(x: ArrayLike, weight: Any, bias: Any, weight_fn: ParameterFn | None) -> Any:
    """:func:`matmul` for ``x`` [..., in], with all leading axes folded into one batch."""
    return by_rows(lambda rows: matmul(rows, weight, bias, weight_fn=weight_fn), x)


def layer_sizes(in_size: Size, out_size: Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Both sizes of a layer, which differ in the last axis only."""
    in_size, out_size = as_size("in_size", in_size), as_size("out_size", out_size)
    if in_size[:-1] != out_size[:-1]:
        raise ValueError(
            f"in_size and out_size must agree in all but the last axis, got {in_size} and "
            f"{out_size}"
        )
    return in_size, out_size


def _checked(name: str, initializer: Initializer) -> Callable[[Any], Any]:
    return lambda shape: initial_value(name, initializer, shape)


def _factor(name: str, value: Initializer, shape: tuple[int, ...], like: Any) -> Any:
    """A mask or signs, in the dtype of the weight that they multiply."""
    return initial_value(name, value, shape).astype(saiunit.math.get_dtype(like))


class Linear(brainstate.nn.Linear):
    """Affine map ``y = x (w_mask * W) + b`` whose parameters are trained by eligibility traces.

    A drop-in for ``brainstate.nn.Linear`` that computes through :func:`braintrace.matmul`.

    Parameters
    ----------
    in_size, out_size
        Number of input and output features (the last axis); all other axes must be equal.
    w_init
        Initial weight [in, out]: a function of the shape, or a value. It may have a unit.
    b_init
        Initial bias [out], the same way; ``None`` for no bias.
    w_mask
        Mask that multiplies the weight, the same way; ``None`` for none.
    name
        Name of the module.
    param_type
        Class of the parameter state.
    key
        Seed or JAX key of the initial values; ``None`` for the global random state.

    Attributes
    ----------
    weight
        One ``ParamState`` holding ``{"weight": [in, out], "bias": [out]}``.

    Raises
    ------
    ValueError
        For impossible sizes, or an initial value of another shape.

    Notes
    -----
    ``update(x)`` takes [..., in] and returns [..., out]; with more than two axes, all but the last
    are folded into one batch.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.Linear(3, 2, key=0)
    >>> layer(jnp.ones((5, 3))).shape
    (5, 2)
    """

    @keyword_key
    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = KAIMING,
        b_init: Initializer | None = ZEROS,
        w_mask: Initializer | None = None,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
        *,
        key: Any = None,
    ) -> None:
        in_size, out_size = layer_sizes(in_size, out_size)
        with seeded(key):
            super().__init__(
                in_size,
                out_size,
                w_init=_checked("w_init", w_init),
                b_init=None if b_init is None else _checked("b_init", b_init),
                name=name,
                param_type=param_type,
            )
            if w_mask is not None:
                shape = (in_size[-1], out_size[-1])
                self.w_mask = _factor("w_mask", w_mask, shape, self.weight.value["weight"])

    def update(self, x: ArrayLike) -> jax.Array | saiunit.Quantity:
        """The output [..., out] for an input [..., in]."""
        parameters = self.weight.value
        return dense(x, parameters["weight"], parameters.get("bias"), self._masked)

    def _masked(self, weight: ArrayLike) -> ArrayLike:
        return weight if self.w_mask is None else weight * self.w_mask


class SignedWLinear(brainstate.nn.SignedWLinear):
    """Linear map ``y = x (w_sign * |W|)`` with weights of fixed signs (Dale's law).

    Parameters
    ----------
    in_size, out_size
        Number of input and output features (the last axis); all other axes must be equal.
    w_init
        Initial weight [in, out], of any sign: a function of the shape, or a value. It may have a
        unit.
    w_sign
        Signs, a function of the shape [in, out] or a value that broadcasts to it; ``None`` for all
        positive.
    name
        Name of the module.
    param_type
        Class of the parameter state.
    key
        Seed or JAX key of the initial values; ``None`` for the global random state.

    Attributes
    ----------
    weight
        ``ParamState`` with the weight [in, out] itself.

    Raises
    ------
    ValueError
        For impossible sizes, or an initial value of another shape.

    Notes
    -----
    A drop-in for ``brainstate.nn.SignedWLinear``. The trace is that of ``w_sign * |W|``.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.SignedWLinear(3, 2, w_sign=-1.0, key=0)
    >>> bool((layer(jnp.ones((5, 3))) < 0).all())
    True
    """

    @keyword_key
    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = KAIMING,
        w_sign: Initializer | None = None,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
        *,
        key: Any = None,
    ) -> None:
        super(brainstate.nn.SignedWLinear, self).__init__(name=name)  # type: ignore[call-arg]
        self.in_size, self.out_size = inputs, outputs = layer_sizes(in_size, out_size)
        shape = (inputs[-1], outputs[-1])
        with seeded(key):
            weight = initial_value("w_init", w_init, shape)
            self.weight = param_type(weight)
            self.w_sign = None if w_sign is None else _factor("w_sign", w_sign, shape, weight)

    def update(self, x: ArrayLike) -> jax.Array | saiunit.Quantity:
        """The output [..., out] for an input [..., in]."""
        return dense(x, self.weight.value, None, self._signed)

    def _signed(self, weight: ArrayLike) -> ArrayLike:
        size = saiunit.math.abs(weight)
        return size if self.w_sign is None else size * self.w_sign


class ScaledWSLinear(brainstate.nn.ScaledWSLinear):
    """Affine map with a standardised weight, ``y = x (w_mask * standardised(W)) + b``.

    ::

        standardised(W) = gain * (W - mean(W)) / sqrt(max(in * var(W), eps))

    with mean and variance over the inputs of each output (Brock et al. 2021, after Qiao et al.
    2019).

    Parameters
    ----------
    in_size, out_size
        Number of input and output features (the last axis); all other axes must be equal.
    w_init
        Initial weight [in, out]: a function of the shape, or a value; without a unit, which
        standardising would take away.
    b_init
        Initial bias [out], the same way, in the unit of ``x``; ``None`` for no bias.
    w_mask
        Mask that multiplies the standardised weight: a function of [in, 1], or a value that
        broadcasts to [in, out]; ``None`` for none.
    ws_gain
        Whether there is a trained gain per output.
    eps
        Smallest ``in * var(W)`` that is divided by.
    name
        Name of the module.
    param_type
        Class of the parameter state.
    key
        Seed or JAX key of the initial values; ``None`` for the global random state.

    Attributes
    ----------
    weight
        One ``ParamState`` holding ``{"weight": [in, out], "bias": [out], "gain": [1, out]}``.

    Raises
    ------
    ValueError
        For impossible sizes, or an initial value of another shape.
    TypeError
        When ``w_init`` has a unit.

    Notes
    -----
    A drop-in for ``brainstate.nn.ScaledWSLinear``. The trace is that of the weight that enters
    the product; its gradient is pulled back to ``W`` and to the gain.

    References
    ----------
    S. Qiao et al., "Micro-batch training with batch-channel normalization and weight
    standardization", arXiv:1903.10520 (2019).
    A. Brock, S. De, S. L. Smith, "Characterizing signal propagation to close the performance gap
    in unnormalized ResNets", arXiv:2101.08692 (2021).

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.ScaledWSLinear(3, 2, key=0)
    >>> sorted(layer.weight.value), layer(jnp.ones((5, 3))).shape
    (['bias', 'gain', 'weight'], (5, 2))
    """

    @keyword_key
    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = KAIMING,
        b_init: Initializer | None = ZEROS,
        w_mask: Initializer | None = None,
        ws_gain: bool = True,
        eps: float = 1e-4,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
        *,
        key: Any = None,
    ) -> None:
        super(brainstate.nn.ScaledWSLinear, self).__init__(name=name)  # type: ignore[call-arg]
        self.in_size, self.out_size = inputs, outputs = layer_sizes(in_size, out_size)
        self.eps = eps
        shape = num_in, num_out = inputs[-1], outputs[-1]
        with seeded(key):
            weight = initial_value("w_init", w_init, shape)
            unit = saiunit.get_unit(weight)
            if not unit.is_unitless:
                raise TypeError(
                    f"w_init gives the unit {unit}, expected none: a standardised weight has no "
                    "unit; multiply the input or the output by it instead"
                )
            parameters = {"weight": weight}
            if b_init is not None:
                parameters["bias"] = initial_value("b_init", b_init, (num_out,))
            if ws_gain:
                parameters["gain"] = jax.numpy.ones((1, num_out), weight.dtype)
            self.weight = param_type(parameters)
            mask = w_mask((num_in, 1)) if callable(w_mask) else w_mask
            self.w_mask = None if mask is None else _factor("w_mask", mask, shape, weight)

    def update(self, x: ArrayLike) -> jax.Array | saiunit.Quantity:
        """The output [..., out] for an input [..., in]."""
        parameters = self.weight.value
        return dense(x, parameters["weight"], parameters.get("bias"), self._standardised)

    def _standardised(self, weight: ArrayLike) -> Any:
        gain = self.weight.value.get("gain")
        weight = brainstate.nn.weight_standardization(weight, self.eps, gain)
        return weight if self.w_mask is None else weight * self.w_mask
