# SPDX-License-Identifier: Apache-2.0
"""The operation ``element_wise``: checks and units around its primitive."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import saiunit

from braintrace.plugin_api import ArrayLike, bind, processed, real_array, with_unit

from ._primitives import ETP_ELEMWISE


def _unchanged(weight: Any) -> Any:
    return weight


def element_wise(
    weight: ArrayLike,
    fn: Callable[[Any], Any] = _unchanged,
    *,
    weight_fn: Callable[[Any], Any] | None = None,
) -> jax.Array | saiunit.Quantity:
    """``fn(weight)``, marked as a parameter that acts position by position on a hidden state.

    Parameters
    ----------
    weight
        Parameter of any shape, for example a time constant per neuron.
    fn
        Function of the parameter alone, applied before the operation. It may return another
        shape, dtype or unit; the compiler pulls the gradient back through it.
    weight_fn
        The same, of the numbers of the parameter; its unit multiplies the result, as in the other
        operations. At most one of both is given.

    Returns
    -------
    jax.Array or saiunit.Quantity
        ``fn(weight)`` with its unit, or ``weight_fn`` of the numbers in the unit of ``weight``. Its
        shape broadcasts against the hidden state that it acts on: ``()``, ``(1,)``, one entry per
        neuron, ``(channels, 1, 1)``, ...

    Raises
    ------
    TypeError
        When ``fn`` or ``weight_fn`` is no function, both are given, or ``weight`` or ``fn(weight)``
        is no array of a real floating-point dtype.

    Notes
    -----
    Binds ``etp_elemwise``, which has no input besides the parameter. Hidden-to-hidden gradients
    pass through it, unlike through the products of other families. Its trace has one entry per
    position and state of the hidden group, so that each example of a batch has its own.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import braintrace
    >>> braintrace.element_wise(jnp.array([0.0, 1.0]), fn=jnp.exp).shape
    (2,)
    """
    if weight_fn is not None and fn is not _unchanged:
        raise TypeError("element_wise: give either fn or weight_fn, not both")
    real_array("element_wise", "weight", weight)
    of_weight = processed("element_wise", "weight_fn", weight_fn, weight)
    if weight_fn is None:
        if not callable(fn):
            raise TypeError(f"element_wise: fn must be a function, got {type(fn).__name__}")
        of_weight = fn(weight)
    value, unit = real_array("element_wise", "fn(weight)", of_weight)
    return with_unit(bind(ETP_ELEMWISE, value), unit)
