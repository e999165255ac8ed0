# SPDX-License-Identifier: Apache-2.0
"""The cases themselves: what they draw, and which static parameters they see."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace.base.versions import is_float

from .case import ConformanceCase, operation_of
from .check import case_check, family_check, require


@case_check("cases.are_reproducible")
def cases_are_reproducible(case: ConformanceCase) -> None:
    """``operands`` returns the same for the same seed, another ``x`` for another, in the dtype."""
    first, again, other = (
        [np.asarray(v) for v in case.operands(seed, jnp.dtype("float64"))] for seed in (0, 0, 1)
    )
    if any((a != b).any() for a, b in zip(first, again, strict=True)):
        raise AssertionError("seed 0 gives different operands at each call")
    if case.has_x and (first[0] == other[0]).all():
        raise AssertionError("seeds 0 and 1 give the same x")
    for dtype in ("float64", "float32"):
        for value in first if dtype == "float64" else _types(case, dtype):
            if is_float(value) and value.dtype != dtype:
                raise AssertionError(f"an operand has dtype {value.dtype}, asked for {dtype}")


def _types(case: ConformanceCase, dtype: str) -> Any:
    """Types of the operands, without computing them where that is possible."""

    def drawn() -> tuple[Any, ...]:
        return tuple(map(jnp.asarray, case.operands(0, jnp.dtype(dtype))))

    try:
        return jax.eval_shape(drawn)
    except jax.errors.ConcretizationTypeError:
        return drawn()


def static_parameters(cases: Iterable[ConformanceCase]) -> dict[str, dict[str, tuple[Any, ...]]]:
    """The values of static parameters that cases use: what was checked, and for what.

    Parameters
    ----------
    cases
        Cases, as for :func:`check_plugin`.

    Returns
    -------
    dict
        By name of the primitive and of the parameter, the different values, in order.

    Examples
    --------
    >>> import jax
    >>> from braintrace.plugin_api import ETPPrimitiveSpec, bind
    >>> from braintrace.testing import ConformanceCase, static_parameters
    >>> spec = ETPPrimitiveSpec("doc_static_power", lambda x, w, *, power: w * x**power)
    >>> def operands(seed, dtype):
    ...     x, w = jax.random.normal(jax.random.key(seed), (2, 3), dtype)
    ...     return x, w
    >>> def case(power):
    ...     return ConformanceCase(spec, operands, lambda x, w: bind(spec, x, w, power=power))
    >>> static_parameters([case(1), case(2)])
    {'doc_static_power': {'power': (1, 2)}}
    """
    seen: dict[str, dict[str, dict[Any, Any]]] = {}
    for case in cases:
        of_spec = seen.setdefault(case.spec.name, {})
        for name, value in operation_of(case).params.items():
            of_spec.setdefault(name, {}).setdefault(_key(value), value)
    return {
        spec: {name: tuple(values.values()) for name, values in of_spec.items()}
        for spec, of_spec in seen.items()
    }


def _key(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value


@family_check("cases.vary_the_static_parameters")
def vary_the_static_parameters(cases: tuple[ConformanceCase, ...]) -> None:
    """Every static parameter has at least two values in the cases: a rule that is right for the
    one value in use may be wrong for others."""
    seen = static_parameters(cases)
    values: dict[str, dict[Any, Any]] = {}
    for of_spec in seen.values():
        for name, some in of_spec.items():
            values.setdefault(name, {}).update((_key(value), value) for value in some)
    fixed = [
        f"{n} (always {next(iter(v.values()))!r:.40})" for n, v in values.items() if len(v) < 2
    ]
    listed = "; ".join(
        f"{spec}: " + ", ".join(f"{name} in {some!r:.80}" for name, some in of_spec.items())
        for spec, of_spec in seen.items()
    )
    require(
        not fixed,
        f"no case varies {', '.join(fixed)}; add a case with another value, or say in "
        f"expected_failures why there is only one. Seen are: {listed}",
    )
