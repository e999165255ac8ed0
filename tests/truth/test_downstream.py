# SPDX-License-Identifier: Apache-2.0
"""``downstream='linear'``: credit that passes through uniform layers above, against BPTT.

A network that has one layer with a nonlinearity, and above it nothing but leaks, products and sums,
has the gradient of BPTT at every parameter. Where the layer below is recurrent, D-RTRL cuts its
recurrent input, so that the gradient is BPTT's of the network with that input held.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt
from tests.zoo import spike

IN, WIDTH, OUT, STEPS = 3, 4, 2, 7
DOWNSTREAM = "linear", "step"
held = jax.lax.stop_gradient


class Layer(brainstate.nn.Module):
    """A product and states; ``step(layer, x)`` is what it does."""

    def __init__(
        self,
        step: Callable[[Any, Any], Any],
        inputs: int = IN,
        outputs: int = WIDTH,
        states: str = "v",
        product: Any = None,
        shape: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        self.step, self.names, self.shape = step, states.split(), shape or (outputs,)
        self.w = bt.nn.Linear(inputs, outputs) if product is None else product

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        lead = () if batch_size is None else (batch_size,)
        for name in self.names:
            setattr(self, name, brainstate.HiddenState(jnp.zeros((*lead, *self.shape))))

    def reset_state(self, batch_size: int | None = None, **_: Any) -> None:
        lead = () if batch_size is None else (batch_size,)
        for name in self.names:
            getattr(self, name).value = jnp.zeros((*lead, *self.shape))

    def update(self, x: Any) -> Any:
        return self.step(self, x)


# --- layers below: one nonlinearity --------------------------------------------------------------


def hard_reset(s: Any, x: Any) -> Any:
    v = s.v.value
    s.v.value = 0.9 * v * (1 - spike(v - 0.5)) + s.w(x)
    return spike(s.v.value - 0.5)


def soft_reset(s: Any, x: Any) -> Any:
    v = s.v.value
    s.v.value = 0.9 * v + s.w(x) - held(spike(v - 0.5))
    return spike(s.v.value - 0.5)


def current(s: Any, x: Any) -> Any:
    s.i.value = 0.7 * s.i.value + s.w(x)
    v = s.v.value
    s.v.value = 0.9 * v * (1 - spike(v - 0.5)) + s.i.value
    return spike(s.v.value - 0.5)


def old_current(s: Any, x: Any) -> Any:
    i, v = s.i.value, s.v.value
    s.i.value = 0.7 * i + s.w(x)
    s.v.value = 0.9 * v + i - held(spike(v - 0.5))
    return spike(s.v.value - 0.5)


def old_spikes(s: Any, x: Any) -> Any:
    v = s.v.value
    s.v.value = 0.9 * v * (1 - spike(v - 0.5)) + s.w(x)
    return spike(v - 0.5)


def memoryless(s: Any, x: Any) -> Any:
    return jnp.tanh(s.w(x))


def gated(s: Any, x: Any) -> Any:
    z = jax.nn.sigmoid(s.w(x))
    s.v.value = z * s.v.value + (1 - z) * jnp.tanh(s.w(x))
    return s.v.value


BELOW = {
    "hard reset": lambda: Layer(hard_reset),
    "soft reset": lambda: Layer(soft_reset),
    "current": lambda: Layer(current, states="i v"),
    "old current": lambda: Layer(old_current, states="i v"),
    "old spikes": lambda: Layer(old_spikes),
    "memoryless": lambda: Layer(memoryless, states=""),
    "gated": lambda: Layer(gated),
}


# --- layers above: uniform -----------------------------------------------------------------------


def leak(s: Any, x: Any) -> Any:
    s.v.value = 0.8 * s.v.value + s.w(x)
    return s.v.value


def relaxation(s: Any, x: Any) -> Any:
    s.v.value = s.v.value + (s.w(x) - s.v.value) / 5.0
    return s.v.value


def double_exponential(s: Any, x: Any) -> Any:
    s.i.value = 0.6 * s.i.value + s.w(x)
    s.v.value = s.v.value + (s.i.value - s.v.value) / 5.0
    return s.v.value


def trained_constant(s: Any, x: Any) -> Any:
    decay = jax.nn.sigmoid(s.decay.value)
    s.v.value = decay * s.v.value + (1 - decay) * s.w(x)
    return s.v.value


def by_two_ways(s: Any, x: Any) -> Any:
    kept = 0.5 * s.v.value
    s.v.value = kept + 0.3 * (s.w(x) - kept)
    return s.v.value


def of_halves(s: Any, x: Any) -> Any:
    first, second = jnp.split(s.w(x), 2, -1)
    s.i.value = 0.6 * s.i.value + first
    s.v.value = 0.8 * s.v.value + second
    return jnp.concatenate([s.i.value, s.v.value], -1)


def driven_twice(s: Any, x: Any) -> Any:
    """By its product, and by a value without a derivative."""
    s.v.value = 0.8 * s.v.value + s.w(x) - held(spike(s.v.value - 0.1))
    return s.v.value


def read_old(s: Any, x: Any) -> Any:
    old = s.v.value
    s.v.value = 0.8 * old + s.w(x)
    return old


def with_trained(layer: Layer) -> Layer:
    layer.decay = brainstate.ParamState(jnp.asarray(1.2))
    return layer


def above(step: Any, inputs: int = WIDTH, outputs: int = OUT, states: str = "v") -> Layer:
    return Layer(step, inputs, outputs, states)


class Scaled(brainstate.nn.Module):
    """What lies between: ``step`` of the values alone."""

    def __init__(self, step: Callable[[Any], Any]) -> None:
        super().__init__()
        self.step = step

    def update(self, x: Any) -> Any:
        return self.step(x)


def rounded(x: Any, w: Any) -> Any:
    return jnp.sign(x) @ w


rounded_p = bt.register_primitive("downstream_rounded", rounded, batched=True)


def half_scale(x: Any, w: Any) -> Any:
    return 0.5 * (x @ w)


half_scale_p = bt.register_primitive("downstream_half_scale", half_scale, batched=True)


plus_one_p = bt.register_primitive("downstream_plus_one", lambda x, w: x @ w + 1.0, batched=True)


class ThirdParty(brainstate.nn.Module):
    """An operation with an implementation alone."""

    def __init__(self, inputs: int, outputs: int, primitive: Any = half_scale_p) -> None:
        super().__init__()
        self.primitive = primitive
        self.weight = brainstate.ParamState(brainstate.random.randn(inputs, outputs))

    def update(self, x: Any) -> Any:
        return self.primitive.bind(x, self.weight.value)


ABOVE: dict[str, Callable[[], list[Any]]] = {
    "leak": lambda: [above(leak)],
    "double exponential": lambda: [above(double_exponential, states="i v")],
    "trained constant": lambda: [with_trained(above(trained_constant))],
    "old value": lambda: [above(read_old)],
    "two leaks": lambda: [above(leak, WIDTH, 5), above(relaxation, 5)],
    "two products": lambda: [bt.nn.Linear(WIDTH, 5), above(leak, 5)],
    "plain product": lambda: [Layer(leak, 0, OUT, product=brainstate.nn.Linear(WIDTH, OUT))],
    "leak by two ways": lambda: [above(by_two_ways)],
    "halves": lambda: [Layer(of_halves, WIDTH, 2, "i v", shape=(1,))],
    "constant in front": lambda: [Scaled(lambda x: 2 * x - 1), above(leak)],
    "padding in front": lambda: [
        Scaled(lambda x: jnp.pad(x, [(0, 0), (0, 1)], constant_values=1.0)),
        above(leak, 5),
    ],
    "constant of an operation": lambda: [ThirdParty(WIDTH, 5, plus_one_p), above(leak, 5)],
    "leak behind what is driven twice": lambda: [above(driven_twice, WIDTH, 5), above(leak, 5)],
    "filter, then product": lambda: [
        Layer(leak, 0, WIDTH, product=Scaled(lambda x: 0.5 * x)),
        bt.nn.Linear(WIDTH, OUT),
    ],
}


def stirred(*layers: Any) -> Any:
    """The layers one after another, with larger weights and biases that are not zero."""
    model = brainstate.nn.Sequential(*layers)
    for state in model.states(brainstate.ParamState).values():
        state.value = jax.tree.map(
            lambda v: 1.5 * v + 0.2 * brainstate.random.randn(*v.shape), state.value
        )
    return model


def loss_of(out: Any, target: Any, weight: Any) -> Any:
    return (weight * (out - target) ** 2).sum()


def data(last: bool, inputs: int = IN, outputs: int = OUT, batch: int | None = 2) -> Any:
    """Inputs, targets, and how much each step counts."""
    random = np.random.default_rng(1)
    lead = (STEPS,) if batch is None else (STEPS, batch)
    weights = np.zeros(STEPS) if last else np.ones(STEPS)
    weights[-1] = 1.0
    return (
        2 * random.standard_normal((*lead, inputs)),
        random.standard_normal((*lead, outputs)),
        weights,
    )


def learner_of(model: Any, x: Any, **options: Any) -> Any:
    learner = bt.D_RTRL(model, **{"downstream": "linear", **options})
    learner.compile_graph(x)
    return learner


def gradient(learner: Any, sequences: Any, **options: Any) -> Mapping[Any, Any]:
    return learner.etrace_grad(
        *sequences,
        step_fn=lambda x, *rest: loss_of(learner(x), *rest),
        reduction="sum",
        **options,
    )


def started(model: Any, batch: int | None = 2) -> Any:
    brainstate.nn.init_all_states(model, batch_size=batch)
    return model


def reference(model: Any, sequences: Any) -> Mapping[Any, Any]:
    """BPTT from states of zero."""
    for state in model.states(brainstate.HiddenState).values():
        state.value = jnp.zeros_like(state.value)
    return bptt(model, sequences, loss_of)[1]


PAIRS = [
    *((low, "leak") for low in BELOW),
    *(("hard reset", up) for up in ABOVE if up != "leak"),
    ("soft reset", "two leaks"),
    ("old current", "double exponential"),
    ("memoryless", "old value"),
]


@pytest.mark.parametrize(("low", "up"), PAIRS)
def test_equals_bptt_at_every_parameter(low: str, up: str) -> None:
    model = started(stirred(BELOW[low](), *ABOVE[up]()))
    for last in (False, True):
        sequences = data(last)
        expected = reference(model, sequences)
        learner = learner_of(model, sequences[0][0])
        for block in (1, 3, STEPS, "auto") if (low, up) == ("hard reset", "leak") else (3,):
            learner.reset_state(2, model_states=True)
            assert_tree_close(gradient(learner, sequences, block_size=block), expected)
    assert learner.graph.uniform


@pytest.mark.parametrize("up", ["leak", "two leaks", "trained constant", "old value"])
def test_the_published_rule_does_not(up: str) -> None:
    """The reference has credit over time to find."""
    model = started(stirred(BELOW["hard reset"](), *ABOVE[up]()))
    sequences = data(last=True)
    expected = reference(model, sequences)
    found = gradient(learner_of(model, sequences[0][0], downstream="step"), sequences)
    path = ("layers", 0, "w", "weight")
    a, b = (np.asarray(g[path]["weight"]) for g in (found, expected))
    assert np.linalg.norm(a - b) > 0.3 * np.linalg.norm(b)


# --- recurrent layers below ----------------------------------------------------------------------


def recurrent(step: Callable[[Any, Any, Any], Any], cut: bool) -> Layer:
    def run(s: Any, x: Any) -> Any:
        return step(s, x, held if cut else lambda value: value)

    return Layer(run, IN + WIDTH)


def vanilla(s: Any, x: Any, fed: Any) -> Any:
    s.v.value = jnp.tanh(s.w(jnp.concatenate([x, fed(s.v.value)], -1)))
    return s.v.value


def recurrent_hard(s: Any, x: Any, fed: Any) -> Any:
    z = spike(s.v.value - 0.5)
    s.v.value = 0.9 * s.v.value * (1 - z) + s.w(jnp.concatenate([x, fed(z)], -1))
    return spike(s.v.value - 0.5)


def recurrent_soft(s: Any, x: Any, fed: Any) -> Any:
    z = spike(s.v.value - 0.5)
    s.v.value = 0.9 * s.v.value - held(z) + s.w(jnp.concatenate([x, fed(z)], -1))
    return spike(s.v.value - 0.5)


@pytest.mark.parametrize("step", [vanilla, recurrent_hard, recurrent_soft])
def test_a_recurrent_layer_below_equals_bptt_without_its_recurrent_input(step: Any) -> None:
    model = started(stirred(recurrent(step, cut=False), above(leak)))
    cut = started(brainstate.nn.Sequential(recurrent(step, cut=True), above(leak)))
    for path, state in cut.states(brainstate.ParamState).items():
        state.value = model.states(brainstate.ParamState)[path].value
    for last in (False, True):
        sequences = data(last)
        learner = learner_of(model, sequences[0][0])
        learner.reset_state(2, model_states=True)
        assert_tree_close(gradient(learner, sequences), reference(cut, sequences))


# --- what varies with step and example -----------------------------------------------------------


def resetting(s: Any, x: Any) -> Any:
    x, last = x
    done = (last > 0).astype(last.dtype)
    s.v.value = 0.8 * s.v.value * (1 - done) + s.w(x)
    return s.v.value


def holding(s: Any, x: Any) -> Any:
    x, last = x
    s.v.value = jnp.where(last > 0, s.v.value, 0.8 * s.v.value + s.w(x))
    return s.v.value


def step_length(s: Any, x: Any) -> Any:
    x, last = x
    decay = jnp.exp(-jnp.abs(last))
    s.v.value = decay * s.v.value + (1 - decay) * s.w(x)
    return s.v.value


class Passing(brainstate.nn.Module):
    """The last input passes a layer by."""

    def __init__(self, low: Any, up: Any) -> None:
        super().__init__()
        self.low, self.up = low, up

    def update(self, x: Any) -> Any:
        return self.up((self.low(x[..., :-1]), x[..., -1:]))


def with_constants(s: Any, x: Any) -> Any:
    x, last = x
    done = (last > 0).astype(last.dtype)
    s.v.value = 0.8 * s.v.value * (1 - done) + s.w(2 * x - 1) + s.bias.value
    return s.v.value


@pytest.mark.parametrize("step", [resetting, holding, step_length, with_constants])
@pytest.mark.parametrize("batch", [2, 1])
def test_factors_that_vary_with_step_and_example(step: Any, batch: int) -> None:
    top = Layer(step, WIDTH, OUT)
    if step is with_constants:
        top.bias = brainstate.ParamState(jnp.asarray([0.3, -0.4]))
    model = started(Passing(BELOW["hard reset"](), top), batch)
    sequences = data(False, IN + 1, batch=batch)
    learner = learner_of(model, sequences[0][0])
    assert learner.graph.uniform
    assert_tree_close(gradient(learner, sequences), reference(model, sequences))


def moved(s: Any, z: Any) -> Any:
    """Outputs in another order, and one more."""
    return jnp.pad(jnp.roll(z, 1, axis=1)[:, ::-1], ((0, 0), (0, 1)))


def late(s: Any, z: Any) -> Any:
    s.line.value = jnp.concatenate([s.line.value[1:], z[None]])
    return s.line.value[0]


def counted(s: Any, z: Any) -> Any:
    k = s.count.value
    s.line.value, s.count.value = s.line.value.at[k % 3].set(z), k + 1
    return s.line.value[(k + 1) % 3]


def averaged(s: Any, z: Any) -> Any:
    late(s, z)
    return s.line.value.mean(0)


class Episodes(brainstate.nn.Module):
    """A layer, what is read of its last steps, and a leak that ends with an episode."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.low, self.between = BELOW["hard reset"](), between
        self.up = Layer(resetting, WIDTH + (between is moved), OUT)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.line = brainstate.ShortTermState(jnp.zeros((3, batch_size, WIDTH)))
        self.count = brainstate.ShortTermState(jnp.zeros((), int))

    def update(self, x: Any) -> Any:
        x, last = x[..., :-1], x[..., -1:]
        self.line.value = jnp.where(last > 0, 0.0, self.line.value)
        return self.up((self.between(self, self.low(x)), last))


