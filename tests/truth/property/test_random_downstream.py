# SPDX-License-Identifier: Apache-2.0
"""Random layers of leaks above one nonlinear layer, against backpropagation.

``BRAINTRACE_PROPERTY_RUNS`` as for random cells.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import braintrace as bt
from braintrace.testing import bptt
from tests.zoo import spike

from .models import loss_fn
from .test_random_cells import compare, explore

WIDTH, BATCH, STEPS = 3, 2, 4
held = jax.lax.stop_gradient

#: New value from the old one, what drives it, what a step gives per example, and a parameter.
LEAKS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "literal": lambda v, y, e, p: 0.8 * v + y,
    "turned": lambda v, y, e, p: -(-0.8 * v - y),
    "exponential": lambda v, y, e, p: jnp.exp(-0.25) * v + (1 - jnp.exp(-0.25)) * y,
    "relaxation": lambda v, y, e, p: v + (y - v) / 4.0,
    "two ways": lambda v, y, e, p: (0.5 * v) + 0.3 * (y - 0.5 * v),
    "one product twice": lambda v, y, e, p: (lambda kept: kept + 0.3 * (y - kept))(0.5 * v),
    "called": lambda v, y, e, p: jax.jit(lambda v, y: jax.jit(jnp.multiply)(0.7, v) + y)(v, y),
    "soft reset": lambda v, y, e, p: 0.8 * v + y - held(spike(v - 0.3)),
    "driven besides": lambda v, y, e, p: 0.8 * v + y + jnp.sin(3 * e),
    "counter": lambda v, y, e, p: v + y,
    "episodes": lambda v, y, e, p: 0.8 * v * (e > 0) + y,
    "held": lambda v, y, e, p: jnp.where(e > 0, v, 0.8 * v + y),
    "step length": lambda v, y, e, p: jnp.exp(-jnp.abs(e)) * v + jnp.abs(e) * y,
    "selected": lambda v, y, e, p: jnp.where(e.sum() > 0, 0.8 * v, 0.3 * v) + y,
    "two leaks": lambda v, y, e, p: jnp.asarray([0.5, 0.8, 0.8]) * v + y,
    "trained": lambda v, y, e, p: jax.nn.sigmoid(p) * v + (1 - jax.nn.sigmoid(p)) * y,
}
#: What drives it, from what is below and a matrix and a vector.
MAPS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "operation": lambda x, w, b: bt.matmul(x, w, b),
    "product": lambda x, w, b: x @ w + b,
    "constant in front": lambda x, w, b: bt.matmul(1 - 2 * x, w) + b,
    "constant behind": lambda x, w, b: 0.5 * bt.matmul(x, w, b) + 0.3,
    "absolute": lambda x, w, b: bt.matmul(x, jnp.abs(w)) + jnp.tanh(b),
    "centred": lambda x, w, b: bt.matmul(x - x.mean(-1, keepdims=True), w, b),
    "turned round": lambda x, w, b: jnp.flip(bt.matmul(jnp.flip(x, -1), w, b), -1),
    "parts": lambda x, w, b: jnp.split(bt.matmul(x, jnp.concatenate([w, 2 * w], 1)), 2, -1)[1] + b,
    "padded": lambda x, w, b: (
        jnp.pad(bt.matmul(x, w), [(0, 0), (1, 0)], constant_values=0.4)[:, :WIDTH] + b
    ),
    "mapped": lambda x, w, b: jax.vmap(lambda x: bt.matmul(x, w, b))(x),
    "two products": lambda x, w, b: bt.matmul(bt.matmul(x, w, b), w),
}
#: What is above reads.
READS: dict[str, Callable[[Any, Any], Any]] = {
    "new": lambda old, new: new,
    "old": lambda old, new: old,
    "both": lambda old, new: new - 0.5 * old,
    "scaled": lambda old, new: 0.7 * new + 0.1,
}
#: New value of the layer below, and what it gives.
BELOW: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "hard reset": lambda v, y: (0.9 * v * (1 - spike(v - 0.3)) + y, spike(v - 0.3)),
    "soft reset": lambda v, y: (0.9 * v + y - held(spike(v - 0.3)), jnp.tanh(v)),
    "tanh": lambda v, y: (jnp.tanh(0.8 * v + y), v),
}
#: These mix positions, and a factor per example does not pass through all of that.
REFUSED = "may mix examples"

Choice = tuple[str, tuple[tuple[str, str, str], ...], bool]


class Layers(brainstate.nn.Module):
    """The model of a choice."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self.below, self.above, shifted = choice
        rng = np.random.default_rng(0)
        count = range(len(self.above) + 1)
        matrices = [rng.normal(size=(WIDTH, WIDTH)) for _ in count]
        self.w = [brainstate.ParamState(jnp.asarray(matrix)) for matrix in matrices]
        self.b = [brainstate.ParamState(jnp.asarray(rng.normal(size=WIDTH))) for _ in count]
        trained = [leak == "trained" for leak, _, _ in self.above]
        self.p = {
            str(k): brainstate.ParamState(jnp.asarray(0.8)) for k, own in enumerate(trained) if own
        }
        start = jnp.full((BATCH, WIDTH), 0.5 if shifted else 0.0)
        self.v = [brainstate.HiddenState(start) for _ in count]

    def update(self, x: Any) -> Any:
        x, example = x[:, :WIDTH], x[:, WIDTH:]
        old = self.v[0].value
        driving = bt.matmul(x, self.w[0].value, self.b[0].value)
        self.v[0].value, _ = BELOW[self.below](old, driving)
        value = BELOW[self.below](self.v[0].value, driving)[1]
        for k, (leak, linear, reads) in enumerate(self.above):
            w, b, v = self.w[k + 1].value, self.b[k + 1].value, self.v[k + 1]
            old, p = v.value, self.p[str(k)].value if str(k) in self.p else None
            v.value = LEAKS[leak](old, MAPS[linear](value, w, b), example, p)
            value = READS[reads](old, v.value)
        return value


def check(choice: Choice, moved: list[bool]) -> None:
    model = Layers(choice)
    rng = np.random.default_rng(1)
    xs, ys = rng.normal(size=(STEPS, BATCH, WIDTH + 1)), rng.normal(size=(STEPS, BATCH, WIDTH))
    starts = [state.value for state in model.v]
    _, reference = bptt(model, (xs, ys), loss_fn)
    for state, start in zip(model.v, starts, strict=True):
        state.value = start
    dead = [p for p, g in reference.items() if not any(np.any(v) for v in jax.tree.leaves(g))]
    learner = bt.D_RTRL(model, downstream="linear", frozen=dead)
    learner.compile_graph(xs[0])
    why = [why for path, why in learner.graph.not_uniform.items() if path != ("v", 0)]
    assert all(REFUSED in text for text in why), why
    moved.append(not why)
    if not why and not dead:
        grads = learner.etrace_grad(
            xs, ys, step_fn=lambda x, y: loss_fn(learner(x), y), reduction="sum", block_size=3
        )
        compare(grads, reference)


def choices() -> st.SearchStrategy[Choice]:
    layer = st.tuples(*(st.sampled_from([*table]) for table in (LEAKS, MAPS, READS)))
    above = st.lists(layer, min_size=1, max_size=3).map(tuple)
    return st.tuples(st.sampled_from([*BELOW]), above, st.booleans())


def test_random_layers_of_leaks() -> None:
    moved: list[bool] = []
    explore(12, choices(), lambda choice: check(choice, moved))
    assert sum(moved) > 0.5 * len(moved)
