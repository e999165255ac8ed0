#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: spyx reads a leaky integrate-and-fire neuron of NIR, tau dv/dt = v_leak - v + r I, with all of its
# parameters: a neuron that never spikes at r = 1 does not spike, one of r = 0 does not hear its input, and v_leak
# moves it. What it writes is the neuron that it has: v <- beta v + x is tau = dt / (1 - beta) and r = tau / dt.
#
# Found: with spyx 1.0.0 and nir 1.0.8 r and v_leak are not read, and nothing is said. With a constant input of 0.5
# every one of the four neurons below spikes 81 times in 200 steps, where NIR's equation by Euler steps gives 0, 66,
# 40 and 0. Written are r = beta, 0.9 where 10 is meant, so that another simulator hears a ninth of the input
# of the model that was trained.
#
# Why it matters to people who train networks online: NIR is how a network gets from one simulator into a trainer
# and onto a chip. Here the graph loads and runs, and what is trained further or deployed is another network.
# Fold r dt / tau into the weights before reading, and set r after writing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    spyx==1.0.0 nir==1.0.8 flax==0.12.8 jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
from importlib.metadata import version

import jax.numpy as jnp
import nir
import numpy as np
import spyx
from flax import nnx

assert (version("spyx"), version("nir")) == ("1.0.0", "1.0.8")
DT, TAU, CURRENT, STEPS = 1e-3, 1e-2, 0.5, 200


def graph(r, v_leak):
    one = np.ones(1, "float32")
    nodes = {
        "input": nir.Input(np.array([1])),
        "w": nir.Affine(np.ones((1, 1), "float32"), np.zeros(1, "float32")),
        "lif": nir.LIF(tau=TAU * one, r=r * one, v_leak=v_leak * one, v_threshold=one),
        "output": nir.Output(np.array([1])),
    }
    return nir.NIRGraph(nodes, [("input", "w"), ("w", "lif"), ("lif", "output")])


def by_euler(r, v_leak):
    v, count = 0.0, 0
    for _ in range(STEPS):
        v += DT / TAU * (v_leak - v + r * CURRENT)
        count, v = (count + 1, 0.0) if v > 1 else (count, v)
    return count


for r, v_leak in ((1.0, 0.0), (10.0, 0.0), (1.0, 2.0), (0.0, 0.0)):
    _, spikes = spyx.nir.from_nir(graph(r, v_leak), jnp.full((STEPS, 1, 1), CURRENT), dt=DT)
    found, wanted = int(spikes.sum()), by_euler(r, v_leak)
    print(f"r = {r}, v_leak = {v_leak}: {found} spikes by spyx, {wanted} by the equation of NIR")
    assert found == 81 and wanted == {1.0: 40 if v_leak else 0, 10.0: 66, 0.0: 0}[r]

rngs = nnx.Rngs(0)
model = spyx.nn.Sequential(nnx.Linear(1, 1, rngs=rngs), spyx.nn.LIF((1,), beta=0.9, rngs=rngs))
written = spyx.nir.to_nir(model, {"input": np.array([1])}, {"output": np.array([1])}, dt=DT)
(lif,) = (node for node in written.nodes.values() if isinstance(node, nir.LIF))
print(f"written: r = {float(lif.r[0]):.1f}, of v <- 0.9 v + x it is tau / dt = {float(lif.tau[0]) / DT:.1f}")
assert abs(float(lif.r[0]) - 0.9) < 1e-6 and abs(float(lif.tau[0]) / DT - 10) < 1e-4
PYTHON
