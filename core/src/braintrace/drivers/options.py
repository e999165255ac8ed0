# SPDX-License-Identifier: Apache-2.0
"""The options of a gradient over a sequence, checked, and what it returns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..base.types import State


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
    check: bool = False
    progress: bool = False

    def by_key(self, grads: Sequence[Any]) -> dict[Any, Any]:
        """Gradients by the keys of the weights."""
        return {key: grad for (key, _), grad in zip(self.weights, grads, strict=True)}

    def __post_init__(self) -> None:
        require_callable(self.step_fn)
        if self.reduction not in ("mean", "sum"):
            raise ValueError(f"reduction must be 'mean' or 'sum', got {self.reduction!r}")
        if self.block_size != "auto":
            check_count("block_size", self.block_size, "'auto' or ")
        if self.chunk_size is not None:
            check_count("chunk_size", self.chunk_size, "None or ")


def common_length(sequences: tuple[Any, ...]) -> int:
    """The common length T of sequences.

    Raises
    ------
    ValueError
        When there is none, or it is zero.
    """
    lengths = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(sequences):
        name = f"sequences{jax.tree_util.keystr(path)}"
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
