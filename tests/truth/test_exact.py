# SPDX-License-Identifier: Apache-2.0
"""``downstream='exact'``: credit of a layer through later steps of small layers above, by BPTT.

What is exact is the gradient of every weight below; the weights of the small layers themselves are
those of D-RTRL.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u
from jax.flatten_util import ravel_pytree

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt
from tests.truth.test_downstream import (
    BELOW,
    IN,
    OUT,
    WIDTH,
    Layer,
    Passing,
    Scaled,
    above,
    data,
    gradient,
    hard_reset,
    leak,
    loss_of,
    recurrent,
    recurrent_hard,
    reference,
    started,
    stirred,
    vanilla,
)
from tests.truth.test_downstream import learner_of as linear_learner_of
from tests.truth.test_downstream_rules import Descent
from tests.zoo import spike

learner_of = partial(linear_learner_of, downstream="exact")
Gradients = Mapping[Any, Any]


def fed(s: Any, x: Any) -> Any:
    return s.w(jnp.concatenate([x, s.v.value], -1))


def tanh_rnn(s: Any, x: Any) -> Any:
    s.v.value = jnp.tanh(fed(s, x))
    return s.v.value


def recurrent_lif(s: Any, x: Any) -> Any:
    v = s.v.value
    s.v.value = 0.9 * v * (1 - spike(v - 0.5)) + fed(s, x)
    return s.v.value


def adaptive(s: Any, x: Any) -> Any:
    v, a = s.v.value, s.a.value
    z = spike(v - 0.3 - a)
    s.v.value = 0.9 * v * (1 - z) + s.w(x)
    s.a.value = 0.8 * a + 0.2 * spike(s.v.value - 0.3 - a)
    return s.v.value + s.a.value


def several(s: Any, x: Any) -> Any:
    """Two states in one array."""
    v = s.v.value[..., 0] * (1 - jnp.tanh(s.v.value[..., 1])) + s.w(x)
    s.v.value = jnp.stack([v, jnp.sin(v) + 0.5 * s.v.value[..., 1]], -1)
    return v


def tanh_of(units: int, inputs: int = WIDTH) -> Layer:
    return Layer(tanh_rnn, inputs + units, units)


class Several(Layer):
    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        lead = () if batch_size is None else (batch_size,)
        self.v = brainstate.HiddenGroupState(jnp.zeros((*lead, *self.shape, 2)))

    def reset_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v.value = jnp.zeros_like(self.v.value)


class Beside(brainstate.nn.Module):
    """Two layers with the same input, and their sum."""

    def __init__(self, a: Any, b: Any) -> None:
        super().__init__()
        self.a, self.b = a, b

    def update(self, x: Any) -> Any:
        return self.a(x) + self.b(x)


ABOVE: dict[str, Callable[[], list[Any]]] = {
    "GRU": lambda: [bt.nn.GRUCell(WIDTH, OUT)],
    "tanh": lambda: [tanh_of(OUT)],
    "hard reset": lambda: [Layer(recurrent_lif, WIDTH + OUT, OUT)],
    "adaptive": lambda: [Layer(adaptive, WIDTH, OUT, "v a")],
    "several states": lambda: [Several(several, WIDTH, OUT)],
    "two above one another": lambda: [bt.nn.GRUCell(WIDTH, 3), tanh_of(OUT, 3)],
    "two beside one another": lambda: [Beside(bt.nn.GRUCell(WIDTH, OUT), tanh_of(OUT))],
    "a layer without states between": lambda: [bt.nn.Linear(WIDTH, 5), jnp.tanh, tanh_of(OUT, 5)],
    "a leak below it": lambda: [above(leak, WIDTH, 3), bt.nn.GRUCell(3, OUT)],
    "a leak above it": lambda: [bt.nn.GRUCell(WIDTH, 3), above(leak, 3)],
}


def below(gradients: Gradients) -> Gradients:
    """Those of the first layer."""
    return {path: g for path, g in gradients.items() if path[:2] == ("layers", 0)}


PAIRS = [
    *(("hard reset", up) for up in ABOVE),
    ("current", "GRU"),
    ("gated", "two above one another"),
    ("memoryless", "GRU"),
    ("memoryless", "a leak below it"),
    ("old spikes", "tanh"),
]


@pytest.mark.parametrize(("low", "up"), PAIRS)
def test_weights_below_equal_bptt(low: str, up: str) -> None:
    model = started(stirred(BELOW[low](), *ABOVE[up]()))
    learner = learner_of(model, data(True)[0][0])
    for last in (False, True):
        sequences = data(last)
        expected = below(reference(model, sequences))
        for block in (1, 3, "auto") if up == "GRU" else (3,):
            learner.reset_state(2, model_states=True)
            found = gradient(learner, sequences, block_size=block)
            assert_tree_close(below(found), expected)


def test_windows() -> None:
    """What was before a window gets the credit of what small layers above remember of it."""
    model = started(stirred(BELOW["current"](), *ABOVE["a leak below it"]()))
    sequences = data(False)
    expected = below(reference(model, sequences))
    learner = learner_of(model, sequences[0][0], vjp_method="multi-step")

    def step(x: Any, *rest: Any) -> Any:
        return jax.vmap(loss_of)(learner(bt.MultiStepData(x)), *rest)

    how = {"step_fn": step, "reduction": "sum", "chunk_size": 2}
    calls = [learner.etrace_grad(*(v[k : k + 4] for v in sequences), **how) for k in (0, 4)]
    assert_tree_close(below(jax.tree.map(jnp.add, *calls)), expected)
    learner.reset_state(2, model_states=True)
    for entries in map(learner.credit_ledger(*sequences, **how).of, expected):
        assert [entry.kind for entry in entries] == ["kept by the rule"]
        assert_tree_close(entries[0].gradient, expected[entries[0].parameter])


def test_an_update_at_every_step_equals_the_equations() -> None:
    """Weights change; the influence on all values is that of steps with the weights then."""
    model = started(stirred(BELOW["hard reset"](), *ABOVE["tanh"]()))
    low, up = (layer.w.weight.value for layer in model.layers)
    (theta, unflat), sizes = ravel_pytree(low), (2 * WIDTH, 2 * OUT)

    def step(theta: Any, s: Any, x: Any) -> Any:
        v, h, w = s[: sizes[0]].reshape(2, WIDTH), s[sizes[0] :].reshape(2, OUT), unflat(theta)
        v = 0.9 * v * (1 - spike(v - 0.5)) + x @ w["weight"] + w["bias"]
        heard = jnp.concatenate([spike(v - 0.5), h], -1)
        h = jnp.tanh(heard @ up["weight"] + up["bias"])
        return jnp.concatenate([v.reshape(-1), h.reshape(-1)])

    derivatives = jax.jit(jax.jacobian(step, (0, 1)))
    s, influence = jnp.zeros(sum(sizes)), jnp.zeros((sum(sizes), len(theta)))
    for x, y, weight in zip(*data(False), strict=True):
        of_theta, of_s = derivatives(theta, s, x)
        s, influence = step(theta, s, x), of_s @ influence + of_theta
        error = 2 * weight * (s[sizes[0] :] - y.reshape(-1))
        theta = theta - 0.05 * error @ influence[sizes[0] :]

    learner = learner_of(model, data(False)[0][0])
    weights = {0: model.layers[0].w.weight}
    learner.etrace_update(
        *data(False),
        step_fn=lambda x, *rest: loss_of(learner(x), *rest),
        optimizer=Descent(weights, 0.05),
        weights=weights,
        reduction="sum",
    )
    assert_tree_close(weights[0].value, unflat(theta))


class InMillivolts(brainstate.nn.Module):
    """Two layers with values in a unit, or as plain numbers."""

    def __init__(self, unit: Any) -> None:
        super().__init__()
        brainstate.random.seed(0)
        self.unit, self.low, self.up = unit, *map(bt.nn.Linear, (IN, WIDTH + OUT), (WIDTH, OUT))

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        """Start at zero."""
        zeros = (jnp.zeros((batch_size, n)) * self.unit for n in (WIDTH, OUT))
        self.v, self.h = map(brainstate.HiddenState, zeros)

    def update(self, x: Any) -> Any:
        """One step."""
        v = self.v.value
        self.v.value = 0.9 * v * (1 - spike(v / self.unit - 0.5)) + 2 * self.low(x) * self.unit
        z = spike(self.v.value / self.unit - 0.5)
        heard = jnp.concatenate([z, self.h.value / self.unit], -1)
        self.h.value = jnp.tanh(self.up(heard)) * self.unit
        return self.h.value / self.unit


def test_values_with_units() -> None:
    model, plain = started(InMillivolts(u.mV)), started(InMillivolts(1.0))
    path = ("low", "weight")
    learner = learner_of(model, data(False)[0][0])
    assert len(learner.graph.exact.above) == 1
    found = gradient(learner, data(False), block_size=3)
    assert_tree_close(found[path], reference(plain, data(False))[path])


def sum_of(entries: Any) -> Any:
    return jax.tree.map(lambda *v: sum(v), *(entry.gradient for entry in entries))


def test_more_than_the_first_layer_is_exact() -> None:
    """All that is below a small layer, and a leak's weight below one."""
    model = started(stirred(BELOW["hard reset"](), *ABOVE["a layer without states between"]()))
    found = gradient(learner_of(model, data(True)[0][0]), data(True))
    expected = reference(model, data(True))
    for path in [("layers", 0, "w", "weight"), ("layers", 1, "weight")]:
        assert_tree_close(found[path], expected[path])
    model = started(stirred(BELOW["hard reset"](), *ABOVE["a leak below it"]()))
    found = gradient(learner_of(model, data(True)[0][0]), data(True))
    path = ("layers", 1, "w", "weight")
    assert_tree_close(found[path], reference(model, data(True))[path])


