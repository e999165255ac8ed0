# SPDX-License-Identifier: Apache-2.0
"""Random numbers of the examples that a device has, inside of ``jax.shard_map``.

Each device has a learner of its own examples there, and all the same random state. What a device
draws is its part of what one device would draw for all examples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import jax

#: The number of the device among those that have examples, and how many these are.
_DEVICE: ContextVar[tuple[Any, int]] = ContextVar("device", default=(0, 1))


@contextmanager
def on_device(number: Any, count: int) -> Iterator[None]:
    """What is traced inside is about the examples of one of several devices."""
    token = _DEVICE.set((number, count))
    try:
        yield
    finally:
        _DEVICE.reset(token)


def own_part(draw: Callable[[tuple[int, ...]], Any], shape: tuple[int, ...], axis: int) -> Any:
    """What ``draw`` gives for a shape with an axis of examples, those of this device."""
    number, count = _DEVICE.get()
    if count == 1:
        return draw(shape)
    size = shape[axis]
    whole = draw((*shape[:axis], count * size, *shape[axis + 1 :]))
    return jax.lax.dynamic_slice_in_dim(whole, number * size, size, axis)
