# SPDX-License-Identifier: Apache-2.0
"""Each rule with ``downstream='linear'``: its oracle, which moves no leak.

Where a rule is defined on the states of the moved network (random signs, feedback, a modulator),
the leak is moved by hand, in the program of the model itself, for the oracle of the published rule.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace as bt
from braintrace.testing import (
    assert_tree_close,
    bptt,
    d_rtrl_oracle,
    e_prop_oracle,
    pp_prop_oracle,
    three_factor_oracle,
    uoro_oracle,
    window_oracle,
)
from tests.zoo import spike

IN, WIDTH, OUT, STEPS, BATCH = 3, 4, 2, 6, 2
KAPPA, LEAK = 0.6, 0.8
held = jax.lax.stop_gradient


class Network(brainstate.nn.Module):
    """A layer below a leaky readout; ``moved``: the leak stands in front of the product."""

    def __init__(self, layer: Any, moved: bool) -> None:
        super().__init__()
        brainstate.random.seed(0)
        self.layer, self.moved = layer, moved
        self.low = bt.nn.Linear(IN + WIDTH if layer in RECURRENT else IN, WIDTH)
        self.up = bt.nn.Linear(WIDTH, OUT)
        for state in self.states(brainstate.ParamState).values():
            state.value = jax.tree.map(
                lambda v: 1.5 * v + 0.2 * brainstate.random.randn(*v.shape), state.value
            )

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, WIDTH)))
        if self.moved:
            self.z = brainstate.HiddenState(jnp.zeros((batch_size, WIDTH)))
            self.one = brainstate.ShortTermState(jnp.zeros(()))
        else:
            self.y = brainstate.HiddenState(jnp.zeros((batch_size, OUT)))

    def reset_state(self, batch_size: int | None = None, **_: Any) -> None:
        for state in self.states(brainstate.ShortTermState).values():
            state.value = jax.tree.map(jnp.zeros_like, state.value)

    def update(self, x: Any) -> Any:
        z = self.layer(self, x)
        if not self.moved:
            self.y.value = LEAK * self.y.value + 0.3 * self.up(z)
            return self.y.value
        self.z.value = LEAK * self.z.value + z
        self.one.value = LEAK * self.one.value + 1
        w = self.up.weight.value
        return 0.3 * (bt.matmul(self.z.value, w["weight"]) + w["bias"] * self.one.value)


class Kept(Network):
    """The leak moved for what lies below alone: the readout keeps its state, with its trace."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer, moved=True)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        super().init_state(batch_size)
        self.y = brainstate.HiddenState(jnp.zeros((batch_size, OUT)))

    def update(self, x: Any) -> Any:
        z = self.layer(self, x)
        self.y.value = LEAK * self.y.value + 0.3 * self.up(held(z))
        self.z.value = LEAK * self.z.value + z
        of = 0.3 * bt.matmul(self.z.value, held(self.up.weight.value["weight"]))
        return self.y.value + of - held(of)


def hard_reset(s: Any, x: Any) -> Any:
    v = s.v.value
    s.v.value = 0.9 * v * (1 - spike(v - 0.5)) + s.low(x)
    return spike(s.v.value - 0.5)


def vanilla(s: Any, x: Any) -> Any:
    s.v.value = jnp.tanh(s.low(jnp.concatenate([x, s.v.value], -1)))
    return s.v.value


def recurrent_leak(s: Any, x: Any) -> Any:
    z = spike(s.v.value - 0.5)
    s.v.value = 0.7 * s.v.value * (1 - z) + s.low(jnp.concatenate([x, z], -1))
    return jnp.tanh(s.v.value)


RECURRENT = vanilla, recurrent_leak


def loss_of(out: Any, y: Any, weight: Any) -> Any:
    return (weight * (out - y) ** 2).sum()


def data() -> Any:
    random = np.random.default_rng(1)
    weights = np.linspace(0.0, 1.0, STEPS) ** 2
    xs = 2 * random.standard_normal((STEPS, BATCH, IN))
    return xs, random.standard_normal((STEPS, BATCH, OUT)), weights


def fed_back() -> dict[int, Any]:
    """The matrix of the first group, as :class:`RandomFeedback` draws it."""
    key = jax.random.fold_in(jax.random.key(3), 0)
    return {0: jax.random.normal(key, (WIDTH, WIDTH), jnp.float32) / np.sqrt(WIDTH)}


