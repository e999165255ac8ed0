# SPDX-License-Identifier: Apache-2.0
"""Points of credit through the layers above that are easy to get wrong, one network for each."""

from __future__ import annotations

from functools import partial
from typing import Any

import brainstate
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle, pp_prop_oracle

from .test_downstream import (
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
    holding,
    leak,
    learner_of,
    loss_of,
    resetting,
    started,
    step_length,
    stirred,
)


def beside(s: Any, x: Any) -> Any:
    """A residual path beside the product."""
    s.v.value = 0.8 * s.v.value + s.w(x) + 0.5 * x
    return s.v.value


def with_gain(s: Any, x: Any) -> Any:
    """A parameter, and an operation, in what the layer emits."""
    s.v.value = jnp.tanh(0.7 * s.v.value + s.w(x))
    return jnp.sin(s.v.value * bt.element_wise(s.gain.value, jnp.exp))


def gain() -> Layer:
    layer = Layer(with_gain)
    layer.gain = brainstate.ParamState(jnp.linspace(-0.5, 0.5, WIDTH))
    return layer


def convolution() -> list[Any]:
    """A convolution and a product, with no state between."""
    return [
        Scaled(lambda x: x[..., None]),
        bt.nn.Conv1d((WIDTH, 1), 2, 3),
        Scaled(lambda x: x.reshape(*x.shape[:-2], 2 * WIDTH)),
        above(leak, 2 * WIDTH),
    ]


class Array(Layer):
    """Two states at each position, in one array."""

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v = brainstate.HiddenGroupState(jnp.zeros((batch_size, *self.shape, 2)))


def each(s: Any, x: Any) -> Any:
    s.v.value = jnp.array([0.6, 0.8]) * s.v.value + s.w(x)[..., None]
    return s.v.value[..., 0] - s.v.value[..., 1]


def apart(s: Any, x: Any) -> Any:
    v, i = s.v.value[..., 0], s.v.value[..., 1]
    i = 0.6 * i + s.w(x)
    v = jnp.tanh(0.8 * v + i) if s.shape == (WIDTH,) else 0.8 * v + i
    s.v.value = jnp.stack([v, i], -1)
    return v


EXACT = {
    "several states in one array": lambda: [Array(apart), Array(each, WIDTH, OUT)],
    "residual path": lambda: [BELOW["hard reset"](), above(beside, WIDTH, WIDTH), above(leak)],
    "parameter in what is emitted": lambda: [gain(), above(leak)],
    "convolution, then a product": lambda: [BELOW["hard reset"](), *convolution()],
    "no state below": lambda: [
        Scaled(lambda x: x),
        BELOW["memoryless"](),
        above(beside, WIDTH, WIDTH),
        above(leak),
    ],
}


@pytest.mark.parametrize("name", EXACT)
def test_equals_bptt(name: str) -> None:
    brainstate.random.seed(0)
    model = started(stirred(*EXACT[name]()))
    sequences = data(last=True)
    exact = bptt(model, sequences, loss_of)[1]
    assert_tree_close(gradient(learner_of(model, sequences[0][0]), sequences), exact)


def test_states_of_one_array_that_are_taken_apart_stay_where_they_are() -> None:
    brainstate.random.seed(0)
    model, sequences = started(stirred(Array(apart), Array(apart, WIDTH, OUT))), data(False)
    learner = learner_of(model, sequences[0][0])
    assert not learner.graph.uniform
    (stops,) = learner.graph.explain(kind="credit_stops")
    assert "give each of them a HiddenState of its own" in stops.message
    oracle = d_rtrl_oracle(model, sequences, loss_of, uniform=[]).grads
    assert_tree_close(gradient(learner, sequences), oracle)


def test_pp_prop_below_several_states_in_one_array() -> None:
    brainstate.random.seed(0)
    sequences = data(False)
    model = started(stirred(BELOW["hard reset"](), Array(each, WIDTH, OUT)))
    expected = pp_prop_oracle(model, sequences, loss_of, 0.7, 0.5, uniform=[("layers", 1, "v")])
    learner = bt.pp_prop(model, decay_or_rank=(0.7, 0.5))
    learner.compile_graph(sequences[0][0])
    assert_tree_close(gradient(learner, sequences), expected.grads)


def ending(s: Any, x: Any) -> Any:
    """An episode's reset of neurons with a hard reset."""
    x, last = x[..., :-1], x[..., -1:]
    s.v.value = s.v.value * (1 - (last > 0).astype(last.dtype))
    return hard_reset(s, x)


