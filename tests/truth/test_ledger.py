# SPDX-License-Identifier: Apache-2.0
"""The credit ledger: every entry against backpropagation with that edge alone cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt
from tests.zoo import weight

from .test_influence import Everything, data, loss_of

STEPS, BATCH, UNITS = 5, 2, 3
held = jax.lax.stop_gradient

Edges = frozenset[str]


class Layers(brainstate.nn.Module):
    """A vanilla layer below a gated one, and a mean that is not hidden; ``cut`` edges are held."""

    def __init__(self, cut: Edges = frozenset()) -> None:
        super().__init__()
        brainstate.random.seed(0)
        self.cut = cut
        self.w, self.r, self.up, self.gate = (weight(UNITS, UNITS) for _ in range(4))

    def init_state(self, batch_size: int) -> None:
        """Start at zero."""
        zeros = jnp.zeros((batch_size, UNITS))
        self.h = [brainstate.HiddenState(zeros) for _ in range(2)]  # of two layers
        self.mean = brainstate.ShortTermState(zeros)

    def along(self, name: str, value: Any) -> Any:
        """What passes an edge."""
        return held(value) if name in self.cut else value

    def update(self, x: Any) -> Any:
        """One step."""
        a, b = self.h
        recurrent = bt.matmul(self.along("recurrent", a.value), self.r.value)
        a.value = jnp.tanh(0.5 * a.value + bt.matmul(x, self.w.value) + recurrent)
        # the memory of the layers above: what they carry to the next step
        old, mean = self.along("layer", b.value), self.along("state", self.mean.value)
        gate = jax.nn.sigmoid(self.gate.value[0] * a.value)
        b.value = gate * old + bt.matmul(a.value, self.up.value)
        self.mean.value = 0.7 * mean + jnp.sin(a.value)
        return b.value * 0.5 + self.mean.value


def sequences() -> tuple[Any, Any]:
    rng = np.random.default_rng(5)
    return tuple(jnp.asarray(rng.normal(size=(STEPS, BATCH, UNITS))) for _ in range(2))  # type: ignore[return-value]


def loss(out: Any, y: Any) -> Any:
    return ((out - y) ** 2).sum()


def exact(*cut: str) -> Any:
    model = Layers(frozenset(cut))
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    return bptt(model, sequences(), loss)[1]


def ledger_of(
    model: Any, xs: Any, ys: Any, of: Callable[..., Any], *how: Any, **options: Any
) -> Any:
    learner = bt.compile(model, *how, xs[0], batch_size=BATCH, **options)

    def step(x: Any, y: Any) -> Any:
        return of(learner(x), y)

    before = [state.value for state in brainstate.graph.states(learner).values()]
    found = learner.credit_ledger(xs, ys, step_fn=step, reduction="sum")
    after = [state.value for state in brainstate.graph.states(learner).values()]
    assert all(map(lambda a, b: np.array_equal(a, b), *map(jax.tree.leaves, (before, after))))
    kept = learner.etrace_grad(xs, ys, step_fn=step, reduction="sum", carry_trace=False)
    return found, kept


def adds_up(ledger: Any, reference: Any) -> None:
    assert_tree_close(ledger.gradients, {p: reference[p] for p in ledger.gradients}, 1e-9)
    for path, whole in ledger.gradients.items():
        total = jax.tree.map(lambda *v: sum(v), *(e.gradient for e in ledger.of(path)))
        assert_tree_close(total, whole, 1e-9)
        np.testing.assert_allclose(sum(e.share for e in ledger.of(path)), 1.0, rtol=1e-9)


def test_every_entry_is_what_its_edge_carries() -> None:
    ledger, kept = ledger_of(Layers(), *sequences(), loss, "d_rtrl")
    adds_up(ledger, exact())
    found = {(e.parameter[0], e.kind, e.origin, e.target): e.gradient for e in ledger.entries}
    edges = ("recurrent", "layer", "state")
    none, one = exact(*edges), {edge: exact(*({*edges} - {edge})) for edge in edges}
    for name in ("w", "r"):
        path = (name,)
        assert_tree_close(found[name, "kept by the rule", "", ""], none[path], 1e-9)
        assert_tree_close(found[name, "kept by the rule", "", ""], kept[path], 1e-9)
        # paths that leave by the memory of a layer above never come back to the one below
        for edge, kind, to in (
            ("layer", "another layer", "h[1]"),
            ("state", "a state that is not hidden", "mean"),
        ):
            alone = jax.tree.map(jnp.subtract, one[edge][path], none[path])
            assert_tree_close(found[name, kind, "h[0]", to], alone, 1e-9)
        # a path that takes the recurrent product first may pass any of the others behind it
        first = jax.tree.map(jnp.subtract, exact()[path], exact("recurrent")[path])
        assert_tree_close(found[name, "recurrent product", "h[0]", "h[0]"], first, 1e-9)
    # a gate of the layer above is of its group: no relation leads there, and its trace is no other
    gate = jax.tree.map(jnp.subtract, exact()["gate",], none["gate",])
    assert_tree_close(found["gate", "no trace", "", "h[1]"], gate, 1e-9)
    assert not [key for key in found if key[:2] == ("up", "recurrent product")]


@pytest.mark.parametrize("algorithm", ["d_rtrl", "coupled", "pp_prop", "linear", "rtrl", "uoro"])
def test_the_entries_add_up(algorithm: str) -> None:
    xs, ys = data()
    options: dict[str, dict[str, Any]] = {
        "coupled": {"recurrence_scope": "coupled"},
        "pp_prop": {"decay_or_rank": 0.8},
        "linear": {"downstream": "linear"},
        "uoro": {"vjp_method": "single-step"},
    }
    name = "d_rtrl" if algorithm in ("coupled", "linear") else algorithm
    brainstate.random.seed(0)
    model = Everything()

    def of(out: Any, y: Any) -> Any:
        return loss_of(out, y).sum()

    ledger, kept = ledger_of(
        model, xs, ys, of, name, frozen=["unused"], **options.get(algorithm, {})
    )
    brainstate.random.seed(0)
    fresh = Everything()
    brainstate.nn.init_all_states(fresh, batch_size=BATCH)
    adds_up(ledger, bptt(fresh, (xs, ys), of)[1])
    first = {e.parameter: e.gradient for e in ledger.entries if e.kind == "kept by the rule"}
    assert_tree_close(first, {path: kept[path] for path in first}, 1e-9)
    kinds = {entry.kind for entry in ledger.entries}
    assert ("the rule's approximation" in kinds) == (algorithm in ("pp_prop", "uoro"))
    assert (kinds == {"kept by the rule"}) == (algorithm == "rtrl")
