# SPDX-License-Identifier: Apache-2.0
"""What layers share: sizes, initial values, keys."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

from braintrace.ops.layers import as_count, as_size, initial_value, keyword_key, seeded


@pytest.mark.parametrize("size", [0, -1, (), (2, 0), 1.5, "3", None, [[1]]])
def test_what_is_no_size(size: Any) -> None:
    with pytest.raises(ValueError, match="in_size must be a positive integer or a tuple of them"):
        as_size("in_size", size)


def test_sizes() -> None:
    assert as_size("in_size", 3) == (3,) == as_size("in_size", [np.int32(3)])
    assert as_count("groups", (2,)) == 2
    with pytest.raises(ValueError, match="groups must be one positive integer"):
        as_count("groups", (2, 3))


@pytest.mark.parametrize("value", [0.5, np.full(2, 0.5), np.full((1, 1), 0.5), lambda s: 0.5])
def test_initial_values_are_broadcast(value: Any) -> None:
    assert initial_value("b_init", value, (3, 2)).tolist() == [[0.5, 0.5]] * 3


def test_an_initial_value_keeps_its_unit() -> None:
    found = initial_value("b_init", 0.5 * saiunit.mV, (2,))
    assert saiunit.get_unit(found) == saiunit.mV and found.shape == (2,)


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1, 1, 2)])
def test_an_initial_value_of_another_shape(shape: tuple[int, ...]) -> None:
    for value in (np.ones(shape), jnp.ones(shape), jnp.ones(shape) * saiunit.mV):
        with pytest.raises(ValueError, match="b_init gives the shape .*, expected"):
            initial_value("b_init", value, (1, 2))
    with pytest.raises(ValueError, match="b_init gives None"):
        initial_value("b_init", lambda s: None, (2,))


def test_a_positional_key_is_accepted_with_a_warning() -> None:
    class Layer:
        @keyword_key
        def __init__(self, size: int, *, key: Any = None) -> None:
            self.key = key

    assert Layer(3, key=1).key == 1
    with pytest.warns(DeprecationWarning, match="key is given by position"):
        assert Layer(3, 1).key == 1  # type: ignore[call-arg, misc]
    with pytest.raises(TypeError):
        Layer(3, 1, key=2)  # type: ignore[call-arg, misc]


def test_a_seed_of_ones_own() -> None:
    def draw(seed: Any) -> float:
        with seeded(seed):
            return float(brainstate.random.rand())

    assert draw(7) == draw(7) != draw(8)
    assert draw(None) != draw(None)