@pytest.mark.parametrize("between", [moved, late, counted, averaged])
def test_episodes_that_end_example_by_example_above_delays_and_moved_outputs(between: Any) -> None:
    model = started(Episodes(between), 3)
    sequences = data(False, IN + 1, batch=3)
    learner = learner_of(model, sequences[0][0])
    assert_tree_close(gradient(learner, sequences), reference(started(model, 3), sequences))


@pytest.mark.parametrize("mix", [lambda z: z[::-1], lambda z: z - z.mean(0)])
def test_examples_that_are_mixed_end_it(mix: Any) -> None:
    learner = learner_of(
        started(Episodes(lambda s, z: mix(z)), 3), data(False, IN + 1, batch=3)[0][0]
    )
    (why,) = learner.graph.explain(kind="credit_stops")
    assert "may mix examples" in why.message


def test_states_that_do_not_start_at_zero() -> None:
    model = started(stirred(BELOW["hard reset"](), *ABOVE["two leaks"]()))
    sequences = data(True)
    learner = learner_of(model, sequences[0][0])
    starts = {path: 0.7 + state.value for path, state in learner.hidden_states.items()}
    for path, state in learner.hidden_states.items():
        state.value = starts[path]
    found = gradient(learner, sequences)
    for path, state in learner.hidden_states.items():
        state.value = starts[path]
    assert_tree_close(found, bptt(model, sequences, loss_of)[1])


