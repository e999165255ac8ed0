# SPDX-License-Identifier: Apache-2.0
"""Losses of the steps of a sequence: masks, sums and means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import saiunit


def checked_mask(mask: Any, steps: int) -> jax.Array | None:
    """A mask [T, ..] as floating-point numbers.

    Raises
    ------
    TypeError, ValueError
        When it is no array of numbers, or its first axis is not the length of the sequences.
    """
    if mask is None:
        return None
    if saiunit.math.is_quantity(mask):
        raise TypeError(f"mask must have no unit, got one in {saiunit.get_unit(mask)}")
    mask = jnp.asarray(mask)
    if jnp.issubdtype(mask.dtype, jnp.complexfloating):
        raise TypeError(f"mask must hold real numbers or booleans, got dtype {mask.dtype}")
    if mask.ndim == 0 or mask.shape[0] != steps:
        raise ValueError(
            f"mask must have shape [T] or [T, B] with T = {steps}, the length of the sequences; "
            f"got {mask.shape}"
        )
    return mask if jnp.issubdtype(mask.dtype, jnp.floating) else mask.astype(float)


def masked_step(step_fn: Callable[..., Any], has_aux: bool) -> Callable[..., Any]:
    """``step_fn`` with the mask's slice as first argument, ``None`` without a mask.

    It returns the weighted loss, and as auxiliary data the loss as it was and what came with it.
    """

    def step(mask: Any, *inputs: Any) -> Any:
        shape = jnp.shape(mask) if mask is not None else ()
        when = f"with a mask [T{''.join(f', {n}' for n in shape)}], " if shape else ""
        loss, aux = checked_losses(step_fn(*inputs), has_aux, shape, when)
        return weighted_sum(loss, mask), (loss, aux)

    return step


def checked_losses(
    result: Any, has_aux: bool, shape: tuple[int, ...], when: str = ""
) -> tuple[jax.Array, Any]:
    """What ``step_fn`` returned: losses of a shape, and auxiliary data, ``None`` if it has none.

    Raises ``TypeError`` for something else; ``when`` says why they must have this shape.
    """
    wanted = f"{when}step_fn must return {f'losses of shape {shape}' if shape else 'a scalar loss'}"
    if has_aux and not (isinstance(result, tuple) and len(result) == 2):
        raise TypeError(
            "with has_aux=True, step_fn must return a pair (loss, aux); got "
            f"{type(result).__name__}"
        )
    losses, aux = result if has_aux else (result, None)
    if isinstance(losses, tuple):
        raise TypeError(f"{wanted}, got a tuple; is has_aux=True missing?")
    if saiunit.math.is_quantity(losses):
        raise TypeError(
            f"step_fn must return a loss without a unit, got one in {saiunit.get_unit(losses)}; "
            "divide it by its unit, or make its parts dimensionless"
        )
    try:
        losses = jnp.asarray(losses)
    except (TypeError, ValueError):
        raise TypeError(f"{wanted}, got {losses!r:.80}") from None
    if losses.shape != shape or not jnp.issubdtype(losses.dtype, jnp.floating):
        remedy = "" if shape else ". Reduce it, for example with .mean()"
        raise TypeError(
            f"{wanted} in floating point, got shape {losses.shape} and dtype {losses.dtype}{remedy}"
        )
    return losses, aux


def weighted_sum(losses: Any, mask: Any) -> Any:
    """The sum of losses times the mask; a masked loss that is not finite does not count."""
    if mask is None:
        return losses.sum()
    kept = jnp.where(mask != 0, losses, 0)
    return (kept * mask.astype(kept.dtype)).sum()


def scale_of(reduction: str, mask: Any, steps: int) -> Any:
    """What the sum of the losses is multiplied by."""
    if reduction == "sum":
        return 1.0
    if mask is None:
        return 1.0 / steps
    total = mask.sum()
    return jnp.where(total == 0, 0.0, 1.0 / jnp.where(total == 0, 1.0, total))


def shown_losses(losses: Any, mask: Any, loss_output: str, reduction: str) -> Any:
    """The losses as they are asked for."""
    if loss_output == "per_step":
        return losses
    masked = losses if mask is None else jnp.where(mask != 0, losses, 0) * mask
    if loss_output == "masked":
        return masked
    return masked.sum() * scale_of(reduction, mask, losses.shape[0])
