# SPDX-License-Identifier: Apache-2.0
"""Optional checks of a sequence: numbers that are not finite, and a growing transition.

Inside the compiled program, each block leaves a flag for every gradient and trace; what they mean
is said on the host when the program has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..algorithms.base import Block, LearningRule
from ..base import versions
from ..base.types import Path, show_path
from ..executor.cascade import Cascade
from ..ops.traces.bands import Bands

SQUARINGS = 5
STEPS_TO_WARN = 10


class Flags(NamedTuple):
    """What a block shows.

    ``finite``: by what it is about (an operand cotangent, a parameter, a trace), whether all
    numbers are finite. ``radius``: per group, the smallest spectral radius of ``D`` over the steps,
    by position.
    """

    finite: dict[str, Any]
    radius: dict[str, Any]


def flags_of(
    rule: LearningRule, losses: Any, gradients: Iterable[tuple[str, Any]], traces: Any
) -> Flags:
    """The flags of a window: of its losses, and of gradients by what they are called."""
    named = [
        (f"the trace of {show_path(path)}{_options(rule, path)}", rule.of_parameter(traces, path))
        for path in (rule.traced_paths if traces is not None else ())
    ]
    return Flags(finite_of([("the loss", losses), *gradients, *named]), {})


def _options(rule: LearningRule, path: Path) -> str:
    """The options of the traces of a parameter, in brackets, where they have any."""
    links = [
        rule.links[i] for w in rule.executor.weights.values() if w.path == path for i in w.links
    ]
    found = ", ".join(dict.fromkeys(k.options for k in links if k.options))
    return f" (with {found})" if found else ""


def flags_of_block(
    rule: LearningRule, losses: Any, direct: Any, traces: Any, block: Block, gradients: Any
) -> Flags:
    """The flags of a block: of direct gradients by name, and of cotangents per relation, too."""
    graph = rule.executor.graph
    traced = [
        (f"the traced gradient of {show_path(path)}", found)
        for relation, found in zip(graph.hidden_param_op_relations, gradients, strict=True)
        for path in relation.parameter_paths
    ]
    straight = [(f"the direct gradient of {name}", value) for name, value in direct]
    radius = {
        ", ".join(map(show_path, group.hidden_paths)): jax.vmap(spectral_radius)(D).min(0)
        for group, D in zip(graph.hidden_groups, block.jacobians.transition, strict=True)
        if D is not None
    }
    return flags_of(rule, losses, [*straight, *traced], traces)._replace(radius=radius)


def and_at_end(flags: Flags, named: Iterable[tuple[str, Any]]) -> Flags:
    """With flags of what there is after the last of some blocks."""
    blocks = next(iter(flags.finite.values()))

    def last(finite: jax.Array) -> jax.Array:
        return jnp.ones_like(blocks).at[..., -1].set(finite) if blocks.ndim else finite

    after = {name: last(finite) for name, finite in finite_of(named).items()}
    return flags._replace(finite={**flags.finite, **after})


def failed(flags: Flags) -> jax.Array:
    """Whether any number was not finite, by block if flags are of several."""
    return ~jnp.all(jnp.stack([*flags.finite.values()]), axis=0)


def kept_steps(flags: Flags, size: int, steps: int) -> jax.Array:
    """Which steps are in blocks without such a number: booleans [T]."""
    return jnp.repeat(~failed(flags), size, total_repeat_length=size * -(-steps // size))[:steps]


def finite_of(values: Iterable[tuple[str, Any]]) -> dict[str, jax.Array]:
    """By name, whether all floating-point numbers of all values with that name are finite."""
    found: dict[str, jax.Array] = {}
    for name, tree in values:
        leaves = [v for v in jax.tree.leaves(tree) if versions.is_float(v)]
        finite = jnp.all(jnp.stack([jnp.isfinite(v).all() for v in leaves] or [jnp.array(True)]))
        found[name] = found[name] & finite if name in found else finite
    return found


def spectral_radius(matrix: jax.Array | Bands | Cascade) -> jax.Array:
    """The spectral radius of ``matrix`` [S, S, *V], position by position.

    Exact for one state. For several it is ``|D^32|^(1/32)`` in the Frobenius norm (Gelfand's
    formula), which is at most a few per cent too large. Of a matrix by its bands, it is the mean
    growth of one vector in 64 products.
    """
    if isinstance(matrix, Bands):
        return _growth(matrix)
    if isinstance(matrix, Cascade):
        matrix = matrix.composed()
    if matrix.shape[0] == 1:
        return jnp.abs(matrix[0, 0])
    scale, total = jnp.zeros(matrix.shape[2:]), matrix
    for k in range(SQUARINGS + 1):
        size = jnp.sqrt((total**2).sum((0, 1)))
        divisor = jnp.where(size > 0, size, 1.0)
        scale, total = scale + jnp.log(divisor) / 2**k, total / divisor
        total = jnp.einsum("ij...,jk...->ik...", total, total)
    return jnp.where(size > 0, jnp.exp(scale), 0.0)


def _growth(matrix: Bands) -> jax.Array:
    """By how much a product with a matrix makes a vector longer, in the mean of several."""
    positions = (1,) * (matrix.values[0].ndim - 1)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], (matrix.num_state, *positions))
    shape = (matrix.num_state, *matrix.values[0].shape[1:])

    def step(found: Any, _: Any) -> tuple[Any, None]:
        vector, total = found
        vector = matrix.times(vector)
        size = jnp.sqrt((vector**2).mean(0))
        divisor = jnp.where(size > 0, size, 1.0)
        return (vector / divisor, jnp.where(size > 0, total + jnp.log(divisor), -jnp.inf)), None

    start = jnp.broadcast_to(signs, shape).astype(jnp.result_type(*matrix.values))
    (_, total), _ = jax.lax.scan(step, (start, jnp.zeros_like(start[0])), length=2 * 2**SQUARINGS)
    return jnp.exp(total / (2 * 2**SQUARINGS))


def report(flags: Flags, block_size: int, steps: int, every: int, skip: bool = False) -> None:
    """Say what flags [blocks, ..] of ``steps``, with blocks that start anew every few, mean.

    It raises ``FloatingPointError`` when a number was not finite, with what it is about and when;
    with ``skip``, a warning says so.
    """
    finite = {name: np.asarray(values) for name, values in flags.finite.items()}
    first = {name: int(np.argmin(values)) for name, values in finite.items() if not values.all()}
    if first:
        earliest, blocks = min(first.values()), -(-every // block_size)
        names = [name for name, block in first.items() if block == earliest]
        part, block = divmod(earliest, blocks)
        start = part * every + block * block_size
        last = min(start + block_size, (part + 1) * every, steps) - 1
        when = f"step {start}" if start == last else f"steps {start} to {last}"
        text = f"at {when}, {', '.join(names)} became NaN or infinite"
        if not skip:
            raise FloatingPointError(text)
        lost = {int(k) for values in finite.values() for k in np.flatnonzero(~values)}
        count = next(iter(finite.values())).size
        parts = "steps" if block_size == 1 else f"times {block_size} steps"
        versions.warn(
            f"{text}; skipped, and everything goes on from before: {len(lost)} of {count} {parts}"
        )
    for name, values in flags.radius.items():
        lowest = np.asarray(values).min(0)
        if steps >= STEPS_TO_WARN and (lowest > 1).any():
            versions.warn(
                f"the spectral radius of D of {name} was above one at all {steps} steps at "
                f"{int((lowest > 1).sum())} of {lowest.size} positions (at least "
                f"{float(lowest.max()):.3g}): traces grow without bound"
            )
