# SPDX-License-Identifier: Apache-2.0
"""The layer ``Embedding``: a table of vectors."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import saiunit
from brainstate.nn import init

from braintrace.plugin_api import ArrayLike, Initializer, Size, as_count, initial_value, seeded

from ._ops import embedding

LECUN: Initializer = init.LecunUniform()


class Embedding(brainstate.nn.Embedding):
    """A table of vectors, one for each of a number of tokens, with a trace of the rows it has read.

    A drop-in for ``brainstate.nn.Embedding`` that reads through :func:`braintrace.embedding`.

    Parameters
    ----------
    num_embeddings
        Number of tokens, ``V``.
    embedding_size
        Shape of a vector.
    embedding_init
        Initial table ``[V, *embedding_size]``: a function of the shape, or a value.
    padding_idx
        A token whose vector starts at zero and is not trained, by whatever index it is read.
    max_norm, norm_type
        Vectors are read as if they were scaled down to this norm; ``None`` for none. The table is
        left as it is, and the gradient passes the scaling unchanged, as in ``brainstate``.
    scale_grad_by_freq
        Must be ``False``: how often a token occurs in a batch is no property of a step.
    freeze
        Hold the table constant; name it when compiling, ``frozen=["path.to.layer"]``.
    name
        Name of the module.
    param_type
        Class of the parameter state.
    rows, overflow
        How many rows of an example its trace holds at most, and what happens when there are more,
        as in :func:`braintrace.embedding`.
    key
        Seed or JAX key of the initial values; ``None`` for the global random state.

    Attributes
    ----------
    weight
        A ``ParamState`` holding the table.

    Raises
    ------
    ValueError
        For impossible sizes, an initial value of another shape, or a ``padding_idx`` that is none
        of the tokens.
    NotImplementedError
        With ``scale_grad_by_freq``.

    Notes
    -----
    ``update(indices)`` takes integers of any shape and returns
    ``[*indices.shape, *embedding_size]``.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.Embedding(1000, 16, padding_idx=0, key=0)
    >>> layer(jnp.array([0, 5, 5])).shape
    (3, 16)
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_size: Size,
        embedding_init: Initializer = LECUN,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        freeze: bool = False,
        name: str | None = None,
        param_type: type = brainstate.ParamState,
        *,
        rows: int | None = None,
        overflow: str = "error",
        key: Any = None,
    ) -> None:
        if scale_grad_by_freq:
            raise NotImplementedError(
                "Embedding: scale_grad_by_freq counts tokens of a batch, which a gradient forward "
                "in time does not have; scale the gradient instead"
            )
        with seeded(key):
            super().__init__(
                as_count("num_embeddings", num_embeddings),
                embedding_size,
                lambda shape: initial_value("embedding_init", embedding_init, shape),
                padding_idx=padding_idx,
                max_norm=max_norm,
                norm_type=norm_type,
                freeze=freeze,
                name=name,
                param_type=param_type,
            )
        self.rows, self.overflow = rows, overflow

    @property
    def saved_options(self) -> dict[str, int | None]:
        """What a file says of this layer, beside the options of its trace."""
        return {"padding_idx": self.padding_idx}

    def update(self, indices: ArrayLike) -> jax.Array | saiunit.Quantity:
        """The vectors [*indices.shape, *embedding_size] of tokens."""
        weight: Any = self.weight.value
        if self.freeze:
            weight = jax.lax.stop_gradient(weight)
        y: Any = embedding(indices, weight, rows=self.rows, overflow=self.overflow)
        if self.max_norm is not None:
            y = y + jax.lax.stop_gradient(self._bounded(y) - y)
        if self.padding_idx is not None:
            read, last = jnp.asarray(indices).astype(int), self.num_embeddings - 1
            read = jnp.clip(jnp.where(read < 0, read + last + 1, read), 0, last)
            padded = jnp.expand_dims(read == self.padding_idx, tuple(range(read.ndim, y.ndim)))
            y = saiunit.math.where(padded, jax.lax.stop_gradient(y), y)
        return y

    def _bounded(self, y: Any) -> Any:
        """``y`` with vectors of at most the largest norm."""
        numbers = saiunit.get_mantissa(y)
        vectors = numbers.reshape(*numbers.shape[: y.ndim - len(self.embedding_size)], -1)
        norm = jnp.linalg.norm(vectors, ord=self.norm_type, axis=-1)
        scale = jnp.minimum(1.0, self.max_norm / (norm + 1e-8)).astype(numbers.dtype)
        return y * jnp.expand_dims(scale, tuple(range(scale.ndim, y.ndim)))