def test_a_model_of_uniform_states_alone() -> None:
    model = started(stirred(Layer(driven_twice), above(leak)))
    for last in (False, True):
        sequences = data(last)
        expected = reference(model, sequences)
        learner = learner_of(model, sequences[0][0])
        learner.reset_state(2, model_states=True)
        assert_tree_close(gradient(learner, sequences), expected)
    assert len(learner.graph.uniform) == 2


def test_recurrent_input_that_is_made_of_what_lies_below_keeps_its_credit() -> None:
    """To hold it would cut the credit of that, too."""

    def step(s: Any, x: Any) -> Any:
        s.v.value = 0.8 * s.v.value + s.w(jnp.tanh(s.v.value + x))
        return s.v.value

    model = started(stirred(BELOW["hard reset"](), Layer(step, WIDTH, WIDTH)))
    sequences = data(False, outputs=WIDTH)
    learner, published = (learner_of(model, sequences[0][0], downstream=d) for d in DOWNSTREAM)
    assert "another one's credit" in learner.graph.not_uniform["layers", 1, "v"]
    found = gradient(learner, sequences)
    published.reset_state(2, model_states=True)
    assert_tree_close(found, gradient(published, sequences))


# --- near misses: not moved ----------------------------------------------------------------------


def many_constants(s: Any, x: Any) -> Any:
    s.v.value = jnp.linspace(0.5, 0.9, 5) * s.v.value + s.w(x)
    return s.v.value