class Episodes(Passing):
    """Both layers hear of the episode's end."""

    def update(self, x: Any) -> Any:
        return self.up((self.low(x), x[..., -1:]))


@pytest.mark.parametrize("step", [resetting, holding, step_length])
def test_pp_prop_where_a_leak_varies_with_step_and_example(step: Any) -> None:
    """Its own filters know of no end; that of the leak does."""
    brainstate.random.seed(0)
    model = started(Episodes(Layer(ending), Layer(step, WIDTH, OUT)))
    sequences = data(False, IN + 1)
    expected = pp_prop_oracle(model, sequences, loss_of, 0.7, 0.5, uniform=[("up", "v")])
    learner = bt.pp_prop(model, decay_or_rank=(0.7, 0.5))
    learner.compile_graph(sequences[0][0])
    assert [*learner.graph.uniform] == [("up", "v")]
    assert_tree_close(gradient(learner, sequences), expected.grads)


def masked(s: Any, x: Any) -> Any:
    """A mask between two products that is another one at every step."""
    x, last = x
    kept = jnp.where(jnp.cos(7 * last + jnp.arange(WIDTH)) > 0, s.first(x), 0.0)
    s.v.value = 0.8 * s.v.value + s.w(kept)
    return s.v.value


def with_mask() -> Any:
    top = Layer(masked, WIDTH, OUT)
    top.first = bt.nn.Linear(WIDTH, WIDTH)
    return Passing(BELOW["hard reset"](), top)


def test_a_mask_in_time_ends_the_region() -> None:
    """What lies in front of it has no credit of later steps."""
    brainstate.random.seed(0)
    model, sequences = started(with_mask()), data(False, IN + 1)
    exact = bptt(model, sequences, loss_of)[1]
    oracle = d_rtrl_oracle(model, sequences, loss_of, uniform=[("up", "v")]).grads
    learner = learner_of(model, sequences[0][0])
    assert [*learner.graph.uniform] == [("up", "v")]
    assert_tree_close(gradient(learner, sequences), oracle)
    top = {path: grad for path, grad in exact.items() if path[:2] == ("up", "w")}
    assert_tree_close({path: oracle[path] for path in top}, top)
    with pytest.raises(AssertionError, match=r"low\.w.*relative error"):
        assert_tree_close(oracle, exact, 1e-2)


LAYERS = {
    "two layers below": lambda: [BELOW["hard reset"](), Layer(BELOW["gated"]().step, WIDTH, WIDTH)],
    "a nonlinearity between two leaks": lambda: [
        BELOW["gated"](),
        above(leak, WIDTH, WIDTH),
        Scaled(jnp.tanh),
    ],
}


@pytest.mark.parametrize("name", LAYERS)
def test_counted_once(name: str) -> None:
    """One step is the ordinary gradient; more of them, the oracle's."""
    brainstate.random.seed(0)
    model, sequences = started(stirred(*LAYERS[name](), above(leak))), data(False)
    start = {path: state.value for path, state in model.states(brainstate.HiddenState).items()}
    one = [v[:1] for v in sequences]
    exact = bptt(model, one, loss_of)[1]
    learner = learner_of(model, sequences[0][0])
    uniform = [*learner.graph.uniform]
    oracle = d_rtrl_oracle(model, sequences, loss_of, uniform=uniform).grads
    assert ("layers", len(LAYERS[name]()), "v") in uniform
    for part, wanted in ((one, exact), (sequences, oracle)):
        learner.reset_state(2)
        for path, state in model.states(brainstate.HiddenState).items():
            state.value = start[path]
        assert_tree_close(gradient(learner, part, block_size=1), wanted)


# --- loops of leaks -------------------------------------------------------------------------------


def away(s: Any, x: Any) -> Any:
    """What drives the loop drives one of its states, and the other is read."""
    a, b = s.a.value, s.b.value
    s.a.value = 0.8 * a + 0.3 * s.ba(b) + s.w(x)
    s.b.value = 0.9 * b - 0.4 * s.ab(a)
    return s.b.value


def within(s: Any, x: Any) -> Any:
    """One of the products is of the same step."""
    a, b = s.a.value, s.b.value
    s.a.value = 0.8 * a + 0.3 * s.ba(b) + s.w(x)
    s.b.value = 0.9 * b - 0.4 * s.ab(s.a.value)
    return s.b.value


