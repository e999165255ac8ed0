# SPDX-License-Identifier: Apache-2.0
"""The layer ``SparseLinear``."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import saiunit

from braintrace.plugin_api import (
    ArrayLike,
    Initializer,
    Size,
    as_size,
    by_rows,
    initial_value,
    real_array,
    seeded,
)

from ._matrices import entries_of
from ._ops import sparse_matmul


class SparseLinear(brainstate.nn.SparseLinear):
    """Affine map ``y = x W + b`` with a sparse ``W``, trained by eligibility traces.

    A drop-in for ``brainstate.nn.SparseLinear`` that computes through
    :func:`braintrace.sparse_matmul`.

    Parameters
    ----------
    spar_mat
        Matrix [in, out] of any type that :func:`braintrace.sparse_matmul` takes. Its values are
        the initial weight, its structure is fixed.
    b_init
        Initial bias [out]: a function of the shape, or a value; ``None`` for no bias.
    in_size
        Number of input features; that of the matrix when not given.
    name
        Name of the module.
    param_type
        Class of the parameter state.
    key
        Seed or key of the random numbers of ``b_init``; ``None`` for the global random state.

    Attributes
    ----------
    weight
        One ``ParamState`` holding ``{"weight": [nnz], "bias": [out]}``.
    spar_mat
        The matrix.

    Raises
    ------
    TypeError
        When ``spar_mat`` is no such matrix or its values are no real floating-point numbers.
    ValueError
        For a matrix whose indices do not fit, another ``in_size`` than that of the matrix, or an
        initial bias of another shape.

    Notes
    -----
    ``update(x)`` takes [..., in] and returns [..., out]; with more than two axes, all but the last
    are folded into one batch.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp, saiunit
    >>> matrix = saiunit.sparse.CSR.fromdense(jnp.array([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0]]))
    >>> layer = braintrace.nn.SparseLinear(matrix, b_init=0.5)
    >>> layer(jnp.ones((5, 2))).shape
    (5, 3)
    >>> layer.weight.value["weight"].shape
    (3,)
    """

    def __init__(
        self,
        spar_mat: Any,
        b_init: Initializer | None = None,
        in_size: Size | None = None,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
        *,
        key: Any = None,
    ) -> None:
        # the parent's own constructor knows the matrices of saiunit alone
        super(brainstate.nn.SparseLinear, self).__init__(name=name)  # type: ignore[call-arg]
        num_in, num_out = entries_of(spar_mat).shape
        real_array("SparseLinear", "spar_mat.data", spar_mat.data)
        size = (num_in,) if in_size is None else as_size("in_size", in_size)
        if size != (num_in,):
            raise ValueError(
                f"in_size must be {num_in}, the first axis of spar_mat of shape "
                f"{(num_in, num_out)}, got {in_size!r}"
            )
        self.in_size, self.out_size = size, (num_out,)
        self.spar_mat = spar_mat
        parameters = {"weight": spar_mat.data}
        if b_init is not None:
            with seeded(key):
                parameters["bias"] = initial_value("b_init", b_init, (num_out,))
        self.weight = param_type(parameters)

    def update(self, x: ArrayLike) -> jax.Array | saiunit.Quantity:
        """The output [..., out] for an input [..., in]."""
        parameters = self.weight.value
        weight, bias = parameters["weight"], parameters.get("bias")
        return by_rows(
            lambda rows: sparse_matmul(rows, weight, sparse_mat=self.spar_mat, bias=bias), x
        )
