# SPDX-License-Identifier: Apache-2.0
"""Runs of steps with filters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np

from braintrace.compiler.uniform.run import sum_of_parts


def test_values_of_each_leak_at_the_positions_that_have_it() -> None:
    masks = [np.array([True, False]), np.array([False, True])]
    uniform: Any = SimpleNamespace(parts=[(mask, (0,)) for mask in masks])
    assert sum_of_parts([3.0, 4.0 * jnp.ones(2)], uniform).tolist() == [3.0, 4.0]
    assert sum_of_parts([5.0], uniform) == 5.0
