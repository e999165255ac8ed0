# SPDX-License-Identifier: Apache-2.0
"""Arguments of the estimators, looked at before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import brainstate
import numpy as np


def check_arguments(
    model: Any, options: Mapping[str, Any] | None, optimizer: Any, update_every: Any, features: Any
) -> None:
    """Refuse what cannot be meant.

    Raises
    ------
    TypeError
        For a network in place of what makes one, or an optimizer that is none.
    ValueError
        For other values.
    """
    if isinstance(model, brainstate.nn.Module) or not callable(model):
        raise TypeError(
            "model must be a class or a function: model(inputs, outputs) returns a network; got "
            f"{type(model).__name__}"
        )
    if not (optimizer is None or callable(optimizer) or hasattr(optimizer, "update")):
        raise TypeError(
            "optimizer must be an optax transformation, or a function that makes one, as in "
            f"functools.partial(optax.adam, 1e-2); got {optimizer!r}"
        )
    if {*(options or {})} & {"vmap", "batch_size"}:
        raise ValueError("a stream is one example: options take no vmap and no batch_size")
    if not (is_whole(update_every) and update_every >= 1):
        raise ValueError(f"update_every must be a whole number above 0, got {update_every!r}")
    if is_whole(features):
        if features < 1:
            raise ValueError(f"features must be names, or a number above 0, got {features!r}")
    elif features is not None and not places("features", features):
        raise ValueError(f"features must be names, or a number above 0, got {features!r}")


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, and not a truth value."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def places(what: str, names: Any) -> dict[Any, int]:
    """The place of each name, counted from 0."""
    if not isinstance(names, tuple | list) or len({*names}) != len(names):
        raise ValueError(f"{what} must be a tuple of different names, got {names!r}")
    return {name: place for place, name in enumerate(names)}
