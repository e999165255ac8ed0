# SPDX-License-Identifier: Apache-2.0
"""The nodes of NIR without equations in time, and the delay.

Shapes are NIR's: channels first, and no axis for the batch, which is in front of them here.
Products are the layers of ``braintrace_dense`` and ``braintrace_conv``.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintrace.plugin_api import NotSupportedError, as_size
from braintrace_conv.nn import Conv1d, Conv2d
from braintrace_dense.nn import Linear

from ._neurons import Elements, Surrogate, on_axes, spike

Shape = tuple[int, ...]

CONVOLUTIONS: dict[str, Any] = {"Conv1d": Conv1d, "Conv2d": Conv2d}


def numbers(value: Any) -> Shape:
    """One whole number or several, however the file keeps them."""
    return tuple(int(n) for n in np.atleast_1d(value))


def product(node: Any) -> Linear:
    """``Linear`` or ``Affine`` of NIR, ``y = W x + b``, as a layer with weight ``W^T``."""
    weight = np.asarray(node.weight)
    if weight.ndim != 2:
        raise NotSupportedError(f"a weight of shape {weight.shape}, only matrices are imported")
    bias = getattr(node, "bias", None)
    return Linear(
        weight.shape[1],
        weight.shape[0],
        w_init=_array(weight.T),
        b_init=None if bias is None else _array(bias),
    )


def convolution(node: Any, shape: Shape) -> Any:
    """``Conv1d`` or ``Conv2d`` of NIR as a layer with its channels first."""
    weight = np.asarray(node.weight)
    ndim = weight.ndim - 2
    stride, dilation = (_each(v, ndim) for v in (node.stride, node.dilation))
    padding: Any = node.padding
    if isinstance(padding, str):
        padding = padding.upper()
        if padding == "SAME" and stride != (1,) * ndim:
            raise ValueError(f"padding 'same' with a stride of {stride} has no shape in NIR")
    else:
        padding = [(n, n) for n in _each(padding, ndim)]
    groups = int(node.groups)
    if len(shape) != ndim + 1 or shape[0] != weight.shape[1] * groups:
        raise ValueError(
            f"gets {shape}, its weight {weight.shape} with {groups} groups expects "
            f"{weight.shape[1] * groups} channels and {ndim} axes"
        )
    bias = None if node.bias is None else _array(node.bias).reshape(1, -1, *(1,) * ndim)
    return CONVOLUTIONS[type(node).__name__](
        shape,
        weight.shape[0],
        weight.shape[2:],
        stride=stride,
        padding=padding,
        rhs_dilation=dilation,
        groups=groups,
        w_init=_array(np.moveaxis(weight, (0, 1), (-1, -2))),
        b_init=bias,
        channel_first=True,
    )


def _array(value: Any) -> jax.Array:
    return jnp.asarray(value, jnp.result_type(float))


def _each(value: Any, ndim: int) -> Shape:
    found = numbers(value)
    return found * ndim if len(found) == 1 else found


class Scale(Elements):
    """``y = s x``, position by position; ``s`` is trained where ``train`` has ``"scale"``."""

    def __init__(self, node: Any, train: Collection[str] = ()) -> None:
        super().__init__({"scale": node.scale}, train)

    def update(self, x: jax.Array) -> jax.Array:
        """[..., *shape] to the same shape."""
        return on_axes(jnp.asarray(self.value_of("scale"), self.dtype), x.ndim) * x


class Threshold(Elements):
    """1 where ``x > threshold``, else 0, with the derivative of a surrogate."""

    def __init__(self, node: Any, surrogate: Surrogate, train: Collection[str] = ()) -> None:
        super().__init__({"threshold": node.threshold}, train)
        self.surrogate = surrogate

    def update(self, x: jax.Array) -> jax.Array:
        """[..., *shape] to the same shape."""
        threshold = on_axes(jnp.asarray(self.value_of("threshold"), self.dtype), x.ndim)
        return spike(x - threshold, self.surrogate)


class Delay(Elements):
    """``y(t) = x(t - delay)``, each position with a delay of its own; zero before the start.

    ``line`` [steps, ..., *shape] holds what came in during the last steps.
    """

    delay: Any
    line: Any

    def __init__(self, node: Any, dt: float) -> None:
        super().__init__({"delay": node.delay})
        if not ((self.delay >= 0) & np.isfinite(self.delay)).all():
            raise ValueError(f"a delay must be finite and not below zero, got {self.delay}")
        steps = self.delay / dt
        self.steps = np.rint(steps).astype(int)
        self.longest = int(self.steps.max(initial=0))
        if (np.abs(steps - self.steps) > 1e-5 * np.maximum(1, steps)).any():
            wrong = steps.flat[int(np.argmax(np.abs(steps - self.steps)))]
            raise ValueError(
                f"a delay of {wrong:.7g} steps of dt = {dt:g}; choose a dt of which every delay is "
                "a multiple"
            )

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Create the line, [steps, *shape] or [steps, batch_size, *shape]."""
        if self.longest:
            self.line = brainstate.ShortTermState(self._empty(batch_size))

    def reset_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Empty the line."""
        if self.longest:
            self.line.value = self._empty(batch_size)

    def _empty(self, batch_size: int | None) -> jax.Array:
        batch = () if batch_size is None else as_size("batch_size", batch_size)
        return jnp.zeros((self.longest, *batch, *self.in_size), self.dtype)

    @property
    def is_ready(self) -> bool:
        """Whether there is a line, where one is needed."""
        return not self.longest or hasattr(self, "line")

    @property
    def waits(self) -> bool:
        """Whether nothing that comes in leaves in the same step."""
        return bool(self.steps.min(initial=self.longest) > 0)

    def update(self, x: jax.Array) -> jax.Array:
        """What comes out in this step, in which ``x`` [..., *shape] comes in."""
        if not self.longest:
            return x
        line = self.line.value
        late = self.output() if self.waits else _taken(jnp.concatenate([x[None], line]), self.steps)
        self.line.value = jnp.concatenate([x[None], line[:-1]])
        return late

    def output(self) -> jax.Array:
        """What comes out in this step of a delay that waits, [..., *shape]."""
        return _taken(self.line.value, self.steps - 1)


def _taken(line: jax.Array, at: np.ndarray) -> jax.Array:
    """The entry of each position [*shape] of a line [steps, ..., *shape]."""
    if (at == at.flat[0]).all():
        return line[int(at.flat[0])]
    index = jnp.broadcast_to(on_axes(jnp.asarray(at), line.ndim), (1, *line.shape[1:]))
    return jnp.take_along_axis(line, index, axis=0)[0]


class Flatten(brainstate.nn.Module):
    """Axes ``start_dim`` to ``end_dim`` of an example, without the batch, as one."""

    in_size: Any
    out_size: Any

    def __init__(self, node: Any, shape: Shape) -> None:
        super().__init__()  # type: ignore[call-arg]
        ends, ndim = (int(node.start_dim), int(node.end_dim)), len(shape)
        first, last = (d % ndim for d in ends)
        if ndim > 1 and not (first <= last and all(-ndim <= d < ndim for d in ends)):
            raise ValueError(
                f"flattens axes {ends[0]} to {ends[1]} of {shape}; NIR counts them without batch"
            )
        middle = math.prod(shape[first : last + 1])
        self.in_size, self.out_size = shape, (*shape[:first], middle, *shape[last + 1 :])

    def update(self, x: jax.Array) -> jax.Array:
        """[..., *in_size] to [..., *out_size]."""
        return x.reshape(x.shape[: x.ndim - len(self.in_size)] + self.out_size)


class Pool(brainstate.nn.Module):
    """``SumPool2d`` or ``AvgPool2d``; an average counts the zeros of the border, too."""

    def __init__(self, node: Any, shape: Shape) -> None:
        super().__init__()  # type: ignore[call-arg]
        self.is_average = type(node).__name__ == "AvgPool2d"
        self.kernel_size, self.stride, self.padding = (
            _each(v, 2) for v in (node.kernel_size, node.stride, node.padding)
        )
        if len(shape) != 3:
            raise ValueError(f"gets {shape}, expected (channels, height, width)")
        found = zip(shape[1:], self.kernel_size, self.stride, self.padding, strict=True)
        self.in_size = shape
        left = [(n + 2 * p - k) // s + 1 for n, k, s, p in found]
        self.out_size = (shape[0], *left)
        if min(left) < 1:
            raise ValueError(f"gets {shape}, smaller than its window of {self.kernel_size}")

    def update(self, x: jax.Array) -> jax.Array:
        """[..., channels, height, width] to the same with fewer positions."""
        ones = (1,) * (x.ndim - 2)
        border = [(0, 0)] * (x.ndim - 2) + [(p, p) for p in self.padding]
        window, stride = (*ones, *self.kernel_size), (*ones, *self.stride)
        total = jax.lax.reduce_window(x, np.zeros((), x.dtype), jax.lax.add, window, stride, border)
        return total / math.prod(self.kernel_size) if self.is_average else total


class Port(brainstate.nn.Module):
    """``Input`` or ``Output``: what comes in goes out."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()  # type: ignore[call-arg]
        self.in_size = self.out_size = shape

    def update(self, x: jax.Array) -> jax.Array:
        """The argument."""
        return x
