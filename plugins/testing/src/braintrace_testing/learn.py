# SPDX-License-Identifier: Apache-2.0
"""From the records of all steps and a learning rule's influences to the gradient of a sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from .graph import Graph
from .paths import product
from .records import Recorded, StepRecord
from .step import Path, Step

Influences = Callable[[Sequence[StepRecord], int, int], Iterator[np.ndarray]]
"""The influence matrix of relation ``(r, g)`` after each step, ``[|g|, n]``."""


@dataclass(frozen=True)
class OracleResult:
    """What a learning rule gives on a sequence.

    Attributes
    ----------
    loss
        ``[T]``.
    outputs
        The model's, with a leading time axis.
    grads
        By path of the ``ParamState``, a pytree like its value.
    influences
        By relation ``(r, g)`` and path, the influence matrix (what the rule takes for it) after
        each step, a pytree with leaves ``[T, |g|, *leaf.shape]``.
    groups
        Paths of the members of each group.
    relations
        Pairs ``(r, g)``.
    names
        Name of the primitive of each ``r``.
    steps
        The :class:`StepRecord` of every step.

    Examples
    --------
    >>> import brainstate, braintrace, jax
    >>> from braintrace.testing import d_rtrl_oracle
    >>> cell = braintrace.nn.MiniGRU(2, 2, recurrent_gates=False, key=0)
    >>> _ = brainstate.nn.init_all_states(cell)
    >>> xs = jax.random.normal(jax.random.key(0), (2, 2))
    >>> def loss(h):
    ...     return (h**2).sum()
    >>> result = d_rtrl_oracle(cell, (xs,), loss)
    >>> result.groups, result.names[result.relations[0][0]], result.loss.shape
    (((('h',),),), 'etp_mv', (2,))
    """

    loss: np.ndarray
    outputs: Any
    grads: dict[Path, Any]
    influences: dict[tuple[int, int], dict[Path, Any]]
    groups: tuple[tuple[Path, ...], ...]
    relations: tuple[tuple[int, int], ...]
    names: dict[int, str]
    steps: tuple[StepRecord, ...]

    @property
    def influence(self) -> dict[tuple[int, int], dict[Path, Any]]:
        """The last influence matrices, leaves ``[|g|, *leaf.shape]``."""
        last: dict[tuple[int, int], dict[Path, Any]]
        last = jax.tree.map(lambda leaf: leaf[-1], self.influences)
        return last


def learn(run: Recorded, influences: Influences) -> OracleResult:
    """Signals times influences, plus what is direct, summed over the steps."""
    graph, steps = run.graph, run.steps
    grad = np.sum([now.direct for now in steps], axis=0)
    every = {key: np.stack(list(influences(steps, *key))) for key in graph.relations}
    for (_, g), matrices in every.items():
        grad = grad + sum(product(now.l[g], m) for now, m in zip(steps, matrices, strict=True))
        for now, before in zip(steps[1:], matrices, strict=False):
            grad = grad + product(now.e[g], before)
    return OracleResult(
        loss=run.loss,
        outputs=run.outputs,
        grads=by_path(run.step, graph, grad),
        influences={key: by_path(run.step, graph, rows) for key, rows in every.items()},
        groups=tuple(tuple(h.path for h in members) for members in graph.groups),
        relations=graph.relations,
        names={r: graph.program.equations[r].primitive.name for r in graph.related},
        steps=steps,
    )


# --- influences ------------------------------------------------------------------------------


def carried(steps: Sequence[StepRecord], r: int, g: int) -> Iterator[np.ndarray]:
    """``M^t = D^t M^{t-1} + F^t dY^t``, with the ``D`` that was recorded."""
    matrix: Any = np.zeros((steps[0].F[r, g].shape[0], steps[0].dY[r].shape[1]))
    for now in steps:
        matrix = product(now.D[g], matrix) + product(now.F[r, g], now.dY[r])
        yield matrix


def filtered(influences: Influences, kappa: float) -> Influences:
    """``Mbar^t = kappa Mbar^{t-1} + M^t``."""

    def smooth(steps: Sequence[StepRecord], r: int, g: int) -> Iterator[np.ndarray]:
        mean: Any = 0.0
        for matrix in influences(steps, r, g):
            mean = kappa * mean + matrix
            yield mean

    return smooth


def of_products(decay_x: float, decay_f: float) -> Influences:
    """pp_prop: the input and the factor filtered apart."""

    def influences(steps: Sequence[StepRecord], r: int, g: int) -> Iterator[np.ndarray]:
        x: Any = 0.0
        factor = np.zeros_like(steps[0].F[r, g])
        for t, now in enumerate(steps):
            x = None if now.x[r] is None else decay_x * x + now.x[r]
            factor = decay_f * product(now.D[g], factor) + (1 - decay_f) * now.F[r, g]
            yield factor / (1 - decay_f ** (t + 1)) @ now.dY_at[r](x)

    return influences


def masked(mask: Callable[[Sequence[StepRecord], int, int], np.ndarray]) -> Influences:
    """``E^t = mask o (D^t E^{t-1}) + F^t[:, q] dY^t[q, :]`` per element ``q`` of ``y``, summed.

    ``mask(steps, r, g)`` is ``[|g|, size(y)]``.
    """

    def influences(steps: Sequence[StepRecord], r: int, g: int) -> Iterator[np.ndarray]:
        kept = mask(steps, r, g)[:, :, None]
        each: Any = np.zeros((*steps[0].F[r, g].shape, steps[0].dY[r].shape[1]))
        for now in steps:
            before = np.tensordot(now.D[g], each, axes=1)
            each = kept * before + now.F[r, g][:, :, None] * now.dY[r]
            yield each.sum(axis=1)

    return influences


def by_path(step: Step, graph: Graph, rows: np.ndarray) -> dict[Path, Any]:
    """``[..., n]`` as a pytree of ``[..., *leaf.shape]`` for every parameter; zero if not used."""
    lead = rows.shape[:-1]
    ends = np.cumsum([graph.program.size(v) for v in graph.leaves])
    pieces = iter(np.split(rows, ends[:-1], axis=-1))
    used = {path: [next(pieces) for _ in leaves] for path, leaves in graph.parameters.items()}

    def shaped(flat: np.ndarray, leaf: Any) -> np.ndarray:
        if np.iscomplexobj(leaf):  # as JAX has it: d/d re - i d/d im
            flat = flat[..., : np.size(leaf)] - 1j * flat[..., np.size(leaf) :]
        return flat.reshape((*lead, *np.shape(leaf)))

    result = {}
    for path, value in step.parameters.items():
        leaves, tree = jax.tree.flatten(value)
        sizes = (np.size(leaf) * (1 + np.iscomplexobj(leaf)) for leaf in leaves)
        flat = used.get(path) or [np.zeros((*lead, size)) for size in sizes]
        result[path] = jax.tree.unflatten(tree, map(shaped, flat, leaves))
    return result
