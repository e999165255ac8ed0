# SPDX-License-Identifier: Apache-2.0
"""The options of a gradient over a sequence, checked; its masks and losses; what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import saiunit

from ..base.types import State, named_leaves, show_path

#: ``check``: leave out what is not finite, in place of raising.
SKIP = "skip"


def require_callable(step_fn: Any) -> None:
    """A function of a step must be callable and hashable; raises ``TypeError``."""
    if not callable(step_fn):
        raise TypeError(f"step_fn must be callable, got {type(step_fn).__name__}")
    try:
        hash(step_fn)
    except TypeError:
        raise TypeError(
            f"step_fn must be hashable, because it is compiled once; {type(step_fn).__name__} is "
            "not. Wrap it in a function"
        ) from None


def checked_weights(weights: Any) -> dict[Any, brainstate.State[Any]]:
    """Parameter states by any key; raises ``TypeError`` for anything else."""
    if not isinstance(weights, Mapping):
        raise TypeError(
            f"weights must be a mapping from any key to ParamState, got {type(weights).__name__}"
        )
    for key, state in weights.items():
        if not isinstance(state, brainstate.ParamState):
            raise TypeError(f"weights[{key!r}] must be a ParamState, got {type(state).__name__}")
    return dict(weights)


@dataclass(frozen=True)
class GradOptions:
    """What a gradient of a sequence is asked for; see ``etrace_grad``.

    Options of two functions may be equal.
    """

    step_fn: Callable[..., Any] = field(compare=False)
    weights: tuple[tuple[Any, State], ...]
    reduction: str = "mean"
    has_aux: bool = False
    chunk_size: int | None = None
    block_size: int | str = "auto"
    carry_trace: bool = True
    check: bool | str = False
    progress: bool = False

    def names(self, of_states: Mapping[Any, State]) -> dict[State, str]:
        """What the weights are called: by their path among ``of_states``, or else by their key."""
        paths = {state: show_path(path) for path, state in of_states.items()}
        return {state: paths.get(state, str(key)) for key, state in self.weights}

    def by_key(self, grads: Sequence[Any]) -> dict[Any, Any]:
        return {key: grad for (key, _), grad in zip(self.weights, grads, strict=True)}

    def __post_init__(self) -> None:
        require_callable(self.step_fn)
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {self.reduction!r}")
        if isinstance(self.check, str) and self.check != SKIP:
            raise ValueError(f"check must be True, False or {SKIP!r}, got {self.check!r}")
        if self.block_size != "auto":
            check_count("block_size", self.block_size, "'auto' or ")
        if self.chunk_size is not None:
            check_count("chunk_size", self.chunk_size, "None or ")


def common_length(sequences: tuple[Any, ...]) -> int:
    """The common length T of sequences; raises ``ValueError`` when there is none, or it is zero."""
    lengths = {}
    for place, leaf in named_leaves(sequences):
        name = f"sequences{place}"
        number = np.isscalar(leaf) and not isinstance(leaf, str | bytes)
        if number or getattr(leaf, "shape", 0) == ():
            raise ValueError(f"{name} is a scalar; expected an array [T, ...]")
        if not isinstance(leaf, np.ndarray | jax.Array):
            raise TypeError(f"{name} is a {type(leaf).__name__}; expected an array [T, ...]")
        lengths[name] = jnp.shape(leaf)[0]
    if not lengths:
        raise ValueError("at least one sequence is needed, for example inputs [T, ...]")
    if len({*lengths.values()}) > 1:
        raise ValueError(f"all sequences must have one length T; got {lengths}")
    steps = next(iter(lengths.values()))
    if steps == 0:
        raise ValueError("the sequences have length zero; at least one step is needed")
    return steps


class Outcome(NamedTuple):
    """Gradients in the order of the weights, and what the steps gave, stacked."""

    grads: tuple[Any, ...]
    losses: Any
    aux: Any
    flags: Any = None


def check_count(name: str, value: Any, others: str = "") -> int:
    """``value``, if it is a positive integer; raises ``ValueError``."""
    is_int = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_int or int(value) < 1:
        raise ValueError(f"{name} must be {others}a positive integer, got {value!r}")
    return int(value)


# --- masks and losses ----------------------------------------------------------------------------


def checked_mask(mask: Any, steps: int) -> jax.Array | None:
    """A mask [T, ..] as floating-point numbers.

    It raises ``TypeError`` or ``ValueError`` when it is no array of numbers, or of another length.
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
