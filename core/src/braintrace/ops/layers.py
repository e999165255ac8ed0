# SPDX-License-Identifier: Apache-2.0
"""What layers of all families share: sizes and initial values of parameters."""

from __future__ import annotations

import functools
import inspect
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import brainstate
import jax.numpy as jnp
import saiunit

from ..base import versions

Constructor = TypeVar("Constructor", bound=Callable[..., None])
Initializer = Any  # a function of a shape, an array, a quantity or a number
Size = brainstate.typing.Size


def as_size(name: str, size: Size) -> tuple[int, ...]:
    """``size`` as a non-empty tuple of positive integers.

    Parameters
    ----------
    name
        What the error calls it.
    size
        A positive integer, or a tuple or list of them.

    Raises
    ------
    ValueError
        When it is none; the error calls it ``name``.

    Examples
    --------
    >>> from braintrace.plugin_api import as_size
    >>> as_size("in_size", 3)
    (3,)
    """
    try:
        sizes = tuple(map(operator.index, size if isinstance(size, (tuple, list)) else (size,)))
    except TypeError:
        sizes = ()
    if not sizes or min(sizes) < 1:
        raise ValueError(f"{name} must be a positive integer or a tuple of them, got {size!r}")
    return sizes


def as_count(name: str, value: Any) -> int:
    """``value`` as one positive integer.

    Parameters
    ----------
    name
        What the error calls it.
    value
        A positive integer, or a tuple of one.

    Raises
    ------
    ValueError
        When it is none; the error calls it ``name``.

    Examples
    --------
    >>> from braintrace.plugin_api import as_count
    >>> as_count("groups", (2,))
    2
    """
    sizes = as_size(name, value)
    if len(sizes) != 1:
        raise ValueError(f"{name} must be one positive integer, got {value!r}")
    return sizes[0]


def initial_value(name: str, initializer: Initializer, shape: tuple[int, ...]) -> Any:
    """A value of exactly ``shape``.

    Parameters
    ----------
    name
        What the error calls it.
    initializer
        A function of the shape, or a number, an array or a quantity that broadcasts to it.
    shape
        The shape.

    Raises
    ------
    ValueError
        When it gives ``None`` or a shape that does not broadcast.

    Examples
    --------
    >>> from braintrace.plugin_api import initial_value
    >>> initial_value("b_init", 0.5, (2,)).tolist()
    [0.5, 0.5]
    """
    value = initializer(shape) if callable(initializer) else initializer
    if value is None:
        raise ValueError(f"{name} gives None, expected a value of shape {shape}")
    if isinstance(value, (bool, int, float)):
        value = jnp.asarray(value, brainstate.environ.dftype())
    try:
        return saiunit.math.broadcast_to(value, shape)
    except ValueError:
        found = saiunit.math.shape(value)
        raise ValueError(f"{name} gives the shape {found}, expected {shape}") from None


def keyword_key(constructor: Constructor) -> Constructor:
    """A constructor that takes its ``key`` by position too, with a warning, for one release.

    Parameters
    ----------
    constructor
        An ``__init__`` with the keyword-only argument ``key``.

    Returns
    -------
    The constructor, which gives a ``DeprecationWarning`` for a positional ``key``.

    Examples
    --------
    >>> import inspect
    >>> from braintrace.plugin_api import keyword_key
    >>> class Layer:
    ...     @keyword_key
    ...     def __init__(self, size, *, key=None):
    ...         self.key = key
    >>> Layer(3, key=0).key, str(inspect.signature(Layer))
    (0, '(size, *, key=None)')
    """
    before = len(inspect.getfullargspec(constructor).args) - 1  # without self

    @functools.wraps(constructor)
    def accepting(self: Any, *args: Any, **options: Any) -> None:
        if len(args) == before + 1 and "key" not in options:
            name = f"{type(self).__name__}(..., key=...)"
            versions.warn(f"key is given by position; write {name}", DeprecationWarning)
            *args, options["key"] = args  # type: ignore[assignment]
        constructor(self, *args, **options)

    return cast(Constructor, accepting)


def seeded(seed_or_key: Any) -> AbstractContextManager[None]:
    """Draw the random numbers of ``brainstate.random`` from a seed or key of one's own inside.

    Parameters
    ----------
    seed_or_key
        An integer, a JAX key, or ``None`` to leave the global random state in charge.

    Raises
    ------
    TypeError
        On entry, when it is something else.

    Examples
    --------
    >>> import brainstate
    >>> from braintrace.plugin_api import seeded
    >>> def draw():
    ...     with seeded(7):
    ...         return float(brainstate.random.rand())
    >>> draw() == draw()
    True
    """
    return nullcontext() if seed_or_key is None else brainstate.random.seed_context(seed_or_key)
