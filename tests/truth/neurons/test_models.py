# SPDX-License-Identifier: Apache-2.0
"""Spiking networks with units: online gradients equal the oracle's, and reverse mode's."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle

pytest.importorskip("brainpy.state", reason="brainpy is installed with braintrace-core[neurons]")

from . import zoo

COMMON = ("LIF", "LIFRef", "ALIF", "Gif", "GifRef", "Izhikevich", "IzhikevichRef")
RARE = tuple(name for name in zoo.NEURONS if name not in COMMON)


class Bench:
    """A network, a sequence, and the network's states at its beginning."""

    def __init__(self, model: Any, batch: int | None, steps: int = zoo.STEPS) -> None:
        self.model = model
        brainstate.nn.init_all_states(model, batch_size=batch)
        lead = (steps,) if batch is None else (steps, batch)
        times = jnp.arange(steps) * brainstate.environ.get("dt")
        self.inputs = times, zoo.normal(9, *lead, zoo.IN) ** 2
        self.targets = zoo.normal(10, *lead, zoo.OUT)
        self.start = {s: s.value for s in brainstate.graph.states(model).values()}

    @property
    def sequences(self) -> tuple[Any, Any]:
        return self.inputs, self.targets

    def reset(self) -> None:
        for state, value in self.start.items():
            state.value = value

    def learner(self) -> Any:
        learner = bt.D_RTRL(self.model, downstream="step")
        learner.compile_graph(jax.tree.map(lambda v: v[0], self.inputs))
        return learner

    def grads(self, learner: Any, block_size: Any) -> Any:
        """Gradients of a sequence from the start."""
        self.reset()
        learner.reset_state()
        grads = learner.etrace_grad(
            *self.sequences,
            step_fn=lambda x, y: loss(learner(x), y),
            reduction="sum",
            block_size=block_size,
        )
        self.reset()
        return grads

    def check(self, grads: Any, reference: Any) -> None:
        """Equal numbers in equal units, with no gradient zero everywhere."""
        parameters = brainstate.graph.states(self.model, brainstate.ParamState)
        for path, state in parameters.items():
            assert jax.tree.structure(grads[path]) == jax.tree.structure(state.value), path
        assert_tree_close(numbers(grads), numbers(reference))

    def check_alive(self) -> None:
        """Neurons spike, but not all of them at every step."""
        spikes = []
        for inputs in zip(*self.inputs, strict=True):
            self.model(inputs)
            spikes.append(np.asarray(self.model.neuron.get_spike()))
        self.reset()
        assert 0.03 < np.mean(spikes) < 0.9


def loss(out: Any, target: Any) -> Any:
    return jnp.sum((out - target) ** 2)


def numbers(grads: Any) -> Any:
    """Gradients without their units."""
    return jax.tree.map(u.get_mantissa, grads, is_leaf=u.math.is_quantity)


def equals_the_oracle(model: Any, batch: int | None, blocks: tuple[Any, ...]) -> None:
    bench = Bench(model, batch)
    bench.check_alive()
    oracle = d_rtrl_oracle(model, bench.sequences, loss)
    learner = bench.learner()
    assert tuple(g.hidden_paths for g in learner.graph.hidden_groups) == oracle.groups
    for block in blocks:
        bench.check(bench.grads(learner, block), oracle.grads)


@pytest.mark.parametrize("name", COMMON)
def test_common_neurons_in_every_block_size(name: str) -> None:
    blocks = (3,) if name.endswith("Ref") else (1, 3, "auto")
    equals_the_oracle(zoo.neuron(name, recurrent=True), 2, blocks)


@pytest.mark.parametrize("name", ["LIF", "ALIF", "GifRef", "IzhikevichRef"])
def test_common_neurons_without_a_batch(name: str) -> None:
    equals_the_oracle(zoo.neuron(name, recurrent=True), None, ("auto",))


@pytest.mark.parametrize("name", ["LIF", "LIFRef", "ALIF", "Gif"])
def test_hard_reset(name: str) -> None:
    equals_the_oracle(zoo.neuron(name, recurrent=True, spk_reset="hard"), 2, (3,))


@pytest.mark.parametrize("name", RARE)
def test_other_neurons(name: str) -> None:
    equals_the_oracle(zoo.neuron(name, recurrent=True), 2, ("auto",))


@pytest.mark.parametrize("name", zoo.SYNAPSES)
def test_synapses(name: str) -> None:
    equals_the_oracle(zoo.wired(name, recurrent=True), 2, (3,))


@pytest.mark.parametrize("name", [*COMMON, "CobaLIF", "AdExIF", "MorrisLecar"])
def test_without_recurrent_weights_neurons_equal_bptt(name: str) -> None:
    equals_bptt(zoo.neuron(name, recurrent=False))


@pytest.mark.parametrize("name", ["Expon-CUBA", "Expon-COBA-merged", "STP", "Delta"])
def test_without_recurrent_weights_synapses_equal_bptt(name: str) -> None:
    equals_bptt(zoo.wired(name, recurrent=False))


def equals_bptt(model: Any) -> None:
    """Over fewer steps: the unrolled program takes long to compile."""
    bench = Bench(model, 2, steps=5)
    bench.check_alive()
    _, reference = bptt(model, bench.sequences, loss)
    bench.check(bench.grads(bench.learner(), "auto"), reference)


# --- what is not exact, or not possible, says so ------------------------------------------------


def diagnostics(model: Any) -> str:
    with pytest.warns(UserWarning) as issued:
        Bench(model, 2).learner()
    return "\n".join(str(w.message) for w in issued)


def test_a_boolean_hidden_state_carries_no_derivative() -> None:
    model = zoo.neuron("GifRef", recurrent=True, ref_var=True)
    bench = Bench(model, 2)
    learner = bench.learner()
    assert ("neuron", "refractory") in learner.other_states
    oracle = d_rtrl_oracle(model, bench.sequences, loss)
    bench.check(bench.grads(learner, "auto"), oracle.grads)


def test_a_plain_layer_as_the_connection() -> None:
    """The oracle's gradient, and a warning that says where the product stands."""
    model = zoo.neuron("LIF", recurrent=True)
    weight = zoo.normal(3, zoo.N, zoo.N) * u.mA
    model.r = brainstate.nn.Linear(zoo.N, zoo.N, w_init=weight, b_init=None)
    says = diagnostics(model)
    assert "parameter_outside_operation: the parameter r.weight" in says
    assert "transition_not_position_wise" in says and "zoo.py:" in says
    equals_the_oracle(model, 2, (3,))


def test_two_layers() -> None:
    class Layers(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = zoo.neuron("LIF", recurrent=True)
            self.first.out = zoo.linear(20, zoo.N, zoo.IN)
            self.second = zoo.neuron("ALIF", recurrent=True)

        @property
        def neuron(self) -> Any:
            return self.second.neuron

        def update(self, inputs: Any) -> Any:
            return self.second((inputs[0], self.first(inputs)))

    equals_the_oracle(Layers(), 2, (3,))