def test_a_leak_of_few_values_stays_above_a_layer_without_states() -> None:
    """In front of it, its filter would have the many values of that layer."""
    layers = bt.nn.Linear(WIDTH, 70), jnp.tanh, above(leak, 70)
    model = started(stirred(BELOW["hard reset"](), *layers))
    learner = learner_of(model, data(True)[0][0])
    assert "few values" in learner.graph.not_uniform["layers", 3, "v"]
    assert_tree_close(gradient(learner, data(True)), reference(model, data(True)))


def test_the_default_is_another_gradient() -> None:
    """The reference has credit over time to find."""
    model = started(stirred(BELOW["hard reset"](), *ABOVE["GRU"]()))
    expected = reference(model, data(True))
    found = gradient(linear_learner_of(model, data(True)[0][0]), data(True))
    (a,), (b,) = (below(g).values() for g in (found, expected))
    a, b = (np.asarray(g["weight"]) for g in (a, b))
    assert np.linalg.norm(a - b) > 0.05 * np.linalg.norm(b)


@pytest.mark.parametrize("step", [vanilla, recurrent_hard])
def test_recurrent_products_below_are_cut(step: Any) -> None:
    model = started(stirred(recurrent(step, cut=False), *ABOVE["GRU"]()))
    cut = started(brainstate.nn.Sequential(recurrent(step, cut=True), *ABOVE["GRU"]()))
    for path, state in cut.states(brainstate.ParamState).items():
        state.value = model.states(brainstate.ParamState)[path].value
    found = gradient(learner_of(model, data(False)[0][0]), data(False))
    assert_tree_close(below(found), below(reference(cut, data(False))))


