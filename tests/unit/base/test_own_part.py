# SPDX-License-Identifier: Apache-2.0
"""What devices draw for their own examples is what one draws for all."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from braintrace.base.own_part import on_device, own_part


@pytest.mark.parametrize("axis", [0, 1])
def test_parts_of_a_draw(axis: int) -> None:
    draw: Any = partial(jax.random.normal, jax.random.key(0))
    shape = (2, 4)[axis:] + (2, 4)[:axis]
    whole = draw(tuple(n * (3 if k == axis else 1) for k, n in enumerate(shape)))

    def of_device(number: Any) -> Any:
        with on_device(number, 3):
            return own_part(draw, shape, axis)

    parts = [jax.jit(of_device)(number) for number in range(3)]
    assert jnp.concatenate(parts, axis).tolist() == whole.tolist()
    assert own_part(draw, shape, axis).tolist() == draw(shape).tolist()
