# SPDX-License-Identifier: Apache-2.0
"""Units and dtypes."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import saiunit

from braintrace.base.versions import is_float

from ..compare import named_leaves
from .algorithm_checks import D_RTRL_IS, compiled, driver, found, online
from .case import ConformanceCase, derived
from .check import case_check, close, require, wide
from .models import DIGITS, leaky, quiet

#: Relative error allowed of a result, and of a gradient of a sequence, by dtype.
TOLERANCE = {"float32": (1e-5, 1e-4), "bfloat16": (0.03, 0.15)}
#: The error allowed, in parts of that of the derived rules, where they exceed it themselves.
TIMES_THE_DERIVED = 1.5


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
    reference = case.op(*case.arguments(digits=DIGITS))
    for dtype, (tolerance, _) in TOLERANCE.items():
        y = case.op(*case.arguments(0, dtype, DIGITS))
        require(y.dtype == dtype, f"{dtype} arguments give a result of dtype {y.dtype}")
        close(y, reference, tolerance)


@case_check("dtypes.training")
def dtype_of_training(case: ConformanceCase) -> None:
    """In float32 and bfloat16, gradients keep that dtype, traces are in float32, and both are close
    to float64: as close as those of derived rules, where these are further off than usual."""
    reference = found(case, D_RTRL_IS, leaky, 1)
    for dtype, (_, tolerance) in TOLERANCE.items():
        grads = _trained(case, dtype)
        try:
            close(grads, reference, tolerance)
        except AssertionError:
            usual = _error(_trained(derived(case), dtype), reference)
            close(grads, reference, max(tolerance, TIMES_THE_DERIVED * usual))


def _error(grads: Any, reference: Any) -> float:
    """The largest relative error of a leaf."""
    got, want = named_leaves(wide(grads)), named_leaves(wide(reference))
    return max(float(np.linalg.norm(got[k] - b) / np.linalg.norm(b)) for k, b in want.items())


def _trained(case: ConformanceCase, dtype: Any) -> Any:
    """The gradient of a sequence, step by step, in a dtype."""
    with quiet():
        work = leaky(case, dtype)
        learner = compiled(D_RTRL_IS, work)
        grads = online(learner, work.sequences, driver(learner, 1))
    traces = [trace.value for trace in learner.traces]
    for what, tree, expected in (("gradient", grads, dtype), ("trace", traces, "float32")):
        dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(tree) if is_float(leaf)}
        require(dtypes == {expected}, f"a {what} has dtype {sorted(dtypes)}, expected {expected}")
    return grads
