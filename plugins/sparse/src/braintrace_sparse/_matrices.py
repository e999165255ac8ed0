# SPDX-License-Identifier: Apache-2.0
"""Where the stored values of a sparse matrix stand, whatever its format.

Indices that are known while tracing are checked and prepared once, outside the traced program.
Indices that are traced themselves go through the same steps inside of it. A matrix of a class that
is not known has no indices to read: its positions are those that its values reach.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import saiunit
from jax.experimental.sparse import BCOO

from braintrace.plugin_api import with_unit

EXPECTED = (
    "a CSR, CSC or COO of saiunit.sparse or brainevent, another saiunit.sparse.SparseMatrix or "
    "brainevent.DataRepresentation with data, with_data and todense, or a "
    "jax.experimental.sparse.BCOO without batch or dense dimensions"
)


@dataclass(frozen=True, eq=False)
class Entries:
    """Stored value ``k`` is added at ``[row[k], col[k]]`` of a matrix of this shape.

    ``row`` and ``col`` are int32 [nnz]. An entry outside the matrix stands for nothing (padding);
    both of its indices are then just past the end. ``shared`` says that the matrix keeps a single
    value for all entries, ``unit`` is that of its values, ``data`` the shape of all of them.
    ``whole`` makes the matrix [in, out] of them, where it has no indices to read.
    """

    row: jax.Array
    col: jax.Array
    shape: tuple[int, int]
    shared: bool
    unit: saiunit.Unit
    data: tuple[int, ...]
    whole: Callable[[jax.Array], jax.Array] | None = None

    @property
    def nnz(self) -> int:
        """The number of stored values."""
        return self.row.shape[0]


def entries_of(sparse_mat: Any) -> Entries:
    """The entries of a sparse matrix.

    Raises
    ------
    TypeError
        When it is no sparse matrix, or its indices are no integers.
    ValueError
        When its indices do not fit together or to its shape, or are not known where they must be.
    """
    read = next((read for kind, read in _readers() if isinstance(sparse_mat, kind)), None)
    whole = None if read is not None else _whole(sparse_mat)
    if read is not None:
        row, col = read(sparse_mat)
    elif whole is not None:
        row, col = _reached(sparse_mat, whole)
    else:
        raise TypeError(
            f"sparse_matmul: sparse_mat must be {EXPECTED}, got {type(sparse_mat).__name__}"
        )
    shape = (int(sparse_mat.shape[0]), int(sparse_mat.shape[1]))
    data = saiunit.math.shape(sparse_mat.data)
    listed = whole is None
    return Entries(
        *_padded(row, col, shape),
        shape,
        shared=listed and data in ((), (1,)) and data != row.shape,
        unit=saiunit.get_unit(sparse_mat.data),
        data=row.shape if listed and math.prod(data) != row.shape[0] else data,
        whole=whole,
    )


# --- formats -----------------------------------------------------------------------------------


def _compressed(name: str, indices: Any, indptr: Any, size: int, other: int) -> tuple[Any, Any]:
    """Both indices of every entry, from those along one axis and pointers along the other.

    Values beyond the last pointer are padding.
    """
    (count,), last = indices.shape, indptr[-1]
    if indptr.shape != (size + 1,):
        raise ValueError(
            f"sparse_matmul: indptr of the {name} sparse_mat has shape {indptr.shape}, expected "
            f"{(size + 1,)}"
        )
    if _known(indptr) and (indptr[0] != 0 or last > count or (np.diff(indptr) < 0).any()):
        raise ValueError(
            f"sparse_matmul: indptr of the {name} sparse_mat must rise from 0 to at most {count}, "
            f"the number of its indices, got {indptr}"
        )
    if _known(indices, indptr) and (indices[:last] >= other).any():
        raise ValueError(
            f"sparse_matmul: the {name} sparse_mat has the index {indices[:last].max()} along an "
            f"axis of size {other}"
        )
    numpy = np if _known(indptr) else jnp
    pointed = numpy.searchsorted(indptr, numpy.arange(count), side="right") - 1
    return pointed, indices


def _from_csr(matrix: Any) -> tuple[Any, Any]:
    parts = _plain(matrix.indices), _plain(matrix.indptr)
    return _compressed("CSR", *parts, *matrix.shape)


def _from_csc(matrix: Any) -> tuple[Any, Any]:
    parts = _plain(matrix.indices), _plain(matrix.indptr)
    col, row = _compressed("CSC", *parts, *matrix.shape[::-1])
    return row, col


def _from_coo(matrix: Any) -> tuple[Any, Any]:
    return _plain(matrix.row), _plain(matrix.col)


def _from_bcoo(matrix: BCOO) -> tuple[Any, Any]:
    if (matrix.n_batch, matrix.n_sparse, matrix.n_dense) != (0, 2, 0):
        raise ValueError(
            f"sparse_matmul: sparse_mat must be {EXPECTED}, got a BCOO with "
            f"n_batch={matrix.n_batch}, n_sparse={matrix.n_sparse} and n_dense={matrix.n_dense}"
        )
    indices = _plain(matrix.indices)
    return indices[:, 0], indices[:, 1]


def _per_row(matrix: Any) -> tuple[Any, Any]:
    """As many values in each row: their columns are [in, number]."""
    col = _plain(matrix.indices)
    return np.repeat(np.arange(col.shape[0]), col.shape[1]), col.reshape(-1)


def _per_column(matrix: Any) -> tuple[Any, Any]:
    """As many values in each column: their rows are [out, number]."""
    return _per_row(matrix)[::-1]


Reader = Callable[[Any], tuple[Any, Any]]
_READERS: dict[str, Reader] = {
    "CSR": _from_csr,
    "CSC": _from_csc,
    "COO": _from_coo,
    "FixedNumPerPre": _per_row,
    "FixedNumPerPost": _per_column,
}


def _readers() -> Iterator[tuple[type, Reader]]:
    """Known types; a matrix of ``brainevent`` can only be there once that is imported."""
    yield BCOO, _from_bcoo
    for module in filter(None, map(sys.modules.get, ("saiunit.sparse", "brainevent"))):
        for name, read in _READERS.items():
            if isinstance(kind := getattr(module, name, None), type):
                yield kind, read


def _whole(matrix: Any) -> Callable[[jax.Array], jax.Array] | None:
    """The matrix [in, out] of other values, where it can make one of them; without units."""
    kind = getattr(sys.modules.get("saiunit.sparse"), "SparseMatrix", ())
    if not isinstance(matrix, kind) or not hasattr(matrix, "data"):
        return None
    unit, dtype = saiunit.get_unit(matrix.data), saiunit.math.get_dtype(matrix.data)

    def whole(values: jax.Array) -> jax.Array:
        other = matrix.with_data(with_unit(values.astype(dtype), unit))
        return jnp.asarray(saiunit.get_mantissa(other.todense()), values.dtype)

    return whole


def _reached(matrix: Any, whole: Callable[[jax.Array], jax.Array]) -> tuple[Any, Any]:
    """The positions that are not zero with random values."""
    shape = saiunit.math.shape(matrix.data)
    values = np.random.default_rng(0).uniform(1, 2, shape)
    with jax.ensure_compile_time_eval():
        dense = whole(jnp.asarray(values, saiunit.math.get_dtype(matrix.data)))
    if not _known(dense):
        raise ValueError(
            f"sparse_matmul: sparse_mat, a {type(matrix).__name__}, is an argument of a traced "
            "function; where its values stand must be known, so make it outside"
        )
    row, col = np.nonzero(np.asarray(dense))
    return row, col


# --- indices -----------------------------------------------------------------------------------


def _known(*indices: Any) -> bool:
    return not any(isinstance(index, jax.core.Tracer) for index in indices)


def _plain(index: Any) -> Any:
    """Indices as a NumPy array where their values are known, wide enough to hold any size."""
    index = np.asarray(index) if _known(index) else index
    if not jnp.issubdtype(index.dtype, jnp.integer):
        raise TypeError(
            f"sparse_matmul: indices of sparse_mat have dtype {index.dtype}, expected integers"
        )
    return index.astype("int32") if index.dtype.itemsize < 4 else index


def _padded(row: Any, col: Any, shape: tuple[int, int]) -> tuple[jax.Array, jax.Array]:
    """Indices as int32 arrays, those of padding moved past the end of both axes."""
    if row.shape != col.shape or row.ndim != 1:
        raise ValueError(
            "sparse_matmul: the indices of sparse_mat must be two arrays [nnz], got the shapes "
            f"{row.shape} and {col.shape}"
        )
    if _known(row, col) and ((row < 0).any() or (col < 0).any()):
        raise ValueError(
            f"sparse_matmul: sparse_mat has the negative index {min(row.min(), col.min())}"
        )
    inside = (row >= 0) & (row < shape[0]) & (col >= 0) & (col < shape[1])
    numpy = np if _known(row, col) else jnp
    pairs = zip((row, col), shape, strict=True)
    ends = (numpy.where(inside, index, size).astype("int32") for index, size in pairs)
    first, second = map(jnp.asarray, ends)
    return first, second
