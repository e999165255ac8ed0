# SPDX-License-Identifier: Apache-2.0
"""Points of credit through the layers above that are easy to get wrong, one network for each."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle

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
    leak,
    learner_of,
    loss_of,
    started,
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


EXACT = {
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
