#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: spyx.fn.mse_spikerate(sparsity=0.25), a share of the time by its documentation, is zero where the neuron of
# the right class spikes in a quarter of the steps and the others are silent.
#
# Found: with spyx 1.0.0 the mean of the spikes over time, at most 1, is compared with 0.25 times the number of
# steps. In 100 steps that is 25: the loss is 306.28 for the output that was asked for, and the least that spikes
# can reach is 288.00, where the neuron of the right class spikes at every step. The rate is given by a sparsity of
# 0.25 / T.
#
# Why it matters to people who train networks online: this is the loss that keeps output neurons quiet, as chips
# and local rules need them. It drives them to spike always, its size hides every other term of a loss, and a model
# that is trained with windows of another length has another target.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    spyx==1.0.0 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 optax==0.2.8
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
from importlib.metadata import version

import jax.numpy as jnp
from spyx.fn import mse_spikerate

assert version("spyx") == "1.0.0"
STEPS, SPARSITY, label = 100, 0.25, jnp.array([1])
loss, silent = mse_spikerate(sparsity=SPARSITY), jnp.zeros((1, STEPS, 2))
asked = silent.at[:, ::4, 1].set(1.0)
always = silent.at[:, :, 1].set(1.0)
found = {name: float(loss(spikes, label)) for name, spikes in (("asked for", asked), ("always", always))}
print("rates that were asked for:", asked.mean(1)[0], "losses:", found)
assert asked.mean(1)[0].tolist() == [0.0, SPARSITY]
assert abs(found["asked for"] - 306.28125) < 1e-3 and abs(found["always"] - 288.0) < 1e-3
assert float(mse_spikerate(sparsity=SPARSITY / STEPS)(asked, label)) < 1e-12
PYTHON