def gate(s: Any, x: Any) -> Any:
    s.v.value = jax.nn.sigmoid(x[..., :1]) * s.v.value + s.w(x)
    return s.v.value


def own_gate(s: Any, x: Any) -> Any:
    v = s.v.value
    s.v.value = jax.nn.sigmoid(v.mean(-1, keepdims=True)) * v + s.w(x)
    return s.v.value


def attached_reset(s: Any, x: Any) -> Any:
    v = s.v.value
    s.v.value = 0.9 * v + s.w(x) - spike(v - 0.5)
    return s.v.value


def many_parameters(s: Any, x: Any) -> Any:
    s.v.value = jax.nn.sigmoid(s.decay.value) * s.v.value + s.w(x)
    return s.v.value


def with_many(layer: Layer) -> Layer:
    layer.decay = brainstate.ParamState(jnp.zeros(5))
    return layer


def mixed_old(s: Any, x: Any) -> Any:
    s.v.value = 0.5 * jnp.roll(s.v.value, 1, -1) + s.w(x)
    return s.v.value


def held_reset(s: Any, x: Any) -> Any:
    """A reset without a derivative, of some positions: of the leak, and not of what drives it."""
    v = s.v.value
    s.v.value = 0.9 * v * (1 - held(spike(v - 0.5))) + s.w(x)
    return s.v.value


