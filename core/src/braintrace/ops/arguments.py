# SPDX-License-Identifier: Apache-2.0
"""What the operations and layers of primitive families have in common.

Operations check and convert their arguments before anything is bound; layers turn sizes and
initial values into parameters. Plugins import these functions from :mod:`braintrace.plugin_api`.
"""

from __future__ import annotations

import functools
import inspect
import math
import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar, cast

import brainstate
import jax
import jax.numpy as jnp
import saiunit

from ..base import versions

ArrayLike = jax.typing.ArrayLike | saiunit.Quantity
ParameterFn = Callable[[Any], Any]
Constructor = TypeVar("Constructor", bound=Callable[..., None])
Initializer = Any  # a function of a shape, an array, a quantity or a number
Size = brainstate.typing.Size

# --- arguments of operations ----------------------------------------------------------------------


def real_array(operation: str, name: str, value: ArrayLike) -> tuple[jax.Array, saiunit.Unit]:
    """The mantissa of an argument as a real floating-point array, and its unit.

    Parameters
    ----------
    operation, name
        The operation and its argument, for the error.
    value
        The argument.

    Returns
    -------
    tuple
        Array and unit, ``saiunit.UNITLESS`` when it has none.

    Raises
    ------
    TypeError
        When it is no array, or complex, integer or boolean.

    Examples
    --------
    >>> import saiunit
    >>> from braintrace.plugin_api import real_array
    >>> array, unit = real_array("scale", "x", 2.0 * saiunit.mV)
    >>> float(array), str(unit)
    (2.0, 'mV')
    """
    try:
        mantissa, unit = (
            (value, saiunit.UNITLESS)
            if isinstance(value, jax.Array)
            else saiunit.split_mantissa_unit(value)
        )
        array = mantissa if isinstance(mantissa, jax.Array) else jnp.asarray(mantissa)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{operation}: {name} must be an array or a saiunit.Quantity, "
            f"got {type(value).__name__}"
        ) from error
    if jnp.issubdtype(array.dtype, jnp.floating):
        return array, unit
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(
            f"{operation}: {name} has the complex dtype {array.dtype}; eligibility traces are "
            "defined for real numbers. Pass real and imaginary parts separately"
        )
    raise TypeError(
        f"{operation}: {name} has dtype {array.dtype}, expected a floating-point dtype. "
        f"Convert it, for example with {name}.astype(jax.numpy.float32)"
    )


def processed(
    operation: str, name: str, fn: ParameterFn | None, parameter: Any, unit: Any = None
) -> Any:
    """``fn`` of the numbers of a parameter, in its unit; or the parameter itself without ``fn``.

    Parameters
    ----------
    operation, name
        The operation and the argument, for the error.
    fn
        A function of the parameter, or ``None``.
    parameter
        The parameter. Of a quantity, ``fn`` gets the mantissa, and the unit multiplies the result.
    unit
        A unit in which its numbers are taken where it has that dimension; ``None`` for its own.

    Raises
    ------
    TypeError
        When ``fn`` (called ``name`` in the error) is no function.

    Examples
    --------
    >>> from braintrace.plugin_api import processed
    >>> import saiunit
    >>> str(processed("scale", "weight_fn", lambda w: w**2, -2.0 * saiunit.mV))
    '4. mV'
    """
    if fn is None:
        return parameter
    if not callable(fn):
        raise TypeError(f"{operation}: {name} must be a function, got {type(fn).__name__}")
    if not isinstance(parameter, saiunit.Quantity):
        return fn(parameter)
    if unit is not None and parameter.unit.has_same_dim(unit):
        parameter = parameter.in_unit(unit)
    return fn(parameter.mantissa) * parameter.unit


def bias_in_unit(
    operation: str, bias: ArrayLike, shape: tuple[int, ...], unit: Any, of: str
) -> jax.Array:
    """A bias of exactly ``shape`` as a plain array in the unit of the product that it is added to.

    Parameters
    ----------
    operation
        The operation, for the error.
    bias
        The argument.
    shape
        Shape that it must have.
    unit
        Unit that it is converted to.
    of
        The product, for the error, for example ``"x @ weight"``.

    Raises
    ------
    TypeError
        When it is no real floating-point array, or its unit has another dimension.
    ValueError
        When it has another shape.

    Examples
    --------
    >>> import jax.numpy as jnp, saiunit
    >>> from braintrace.plugin_api import bias_in_unit
    >>> bias_in_unit("scale", jnp.ones(1) * saiunit.volt, (1,), saiunit.mV, "x * w").tolist()
    [1000.0]
    """
    value, own = real_array(operation, "bias", bias)
    if value.shape != shape:
        raise ValueError(f"{operation}: bias must have shape {shape}, got shape {value.shape}")
    if not own.has_same_dim(unit):
        raise TypeError(f"{operation}: bias has the unit {own}, expected the unit of {of}, {unit}")
    if own == unit:
        return value
    return jnp.asarray(saiunit.Quantity(value, unit=own).to_decimal(unit))


def with_unit(array: jax.Array, unit: Any) -> jax.Array | saiunit.Quantity:
    """The quantity, or the array itself where the unit is dimensionless.

    Parameters
    ----------
    array
        The numbers.
    unit
        Their unit, as :func:`real_array` gives it.

    Examples
    --------
    >>> import jax.numpy as jnp, saiunit
    >>> from braintrace.plugin_api import with_unit
    >>> with_unit(jnp.ones(2), saiunit.UNITLESS).tolist()
    [1.0, 1.0]
    """
    if unit == saiunit.UNITLESS:
        return array
    return saiunit.maybe_decimal(saiunit.Quantity(array, unit=unit))


def by_rows(function: Callable[[Any], Any], x: ArrayLike) -> Any:
    """A function of ``x`` [in] or [batch, in], for ``x`` [..., in]: leading axes are one batch.

    Parameters
    ----------
    function
        Returns [out] or [batch, out].
    x
        With two axes or fewer it is passed on as it is.

    Returns
    -------
    jax.Array or saiunit.Quantity
        [..., out].

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from braintrace.plugin_api import by_rows
    >>> by_rows(lambda rows: rows[:, :2], jnp.ones((5, 4, 3))).shape
    (5, 4, 2)
    """
    shape = saiunit.math.shape(x)
    if len(shape) < 3:
        return function(x)
    y = function(saiunit.math.reshape(x, (math.prod(shape[:-1]), shape[-1])))
    return saiunit.math.reshape(y, (*shape[:-1], saiunit.math.shape(y)[-1]))


# --- sizes and initial values of layers -----------------------------------------------------------


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
    value = _drawn(initializer, shape) if callable(initializer) else initializer
    if value is None:
        raise ValueError(f"{name} gives None, expected a value of shape {shape}")
    if isinstance(value, (bool, int, float)):
        value = jnp.asarray(value, brainstate.environ.dftype())
    try:
        return saiunit.math.broadcast_to(value, shape)
    except ValueError:
        found = saiunit.math.shape(value)
        raise ValueError(f"{name} gives the shape {found}, expected {shape}") from None


def _drawn(initializer: Any, shape: tuple[int, ...]) -> Any:
    """What an initializer gives.

    One that decomposes a matrix, as an orthogonal one does, cannot do so in half precision; it is
    run in float32 then, and the value is rounded.
    """
    dtype = brainstate.environ.dftype()
    try:
        return initializer(shape)
    except (NotImplementedError, TypeError):
        if jnp.finfo(dtype).bits >= 32:
            raise
        with brainstate.environ.context(precision=32):
            return jax.tree.map(lambda value: value.astype(dtype), initializer(shape))


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
