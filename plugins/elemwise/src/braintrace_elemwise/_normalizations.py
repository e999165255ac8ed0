# SPDX-License-Identifier: Apache-2.0
"""Normalisation whose scale and offset have a trace."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import brainstate
import jax

from ._ops import element_wise


class AffineParamState(brainstate.ParamState):
    """``{"scale": ..., "bias": ...}``, or one of them, as normalisation layers apply them."""

    def execute(self, x: jax.Array) -> jax.Array:
        """``scale * x + bias``, both marked as parameters."""
        value: Any = self.value
        if "scale" in value:
            x = x * element_wise(value["scale"])
        return x + element_wise(value["bias"]) if "bias" in value else x


def _with_traces(layer: type) -> Callable[..., None]:
    """The constructor of a layer of ``brainstate.nn``, with parameters that have a trace."""
    constructor = layer.__init__  # type: ignore[misc]
    signature = inspect.signature(constructor)
    parameters = [
        parameter.replace(default=AffineParamState) if name == "param_type" else parameter
        for name, parameter in signature.parameters.items()
    ]

    @functools.wraps(constructor)
    def made(self: Any, *args: Any, **options: Any) -> None:
        constructor(self, *args, **{"param_type": AffineParamState, **options})

    made.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    return made


class LayerNorm(brainstate.nn.LayerNorm):
    """Layer normalisation ``y = scale (x - mean) / sqrt(var + epsilon) + bias``.

    Computes what ``brainstate.nn.LayerNorm`` does, with its parameters, and takes its arguments.
    Scale and bias are applied by :func:`braintrace.element_wise`, so that they have a trace: their
    effect on later steps is counted. In ``brainstate``'s they have the gradient of the step alone.

    Parameters
    ----------
    in_size
        Shape of an input, without the batch.
    reduction_axes, feature_axes
        Axes that mean and variance are taken over, and that scale and bias have.
    epsilon
        Added to the variance.
    use_bias, use_scale
        Whether there is a bias, and a scale.
    bias_init, scale_init
        Initial values: functions of a shape, or values.
    axis_name, axis_index_groups, use_fast_variance, dtype
        As in ``brainstate``.
    param_type
        Class of the parameter state; its method ``execute`` applies scale and bias.

    Attributes
    ----------
    weight
        A state holding ``{"scale": ..., "bias": ...}``, of the sizes of the feature axes and one
        elsewhere; ``None`` without both.

    Raises
    ------
    ValueError
        When an axis is not one of ``in_size``.

    Notes
    -----
    What is normalised mixes positions: a product in front of it has an exact trace only of the size
    of positions times weights, which is kept or refused as for every such product. Behind the
    product and the state, as in ``h = LayerNorm(h)`` at the end of a step, positions of one step
    reach all of the next, which D-RTRL's diagonal leaves out. In front of a product that drives a
    state, scale and bias are parameters behind another weight: they have the gradient of the step.

    References
    ----------
    Ba, Kiros and Hinton, arXiv 1607.06450.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.LayerNorm((4,))
    >>> [f"{value:.2f}" for value in layer(jnp.array([[1.0, 2.0, 3.0, 4.0]]))[0]]
    ['-1.34', '-0.45', '0.45', '1.34']
    """

    __init__ = _with_traces(brainstate.nn.LayerNorm)


class RMSNorm(brainstate.nn.RMSNorm):
    """Normalisation by the root mean square, ``y = scale x / sqrt(mean(x**2) + epsilon)``.

    Computes what ``brainstate.nn.RMSNorm`` does, with its parameter, and takes its arguments. The
    scale is applied by :func:`braintrace.element_wise`, so that it has a trace.

    Parameters
    ----------
    in_size
        Shape of an input, without the batch.
    epsilon
        Added to the mean square.
    use_scale
        Whether there is a scale.
    scale_init
        Its initial value: a function of a shape, or a value.
    reduction_axes, feature_axes
        Axes that the mean is taken over, and that the scale has.
    dtype, axis_name, axis_index_groups, use_fast_variance
        As in ``brainstate``.
    param_type
        Class of the parameter state; its method ``execute`` applies the scale.

    Attributes
    ----------
    scale
        A state holding ``{"scale": ...}``, of the sizes of the feature axes and one elsewhere;
        ``None`` without it.

    Raises
    ------
    ValueError
        When an axis is not one of ``in_size``.

    Notes
    -----
    What is said of :class:`LayerNorm` holds here.

    References
    ----------
    Zhang and Sennrich, Advances in Neural Information Processing Systems 32, 2019.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.RMSNorm((2,))
    >>> [f"{value:.2f}" for value in layer(jnp.array([[3.0, 4.0]]))[0]]
    ['0.85', '1.13']
    """

    __init__ = _with_traces(brainstate.nn.RMSNorm)


class GroupNorm(brainstate.nn.GroupNorm):
    """Normalisation of groups of channels, each by its own mean and variance.

    Computes what ``brainstate.nn.GroupNorm`` does, with its parameters, and takes its arguments.
    Scale and bias are applied by :func:`braintrace.element_wise`, so that they have a trace.

    Parameters
    ----------
    in_size
        Shape of an input, without the batch; one axis.
    feature_axis
        The axis of the channels.
    num_groups, group_size
        Number of groups, or of the channels in one of them; one of both is given.
    epsilon
        Added to the variance.
    use_bias, use_scale
        Whether there is a bias, and a scale.
    bias_init, scale_init
        Initial values: functions of a shape, or values.
    reduction_axes, dtype, axis_name, axis_index_groups, use_fast_variance
        As in ``brainstate``.
    param_type
        Class of the parameter state; its method ``execute`` applies scale and bias.

    Attributes
    ----------
    weight
        A state holding ``{"scale": [channels], "bias": [channels]}``; ``None`` without both.

    Raises
    ------
    ValueError
        When not one of ``num_groups`` and ``group_size`` is given, or they do not divide the
        channels.

    Notes
    -----
    What is said of :class:`LayerNorm` holds here.

    References
    ----------
    Wu and He, arXiv 1803.08494.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.GroupNorm((4,), num_groups=2)
    >>> print(layer(jnp.array([[1.0, 3.0, 5.0, 9.0]])).round(2))
    [[-1.  1. -1.  1.]]
    """

    __init__ = _with_traces(brainstate.nn.GroupNorm)


_BATCH_NORM = """Batch normalisation of inputs with {axes}.

    Computes what ``brainstate.nn.BatchNorm{n}d`` does, with its states, and takes its arguments.
    Scale and bias are applied by :func:`braintrace.element_wise`, so that they have a trace.

    Parameters
    ----------
    in_size
        Shape of an input, without the batch.
    feature_axis
        The axis of the channels.
    track_running_stats
        Whether running means and variances are kept, and used outside of fitting.
    epsilon, momentum
        Added to the variance; how much of the running values stays.
    affine
        Whether there are a scale and a bias.
    bias_initializer, scale_initializer
        Initial values: functions of a shape, or values.
    axis_name, axis_index_groups, use_fast_variance, name, dtype, mean_type
        As in ``brainstate``.
    param_type
        Class of the parameter state; its method ``execute`` applies scale and bias.

    Attributes
    ----------
    weight
        A state holding ``{{"scale": ..., "bias": ...}}``, of the size of the feature axis and one
        elsewhere; ``None`` when not affine.
    running_mean, running_var
        States of the same shape.

    Raises
    ------
    ValueError
        When an input has another shape than ``in_size``.

    Notes
    -----
    ``brainstate.environ`` says whether a step is one of fitting, ``fit=True``. Then examples of a
    batch are mixed by their mean and variance; what is said of :class:`LayerNorm` holds here.

    References
    ----------
    Ioffe and Szegedy, arXiv 1502.03167.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> layer = braintrace.nn.BatchNorm{n}d({size})
    >>> with brainstate.environ.context(fit=False):
    ...     y = layer(jnp.ones((5, *{size})))
    >>> y.shape
    (5, {shape})
    """


def _of_batches(n: int) -> str:
    axes = "channels alone" if n == 0 else f"{n} axes before the channels"
    size = (*(4,) * n, 3)
    return _BATCH_NORM.format(n=n, axes=axes, size=size, shape=str(size).strip("(),"))


class BatchNorm0d(brainstate.nn.BatchNorm0d):
    __doc__ = _of_batches(0)
    __init__ = _with_traces(brainstate.nn.BatchNorm0d)


class BatchNorm1d(brainstate.nn.BatchNorm1d):
    __doc__ = _of_batches(1)
    __init__ = _with_traces(brainstate.nn.BatchNorm1d)


class BatchNorm2d(brainstate.nn.BatchNorm2d):
    __doc__ = _of_batches(2)
    __init__ = _with_traces(brainstate.nn.BatchNorm2d)


class BatchNorm3d(brainstate.nn.BatchNorm3d):
    __doc__ = _of_batches(3)
    __init__ = _with_traces(brainstate.nn.BatchNorm3d)
