#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: D-RTRL is exact for a feed-forward spiking layer (no recurrent weights) below a leaky
# readout, as it is for the layer alone: nothing in the network is recurrent but leaks.
#
# Found: with braintrace 0.2.6 the gradient of the hidden weight has a relative error of 0.94 against
# backpropagation through time, and the readout's own weight none. It is the published rule: a trace
# ends at the states of its own layer, so what the readout remembers of a spike gets no credit.
#
# Why it matters to people who train networks online: this is the network of most tutorials. Its
# hidden weights learn from a gradient that is mostly missing, though no report says so; give the
# readout no memory of its own, or look for a rule that carries credit through linear layers above.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    braintrace==0.2.6 brainstate==0.5.4 jax==0.10.2 jaxlib==0.10.2 saiunit==0.5.2
"$folder/env/bin/python" - <<'PYTHON'
import warnings

import brainstate
import braintrace
import jax
import jax.numpy as jnp

warnings.filterwarnings("ignore")
STEPS, INPUTS, UNITS, OUTPUTS = 30, 6, 8, 3


@jax.custom_jvp
def spike(v):
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _(primals, tangents):
    return spike(*primals), tangents[0] / (1 + 3 * jnp.abs(primals[0])) ** 2


class Layer(brainstate.nn.Module):
    def __init__(self, inputs, units, spiking):
        super().__init__()
        self.units, self.spiking = units, spiking
        self.product = braintrace.nn.Linear(inputs, units)

    def init_state(self, *args, **kwargs):
        self.v = brainstate.HiddenState(jnp.zeros(self.units))

    def update(self, x):
        v = self.v.value
        kept = 1 - spike(v - 1) if self.spiking else 1.0
        self.v.value = 0.9 * v * kept + self.product(x)
        return spike(self.v.value - 1) if self.spiking else self.v.value


brainstate.random.seed(0)
network = brainstate.nn.Sequential(
    Layer(INPUTS, UNITS, spiking=True), Layer(UNITS, OUTPUTS, spiking=False)
)
xs = 2 * jax.random.normal(jax.random.key(0), (STEPS, INPUTS))
ys = jax.random.normal(jax.random.key(1), (STEPS, OUTPUTS))
weights = network.states(brainstate.ParamState)
brainstate.nn.init_all_states(network)
exact = brainstate.transform.grad(
    lambda: sum(((network(x) - y) ** 2).sum() for x, y in zip(xs, ys, strict=True)), weights
)()
brainstate.nn.init_all_states(network)
learner = braintrace.D_RTRL(network)
learner.compile_graph(xs[0])
online = None
for x, y in zip(xs, ys, strict=True):
    step = brainstate.transform.grad(lambda x=x, y=y: ((learner(x) - y) ** 2).sum(), weights)()
    online = step if online is None else jax.tree.map(jnp.add, online, step)
errors = {}
for path, gradient in exact.items():
    a, b = online[path]["weight"], gradient["weight"]
    errors[path[1]] = float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))
print(f"braintrace {braintrace.__version__}: relative errors by layer {errors}")
assert braintrace.__version__ == "0.2.6" and 0.8 < errors[0] < 1.1 and errors[1] < 1e-5, errors
PYTHON
