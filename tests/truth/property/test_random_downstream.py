# SPDX-License-Identifier: Apache-2.0
"""Random networks of several layers, some of them uniform and some not, against the oracle.

Which layers are uniform follows from how they are written here. ``BRAINTRACE_PROPERTY_RUNS`` as for
random cells.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

import braintrace as bt
from braintrace.testing import bptt, d_rtrl_oracle, e_prop_oracle, pp_prop_oracle
from tests.zoo import spike

from .test_random_cells import RUNS, compare, explore

WIDTH, BATCH, STEPS, KAPPA, DECAYS = 3, 2, 5, 0.4, (0.7, 0.5)
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
#: The same of layers that are not uniform.
OTHERS: dict[str, Callable[[Any, Any, Any, Any], Any]] = {
    "hard reset": lambda v, y, e, p: 0.9 * v * (1 - spike(v - 0.3)) + y,
    "attached reset": lambda v, y, e, p: 0.9 * v + y - spike(v - 0.3),
    "gated": lambda v, y, e, p: jax.nn.sigmoid(y) * v + jnp.tanh(y),
    "tanh": lambda v, y, e, p: jnp.tanh(0.8 * v + y),
    "held hard reset": lambda v, y, e, p: 0.9 * v * (1 - held(spike(v - 0.3))) + y,
    "many leaks": lambda v, y, e, p: jax.nn.sigmoid(p * jnp.arange(1.0, 4.0) + held(v)) * v + y,
    "recurrent": lambda v, y, e, p: jnp.tanh(y + bt.matmul(v, p * ROTATION)),
}
ROTATION = np.asarray([[0.0, 0.9, 0.2], [-0.7, 0.0, 0.4], [0.1, 0.6, 0.3]])
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
    "two products": lambda x, w, b: bt.matmul(bt.matmul(x, w, b), w),
    "residual": lambda x, w, b: bt.matmul(x, w, b) + 0.5 * x,
    "no state between": lambda x, w, b: bt.matmul(jnp.tanh(bt.matmul(x, w)), w, b),
    "largest": lambda x, w, b: bt.matmul(jnp.maximum(x, jnp.flip(x, -1)), w, b),
}
#: What is above reads, of the old and the new value.
READS: dict[str, Callable[[Any, Any], Any]] = {
    "new": lambda old, new: new,
    "old": lambda old, new: old,
    "both": lambda old, new: new - 0.5 * old,
    "scaled": lambda old, new: 0.7 * new + 0.1,
    "spikes": lambda old, new: spike(new - 0.2),
    "late spikes": lambda old, new: spike(old - 0.2) + jnp.tanh(new),
    "normalised": lambda old, new: new / jnp.sqrt(1 + (new**2).sum(-1, keepdims=True)),
}
LINEAR = "operation", "constant in front", "constant behind", "absolute"
#: A factor per example passes these only where the compiler sees that examples stay apart, and
#: coupled D-RTRL keeps recurrent input.
REFUSED = re.compile("may mix examples|its recurrent input by .* is kept")

Layer = tuple[str, str, str]


@dataclass(frozen=True)
class Choice:
    """A network, a rule, and how it is run."""

    layers: tuple[Layer, ...]
    loop: bool
    shifted: bool
    rule: str
    block: int | str
    calls: int
    last: bool
    vmap: bool

    @property
    def uniform(self) -> set[Any]:
        """The states that are uniform, as they are written."""
        return {("v", k) for k, (name, _, _) in enumerate(self.layers) if name in LEAKS}

    @property
    def of_examples(self) -> bool:
        """Whether the model is that of one example; no layer looks at the whole batch."""
        return self.vmap and all(name != "selected" for name, _, _ in self.layers)

    @property
    def has_kappa(self) -> bool:
        """Whether all that a layer emits drives a leak, one on each way to the result."""
        above, pairs = self.layers[1:], zip(self.layers, self.layers[1:], strict=False)
        return (
            not self.loop
            and all(a[0] in LEAKS and a[1] in LINEAR for a in above)
            and self.layers[-1][2] in ("new", "old")
            and not any(a[0] in LEAKS and a[2] != "spikes" for a, _ in pairs)
        )

    @property
    def moves(self) -> bool:
        """Whether credit of a layer passes the leak of the one above it."""
        pairs = zip(self.layers, self.layers[1:], strict=False)
        return any(a[0] in OTHERS and b[0] in LEAKS for a, b in pairs)


class Network(brainstate.nn.Module):
    """The model of a choice."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self.choice = choice
        rng = np.random.default_rng(0)
        count = range(len(choice.layers))
        matrices = [rng.normal(scale=0.6, size=(WIDTH, WIDTH)) for _ in count]
        self.w = [brainstate.ParamState(jnp.asarray(matrix)) for matrix in matrices]
        self.b = [brainstate.ParamState(jnp.asarray(rng.normal(size=WIDTH))) for _ in count]
        trained = ("trained", "many leaks", "recurrent")
        self.p = {
            str(k): brainstate.ParamState(jnp.asarray(0.8))
            for k in count
            if choice.layers[k][0] in trained
        }
        if choice.loop:
            self.back = brainstate.ParamState(jnp.asarray(0.3 * rng.normal(size=(WIDTH, WIDTH))))

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        lead = () if batch_size is None else (batch_size,)
        start = jnp.full((*lead, WIDTH), 0.5 if self.choice.shifted else 0.0)
        self.v = [brainstate.HiddenState(start) for _ in self.choice.layers]

    def update(self, x: Any) -> Any:
        value, example = x[..., :WIDTH], x[..., WIDTH:]
        olds = [v.value for v in self.v]
        for k, (name, linear, reads) in enumerate(self.choice.layers):
            p = self.p[str(k)].value if str(k) in self.p else None
            y = MAPS[linear](value, self.w[k].value, self.b[k].value)
            if k == 0 and self.choice.loop:
                y = y + bt.matmul(olds[-1], self.back.value)
            self.v[k].value = (LEAKS | OTHERS)[name](olds[k], y, example, p)
            value = READS[reads](olds[k], self.v[k].value)
        return value