MISSES = {
    "many constants": (many_constants, "5 different leaks"),
    "gate": (gate, "its old value passes mul"),
    "own gate": (own_gate, "its old value passes mul"),
    "hard reset": (hard_reset, "its old value passes mul"),
    "held reset": (held_reset, "its old value passes mul"),
    "attached reset": (attached_reset, "its old value passes"),
    "many parameters": (many_parameters, "on many parameters"),
    "mixed": (mixed_old, "moved to other positions"),
}


@pytest.mark.parametrize("name", MISSES)
def test_near_misses_stay_where_they_are(name: str) -> None:
    step, why = MISSES[name]
    top = Layer(step, WIDTH, 5)
    model = started(stirred(BELOW["hard reset"](), with_many(top) if "param" in name else top))
    sequences = data(False, outputs=5)
    learner = learner_of(model, sequences[0][0])
    assert ("layers", 1, "v") not in learner.graph.uniform
    assert why in learner.graph.not_uniform["layers", 1, "v"]
    published = learner_of(model, sequences[0][0], downstream="step")
    learner.reset_state(2, model_states=True)
    found = gradient(learner, sequences)
    published.reset_state(2, model_states=True)
    assert_tree_close(found, gradient(published, sequences))


def dropped(x: Any) -> Any:
    return jnp.where(brainstate.random.bernoulli(0.5, size=(*x.shape[:-1], 2)), 2 * x[..., :2], 0)