def random_options() -> dict[str, Any]:
    return {"feedback": "random", "random_feedback_key": 3}


#: A learner, and the oracle of its rule.
RULES: dict[str, tuple[Callable[[Any], Any], Callable[..., Any]]] = {
    "d_rtrl": (bt.D_RTRL, d_rtrl_oracle),
    "coupled": (
        partial(bt.D_RTRL, recurrence_scope="coupled"),
        partial(d_rtrl_oracle, recurrence_scope="coupled"),
    ),
    "pp_prop": (
        partial(bt.pp_prop, decay_or_rank=(0.7, 0.5)),
        partial(pp_prop_oracle, decay_x=0.7, decay_f=0.5),
    ),
    "ostl_feedforward": (bt.OSTLFeedforward, partial(pp_prop_oracle, decay_x=0.0)),
    "e-prop": (bt.EProp, d_rtrl_oracle),
    "e-prop, kappa": (
        partial(bt.EProp, kappa_filter_decay=KAPPA),
        partial(e_prop_oracle, kappa=KAPPA),
    ),
}


def compiled(make: Callable[[Any], Any], network: Any) -> Any:
    brainstate.nn.init_all_states(network, batch_size=BATCH)
    learner = make(network)
    learner.compile_graph(data()[0][0])
    return learner


def gradient(learner: Any, size: int) -> Any:
    learner.reset_state(BATCH, model_states=True)
    return learner.etrace_grad(
        *data(),
        step_fn=lambda x, *rest: loss_of(learner(x), *rest),
        reduction="sum",
        block_size=size,
    )