def loss_of(out: Any, target: Any, weight: Any) -> Any:
    return weight * jnp.sum(jnp.sin(out) * target + 0.5 * out**2)


def data(last: bool) -> Any:
    rng = np.random.default_rng(1)
    xs, ys = rng.normal(size=(STEPS, BATCH, WIDTH + 1)), rng.normal(size=(STEPS, BATCH, WIDTH))
    return xs, ys, np.arange(STEPS) == STEPS - 1 if last else np.ones(STEPS)


def started(choice: Choice) -> Network:
    model = Network(choice)
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    return model


def check(choice: Choice, met: Counter[str]) -> None:
    model, sequences = started(choice), data(choice.last)
    scope = {"recurrence_scope": "coupled" if choice.rule == "coupled" else "diagonal"}
    learner_of, own = {
        "kappa": (bt.EProp, {"kappa_filter_decay": KAPPA}),
        "pp_prop": (bt.pp_prop, {"decay_or_rank": DECAYS}),
    }.get(choice.rule, (bt.D_RTRL, scope))
    options: dict[str, Any] = {**own, "require_trace": False}
    _, exact = bptt(model, sequences, loss_of)
    dead = [p for p, g in exact.items() if not any(np.any(v) for v in jax.tree.leaves(g))]
    learner = learner_of(model, downstream="linear", frozen=dead, **options)
    learner.compile_graph(sequences[0][0])
    found, refused = learner.graph.uniform.keys(), learner.graph.not_uniform
    below = {("v", 0)} if choice.rule == "pp_prop" and not choice.loop else set()
    missed = {path: refused[path] for path in choice.uniform - found - (below - refused.keys())}
    assert all(map(REFUSED.search, missed.values())), missed
    assert found | below == (choice.uniform | below) - missed.keys()
    oracle = {
        "kappa": partial(e_prop_oracle, kappa=KAPPA),
        "pp_prop": partial(pp_prop_oracle, decay_x=DECAYS[0], decay_f=DECAYS[1]),
    }.get(choice.rule, partial(d_rtrl_oracle, **scope))
    expected = oracle(started(choice), sequences, loss_of, uniform=found).grads
    met.update(networks=1, uniform=bool(found), moves=choice.moves and not missed)
    met.update({choice.rule: 1})
    if choice.of_examples:
        learner = bt.compile(
            Network(choice),
            learner_of,
            sequences[0][0],
            batch_size=BATCH,
            vmap=True,
            frozen=dead,
            downstream="linear",
            **options,
        )

    def step(x: Any, *rest: Any) -> Any:
        return loss_of(learner(x), *rest)

    part = -(-STEPS // choice.calls)
    total = None
    for k in range(0, STEPS, part):
        own = [v[k : k + part] for v in sequences]
        grads = learner.etrace_grad(*own, step_fn=step, reduction="sum", block_size=choice.block)
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    live = {path: grad for path, grad in expected.items() if path not in dead}
    compare({path: total[path] for path in live}, live)


def defined(choice: Choice) -> Choice:
    """What the rules define: e-prop below one leak on each way."""
    if choice.rule == "kappa" and not choice.has_kappa:
        return replace(choice, rule="d_rtrl")
    return choice


def choices(*rules: str) -> st.SearchStrategy[Choice]:
    others, leaks = (
        st.tuples(st.sampled_from([*of]), st.sampled_from([*MAPS]), st.sampled_from([*READS]))
        for of in (OTHERS, LEAKS)
    )
    layers = st.lists(st.one_of(others, leaks), min_size=2, max_size=4).map(tuple)
    moving = st.tuples(others, leaks)
    return st.builds(
        Choice,
        layers=st.one_of(layers, moving, st.tuples(others, leaks, leaks)),
        loop=st.sampled_from([False, False, False, True]),
        shifted=st.booleans(),
        rule=st.sampled_from(rules),
        block=st.sampled_from([1, 3, STEPS, "auto"]),
        calls=st.sampled_from([1, 2]),
        last=st.booleans(),
        vmap=st.booleans(),
    ).map(defined)


@pytest.mark.parametrize(
    ("rules", "count"), [(("d_rtrl", "d_rtrl", "coupled", "kappa"), 12), (("pp_prop",), 4)]
)
def test_random_networks(rules: tuple[str, ...], count: int) -> None:
    met: Counter[str] = Counter()
    explore(count, choices(*rules), lambda choice: check(choice, met))
    assert RUNS < 1 or count < 12 or 3 * met["moves"] >= met["networks"], met


@pytest.mark.parametrize(
    ("rule", "above"),
    [
        ("d_rtrl", [("literal", "product", "old"), ("counter", "largest", "both")]),
        ("coupled", [("literal", "product", "old"), ("counter", "largest", "both")]),
        ("pp_prop", [("literal", "operation", "new"), ("tanh", "product", "new")]),
        ("pp_prop", [("literal", "operation", "both"), ("hard reset", "residual", "both")]),
    ],
)
def test_what_reads_a_leak_at_other_positions_is_another_layer(rule: str, above: Any) -> None:
    """Also where it is a filter, or the leak has a trace of its own."""
    layers = ("literal" if rule != "pp_prop" else "tanh", "absolute", "spikes"), *above
    check(Choice(layers, False, False, rule, "auto", 1, False, False), Counter())
