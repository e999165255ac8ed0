# SPDX-License-Identifier: Apache-2.0
"""The layer ``LoRA``: a low-rank product, alone or added to another module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import brainstate
import jax
import saiunit
from brainstate.nn import init

from braintrace.plugin_api import (
    ArrayLike,
    Initializer,
    Size,
    as_count,
    as_size,
    by_rows,
    initial_value,
    seeded,
)

from ._ops import fixed_number, lora_matmul

Output = jax.Array | saiunit.Quantity

LECUN: Initializer = init.LecunNormal()


class LoRA(brainstate.nn.LoRA):
    r"""Low-rank adapter ``y = base_module(x) + alpha * x @ lora_a @ lora_b``.

    Like ``brainstate.nn.LoRA``, which has no factor ``alpha``, but computed by
    :func:`braintrace.lora_matmul`, so that both factors are trained by eligibility traces.

    Parameters
    ----------
    in_features, lora_rank, out_features
        Number of input features, of columns of the first factor, and of output features.
    base_module
        A module or another function of ``x`` whose result the product is added to; ``None`` for
        the product alone.
    kernel_init
        Initial value of both factors: a function of the shape, or a number or quantity.
    param_type
        Class of the parameter state.
    in_size
        Shape of an input when it has several axes; its last entry is ``in_features``.
    alpha
        A fixed number that multiplies the product; ``None`` for ``1 / lora_rank``.
    freeze_base
        Hold the parameters of ``base_module`` constant in this layer, so that they have no gradient
        here. Otherwise they are trained like those of any other module.
    key
        Seed or key of the initial values; ``None``: the global random state of ``brainstate``.

    Attributes
    ----------
    weight
        One ``ParamState`` holding ``{"lora_a": [in, rank], "lora_b": [rank, out]}``. These are the
        names of ``brainstate``: its ``lora_a`` is the operand ``B`` of the operation, and its
        ``lora_b`` the operand ``A``.

    Raises
    ------
    ValueError
        For impossible sizes, initial values of another shape, or an ``alpha`` that is not finite.
    TypeError
        When ``alpha`` is no fixed number, ``base_module`` cannot be called, or ``freeze_base`` is
        set without a module whose parameters could be held.

    Notes
    -----
    ``update(x)`` takes [..., in] and returns [..., out]; with more than two axes, all but the last
    are folded into one batch.

    A frozen base is still a part of the model, and the compiler wants to be told of parameters
    without a gradient: name it when compiling, ``frozen=["path.to.layer.base_module"]``; it has no
    trace. A trained base is better a layer of ``braintrace.nn``, whose weights have traces. In a
    recurrent connection, give a frozen base as an operation with a constant weight,
    ``base_module=lambda h: braintrace.matmul(h, pretrained)``, without ``freeze_base``: a plain
    product between hidden values mixes positions.

    Both factors start at random. To start at ``base_module`` alone, as in the paper by Hu et al.
    (arXiv 2106.09685), set one of them to zero.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> base = brainstate.nn.Linear(10, 5)
    >>> layer = braintrace.nn.LoRA(10, 2, 5, base_module=base, alpha=0.5, freeze_base=True, key=0)
    >>> factors = layer.weight.value
    >>> layer.weight.value = factors | {"lora_b": jnp.zeros_like(factors["lora_b"])}
    >>> x = jnp.ones((32, 10))
    >>> bool((layer(x) == base(x)).all())
    True
    """

    def __init__(
        self,
        in_features: int,
        lora_rank: int,
        out_features: int,
        *,
        base_module: Callable[[Any], Any] | None = None,
        kernel_init: Initializer = LECUN,
        param_type: type = brainstate.ParamState,
        in_size: Size | None = None,
        alpha: float | None = None,
        freeze_base: bool = False,
        key: Any = None,
    ) -> None:
        in_features = as_count("in_features", in_features)
        self.lora_rank = as_count("lora_rank", lora_rank)
        with seeded(key):
            super().__init__(
                in_features,
                self.lora_rank,
                as_count("out_features", out_features),
                base_module=_checked_base(base_module, freeze_base),  # type: ignore[arg-type]
                kernel_init=lambda shape: initial_value("kernel_init", kernel_init, shape),
                param_type=param_type,
                in_size=_checked_in_size(in_size, in_features),  # type: ignore[arg-type]
            )
        self.alpha = fixed_number("LoRA", 1 / self.lora_rank if alpha is None else alpha)
        self.freeze_base = freeze_base

    def __call__(self, x: ArrayLike) -> Output:
        """The output [..., out] for an input [..., in]."""
        return self.update(x)

    def update(self, x: ArrayLike) -> Output:
        """The output [..., out] for an input [..., in]."""
        factors = self.weight.value
        y = by_rows(
            lambda rows: lora_matmul(rows, factors["lora_a"], factors["lora_b"], alpha=self.alpha),
            x,
        )
        return y if self.base_module is None else _sum(self._base(x), y)

    def _base(self, x: ArrayLike) -> Output:
        base: Any = self.base_module
        with _held(base) if self.freeze_base else nullcontext():
            return base(x)


@contextmanager
def _held(module: Any) -> Iterator[None]:
    """Inside, the parameters of a module are constants to every derivative.

    ``restore_value`` changes what is read without counting as a write of the parameter.
    """
    states = list(brainstate.graph.states(module, brainstate.ParamState).values())
    values = [state.value for state in states]
    try:
        for state, value in zip(states, values, strict=True):
            state.restore_value(jax.lax.stop_gradient(value))
        yield
    finally:
        for state, value in zip(states, values, strict=True):
            state.restore_value(value)


def _sum(base: Any, y: Output) -> Output:
    """``base + y``; they must be alike, or one of them would be stretched or converted unseen."""
    found, expected = saiunit.math.shape(base), saiunit.math.shape(y)
    if found != expected:
        raise ValueError(
            f"LoRA: base_module returns the shape {found}, expected {expected} like the low-rank "
            "product"
        )
    of_base, of_y = saiunit.get_unit(base), saiunit.get_unit(y)
    if not of_base.has_same_dim(of_y):
        raise TypeError(
            f"LoRA: base_module returns the unit {of_base}, expected the unit of the low-rank "
            f"product, {of_y}"
        )
    return base + y


# --- arguments -------------------------------------------------------------------------------


def _checked_in_size(in_size: Size | None, in_features: int) -> tuple[int, ...] | None:
    if in_size is None:
        return None
    sizes = as_size("in_size", in_size)
    if sizes[-1] != in_features:
        raise ValueError(f"the last entry of in_size must be {in_features}, got {in_size!r}")
    return sizes


def _checked_base(base: Any, freeze: bool) -> Any:
    if base is not None and not callable(base):
        raise TypeError(
            f"base_module must be a module or a function of x, got {type(base).__name__}"
        )
    if freeze and not isinstance(base, brainstate.nn.Module):
        raise TypeError(
            "freeze_base=True needs a brainstate.nn.Module as base_module, got "
            f"{'none' if base is None else type(base).__name__}"
        )
    return base
