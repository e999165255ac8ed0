#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: an integrate-and-fire neuron sums up its input, so that any constant input makes it fire sooner or
# later, at a rate in proportion to it. NIR's IF is that neuron, and the notes of brainpy's say the same:
# "no leak towards a resting potential", "accumulates input indefinitely".
#
# Found: with brainpy 2.8.2 (brainpy.state 0.1.0) IF has the leak of an LIF: it is the same, value by value, as
# LIF that rests and resets at 0. An input of 0.95 of the threshold never makes it fire in 2000 steps; a sum
# without leak passes the threshold 379 times. What it holds falls by 1/e in tau without input.
#
# Why it matters to people who train networks online: IF is taken where there shall be no forgetting, as a
# trace without leak is a plain sum and conversions of networks need the rate. Small inputs are lost here,
# and credit fades with tau. A large tau makes the leak slow and the input small alike: raise R with it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    brainpy==2.8.2 brainpy-state==0.1.0 brainstate==0.5.4 jax==0.10.2 jaxlib==0.10.2 saiunit==0.5.2
JAX_PLATFORMS=cpu HOME="$folder" "$folder/env/bin/python" - <<'PYTHON'
import warnings

warnings.filterwarnings("ignore")
from importlib.metadata import version

import brainpy
import brainstate
import jax.numpy as jnp
import saiunit as u

assert (version("brainpy"), version("brainpy-state")) == ("2.8.2", "0.1.0")
brainstate.environ.set(dt=1.0 * u.ms)
shared = {"tau": 5.0 * u.ms, "R": 1.0 * u.ohm, "V_th": 1.0 * u.mV}


def run(neuron, inputs):
    """Spikes and potentials of one neuron."""
    brainstate.nn.init_all_states(neuron)

    def step(x):
        return neuron(x * u.mA), u.get_magnitude(neuron.V.value)

    spikes, v = brainstate.transform.for_loop(step, inputs[:, None])
    return spikes[:, 0], v[:, 0]


def plain_sum(inputs):
    v = count = 0
    for x in inputs.tolist():
        v += x / 5
        count += v >= 1
        v -= v >= 1
    return count


at_rest = {"V_rest": 0 * u.mV, "V_reset": 0 * u.mV}
for size, fires in ((0.95, False), (1.2, True)):
    inputs = jnp.full((2000,), size)
    spikes, v = run(brainpy.state.IF(1, **shared), inputs)
    of_lif, v_of_lif = run(brainpy.state.LIF(1, **shared, **at_rest), inputs)
    count, right = int(spikes.sum()), plain_sum(inputs)
    print(f"input {size}: IF fires {count} times, LIF {int(of_lif.sum())}, a plain sum {right}")
    assert (count > 0) == fires and jnp.allclose(v, v_of_lif, atol=1e-5) and abs(right - 400 * size) < 2

_, v = run(brainpy.state.IF(1, **shared), jnp.zeros(6).at[0].set(4.0))
print(f"after one input: {v}; a step leaves {v[1:] / v[:-1]}, exp(-1/5) = {jnp.exp(-0.2):.4f}")
assert jnp.allclose(v[1:] / v[:-1], jnp.exp(-0.2), rtol=1e-4)
PYTHON
