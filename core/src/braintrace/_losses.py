# SPDX-License-Identifier: Apache-2.0
"""Losses of the steps of a sequence: masks, sums and means."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def checked_mask(mask: Any, steps: int) -> jax.Array | None:
    """A mask [T, ..] as floating-point numbers.

    Raises
    ------
    TypeError, ValueError
        When it is no array of numbers, or its first axis is not the length of the sequences.
    """
    if mask is None:
        return None
    mask = jnp.asarray(mask)
    if jnp.issubdtype(mask.dtype, jnp.complexfloating):
        raise TypeError(f"mask must hold real numbers or booleans, got dtype {mask.dtype}")
    if mask.ndim == 0 or mask.shape[0] != steps:
        raise ValueError(
            f"mask must have shape [T] or [T, B] with T = {steps}, the length of the sequences; "
            f"got {mask.shape}"
        )
    return mask if jnp.issubdtype(mask.dtype, jnp.floating) else mask.astype(float)


def masked_step(step_fn: Callable[..., Any], has_aux: bool, masked: bool) -> Callable[..., Any]:
    """``step_fn`` with the mask's slice as first argument.

    It returns the weighted loss, and as auxiliary data the loss as it was and what came with it.
    """

    def step(mask: Any, *inputs: Any) -> Any:
        result = step_fn(*inputs)
        if has_aux and not (isinstance(result, tuple) and len(result) == 2):
            raise TypeError(
                "with has_aux=True, step_fn must return a pair (loss, aux); got "
                f"{type(result).__name__}"
            )
        loss, aux = result if has_aux else (result, None)
        if not masked:
            return loss, (loss, aux)
        shape = jnp.shape(loss)
        if shape != mask.shape:
            raise TypeError(
                f"with a mask [T{''.join(f', {n}' for n in mask.shape)}], step_fn must return a "
                f"loss of shape {mask.shape}, got {shape}"
            )
        return weighted_sum(loss, mask), (loss, aux)

    return step


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