@pytest.mark.parametrize(
    "between",
    [
        lambda x: x.reshape(*x.shape[:-1], 2, 2).max(-1),
        lambda x: x[..., :2] * x[..., 2:],
        dropped,
    ],
)
def test_what_is_no_steady_linear_map_ends_the_region(between: Any) -> None:
    """What lies below it drives the leak as a value of its own."""
    layers = BELOW["gated"](), Scaled(between), above(leak, 2)
    model = started(stirred(*layers))
    sequences = data(False)
    learner = learner_of(model, sequences[0][0])
    (state,) = learner.graph.uniform.values()
    assert [d.atom.aval.shape for d in state.sources.values()] == [(2, 2)]
    learner.reset_state(2, model_states=True)
    key = brainstate.random.get_key()
    found = gradient(learner, sequences)
    brainstate.random.set_key(key)
    expected = reference(model, sequences)
    path = ("layers", 2, "w", "weight")
    assert_tree_close(found[path], expected[path])


def test_an_operation_with_a_step_function_ends_the_region() -> None:
    """Its derivative in its input is the same everywhere, and it is not linear."""
    model = started(stirred(BELOW["gated"](), ThirdParty(WIDTH, 5, rounded_p), above(leak, 5)))
    sequences = data(False)
    expected = reference(model, sequences)
    learner = learner_of(model, sequences[0][0])
    learner.reset_state(2, model_states=True)
    found = gradient(learner, sequences)
    for layer in (1, 2):
        leaves = {p: g for p, g in expected.items() if p[1] == layer}
        assert_tree_close({p: found[p] for p in leaves}, leaves)


def test_examples_that_are_mixed_refuse_a_factor_per_example() -> None:
    def step(s: Any, x: Any) -> Any:
        y, decay = s.w(x[0]), jax.nn.sigmoid(x[1])
        s.v.value = decay * s.v.value + y + y[::-1]
        return s.v.value

    model = started(Passing(BELOW["hard reset"](), Layer(step, WIDTH, OUT)))
    learner = learner_of(model, data(False, IN + 1)[0][0])
    assert "may mix examples" in learner.graph.not_uniform["up", "v"]


# --- calls, states, files ------------------------------------------------------------------------


@pytest.fixture
def network() -> Any:
    return started(stirred(BELOW["current"](), *ABOVE["two leaks"]()))


