# SPDX-License-Identifier: Apache-2.0
"""The layer ``Linear``, and what layers and cells share: sizes and initial values."""

from __future__ import annotations

import math
from typing import Any

import brainstate
import jax
import saiunit
from brainstate.nn import init

from braintrace.plugin_api import as_size, initial_value

from ._ops import ArrayLike, matmul

Size = brainstate.typing.Size
Initializer = Any  # a function of a shape, an array, a quantity or a number

KAIMING: Initializer = init.KaimingNormal()
ZEROS: Initializer = init.ZeroInit()


class Linear(brainstate.nn.Linear):
    """Affine map ``y = x (w_mask * W) + b`` whose parameters are trained by eligibility traces.

    A drop-in for ``brainstate.nn.Linear`` that computes through :func:`braintrace.matmul`.

    Parameters
    ----------
    in_size, out_size
        Number of input and output features (the last axis); all other axes must be equal.
    w_init
        Initial weight [in, out]: a function of the shape, or a value.
    b_init
        Initial bias [out], the same way; ``None`` for no bias.
    w_mask
        Mask that multiplies the weight, the same way; ``None`` for none.
    name
        Name of the module.
    param_type
        Class of the parameter state.

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
    >>> layer = braintrace.nn.Linear(3, 2)
    >>> layer(jnp.ones((5, 3))).shape
    (5, 2)
    """

    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = KAIMING,
        b_init: Initializer | None = ZEROS,
        w_mask: Initializer | None = None,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
    ) -> None:
        in_size, out_size = as_size("in_size", in_size), as_size("out_size", out_size)
        if in_size[:-1] != out_size[:-1]:
            raise ValueError(
                f"in_size and out_size must agree in all but the last axis, got {in_size} and "
                f"{out_size}"
            )
        super().__init__(
            in_size,
            out_size,
            w_init=lambda shape: initial_value("w_init", w_init, shape),
            b_init=None if b_init is None else lambda s: initial_value("b_init", b_init, s),
            name=name,
            param_type=param_type,
        )
        if w_mask is not None:
            shape = (in_size[-1], out_size[-1])
            mask = initial_value("w_mask", w_mask, shape)
            self.w_mask = mask.astype(saiunit.math.get_dtype(self.weight.value["weight"]))

    def update(self, x: ArrayLike) -> jax.Array | saiunit.Quantity:
        """The output [..., out] for an input [..., in]."""
        parameters = self.weight.value
        lead = saiunit.math.shape(x)[:-1]
        if len(lead) > 1:
            x = saiunit.math.reshape(x, (math.prod(lead), saiunit.math.shape(x)[-1]))
        y = matmul(x, parameters["weight"], parameters.get("bias"), weight_fn=self._masked)
        return y if len(lead) < 2 else saiunit.math.reshape(y, (*lead, saiunit.math.shape(y)[-1]))

    def _masked(self, weight: ArrayLike) -> ArrayLike:
        return weight if self.w_mask is None else weight * self.w_mask