#: The groups of a network moved by hand, and of one in which the readout keeps its own trace.
MOVED = [[("v",), ("z",)]]
KEPT = [*MOVED, [("y",)]]
ABOVE = [("y",)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", [hard_reset, *RECURRENT])
def test_equals_its_oracle(layer: Any, rule: str) -> None:
    make, oracle = RULES[rule]
    network = Network(layer, moved=False)
    learner = compiled(make, network)
    assert list(learner.graph.uniform) == ABOVE
    assert not learner.graph.explain(kind="credit_stops")
    expected = oracle(network, data(), loss_of, uniform=ABOVE).grads
    for size in (1, 4):
        assert_tree_close(gradient(learner, size), expected)


@pytest.mark.parametrize("layer", [hard_reset, recurrent_leak])
def test_random_feedback_equals_its_oracles(layer: Any) -> None:
    """Which keeps filters apart, or has the published rule with the leak moved by hand."""
    by_hand = brainstate.nn.init_all_states(Network(layer, moved=True), batch_size=BATCH)
    expected = e_prop_oracle(
        by_hand, data(), loss_of, kappa=0.0, feedback=fed_back(), groups=MOVED
    ).grads
    network = Network(layer, moved=False)
    for kappa, size in ((None, 4), (KAPPA, 6)):
        rule = partial(bt.EProp, kappa_filter_decay=kappa or 0.0, **random_options())
        found = gradient(compiled(rule, network), size)
        brainstate.nn.init_all_states(network, batch_size=BATCH)
        rule = partial(e_prop_oracle, kappa=kappa, feedback=fed_back(), uniform=ABOVE)
        assert_tree_close(found, rule(network, data(), loss_of).grads)
        if kappa is None:
            assert_tree_close(found, expected)


class Plain(Network):
    """A readout of the width of the layer, by a product that is no operation."""

    def __init__(self) -> None:
        super().__init__(hard_reset, moved=False)
        self.up = brainstate.ParamState(jnp.asarray(np.random.default_rng(2).normal(size=(4, 4))))

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v, self.y = (brainstate.HiddenState(jnp.zeros((batch_size, WIDTH))) for _ in "vy")

    def update(self, x: Any) -> Any:
        self.y.value = LEAK * self.y.value + hard_reset(self, x) @ self.up.value
        return self.y.value[..., :OUT]


def test_a_filter_below_a_plain_product_is_of_another_group_than_what_is_above() -> None:
    make, oracle = RULES["pp_prop"]
    network = Plain()
    learner = compiled(make, network)
    expected = oracle(network, data(), loss_of, uniform=ABOVE).grads
    assert_tree_close(gradient(learner, 4), expected)


def in_windows(learner: Any, size: int) -> Any:
    """The gradient of the sequence, by two calls with the trace carried."""
    learner.reset_state(BATCH, model_states=True)

    def step(x: Any, *rest: Any) -> Any:
        if size == 1:
            return loss_of(learner(x), *rest)
        return jax.vmap(loss_of)(learner(bt.MultiStepData(x)), *rest)

    calls = [jax.tree.map(lambda v, half=half: v[half], data()) for half in HALVES]
    found = [
        learner.etrace_grad(*call, step_fn=step, reduction="sum", chunk_size=size) for call in calls
    ]
    return jax.tree.map(jnp.add, *found)


HALVES = slice(0, 4), slice(4, STEPS)


@pytest.mark.parametrize(
    ("layer", "rule"),
    [
        (hard_reset, "d_rtrl"),
        (recurrent_leak, "d_rtrl"),
        (vanilla, "coupled"),
        (recurrent_leak, "pp_prop"),
    ],
)
def test_windows_take_credit_from_before_them_past_the_leak_above(layer: Any, rule: str) -> None:
    make, oracle = RULES[rule]
    network = Network(layer, moved=False)
    learner = compiled(partial(make, vjp_method="multi-step"), network)
    of_rule = partial(oracle, uniform=ABOVE)
    for size in (1, 2):
        found = in_windows(learner, size)
        brainstate.nn.init_all_states(network, batch_size=BATCH)
        assert_tree_close(found, window_oracle(of_rule, network, data(), loss_of, size).grads)
    if layer is hard_reset:  # nothing is cut
        assert_tree_close(found, bptt(network, data(), loss_of)[1])


def test_uoro_in_windows_draws_the_same_as_for_the_network_moved_by_hand() -> None:
    rule = partial(bt.UORO, projection_key=3, vjp_method="multi-step")
    found = in_windows(compiled(rule, Network(hard_reset, moved=False)), 2)
    by_hand = compiled(partial(rule, downstream="step"), Network(hard_reset, moved=True))
    assert_tree_close(found, in_windows(by_hand, 2))


@pytest.mark.parametrize("layer", [hard_reset, recurrent_leak])
def test_a_modulator_meets_what_the_readout_remembers(layer: Any) -> None:
    m = np.random.default_rng(5).normal(size=STEPS)
    by_hand = brainstate.nn.init_all_states(Kept(layer), batch_size=BATCH)
    expected = three_factor_oracle(by_hand, data(), loss_of, m, groups=KEPT).grads
    make = partial(bt.ThreeFactor, downstream="linear")
    network = Network(layer, moved=False)
    learner = compiled(make, network)
    found = learner.etrace_grad(
        *data(),
        m,
        step_fn=lambda x, y, w, m: loss_of(learner(x, modulator=m), y, w),
        reduction="sum",
        block_size=4,
    )
    assert_tree_close(found, expected)
    brainstate.nn.init_all_states(network, batch_size=BATCH)
    expected = three_factor_oracle(network, data(), loss_of, m, uniform=ABOVE).grads
    assert_tree_close(found, expected)


class Chain(Network):
    """A layer below two leaky ones; ``moved``: with states for filters in front of these."""

    def __init__(self, moved: bool) -> None:
        super().__init__(hard_reset, moved)
        self.middle, self.up = bt.nn.Linear(WIDTH, 5, key=3), bt.nn.Linear(5, OUT, key=4)

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        sizes = {"v": WIDTH, "m": 5, "y": OUT}
        sizes |= {"z": WIDTH, "zz": WIDTH, "n": 5} if self.moved else {}
        for name, size in sizes.items():
            setattr(self, name, brainstate.HiddenState(jnp.zeros((batch_size, size))))

    def update(self, x: Any) -> Any:
        self.m.value = 0.6 * self.m.value + self.middle(hard_reset(self, x))
        self.y.value = LEAK * self.y.value + self.up(self.m.value)
        return self.y.value


def credited(value: Any, of: Any) -> Any:
    """A value with the derivative of another one."""
    return held(value) + of - held(of)


class TwoLayers(Network):
    """Two layers below a plain product; ``moved``: behind each a filter, in its credit alone."""

    def __init__(self, moved: bool, delayed: bool = False) -> None:
        super().__init__(hard_reset, moved)
        self.second, self.up = bt.nn.Linear(WIDTH, 5, key=3), bt.nn.Linear(5, OUT, key=4)
        self.delayed = delayed

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        sizes = {"v": WIDTH, "u": 5} | ({"p": WIDTH, "q": 5} if self.moved else {})
        for name, size in sizes.items():
            setattr(self, name, brainstate.HiddenState(jnp.zeros((batch_size, size))))

    def emitted(self, filtered: str, z: Any) -> Any:
        if not self.moved:
            return z
        state = getattr(self, filtered)
        state.value = KAPPA * state.value + z
        return credited(z, state.value)

    def update(self, x: Any) -> Any:
        z, u = self.emitted("p", hard_reset(self, x)), self.u.value
        self.u.value = 0.8 * u * (1 - spike(u - 0.3)) + self.second(z)
        read = u if self.delayed else self.u.value
        return self.up(self.emitted("q", spike(read - 0.3)))


@pytest.mark.parametrize("delayed", [False, True])
def test_e_prop_filters_behind_what_layers_emit_also_without_a_leak_above(delayed: bool) -> None:
    by_hand = brainstate.nn.init_all_states(TwoLayers(True, delayed), batch_size=BATCH)
    groups = [[("v",), ("p",)], [("u",), ("q",)]]
    expected = d_rtrl_oracle(by_hand, data(), loss_of, groups=groups).grads
    learner = compiled(RULES["e-prop, kappa"][0], TwoLayers(False, delayed))
    assert not learner.graph.uniform and len(learner.filters) == 2
    zero = ("low.weight",) if delayed else ()  # what it does is read in the next step
    for size in (1, 4):
        assert_tree_close(gradient(learner, size), expected, allow_zero=zero)


def test_one_kappa_for_a_chain_of_leaks_and_none_for_the_layers_with_them() -> None:
    """Their weights have the gradient of BPTT, and what lies below has one filter, not two."""

    class Moved(Chain):
        """The credit that is filtered, and values that are not."""

        def update(self, x: Any) -> Any:
            z, up = hard_reset(self, x), self.up.weight.value["weight"]
            middle = self.middle.weight.value
            values = 0.6 * self.z.value + z, LEAK * self.zz.value + 0.6 * self.z.value + z
            olds = self.z.value, self.zz.value
            of = [KAPPA * old + z for old in olds]
            self.z.value, self.zz.value = map(credited, values, of)
            self.m.value = 0.6 * self.m.value + middle["bias"]
            self.n.value = LEAK * self.n.value + self.m.value
            self.y.value = LEAK * self.y.value + self.up.weight.value["bias"]
            return bt.matmul(bt.matmul(self.zz.value, middle["weight"]) + self.n.value, up) + (
                self.y.value
            )

    learner = compiled(RULES["e-prop, kappa"][0], Chain(False))
    found = gradient(learner, 4)
    chain = brainstate.nn.init_all_states(Chain(False), batch_size=BATCH)
    _, exact = bptt(chain, data(), loss_of)
    for name in ("middle", "up"):
        assert_tree_close(found[name, "weight"], exact[name, "weight"])
    by_hand = brainstate.nn.init_all_states(Moved(True), batch_size=BATCH)
    groups = [[("v",), ("z",), ("zz",)]]
    expected = d_rtrl_oracle(by_hand, data(), loss_of, groups=groups).grads
    assert_tree_close(found["low", "weight"], expected["low", "weight"])


def test_kappa_filters_the_trace_where_what_is_emitted_has_no_positions() -> None:
    class Pairs(Network):
        """States in pairs, of which the layer above gets the second."""

        def init_state(self, batch_size: int | None = None, **_: Any) -> None:
            self.v = brainstate.HiddenGroupState(jnp.zeros((batch_size, WIDTH, 2)))

        def update(self, x: Any) -> Any:
            first, second = self.v.value[..., 0], self.v.value[..., 1]
            first = jnp.tanh(0.5 * first + self.low(x))
            self.v.value = jnp.stack([first, 0.7 * second + first**2], -1)
            return self.up(self.v.value[..., 1])

    network = brainstate.nn.init_all_states(Pairs(None, moved=False), batch_size=BATCH)
    expected = e_prop_oracle(network, data(), loss_of, kappa=KAPPA).grads
    learner = compiled(RULES["e-prop, kappa"][0], network)
    (record,) = learner.graph.explain(kind="credit_stops")
    assert "filters the traces" in record.message and "v is read as" in record.message
    assert_tree_close(gradient(learner, 4), expected)


def test_pp_prop_below_two_leaky_layers() -> None:
    make, oracle = RULES["pp_prop"]
    network = Chain(False)
    learner = compiled(make, network)
    expected = oracle(network, data(), loss_of, uniform=[("m",), ("y",)]).grads
    assert_tree_close(gradient(learner, 4), expected)
    assert list(learner.graph.executed.coverage().values()) == ["trace"] * 3


@pytest.mark.parametrize("layer", [hard_reset, recurrent_leak])
def test_uoro_draws_the_same_as_for_the_network_with_the_leak_moved_by_hand(layer: Any) -> None:
    rule = partial(bt.UORO, projection_key=3, vjp_method="single-step")
    found = gradient(compiled(rule, Network(layer, moved=False)), 3)
    by_hand = compiled(partial(rule, downstream="step"), Network(layer, moved=True))
    assert_tree_close(found, gradient(by_hand, 3))
    network = brainstate.nn.init_all_states(Network(layer, moved=False), batch_size=BATCH)
    signs = {0: drawn(3, mixed=layer is not hard_reset)}
    assert_tree_close(found, uoro_oracle(network, data(), loss_of, signs, uniform=ABOVE).grads)


def drawn(seed: int, mixed: bool) -> np.ndarray:
    """The signs of one group of two states, as UORO draws them: [T, S, B, WIDTH].

    In a step that mixes positions, each is a state of its example.
    """
    key, found = jax.random.key(seed), []
    for _ in range(STEPS):
        key, draw = jax.random.split(key)
        shape = (2 * WIDTH, BATCH) if mixed else (2, BATCH, WIDTH)
        signs = np.asarray(jax.random.rademacher(jax.random.fold_in(draw, 0), shape, float))
        laid = np.moveaxis(signs.reshape(2, WIDTH, BATCH), 1, 2) if mixed else signs
        found.append(laid)
    return np.stack(found)


#: What keeps credit through the layers above by itself, or runs as it is published.
AS_PUBLISHED: dict[str, Callable[..., Any]] = {
    "three-factor": partial(bt.ThreeFactor, modulator=0.4),
    "dni": bt.DNI,
    "rtrl": bt.RTRL,
    "snap": partial(bt.SnAp, n=2),
}


@pytest.mark.parametrize("rule", AS_PUBLISHED)
def test_other_rules_run_the_step_as_it_is_written(rule: str) -> None:
    learner = compiled(AS_PUBLISHED[rule], Network(hard_reset, moved=False))
    assert not learner.filters
    assert not learner.graph.uniform


def test_a_rule_that_refuses_the_filters_runs_the_step_as_it_is_written() -> None:
    class Narrow(bt.D_RTRL):
        def make_rule(self, executor: Any) -> Any:
            if any(group.group.num_state > 1 for group in executor.groups):
                raise bt.NotSupportedError("one state alone")
            return super().make_rule(executor)

    assert not compiled(Narrow, Network(hard_reset, moved=False)).graph.not_uniform
    asked = partial(Narrow, downstream="linear")
    learner = compiled(asked, Network(hard_reset, moved=False))
    step = compiled(partial(bt.D_RTRL, downstream="step"), Network(hard_reset, moved=False))
    assert_tree_close(gradient(learner, 3), gradient(step, 3))
    assert learner.graph.not_uniform["y",] == "one state alone"
    (record,) = learner.graph.explain(kind="credit_stops")
    assert record.message.endswith("get no credit: one state alone")
    assert not learner.graph.explain(kind="uniform_dynamics")


# --- updates at every step, files, units ----------------------------------------------------------


def online_by_hand(rate: float) -> Any:
    """Parameters of a :class:`Network` after an update by SGD at each step, from equations.

    ``E`` is the influence of the lower layer on the state ``(v, q)``, which is exact, since the
    layer has no recurrent product; values are those of the network as it is written.
    """
    network = Network(hard_reset, moved=False)
    low, up = network.low.weight.value, network.up.weight.value

    def states(old: Any, low: Any, x: Any) -> Any:
        v, q = old
        v = 0.9 * v * (1 - spike(v - 0.5)) + x @ low["weight"] + low["bias"]
        return v, LEAK * q + spike(v - 0.5)

    zero = jnp.zeros((BATCH, WIDTH))
    old, E, one, y = (zero, zero), None, 0.0, jnp.zeros((BATCH, OUT))
    for x, target, weight in zip(*data(), strict=True):
        of_old, of_low = zip(*jax.jacobian(states, (0, 1))(old, low, x), strict=True)
        new = states(old, low, x)
        if E is not None:

            def carried(row: Any, E: Any = E) -> Any:
                past = [
                    jax.tree.map(lambda e, d=d: jnp.tensordot(d, e, 2), own)
                    for d, own in zip(row, E, strict=True)
                ]
                return jax.tree.map(jnp.add, *past)

            rows = [carried(row) for row in of_old]
            of_low = jax.tree.map(jnp.add, tuple(rows), of_low)
        E, one = of_low, LEAK * one + 1
        y = LEAK * y + 0.3 * (spike(new[0] - 0.5) @ up["weight"] + up["bias"])
        of_y = 0.3 * 2 * weight * (y - target)
        of_q = of_y @ up["weight"].T
        low_bar = jax.tree.map(partial(jnp.tensordot, of_q, axes=2), E[1])
        up_bar = {"weight": new[1].T @ of_y, "bias": one * of_y.sum(0)}
        low, up = (
            jax.tree.map(lambda w, bar: w - rate * bar, *pair)
            for pair in ((low, low_bar), (up, up_bar))
        )
        old = new
    return {("low", "weight"): low, ("up", "weight"): up}


class Descent:
    """Plain gradient descent."""

    def __init__(self, weights: Any, rate: float) -> None:
        self.weights, self.rate = weights, rate

    def update(self, grads: Any) -> None:
        for path, grad in grads.items():
            state = self.weights[path]
            state.value = jax.tree.map(lambda w, bar: w - self.rate * bar, state.value, grad)


def test_an_update_at_every_step_equals_the_equations() -> None:
    learner = compiled(bt.D_RTRL, Network(hard_reset, moved=False))
    learner.etrace_update(
        *data(),
        step_fn=lambda x, *rest: loss_of(learner(x), *rest),
        optimizer=Descent(learner.param_states, 0.05),
        reduction="sum",
    )
    found = {path: state.value for path, state in learner.param_states.items()}
    assert_tree_close(found, online_by_hand(0.05))


class WithUnits(Network):
    """Potentials in millivolts."""

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, WIDTH)) * u.mV)
        self.y = brainstate.HiddenState(jnp.zeros((batch_size, OUT)) * u.mV)

    def update(self, x: Any) -> Any:
        v = self.v.value
        self.v.value = 0.9 * v * (1 - spike(v / u.mV - 0.5)) + self.low(x) * u.mV
        z = spike(self.v.value / u.mV - 0.5)
        self.y.value = LEAK * self.y.value + 0.3 * self.up(z) * u.mV
        return self.y.value / u.mV