def test_the_credit_goes_on_in_the_next_call(network: Any) -> None:
    sequences = data(True)
    learner = learner_of(network, sequences[0][0])
    expected = gradient(learner, sequences)
    learner.reset_state(2, model_states=True)
    gradient(learner, [v[:4] for v in sequences])
    assert_tree_close(gradient(learner, [v[4:] for v in sequences]), expected)


def test_traces_that_are_not_carried_carry_no_credit(network: Any) -> None:
    sequences = data(True)
    learner = learner_of(network, sequences[0][0])
    gradient(learner, [v[:4] for v in sequences])
    values = [s.value for s in learner.hidden_states.values()]
    first = gradient(learner, [v[4:] for v in sequences], carry_trace=False)
    assert all(not np.any(one.value) for one in learner.filters)
    for state, value in zip(learner.hidden_states.values(), values, strict=True):
        state.value = value
    learner.reset_state()
    assert_tree_close(first, gradient(learner, [v[4:] for v in sequences]))


def test_single_calls(network: Any) -> None:
    sequences = data(False)
    learner = learner_of(network, sequences[0][0])
    expected = gradient(learner, sequences)
    learner.reset_state(2, model_states=True)

    def step(x: Any, y: Any, w: Any) -> Any:
        return brainstate.transform.grad(lambda: loss_of(learner(x), y, w), learner.param_states)()

    total = jax.tree.map(lambda *v: sum(v), *(step(*now) for now in zip(*sequences, strict=True)))
    assert_tree_close(total, expected)


def test_steps_and_examples_that_do_not_count(network: Any) -> None:
    sequences = data(False)
    learner = learner_of(network, sequences[0][0])
    mask = np.arange(STEPS) % 3 > 0
    found = gradient(learner, sequences, mask=mask)
    expected = reference(network, (*sequences[:2], sequences[2] * mask))
    assert_tree_close(found, expected)


@pytest.mark.parametrize("batch", [None, 2])
def test_without_a_batch_and_under_vmap(batch: int | None) -> None:
    model = stirred(BELOW["hard reset"](), *ABOVE["leak"]())
    sequences = data(False, batch=batch)
    options = {} if batch is None else {"vmap": True}
    learner = bt.compile(model, "d_rtrl", sequences[0][0], downstream="linear", **options)
    found = gradient(learner, sequences)
    assert_tree_close(found, reference(started(model, batch), sequences))


def held_step(s: Any, x: Any) -> Any:
    """A step that does not count, by a branch."""

    def held_(v: Any, _: Any) -> Any:
        return v

    state = s.v.value, s.w(x)
    s.v.value = jax.lax.cond(x.sum() > 0, lambda v, y: 0.8 * v + y, held_, *state)
    return s.v.value


def either(x: Any) -> Any:
    return jax.lax.cond(x.sum() > 0, lambda y: y, jnp.tanh, x)


@pytest.mark.parametrize(
    ("layers", "exact"),
    [
        (lambda: [above(held_step)], True),
        (lambda: [Scaled(either), above(leak)], True),
        (lambda: [bt.nn.Linear(WIDTH, 5), Scaled(either), above(leak, 5)], False),
    ],
)
def test_branches_are_the_same_for_one_example_and_under_vmap(layers: Any, exact: bool) -> None:
    model = started(stirred(BELOW["hard reset"](), *layers()), None)
    xs, targets, weights = data(True)
    singles, expected = [], []
    for k in range(2):
        own = xs[:, k], targets[:, k], weights
        expected.append(reference(model, own))
        learner = learner_of(model, xs[0, 0])
        learner.reset_state(model_states=True)
        singles.append(gradient(learner, own))
    mapped = bt.compile(model, bt.D_RTRL, xs[0], batch_size=2, vmap=True)
    assert list(mapped.graph.uniform) == list(learner.graph.uniform)
    found = gradient(mapped, (xs, targets, weights))
    assert_tree_close(found, jax.tree.map(jnp.add, *singles))
    if exact:
        assert_tree_close(found, jax.tree.map(jnp.add, *expected))


