# SPDX-License-Identifier: Apache-2.0
"""The credit ledger: every entry against backpropagation with that edge alone cut."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import braintrace as bt
from braintrace.drivers.exactly import without_moving
from braintrace.drivers.ledger import probed
from braintrace.drivers.options import GradOptions
from braintrace.testing import assert_tree_close, bptt
from tests.zoo import weight

from .test_influence import Everything, data, loss_of

STEPS, BATCH, UNITS = 5, 2, 3
held = jax.lax.stop_gradient

Edges = frozenset[str]


class Layers(brainstate.nn.Module):
    """A vanilla layer below a gated one, and a mean that is not hidden; ``cut`` edges are held.

    An input may say for each edge whether it is held at this step.
    """

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
        if name not in self.cut:
            return value
        return jnp.where(self.now[name == "recurrent"], held(value), value)

    def update(self, x: Any) -> Any:
        """One step."""
        x, self.now = x if isinstance(x, tuple) else (x, (True, True))
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


EDGES = ("recurrent", "layer", "state")


def exact(*cut: str) -> Any:
    """BPTT with these edges cut, and no others."""
    model = Layers(frozenset(cut))
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    return bptt(model, sequences(), loss)[1]


def exact_in_windows(size: int, *cut: str) -> Any:
    """The same, where an edge is cut for the losses behind the end of its window alone."""
    (xs, ys), t, total = sequences(), np.arange(STEPS), None
    for start in range(0, STEPS, size):
        model = Layers(frozenset(cut))
        brainstate.nn.init_all_states(model, batch_size=BATCH)
        # what a layer is to the others is lost at the border itself; its own trace goes on there
        own = jnp.asarray((t >= start) & (t < start + size), float)
        inputs = (xs, (jnp.asarray(t <= start), jnp.asarray(t < start)))
        found = bptt(model, (inputs, ys, own), lambda out, y, m: m * loss(out, y))[1]
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total


def minus(a: Any, b: Any) -> Any:
    return jax.tree.map(jnp.subtract, a, b)


def ledger_of(
    model: Any,
    xs: Any,
    ys: Any,
    of: Callable[..., Any],
    *how: Any,
    size: Any = None,
    past: Any = (),
    **options: Any,
) -> Any:
    learner = bt.compile(model, *how, xs[0], batch_size=BATCH, **options)

    def step(x: Any, y: Any) -> Any:
        if (size or 1) == 1:
            return of(learner(x, **given), y)
        return jax.vmap(of)(learner(bt.MultiStepData(x)), y)

    given = {"modulator": 0.3} if how[0] == "three_factor" else {}
    for x in past:
        learner(x, **given)
    if how[0] == "dni":
        for one in learner.synthesizer.maps.values():
            one.value = jax.tree.map(lambda v: v + 0.1, one.value)
    before = [state.value for state in brainstate.graph.states(learner).values()]
    found = learner.credit_ledger(xs, ys, step_fn=step, reduction="sum", chunk_size=size)
    after = [state.value for state in brainstate.graph.states(learner).values()]
    assert all(map(lambda a, b: np.array_equal(a, b), *map(jax.tree.leaves, (before, after))))
    kept = learner.etrace_grad(
        xs, ys, step_fn=step, reduction="sum", carry_trace=False, chunk_size=size
    )
    return found, kept


def adds_up(ledger: Any, reference: Any) -> None:
    assert_tree_close(ledger.gradients, {p: reference[p] for p in ledger.gradients}, 1e-9)
    for path, whole in ledger.gradients.items():
        total = jax.tree.map(lambda *v: sum(v), *(e.gradient for e in ledger.of(path)))
        assert_tree_close(total, whole, 1e-9)
        np.testing.assert_allclose(sum(e.share for e in ledger.of(path)), 1.0, rtol=1e-9)


def by_name(ledger: Any) -> dict[Any, Any]:
    return {(e.parameter[0], e.kind, e.origin, e.target): e.gradient for e in ledger.entries}


@pytest.mark.parametrize("size", [None, 1, 2])
def test_every_entry_is_what_its_edge_carries(size: int | None) -> None:
    def cut(*edges: str) -> Any:
        return exact(*edges) if size is None else exact_in_windows(size, *edges)

    how: dict[str, Any] = {"downstream": "step"}  # what follows another stays a layer of its own
    if size is not None:
        how |= {"vjp_method": "multi-step", "size": size}
    ledger, kept = ledger_of(Layers(), *sequences(), loss, "d_rtrl", **how)
    adds_up(ledger, exact())
    found = by_name(ledger)
    none, one = cut(*EDGES), {edge: cut(*({*EDGES} - {edge})) for edge in EDGES}

    def entry(name: str, kind: str, origin: str, target: str) -> Any:
        return found[name, kind if size is None else "window border", origin, target]

    for name in ("w", "r"):
        path = (name,)
        assert_tree_close(found[name, "kept by the rule", "", ""], none[path], 1e-9)
        assert_tree_close(found[name, "kept by the rule", "", ""], kept[path], 1e-9)
        # paths that leave by the memory of a layer above never come back to the one below
        for edge, kind, to in (
            ("layer", "another layer", "h[1]"),
            ("state", "a state that is not hidden", "mean"),
        ):
            alone = minus(one[edge][path], none[path])
            assert_tree_close(entry(name, kind, "h[0]", to), alone, 1e-9)
        # a path that takes the recurrent product first may pass any of the others behind it
        first = minus(exact()[path], cut("recurrent")[path])
        assert_tree_close(entry(name, "recurrent product", "h[0]", "h[0]"), first, 1e-9)
    # a gate of the layer above is of its group: no relation leads there, and its trace is no other
    gate = minus(exact()["gate",], none["gate",])
    assert_tree_close(entry("gate", "no trace", "", "h[1]"), gate, 1e-9)
    assert not [key for key in found if key[:2] == ("up", "recurrent product")]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("pp_prop", {"decay_or_rank": 0.8}),
        ("eprop", {"kappa_filter_decay": 0.6}),
        ("ostl_feedforward", {}),
        ("three_factor", {}),
    ],
)
def test_what_a_rule_misses_of_the_paths_that_it_keeps(name: str, how: dict[str, Any]) -> None:
    ledger, kept = ledger_of(Layers(), *sequences(), loss, name, downstream="step", **how)
    adds_up(ledger, exact())
    found, none = by_name(ledger), exact(*EDGES)
    for own in ("w", "r"):
        missed = found[own, "the rule's approximation", "", ""]
        assert_tree_close(missed, minus(none[own,], kept[own,]), 1e-9)


class BelowALeak(brainstate.nn.Module):
    """A vanilla layer below a leaky one; its recurrent product may be held."""

    def __init__(self, cut: bool = False) -> None:
        super().__init__()
        brainstate.random.seed(0)
        self.cut, (self.w, self.r, self.up) = cut, (weight(UNITS, UNITS) for _ in range(3))

    def init_state(self, batch_size: int) -> None:
        """Start at zero."""
        zeros = jnp.zeros((batch_size, UNITS))
        self.h, self.v = brainstate.HiddenState(zeros), brainstate.HiddenState(zeros)

    def update(self, x: Any) -> Any:
        """One step."""
        old = held(self.h.value) if self.cut else self.h.value
        drive = bt.matmul(x, self.w.value) + bt.matmul(old, self.r.value)
        self.h.value = jnp.tanh(0.5 * self.h.value + drive)
        self.v.value = 0.8 * self.v.value + bt.matmul(self.h.value, self.up.value)
        return self.v.value


@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("d_rtrl", {}),
        ("pp_prop", {"decay_or_rank": 0.8}),
        ("pp_prop", {"decay_or_rank": 0.8, "vjp_method": "multi-step", "size": 2}),
        ("eprop", {"kappa_filter_decay": 0.6}),
        ("three_factor", {"downstream": "linear"}),
        ("dni", {"size": 2}),
    ],
)
def test_rules_above_which_a_layer_leaks(name: str, how: dict[str, Any]) -> None:
    """What they follow are the paths past the model's leaks; the past of the probe has no part."""
    (xs, ys), past = sequences(), jnp.cos(sequences()[0])
    whole, cut = (started_from(past, BelowALeak(held)) for held in (False, True))
    expected, kept_by_all = (bptt(model, (xs, ys), loss)[1] for model in (whole, cut))
    ledger, kept = ledger_of(BelowALeak(), xs, ys, loss, name, past=past, **how)
    adds_up(ledger, expected)
    found = by_name(ledger)
    for own in ("w", "r", "up"):
        assert_tree_close(found[own, "kept by the rule", "", ""], kept[own,], 1e-9)
        missed = found.get((own, "the rule's approximation", "", ""), 0.0)
        if name == "dni":
            assert_tree_close(missed + kept[own,], expected[own,], 1e-9)
        if "size" in how:  # in a window, the recurrent product is no dropped edge
            continue
        exact = name == "d_rtrl" or (name, own) == ("eprop", "up")
        assert jnp.any(missed != 0) != exact
        assert_tree_close(missed + kept[own,], kept_by_all[own,], 1e-9)
        recurrent = [g for (w, kind, *_), g in found.items() if (w, kind[:9]) == (own, "recurrent")]
        assert len(recurrent) == (own != "up")
        assert_tree_close(sum(recurrent, kept_by_all[own,]), expected[own,], 1e-9)


