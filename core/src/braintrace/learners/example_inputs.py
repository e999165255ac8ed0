# SPDX-License-Identifier: Apache-2.0
"""What was meant, when a model cannot be run for its example inputs: whatever else can be run."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base.errors import ExampleInputError, MissingSettingError, NotSupportedError, behind
from ..base.types import how_many
from ..compiler.batch_states import examples_in, init_batched_states
from ..compiler.tracing.extract import extract_module_info

Attempt = tuple[tuple[Any, ...], int | None, str]
"""Arguments of a step, a batch size, and what to do if the model runs with them."""


def initialise(
    model: brainstate.nn.Module, args: tuple[Any, ...], batch_size: int | None, vmap: bool
) -> None:
    """Make the states of a model; with ``vmap``, for as many examples as the arguments hold."""
    if vmap:
        init_batched_states(model, examples_in(args, batch_size))
    else:
        brainstate.nn.init_all_states(model, batch_size=batch_size)


def explained(
    error: Exception,
    model: brainstate.nn.Module,
    args: tuple[Any, ...],
    batch_size: int | None,
    vmap: bool,
) -> Exception:
    """An error that says with what the model can be run; ``error``, where nothing is found.

    The states of the model are made anew. Random numbers are as if nothing had been tried.
    """
    if isinstance(error, NotSupportedError | MissingSettingError):
        return error

    def runs(args: tuple[Any, ...], batch_size: int | None) -> bool:
        with suppress(Exception), brainstate.random.seed_context(0), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            initialise(model, args, batch_size, vmap)
            extract_module_info(model, *args, vmap=vmap)
            return True
        return False

    attempts = [] if runs(args, batch_size) else _attempts(args, batch_size, vmap)
    found = [text for other, size, text in attempts if runs(other, size)]
    if not found:
        return error
    cause = str(behind(error)) or type(error).__name__
    shapes = ", ".join(str(jnp.shape(leaf)) for leaf in jax.tree.leaves(args))
    return ExampleInputError(
        f"the model cannot be run for example inputs {shapes} and batch_size={batch_size}: "
        f"{'; or '.join(found)}. ({cause})"
    )


def _attempts(args: tuple[Any, ...], batch_size: int | None, vmap: bool) -> Iterator[Attempt]:
    """What else may have been meant by arguments and a batch size."""
    shapes = {jnp.shape(leaf) for leaf in jax.tree.leaves(args)} - {()}
    lengths = {shape[0] for shape in shapes}
    if len(lengths) != 1 or any(0 in shape for shape in shapes):
        return
    (length,) = lengths
    seconds = {shape[1] if len(shape) > 2 else None for shape in shapes}
    second = seconds.pop() if len(seconds) == 1 else None

    def cut(*index: Any) -> Any:
        return jax.tree.map(lambda v: v[index] if jnp.shape(v) else v, args)

    one = "if they are a sequence, pass one step of it, x[0]"
    of_all = f"if they are {length} sequences [B, T, ...], pass one step of all, x[:, 0]"
    if not vmap:
        yield args, length, f"if they are {how_many(length, 'example')}, pass batch_size={length}"
    if batch_size is not None and not vmap:
        some = how_many(batch_size, "example")
        yield args, None, f"if they are one example, pass no batch_size or {some}"
    if batch_size is None and not vmap and second is not None:
        yield cut(0), second, f"{one}, and batch_size={second}"
        yield cut(slice(None), 0), length, f"{of_all}, and batch_size={length}"
        return
    if vmap or batch_size in (None, second):
        yield cut(0), batch_size, one
    if second is not None and (vmap or batch_size == length):
        yield cut(slice(None), 0), batch_size, f"{of_all} (drivers take [T, B, ...])"