@pytest.mark.parametrize("make", [bt.pp_prop, bt.EProp, bt.D_RTRL])
def test_units_change_no_number(make: Any) -> None:
    options: dict[Any, dict[str, Any]] = {
        bt.pp_prop: {"decay_or_rank": 0.7},
        bt.EProp: {"kappa_filter_decay": KAPPA},
        bt.D_RTRL: {"vjp_method": "multi-step"},
    }
    found = []
    for kind in (WithUnits, Network):
        learner = compiled(partial(make, **options[make]), kind(hard_reset, moved=False))
        assert list(learner.graph.uniform) == [("y",)]
        windows = make is bt.D_RTRL
        found.append(in_windows(learner, 2) if windows else gradient(learner, 4))
    assert_tree_close(*found)


@pytest.mark.parametrize("rule", ["pp_prop", "e-prop, kappa"])
def test_a_file_goes_on(rule: str, tmp_path: Any) -> None:
    make = RULES[rule][0]
    halves = [jax.tree.map(lambda v, half=half: v[half], data()) for half in HALVES]
    found = []
    for saved in (False, True):
        learner = compiled(make, Network(hard_reset, moved=False))
        for half in halves:
            step = lambda x, *rest, of=learner: loss_of(of(x), *rest)  # noqa: E731
            found.append(learner.etrace_grad(*half, step_fn=step, reduction="sum"))
            if saved:
                learner.save(tmp_path / "a.npz")
                learner = compiled(make, Network(hard_reset, moved=False))
                learner.restore(tmp_path / "a.npz")
    assert_tree_close(found[1], found[3])
    total = jax.tree.map(jnp.add, *found[:2])
    whole = gradient(compiled(make, Network(hard_reset, moved=False)), 4)
    assert_tree_close(total, whole)


