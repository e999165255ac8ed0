# SPDX-License-Identifier: Apache-2.0
"""The layer ``GroupedLinear``: an affine map for each group of features."""

from __future__ import annotations

import math

import brainstate
import jax
import saiunit
from brainstate.nn import init

from braintrace.plugin_api import ArrayLike, Initializer, as_count, initial_value, seeded

from ._ops import grouped_matmul

KAIMING: Initializer = init.KaimingNormal()
ZEROS: Initializer = init.ZeroInit()


class GroupedLinear(brainstate.nn.Module):
    """An affine map for each group of features, ``y[g] = x[g] W[g] + b[g]``.

    The parameters are trained by eligibility traces, through :func:`braintrace.grouped_matmul`.

    Parameters
    ----------
    num_groups, in_features, out_features
        Number of groups, and of the input and output features of each.
    w_init
        Initial weights: a function of the shape [in, out], called for each group, or a value for
        all of them [groups, in, out]. They may have a unit.
    b_init
        Initial biases, the same way, of the shape [out]; ``None`` for no bias.
    name
        Name of the module.
    param_type
        Class of the parameter state.
    key
        Seed or JAX key of the initial values; ``None`` for the global random state.

    Attributes
    ----------
    weight
        One ``ParamState`` holding ``{"weight": [groups, in, out], "bias": [groups, out]}``.

    Raises
    ------
    ValueError
        For impossible sizes, or an initial value of another shape.

    Notes
    -----
    ``update(x)`` takes [..., groups, in] and returns [..., groups, out]; with more than three axes,
    all but the last two are folded into one batch.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.GroupedLinear(4, 3, 2, key=0)
    >>> layer(jnp.ones((5, 4, 3))).shape
    (5, 4, 2)
    """

    def __init__(
        self,
        num_groups: int,
        in_features: int,
        out_features: int,
        w_init: Initializer = KAIMING,
        b_init: Initializer | None = ZEROS,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
        *,
        key: object = None,
    ) -> None:
        super().__init__(name=name)  # type: ignore[call-arg]
        self.num_groups = as_count("num_groups", num_groups)
        self.in_features = as_count("in_features", in_features)
        self.out_features = as_count("out_features", out_features)
        self.in_size = (self.num_groups, self.in_features)
        self.out_size = (self.num_groups, self.out_features)
        with seeded(key):
            value = {"weight": self._drawn("w_init", w_init, self.in_features, self.out_features)}
            if b_init is not None:
                value["bias"] = self._drawn("b_init", b_init, self.out_features)
        self.weight = param_type(value)

    def _drawn(self, name: str, initializer: Initializer, *shape: int) -> ArrayLike:
        """Initial values of all groups."""
        if not callable(initializer):
            return initial_value(name, initializer, (self.num_groups, *shape))
        groups = [initial_value(name, initializer, shape) for _ in range(self.num_groups)]
        return saiunit.math.stack(groups)

    def update(self, x: ArrayLike) -> jax.Array | saiunit.Quantity:
        """The output [..., groups, out] for an input [..., groups, in]."""
        parameters = self.weight.value
        shape = saiunit.math.shape(x)
        if len(shape) > 3:
            x = saiunit.math.reshape(x, (math.prod(shape[:-2]), *shape[-2:]))
        y = grouped_matmul(x, parameters["weight"], parameters.get("bias"))
        return saiunit.math.reshape(y, (*shape[:-1], self.out_features)) if len(shape) > 3 else y
