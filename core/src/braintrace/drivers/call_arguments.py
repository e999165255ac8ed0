# SPDX-License-Identifier: Apache-2.0
"""How the arguments of one call are fed: one step, or several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


@partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=[])
@dataclass(frozen=True)
class MultiStepData:
    """An argument of several steps: a pytree of arrays [k, ...], one slice for each.

    Parameters
    ----------
    data
        A pytree of arrays [k, ...].

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> braintrace.MultiStepData(jnp.zeros((10, 2, 3))).data.shape
    (10, 2, 3)
    """

    data: Any


@partial(jax.tree_util.register_dataclass, data_fields=["data"], meta_fields=[])
@dataclass(frozen=True)
class SingleStepData:
    """An argument that is the same at every step of a call, as one that is not wrapped.

    Parameters
    ----------
    data
        A pytree of arrays.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> braintrace.SingleStepData(jnp.zeros((2, 3))).data.shape
    (2, 3)
    """

    data: Any


def _wrapped(value: Any) -> bool:
    return isinstance(value, MultiStepData | SingleStepData)


def _unwrapped(args: Any, of_multi: Callable[[Any], Any], of_single: Callable[[Any], Any]) -> Any:
    def one(value: Any) -> Any:
        if isinstance(value, MultiStepData):
            return jax.tree.map(of_multi, value.data)
        return jax.tree.map(of_single, value.data if _wrapped(value) else value)

    return jax.tree.map(one, args, is_leaf=_wrapped)


def number_of_steps(args: Any) -> int | None:
    """``k`` of the arguments of a call; ``None`` when none of them is a ``MultiStepData``.

    It raises ``ValueError`` when lengths differ, or one is a scalar or of length zero.
    """
    multi = [v for v in jax.tree.leaves(args, is_leaf=_wrapped) if isinstance(v, MultiStepData)]
    if not multi:
        return None
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves([v.data for v in multi])}
    if len(lengths) != 1 or lengths <= {(), (0,)}:
        shown = sorted(length[0] if length else "a scalar" for length in lengths)
        raise ValueError(
            "all arrays in MultiStepData must have one length of at least one along their first "
            f"axis, got {shown}"
        )
    return int(lengths.pop()[0])


def one_step_of(args: Any) -> Any:
    """Arguments of the first step of a call."""
    return _unwrapped(args, lambda v: v[0], lambda v: v)


def steps_of(args: Any, steps: int) -> Any:
    """Arguments of every step, [k, ...]."""
    return _unwrapped(args, lambda v: v, lambda v: jnp.broadcast_to(v, (steps, *jnp.shape(v))))