def both(s: Any, x: Any) -> Any:
    """Both states are driven, as excitation and inhibition."""
    a, b = s.a.value, s.b.value
    s.a.value = 0.8 * a + 0.3 * s.ba(b) + s.w(x)
    s.b.value = 0.9 * b - 0.4 * s.ab(s.a.value) + s.other(x)
    return s.b.value - a


def factors(s: Any, x: Any) -> Any:
    """A step across no operation, in a loop with one that has a product."""
    a, b = s.a.value, s.b.value
    s.a.value = 0.8 * a + 0.3 * s.ba(b) + s.w(x)
    s.b.value = 0.9 * b - 0.4 * a
    return s.b.value


#: A loop, with its products, and which edge of it is cut.
LOOPS = {
    "away": (away, "ab ba", [("b", "a")]),
    "within": (within, "ab ba", [("b", "a")]),
    "both": (both, "ab ba other", [("b", "a"), ("a", "b")]),
    "factors": (factors, "ba", None),
}


def looped(name: str, order: str = "a b") -> Any:
    """A network whose upper layer is a loop of two leaks."""
    step, products, _ = LOOPS[name]
    brainstate.random.seed(0)
    top = Layer(step, WIDTH, OUT, states=order)
    for product in products.split():
        inputs = WIDTH if product == "other" else OUT
        setattr(top, product, bt.nn.Linear(inputs, OUT))
    return started(stirred(BELOW["hard reset"](), top))


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_of_leaks_passes_credit_away_from_what_drives_it(name: str) -> None:
    """What comes back counts in its step alone, as recurrent products do, whatever the order."""
    sequences, found = data(False), {}
    for order in ("a b", "b a"):
        model = looped(name, order)
        learner = learner_of(model, sequences[0][0])
        assert len(learner.graph.uniform) == 2
        found[order] = gradient(learner, sequences)
    assert_tree_close(found["a b"], found["b a"], 1e-12)
    uniform = [*learner.graph.uniform]
    assert_tree_close(
        found["b a"], d_rtrl_oracle(looped(name), sequences, loss_of, uniform=uniform).grads
    )
    told = learner.graph.explain(kind="credit_stops")
    cut = {
        (r.context["below"][0][-1], r.hidden_paths[0][-1]) for r in told if "two drive" in r.message
    }
    assert LOOPS[name][2] is None or cut == {*LOOPS[name][2]}
    one = [v[:1] for v in sequences]
    model = looped(name)
    exact = bptt(model, one, loss_of)[1]
    assert_tree_close(gradient(learner_of(model, one[0][0]), one), exact, allow_zero=[*exact])


def test_pp_prop_of_a_loop_of_leaks() -> None:
    sequences, model = data(False), looped("both")
    learner = bt.pp_prop(model, decay_or_rank=(0.7, 0.5))
    learner.compile_graph(sequences[0][0])
    uniform = [*learner.graph.uniform]
    expected = pp_prop_oracle(looped("both"), sequences, loss_of, 0.7, 0.5, uniform=uniform)
    assert_tree_close(gradient(learner, sequences), expected.grads)


@pytest.mark.parametrize("chain", [False, True])
def test_coupled_d_rtrl_keeps_what_comes_back_from_the_leaks_above(chain: bool) -> None:
    """At equal positions of a layer and its filters."""

    def fed_back(s: Any, x: Any) -> Any:
        v, low = s.y.value, s.v.value
        s.v.value = jnp.tanh(0.7 * low + s.w(x) + s.back(v))
        s.i.value = 0.6 * s.i.value + s.up(s.v.value)
        s.y.value = 0.8 * v + (s.next(s.i.value) if chain else s.up(s.v.value))
        return s.y.value[..., :OUT]

    brainstate.random.seed(0)
    layer = Layer(fed_back, states="v i y")
    for product in ("back", "up", "next") if chain else ("back", "up"):
        setattr(layer, product, bt.nn.Linear(WIDTH, WIDTH))
    model, sequences = started(stirred(layer)), data(False)
    learner = learner_of(model, sequences[0][0], recurrence_scope="coupled")
    uniform = [*learner.graph.uniform]
    assert len(uniform) == 2
    found = gradient(learner, sequences)
    oracle = partial(d_rtrl_oracle, uniform=uniform, recurrence_scope="coupled")
    assert_tree_close(found, oracle(started(model), sequences, loss_of).grads)
