# SPDX-License-Identifier: Apache-2.0
"""Derivatives of a program in a wider dtype than that of its values.

A model in half precision computes its values in half precision. What is summed over many steps from
its derivatives, in forward mode, is not to be rounded at each operation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from ..base import versions
from ..base.precision import widened, widened_dtype
from ..base.versions import JaxprEqn, Var
from .credit import with_credit
from .run import read

#: Parameters of equations that say the dtype of a result.
DTYPES = ("new_dtype", "preferred_element_type", "dtype")


def run_widened(eqns: Iterable[JaxprEqn], env: dict[Var, Any], wide: Any) -> None:
    """Run ``eqns``; derivatives are in a dtype no narrower than ``wide``, and so is what ``env``
    gets: the values that the equations have by themselves, in that dtype.

    An equation that only runs in its own dtype (a loop, a function with a rule of its own) has the
    derivative of that.
    """
    for eqn in eqns:
        operands = [widened(read(env, atom), wide) for atom in eqn.invars]
        own = _narrow(eqn, operands)
        found = None if own is operands else _in_wide(eqn, operands, wide)
        results = widened(versions.bind_equation(eqn, own), wide)
        if found is not None:
            results = [
                with_credit(value, of) if versions.is_float(of) else value
                for value, of in zip(results, found, strict=True)
            ]
        env.update(zip(eqn.outvars, results, strict=True))


def bound_in(wide: Any, eqn: JaxprEqn, operands: Sequence[Any]) -> list[Any]:
    """The results of an equation for operands that may be wider than its own, no narrower than
    ``wide`` then, if it runs so.
    """
    own = _narrow(eqn, [*operands])
    if all(jnp.result_type(a) == jnp.result_type(b) for a, b in zip(own, operands, strict=True)):
        return versions.bind_equation(eqn, operands)
    found = _in_wide(eqn, widened([*operands], wide), wide)
    results: list[Any] = widened(versions.bind_equation(eqn, own), wide)
    return results if found is None else found


def _narrow(eqn: JaxprEqn, operands: list[Any]) -> list[Any]:
    """Operands in the dtypes that an equation takes; themselves where they are in these."""
    dtypes = [atom.aval.dtype for atom in eqn.invars]
    pairs = [*zip(operands, dtypes, strict=True)]
    if all(not _is_other(value, dtype) for value, dtype in pairs) and not _rounds(eqn):
        return operands
    return [value.astype(dtype) if _is_other(value, dtype) else value for value, dtype in pairs]


def _is_other(value: Any, dtype: Any) -> bool:
    return bool(jnp.result_type(value) != dtype and jnp.issubdtype(dtype, jnp.inexact))


def _rounds(eqn: JaxprEqn) -> bool:
    """Whether an equation gives something narrower than what it takes."""
    return any(
        versions.is_float(a.aval) and versions.is_float(v.aval) and
        jnp.promote_types(a.aval.dtype, v.aval.dtype) != v.aval.dtype
        for a in eqn.invars
        for v in eqn.outvars
    )  # fmt: skip


def _in_wide(eqn: JaxprEqn, operands: Sequence[Any], wide: Any) -> list[Any] | None:
    """The results of an equation in a wider dtype; ``None`` where it has none."""
    if eqn.effects or versions.inner_jaxprs(eqn):
        return None
    params = {
        name: widened_dtype(value, wide) if name in DTYPES and value is not None else value
        for name, value in eqn.params.items()
    }
    try:
        found = versions.bind_equation(eqn.replace(params=params), operands)
    except (TypeError, ValueError):
        return None
    types = [(v.aval.shape, widened_dtype(v.aval.dtype, wide)) for v in eqn.outvars]
    same = all((jnp.shape(v), jnp.result_type(v)) == t for v, t in zip(found, types, strict=True))
    return found if same else None