def started_from(past: Any, model: Any) -> Any:
    """The model after some steps; what is held has the same values."""
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    for x in past:
        model(x)
    return model


class Leaking(brainstate.nn.Module):
    """A leaky readout."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.w, self.outputs = bt.nn.Linear(inputs, outputs), outputs

    def init_state(self, batch_size: int) -> None:
        """Start at zero."""
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, self.outputs)))

    def update(self, x: Any) -> Any:
        """One step."""
        self.v.value = 0.8 * self.v.value + self.w(x)
        return self.v.value


class TwoLayers(brainstate.nn.Module):
    """Two vanilla layers, of which the second also hears the old values of the first."""

    def __init__(self) -> None:
        super().__init__()
        brainstate.random.seed(0)
        self.w, self.r, self.up, self.own = (weight(UNITS, UNITS) for _ in range(4))

    def init_state(self, batch_size: int | None = None) -> None:
        """Start at zero."""
        self.a, self.b = (brainstate.HiddenState(jnp.zeros((1, UNITS))) for _ in range(2))

    def update(self, x: Any) -> Any:
        """One step."""
        old, b = self.a.value, self.b.value
        self.a.value = jnp.tanh(bt.matmul(x, self.w.value) + bt.matmul(old, self.r.value))
        heard = bt.matmul(self.a.value * jnp.cos(old), self.up.value)
        self.b.value = jnp.tanh(heard + bt.matmul(b, self.own.value))
        return jnp.concatenate([self.a.value, self.b.value], -1)


def test_what_a_mask_leaves_out() -> None:
    """The influence as dense matrices, entry by entry; the mask is that of the rule."""
    (xs, _), both = sequences(), 2 * UNITS
    xs, ys = xs[:, :1], jnp.asarray(np.random.default_rng(1).normal(size=(STEPS, 1, both)))
    learner = bt.compile(TwoLayers(), "snap", xs[0], n=1)
    ledger = learner.credit_ledger(
        xs, ys, step_fn=lambda x, y: loss(learner(x), y), reduction="sum"
    )
    model, names = TwoLayers(), ("w", "r", "up", "own")
    model.init_state()
    flat, unflat = ravel_pytree([getattr(model, n).value for n in names])

    def step(theta: Any, s: Any, x: Any) -> Any:
        w, r, up, own = unflat(theta)
        a = jnp.tanh(x @ w + s[:UNITS] @ r)
        heard = (a * jnp.cos(s[:UNITS])) @ up
        return jnp.concatenate([a, jnp.tanh(heard + s[UNITS:] @ own)])

    paths = [p.path[0] for p in learner.rule.parameters]
    size = UNITS**2
    order = np.concatenate([np.arange(size) + size * names.index(p) for p in paths])
    mask = np.zeros((both, 4 * size))
    kept = zip(learner.rule.carried, learner.rule.masks, strict=True)
    for k, (leaf, own) in enumerate(kept):
        assert leaf.path == (("a", "b")[k],)
        wide = np.ones((4 * size, UNITS)) if own is None else own.reshape(4 * size, UNITS)
        mask[k * UNITS : (k + 1) * UNITS, order] = wide.T
    assert not mask.all()

    s, traces, seen = jnp.zeros(both), jnp.zeros((both, 4 * size)), []
    for x, y in zip(xs[:, 0], ys[:, 0], strict=True):
        direct, through = jax.jacobian(step, (0, 1))(flat, s, x)
        parts = [through[:, g] @ traces[g] for g in (slice(UNITS), slice(UNITS, None))]
        s = step(flat, s, x)
        traces = mask * (sum(parts) + direct)
        seen.append(([(1 - mask) * part for part in parts], through, 2 * (s - y), traces))
    found = {"kept": sum(of @ traces for _, _, of, traces in seen)}
    later = jnp.zeros(both)
    for left, through, of, _ in reversed(seen):
        later = later + of
        for g, part in enumerate(left):
            for c, own in enumerate((slice(UNITS), slice(UNITS, None))):
                key = "ab"[g], "ab"[c]
                found[key] = found.get(key, 0.0) + later[own] @ part[own]
        later = through.T @ later
    wanted = {key: dict(zip(names, unflat(v), strict=True)) for key, v in found.items()}
    for e in ledger.entries:
        kind = "another layer" if e.origin != e.target else "recurrent product"
        key: Any = (e.origin, e.target) if e.origin else "kept"
        assert e.kind == (kind if e.origin else "kept by the rule")
        assert_tree_close(e.gradient, wanted[key][e.parameter[0]], 1e-9)
    pairs = {(e.origin, e.target) for e in ledger.entries if e.origin}
    assert {("a", "a"), ("b", "b")} <= pairs
    assert_tree_close(
        {p: ledger.gradients[p,] for p in names},
        dict(zip(names, unflat(sum(found.values())), strict=True)),
        1e-9,
    )


@pytest.mark.parametrize("above", ["nothing", "a leak", "a layer"])
def test_what_a_ledger_costs(above: str) -> None:
    """Floating-point operations of a step: no more than BPTT's for each kind of entry, and one."""
    n, batch = 48, 8
    made = {"nothing": [], "a leak": [Leaking], "a layer": [bt.nn.GRUCell]}[above]
    layers = [*(kind(n, n) for kind in (bt.nn.GRUCell, *made)), bt.nn.Linear(n, 8)]
    model = brainstate.nn.Sequential(*layers)
    learner = bt.compile(model, "d_rtrl", jnp.ones((batch, n)), batch_size=batch, downstream="step")

    def of(out: Any, y: Any) -> Any:
        return ((out - y) ** 2).sum()

    def step(x: Any, y: Any) -> Any:
        return of(learner(x), y)

    def by_ledger(xs: Any, ys: Any) -> Any:
        weights = tuple(learner.trained_states.items())
        return probed(learner, GradOptions(step, weights), step, None, (xs, ys), None)

    def by_bptt(xs: Any, ys: Any) -> Any:
        def whole() -> Any:
            loop = brainstate.transform.for_loop
            return loop(lambda x, y: of(model(x), y), xs, ys).sum()

        return brainstate.transform.grad(whole, learner.trained_states)()

    def of_a_step(run: Any) -> float:
        """Those of loops are counted once, others as often as there are steps."""

        def counted(steps: int) -> float:
            sequences = jnp.ones((steps, batch, n)), jnp.ones((steps, batch, 8))
            program = jax.jit(partial(without_moving, run)).lower(*sequences).compile()
            found = program.cost_analysis()
            return float((found[0] if isinstance(found, list) else found)["flops"])

        few, many = counted(20), counted(40)
        each = (many - few) / 20
        return few - 20 * each + each

    kinds = {"nothing": 3, "a leak": 4, "a layer": 4}[above]
    assert 1 < of_a_step(by_ledger) / of_a_step(by_bptt) <= kinds + 1


@pytest.mark.parametrize(
    "algorithm", ["d_rtrl", "coupled", "linear", "exact", "rtrl", "uoro", "snap"]
)
def test_the_entries_add_up(algorithm: str) -> None:
    xs, ys = data()
    options: dict[str, dict[str, Any]] = {
        "coupled": {"recurrence_scope": "coupled"},
        "snap": {"n": 1},
        "linear": {"downstream": "linear"},
        "exact": {"downstream": "exact"},
        "uoro": {"vjp_method": "single-step"},
    }
    name = "d_rtrl" if algorithm in ("coupled", "linear", "exact") else algorithm
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
    assert ("the rule's approximation" in kinds) == (algorithm == "uoro")
    assert (kinds == {"kept by the rule"}) == (algorithm == "rtrl")
