# SPDX-License-Identifier: Apache-2.0
"""Units and dtypes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import saiunit

from braintrace.base.versions import is_float

from .algorithm_checks import D_RTRL_IS, compiled, online
from .case import ConformanceCase
from .check import case_check, close, require
from .models import Cell, quiet, task

#: Relative error allowed of a result, and of a gradient of a sequence, by dtype.
TOLERANCE = {"float32": (1e-5, 1e-4), "bfloat16": (0.03, 0.15)}


@case_check("units.are_never_dropped")
def units_are_never_dropped(case: ConformanceCase) -> None:
    """Of the same quantity in other units, the operation makes the same quantity, or it refuses it
    with a ``TypeError``."""
    arguments = case.arguments()
    for i, value in enumerate(arguments):
        if is_float(value):
            mine = _with(case, arguments, i, value * saiunit.volt)
            theirs = _with(case, arguments, i, 1e3 * value * saiunit.mvolt)
            require(
                (mine is None) == (theirs is None), f"argument {i}: one unit is refused, one not"
            )
            if mine is not None:
                _check_equal(i, mine, theirs)


def _check_equal(i: int, mine: Any, theirs: Any) -> None:
    unit = saiunit.get_unit(mine)
    require(unit.has_same_dim(saiunit.get_unit(theirs)), f"argument {i}: the results' units differ")
    try:
        close(saiunit.Quantity(theirs).to_decimal(unit), saiunit.Quantity(mine).to_decimal(unit))
    except AssertionError as error:
        raise AssertionError(f"argument {i} in volt and in millivolt: {error}") from error


def _with(case: ConformanceCase, arguments: tuple[Any, ...], i: int, value: Any) -> Any:
    """The result with a quantity as argument ``i``; ``None`` when that is refused."""
    try:
        return case.op(*arguments[:i], value, *arguments[i + 1 :])
    except TypeError:
        return None


@case_check("dtypes.result")
def dtype_of_the_result(case: ConformanceCase) -> None:
    """float32 and bfloat16 arguments give a result of that dtype, close to that in float64."""
    case = _of_few_digits(case)
    reference = case.op(*case.arguments())
    for dtype, (tolerance, _) in TOLERANCE.items():
        y = case.op(*case.arguments(0, dtype))
        require(y.dtype == dtype, f"{dtype} arguments give a result of dtype {y.dtype}")
        close(y, reference, tolerance)


def _of_few_digits(case: ConformanceCase) -> ConformanceCase:
    """The case with the same numbers in every dtype."""

    def operands(seed: int, dtype: Any) -> Any:
        drawn = case.arguments(seed, "bfloat16")
        return [v.astype(dtype) if is_float(v) else v for v in drawn]

    return replace(case, operands=operands)


@case_check("dtypes.training")
def dtype_of_training(case: ConformanceCase) -> None:
    """In float32 and bfloat16, traces and gradients keep that dtype and are close to float64."""
    algorithm, case = D_RTRL_IS, _of_few_digits(case)
    with quiet():
        reference = _trained(algorithm, case, "float64")
        for dtype, (_, tolerance) in TOLERANCE.items():
            found = _trained(algorithm, case, dtype)
            close(found, reference, tolerance)


def _trained(algorithm: Any, case: ConformanceCase, dtype: Any) -> Any:
    """The gradient of a sequence, step by step, in a dtype."""
    work = task(Cell(case, dtype), case, dtype)
    learner = compiled(algorithm, work)
    grads = online(learner, work, 1)
    for what, tree in (("gradient", grads), ("trace", [t.value for t in learner.traces])):
        found = {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}
        require(found == {dtype}, f"a {what} has dtype {sorted(found)}, expected {dtype}")
    return grads
