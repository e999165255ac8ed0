# SPDX-License-Identifier: Apache-2.0
"""Arguments of one step or of several."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from braintrace.drivers.call_arguments import (
    MultiStepData,
    SingleStepData,
    number_of_steps,
    one_step_of,
    steps_of,
)

XS = np.arange(6.0).reshape(3, 2)


def test_the_number_of_steps() -> None:
    assert number_of_steps((XS, SingleStepData(XS))) is None
    assert number_of_steps((MultiStepData({"a": XS, "b": XS[:, 0]}), 1.0)) == 3


@pytest.mark.parametrize(
    ("args", "shown"),
    [
        ((MultiStepData(XS), MultiStepData(XS[:2])), r"\[2, 3\]"),
        ((MultiStepData(XS[:0]),), r"\[0\]"),
        ((MultiStepData(1.0),), r"\['a scalar'\]"),
        ((MultiStepData(()),), r"\[\]"),
    ],
)
def test_lengths_that_do_not_fit(args: Any, shown: str) -> None:
    with pytest.raises(ValueError, match=f"one length of at least one along .*got {shown}"):
        number_of_steps(args)


def test_the_first_step_and_every_step() -> None:
    args = (MultiStepData({"a": XS}), SingleStepData(XS[0]), 2.0)
    first, single, plain = one_step_of(args)
    assert first["a"].tolist() == [0.0, 1.0] and single.tolist() == [0.0, 1.0] and plain == 2.0
    every, singles, plains = steps_of(args, 3)
    assert every["a"] is XS and singles.tolist() == [[0.0, 1.0]] * 3
    assert plains.tolist() == [2.0, 2.0, 2.0]


def test_wrapped_arguments_pass_transformations() -> None:
    found = jax.jit(lambda data: data)(MultiStepData(XS))
    assert isinstance(found, MultiStepData) and jnp.array_equal(found.data, XS)
