# SPDX-License-Identifier: Apache-2.0
"""Comparison of pytrees of numbers that cannot pass vacuously."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import numpy as np


def assert_tree_close(
    actual: Any,
    reference: Any,
    rtol: float = 1e-9,
    *,
    scale: float | None = None,
    allow_zero: Iterable[Any] = (),
) -> None:
    r"""Assert :math:`\|a - b\| \le \mathrm{rtol}\,\|b\|` for every leaf ``b`` of the reference.

    Parameters
    ----------
    actual, reference
        Pytrees of the same structure, with leaves of the same shapes.
    rtol
        Error allowed, relative to the norm of the reference leaf.
    scale
        Used in place of the norm of the reference leaf when given.
    allow_zero
        Leaves whose reference may be zero everywhere, each named by its dictionary key (such as
        the path of a state) or as in the messages (``"cell.w.weight"``; a beginning of the name,
        ``"cell.w"``, names all leaves below). Their error is taken relative to the norm of the
        whole reference.

    Raises
    ------
    AssertionError
        When structures or shapes differ, a leaf is not close (or not a number), or a reference
        leaf is zero everywhere without being named in ``allow_zero``.

    Examples
    --------
    >>> import numpy as np
    >>> from braintrace.testing import assert_tree_close
    >>> assert_tree_close({"w": np.ones(3)}, {"w": np.ones(3) + 1e-12})
    >>> assert_tree_close({"w": np.ones(3)}, {"w": np.ones(3) + 1e-3})
    Traceback (most recent call last):
    AssertionError: w: relative error 9.99e-04 exceeds 1e-09
    """
    got, want = named_leaves(actual), named_leaves(reference)
    if not want:
        raise AssertionError("the reference has no leaves: nothing would be compared")
    if got.keys() != want.keys():
        raise AssertionError(
            f"leaves differ: only in actual {sorted(got.keys() - want.keys())}, "
            f"only in reference {sorted(want.keys() - got.keys())}"
        )
    zeros = [_name(key) for key in allow_zero]
    whole = float(np.sqrt(sum(np.vdot(b, b).real for b in want.values())))
    problems = []
    for name, b in want.items():
        a = got[name]
        if a.shape != b.shape:
            problems.append(f"{name}: shape {a.shape} differs from the reference's {b.shape}")
            continue
        norm = float(np.linalg.norm(b))
        if norm == 0.0 and not any(name == z or name.startswith(z + ".") for z in zeros):
            problems.append(f"{name}: the reference is zero everywhere; name it in allow_zero")
            continue
        size = scale if scale is not None else norm or whole or 1.0
        error = float(np.linalg.norm(a - b)) / size
        if not error <= rtol:  # also catches NaN
            problems.append(f"{name}: relative error {error:.2e} exceeds {rtol:g}")
    if problems:
        raise AssertionError("\n".join(problems))


def named_leaves(tree: Any) -> dict[str, np.ndarray]:
    """The leaves by name, as in the messages."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        ".".join(_name(_key(entry)) for entry in path) or "value": np.asarray(leaf)
        for path, leaf in leaves
    }


def _key(entry: Any) -> Any:
    for attribute in ("key", "idx", "name"):
        if hasattr(entry, attribute):
            return getattr(entry, attribute)
    return entry


def _name(key: Any) -> str:
    return ".".join(map(str, key)) if isinstance(key, tuple) else str(key)
