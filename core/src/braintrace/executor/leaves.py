# SPDX-License-Identifier: Apache-2.0
"""One leaf of a parameter or of another state of a step, and its entries as real numbers."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base.precision import widened_dtype
from ..base.types import Path


class StateLeaf(NamedTuple):
    """Its place among the leaves of all states, whose it is and its number there, and its type."""

    place: int
    path: Path
    leaf: int
    aval: Any

    @property
    def size(self) -> int:
        """Number of real entries; a complex number has two."""
        return math.prod(self.aval.shape) * (1 + self.is_complex)

    @property
    def is_complex(self) -> bool:
        return bool(jnp.issubdtype(self.aval.dtype, jnp.complexfloating))

    def widened(self, wide: Any) -> StateLeaf:
        """The same in a dtype that is no narrower."""
        aval = jax.ShapeDtypeStruct(self.aval.shape, widened_dtype(self.aval.dtype, wide))
        return self._replace(aval=aval)

    def tangent(self, entry: jax.Array) -> jax.Array:
        """One in the place of an entry, by number, and zero elsewhere."""
        count = math.prod(self.aval.shape)
        found = (jnp.arange(count) == entry).astype(self.aval.dtype)
        if self.is_complex:  # real parts, then imaginary parts
            found = found + 1j * (jnp.arange(count) + count == entry)
        return found.reshape(self.aval.shape)

    def cotangent(self, entry: jax.Array) -> jax.Array:
        """What picks an entry: JAX pairs numbers as the real part of their product."""
        return jnp.conj(self.tangent(entry))

    def entries(self, cotangent: jax.Array) -> jax.Array:
        """The entries of a cotangent: what it says of each tangent."""
        flat = cotangent.reshape(-1)
        return jnp.concatenate([flat.real, -flat.imag]) if self.is_complex else flat

    def joined(self, entries: jax.Array) -> jax.Array:
        """Values [n, \\*shape] from their entries [n, size]."""
        if self.is_complex:
            real, imaginary = jnp.split(entries, 2, -1)
            entries = real + 1j * imaginary
        return entries.reshape(-1, *self.aval.shape).astype(self.aval.dtype)

    def gradient(self, entries: jax.Array) -> jax.Array:
        """A gradient from its entries; of complex numbers as JAX has it, d/d re - i d/d im."""
        return jnp.conj(self.joined(entries[None])[0])