class Feedback(brainstate.nn.Module):
    """A layer that reads the old value of the leaky readout above it; ``cut``: without credit."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        brainstate.random.seed(0)
        self.cut, self.w, self.up = cut, bt.nn.Linear(IN + OUT, WIDTH), bt.nn.Linear(WIDTH, OUT)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, WIDTH)))
        self.y = brainstate.HiddenState(jnp.zeros((batch_size, OUT)))

    def update(self, x: Any) -> Any:
        y = self.y.value
        z = hard_reset(self, jnp.concatenate([x, held(y) if self.cut else y], -1))
        self.y.value = 0.8 * y + self.up(z)
        return self.y.value


def test_feedback_from_a_readout_is_cut_and_reported() -> None:
    sequences = data(False)
    learner = learner_of(started(Feedback(cut=False)), sequences[0][0])
    expected = reference(started(Feedback(cut=True)), sequences)
    assert_tree_close(gradient(learner, sequences)["w", "weight"], expected["w", "weight"])
    (record,) = learner.graph.explain(kind="credit_stops")
    assert "what y does to later values of v" in record.message and "recur" in record.message


def trail(s: Any, x: Any) -> Any:
    s.v.value = jnp.tanh(0.8 * s.v.value + x)
    return s.v.value


def with_trail(s: Any, x: Any) -> Any:
    s.t.value = jnp.tanh(0.8 * s.t.value + potential(s, x))
    return s.t.value


def potential(s: Any, x: Any) -> Any:
    v = s.v.value
    s.v.value = 0.9 * v * (1 - spike(v - 0.5)) + s.w(x)
    return s.v.value


def emitting(s: Any, x: Any) -> Any:
    s.v.value = jnp.tanh(s.w(x))
    return s.v.value


@pytest.mark.parametrize(
    "layers",
    [
        lambda: [Layer(with_trail, states="v t")],
        lambda: [Layer(potential), Layer(trail, product=Scaled(lambda x: x))],
        lambda: [Layer(emitting), Layer(trail, product=Scaled(lambda x: x))],
    ],
)
def test_a_state_of_another_module_belongs_to_what_it_follows(layers: Any) -> None:
    """Nonlinear, and position by position: the same function has the same gradient."""
    model, sequences = started(stirred(*layers())), data(False, outputs=WIDTH)
    expected = reference(model, sequences)
    learner = learner_of(model, sequences[0][0])
    assert_tree_close(gradient(learner, sequences), expected)
    assert len(learner.graph.executed.hidden_groups) == 1
    assert not learner.graph.explain(level="warning")


def test_a_copy_and_a_file_go_on(network: Any, tmp_path: Any) -> None:
    sequences = data(True)
    learner = learner_of(network, sequences[0][0])
    gradient(learner, [v[:4] for v in sequences])
    learner.save(tmp_path / "learner.npz")
    other = copy.deepcopy(learner)
    rest = [v[4:] for v in sequences]
    expected = gradient(learner, rest)
    assert_tree_close(gradient(other, rest), expected)
    learner.restore(tmp_path / "learner.npz")
    assert_tree_close(gradient(learner, rest), expected)
    with pytest.raises(ValueError, match="filter/0"):
        learner_of(network, sequences[0][0], downstream="step").restore(tmp_path / "learner.npz")


def test_another_batch(network: Any) -> None:
    learner = learner_of(network, data(True)[0][0])
    gradient(learner, data(True))
    learner.reset_state(3, model_states=True)
    sequences = data(True, batch=3)
    found = gradient(learner, sequences)
    assert_tree_close(found, reference(started(network, 3), sequences))


def test_what_is_shown_is_the_model(network: Any) -> None:
    """Groups, relations and states of the graph are those of the model."""
    sequences = data(False)
    learner, published = (
        learner_of(network, sequences[0][0], downstream=d) for d in ("linear", "step")
    )
    a, b = learner.graph, published.graph
    assert [g.hidden_paths for g in a.hidden_groups] == [g.hidden_paths for g in b.hidden_groups]
    assert [r.path for r in a.hidden_param_op_relations] == [
        r.path for r in b.hidden_param_op_relations
    ]
    assert a.coverage() == b.coverage()
    assert learner.hidden_states.keys() == published.hidden_states.keys()


def test_another_value_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of"):
        bt.D_RTRL(bt.nn.GRUCell(3, 4), downstream="far")