class FedBack(brainstate.nn.Module):
    """The layer below reads the old value of the one above, which D-RTRL cuts."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.low, self.up = Layer(hard_reset, IN + OUT), bt.nn.GRUCell(WIDTH, OUT)
        self.cut = cut

    def update(self, x: Any) -> Any:
        h = self.up.h.value
        top = jax.lax.stop_gradient(h) if self.cut else h
        return self.up(self.low(jnp.concatenate([x, top], -1)))


def test_feedback_is_cut() -> None:
    model, cut = (started(stirred(FedBack(c)).layers[0]) for c in (False, True))
    for path, state in cut.states(brainstate.ParamState).items():
        state.value = model.states(brainstate.ParamState)[path].value
    path = ("low", "w", "weight")
    found = gradient(learner_of(model, data(True)[0][0]), data(True))
    assert_tree_close(found[path], reference(cut, data(True))[path])


def test_a_skip_past_the_layer_below() -> None:
    """A product that drives a layer, and the small one by another product, too."""

    class Skipping(Layer):
        def update(self, x: Any) -> Any:
            y = self.w(x)
            self.v.value = jnp.tanh(self.v.value) + y
            return jnp.concatenate([self.v.value, jnp.sin(y)], -1)

    model = started(stirred(Skipping(None), bt.nn.GRUCell(2 * WIDTH, OUT)))
    found = gradient(learner_of(model, data(True)[0][0]), data(True))
    assert_tree_close(below(found), below(reference(model, data(True))))


def test_small_layers_that_other_layers_read() -> None:
    """A large layer between: within a step, its credit is that of the published rule."""
    model = started(stirred(BELOW["hard reset"](), tanh_of(70), tanh_of(OUT, 70)))
    learner = learner_of(model, data(True)[0][0])
    assert learner.graph.exact.above == {1: (2,)}
    (record,) = learner.graph.explain(kind="credit_stops")
    assert "70 values, and downstream='exact' takes 64 at most" in record.message
    one = [v[:1] for v in data(False)]
    assert_tree_close(gradient(learner, one), reference(model, one))


# --- calls, states, files ------------------------------------------------------------------------


@pytest.fixture
def network() -> Any:
    return started(stirred(BELOW["current"](), *ABOVE["a leak above it"]()))


def test_the_credit_goes_on_in_the_next_call_in_copies_and_from_files(
    network: Any, tmp_path: Any
) -> None:
    sequences = data(True)
    learner = learner_of(network, sequences[0][0])
    expected = gradient(learner, sequences)
    assert_tree_close(below(expected), below(reference(network, sequences)))
    learner.reset_state(2, model_states=True)
    gradient(learner, [v[:4] for v in sequences])
    learner.save(tmp_path / "learner.npz")
    other, rest = copy.deepcopy(learner), [v[4:] for v in sequences]
    assert_tree_close(gradient(other, rest), expected)
    assert_tree_close(gradient(learner, rest), expected)
    again = learner_of(network, sequences[0][0])
    again.restore(tmp_path / "learner.npz")
    assert_tree_close(gradient(again, rest), expected)
    with pytest.raises(ValueError, match="option downstream: 'exact' in the file, 'linear' here"):
        linear_learner_of(network, sequences[0][0]).restore(tmp_path / "learner.npz")


def test_single_calls_updates_and_masks(network: Any) -> None:
    sequences = data(False)
    learner = learner_of(network, sequences[0][0])
    expected = gradient(learner, sequences)
    learner.reset_state(2, model_states=True)

    def step(x: Any, y: Any, w: Any) -> Any:
        return brainstate.transform.grad(lambda: loss_of(learner(x), y, w), learner.param_states)()

    total = jax.tree.map(lambda *v: sum(v), *(step(*now) for now in zip(*sequences, strict=True)))
    assert_tree_close(total, expected)
    mask = np.arange(len(sequences[0])) % 3 > 0
    learner.reset_state(2, model_states=True)
    found = gradient(learner, sequences, mask=mask)
    masked = (*sequences[:2], sequences[2] * mask)
    assert_tree_close(below(found), below(reference(network, masked)))


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_without_a_batch_and_under_vmap(batch: int | None) -> None:
    model = stirred(BELOW["hard reset"](), *ABOVE["GRU"]())
    sequences = data(False, batch=batch)
    options = {} if batch is None else {"vmap": True}
    learner = bt.compile(model, "d_rtrl", sequences[0][0], downstream="exact", **options)
    assert learner.graph.exact.by_example == (batch is not None)
    found = gradient(learner, sequences)
    assert_tree_close(below(found), below(reference(started(model, batch), sequences)))


def test_episodes_that_end_example_by_example() -> None:
    def ending(s: Any, x: Any) -> Any:
        x, last = x
        s.v.value = jnp.tanh(s.w(jnp.concatenate([x, s.v.value * (last <= 0)], -1)))
        return s.v.value

    model = started(Passing(BELOW["hard reset"](), Layer(ending, WIDTH + OUT, OUT)), 3)
    sequences = data(False, IN + 1, batch=3)
    found = gradient(learner_of(model, sequences[0][0]), sequences)
    path = ("low", "w", "weight")
    assert_tree_close(found[path], reference(started(model, 3), sequences)[path])


def test_examples_that_are_mixed() -> None:
    """Values of all examples count, then, and all of them are states."""
    mixed = Scaled(lambda x: x - x.mean(0)), *ABOVE["tanh"]()
    model = started(stirred(BELOW["hard reset"](), *mixed))
    learner = learner_of(model, data(True)[0][0])
    assert not learner.graph.exact.by_example
    assert [g.num_state for g in learner.graph.executed.hidden_groups] == [1 + 2 * OUT, 1]
    found = gradient(learner, data(True))
    assert_tree_close(below(found), below(reference(model, data(True))))


def test_a_loss_that_reads_states() -> None:
    """Before a call, and after it."""
    model = started(stirred(BELOW["hard reset"](), *ABOVE["a leak below it"]()))
    sequences = data(False)
    learner = learner_of(model, sequences[0][0])

    def step(run: Any, x: Any, y: Any, w: Any, of_old: float = 1.0) -> Any:
        old = model.layers[2].h.value + model.layers[1].v.value[..., :OUT]
        loss = loss_of(run(x), y, w) + of_old * loss_of(old, -y, w)
        return loss + (model.layers[2].h.value ** 3).sum() + model.layers[1].v.value.sum()

    def by_bptt(**options: Any) -> Any:
        for state in model.states(brainstate.HiddenState).values():
            state.value = jnp.zeros_like(state.value)
        steps = [*zip(*sequences, strict=True)]
        return brainstate.transform.grad(
            lambda: sum(step(model, *now, **options) for now in steps),
            model.states(brainstate.ParamState),
        )()

    found = learner.etrace_grad(*sequences, step_fn=partial(step, learner), reduction="sum")
    assert_tree_close(below(found), below(by_bptt()))
    learner.reset_state(2, model_states=True)
    single = [
        brainstate.transform.grad(
            lambda now=now: step(learner, *now, of_old=0.0), learner.param_states
        )()
        for now in zip(*sequences, strict=True)
    ]
    total = jax.tree.map(lambda *v: sum(v), *single)
    assert_tree_close(below(total), below(by_bptt(of_old=0.0)))


def test_with_the_recurrence_of_the_layer_below() -> None:
    """OSTL: of a layer of a single unit, the diagonal of its recurrence is all of it."""
    model = started(stirred(Layer(tanh_rnn, IN + 1, 1), bt.nn.GRUCell(1, OUT)))
    learner = bt.OSTLRecurrent(model, downstream="exact")
    learner.compile_graph(data(True)[0][0])
    found = gradient(learner, data(True))
    assert_tree_close(below(found), below(reference(model, data(True))))


def test_the_ledger_books_nothing_of_other_layers() -> None:
    model = started(stirred(BELOW["hard reset"](), *ABOVE["GRU"]()))
    sequences = data(False)
    learner = learner_of(model, sequences[0][0])
    ledger = learner.credit_ledger(
        *sequences, step_fn=lambda x, *rest: loss_of(learner(x), *rest), reduction="sum"
    )
    assert_tree_close(ledger.gradients, bptt(model, sequences, loss_of)[1])
    for path, whole in ledger.gradients.items():
        entries = ledger.of(path)
        assert_tree_close(sum_of(entries), whole)
        if path[1] == 0:
            assert [entry.kind for entry in entries] == ["kept by the rule"]


# --- what is refused, and what is said -----------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (partial(bt.pp_prop, decay_or_rank=0.9), "pp_prop's own filters"),
        (bt.RTRL, "by itself, exactly"),
        (partial(bt.SnAp, n=2), "SnAp keeps"),
        (bt.UORO, "a random one"),
        (partial(bt.EProp, kappa_filter_decay=0.9), "kappa filters the trace"),
        (partial(bt.EProp, feedback="random", random_feedback_key=0), "random feedback"),
    ],
)
def test_other_rules_refuse_it(rule: Any, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        rule(bt.nn.GRUCell(3, 4), downstream="exact")


def test_too_many_values_are_refused_with_their_number() -> None:
    model = started(brainstate.nn.Sequential(BELOW["hard reset"](), bt.nn.GRUCell(WIDTH, 70)))
    with pytest.raises(bt.NotSupportedError, match=r"layers\[1\].h \(70 values\) has more than 64"):
        learner_of(model, data(True)[0][0])
    grus = bt.nn.GRUCell(WIDTH, 40), bt.nn.GRUCell(40, 40)
    model = started(brainstate.nn.Sequential(BELOW["hard reset"](), *grus))
    both = r"layers\[1\].h \(40 values\) and layers\[2\].h \(40 values\) have"
    with pytest.raises(bt.NotSupportedError, match=both):
        learner_of(model, data(True)[0][0])


def test_a_model_with_nothing_above_is_as_it_was() -> None:
    learner = bt.compile(
        started(bt.nn.GRUCell(IN, 80)), "d_rtrl", data(True)[0][0], batch_size=2, downstream="exact"
    )
    assert learner.graph.filtered is None and not learner.graph.exact.above


def test_the_cost_is_said_before_anything_runs() -> None:
    model = started(stirred(BELOW["current"](), *ABOVE["two above one another"]()))
    learner = learner_of(model, data(True)[0][0])
    first, second = learner.graph.explain(kind="exact_credit")
    assert first.hidden_paths == (("layers", 1, "h"), ("layers", 2, "v"))
    assert "layers[0].v" in first.message and "6 states in place of 1" in first.message
    assert "layers[1].h" in second.message and "3 states in place of 1" in second.message
    for record, n in ((first, 5), (second, 2)):
        assert f"each value, {n} in all, is one more state of" in record.message
    assert "exact credit: 5 values of layers[1].h, layers[2].v as states of" in learner.report
    assert "5 reverse sweeps of what is above a step" in learner.report
    assert "passes: 5 values as states, 6 for 1" in learner.graph.report()