class Above(brainstate.nn.Module):
    """A state of the width of the layer below: ``step(state, input)``; ``late``: read a step on."""

    def __init__(self, step: Callable[[Any, Any], Any], late: bool = False) -> None:
        super().__init__()
        self.step, self.late = step, late

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.y = brainstate.HiddenState(jnp.zeros((batch_size, WIDTH)))

    def reset_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.y.value = jnp.zeros_like(self.y.value)

    def update(self, z: Any) -> Any:
        old, self.y.value = self.y.value, self.step(self.y.value, z)
        return self.y.value - 0.5 * old if self.late else self.y.value


class Low(Network):
    """The layer alone."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer, moved=False)
        del self.up

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, WIDTH)))

    def update(self, x: Any) -> Any:
        return self.layer(self, x)


MIXING = np.random.default_rng(2).normal(size=(WIDTH, WIDTH))
STEP = {
    "direct": lambda y, z: LEAK * y + z,
    "mixed": lambda y, z: LEAK * y + z @ MIXING,
    "turned twice": lambda y, z: LEAK * y + z[..., ::-1][..., ::-1],
    "gated": lambda y, z: 0.5 * y * jnp.tanh(y) + z,
    "behind": lambda y, z: LEAK * y + jnp.tanh(z @ MIXING),
}


@pytest.mark.parametrize(
    ("layer", "rule", "steps", "late"),
    [
        (vanilla, "coupled", ("direct",), False),
        (hard_reset, "d_rtrl", ("direct", "gated"), False),
        (hard_reset, "d_rtrl", ("mixed", "gated"), True),
        (hard_reset, "d_rtrl", ("mixed", "gated", "direct"), False),
        (hard_reset, "d_rtrl", ("mixed", "behind"), False),
        (hard_reset, "d_rtrl", ("direct", "behind", "direct"), True),
        (hard_reset, "pp_prop", ("direct", "gated"), False),
        (hard_reset, "pp_prop", ("mixed", "gated", "mixed"), True),
        (hard_reset, "pp_prop", ("turned twice", "gated"), True),
    ],
)
def test_a_leak_without_an_operation_in_front_of_it(
    layer: Any, rule: str, steps: Any, late: bool
) -> None:
    """It is a state of the layer, of which the recurrence in ``D`` is that at equal positions.

    What follows it position by position is of that group, too; what mixes positions, or lies
    behind that, is of another one, also of what has a leak above.
    """
    make, oracle = RULES[rule]
    above = (Above(STEP[step], late) for step in steps)
    network = brainstate.nn.Sequential(Low(layer), *above, lambda y: y[..., :OUT])
    learner = compiled(make, network)
    uniform = [*learner.graph.uniform]
    moved = {("layers", k + 1, "y") for k, step in enumerate(steps) if step != "gated"}
    assert {*uniform} == (moved if rule != "pp_prop" or steps[0] != "direct" else set())
    expected = oracle(network, data(), loss_of, uniform=uniform).grads
    assert_tree_close(gradient(learner, 4), expected)


class Together(Low):
    """A layer, a leak above it, and a state above that, in one module."""

    def __init__(self, leak: str) -> None:
        super().__init__(hard_reset)
        self.leak = leak

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        zeros = jnp.zeros((batch_size, WIDTH))
        self.v, self.y, self.b = (brainstate.HiddenState(zeros) for _ in "vyb")

    def update(self, x: Any) -> Any:
        self.y.value = STEP[self.leak](self.y.value, hard_reset(self, x))
        self.b.value = STEP["gated"](self.b.value, self.y.value)
        return self.b.value[..., :OUT]


@pytest.mark.parametrize(
    ("leak", "rule"), [("mixed", "d_rtrl"), ("mixed", "pp_prop"), ("direct", "pp_prop")]
)
def test_one_module_has_the_gradient_of_three(leak: str, rule: str) -> None:
    """What follows the layer by position is of its group in both, and what mixes in neither."""
    make, oracle = RULES[rule]
    above = Above(STEP[leak]), Above(STEP["gated"])
    apart = brainstate.nn.Sequential(Low(hard_reset), *above, lambda y: y[..., :OUT])
    one, found = Together(leak), []
    for network in (one, apart):
        learner = compiled(make, network)
        uniform = [*learner.graph.uniform]
        expected = oracle(network, data(), loss_of, uniform=uniform).grads
        grads = gradient(learner, 4)
        assert_tree_close(grads, expected)
        found.append(jax.tree.leaves(dict(grads)))
    assert_tree_close(*found)
