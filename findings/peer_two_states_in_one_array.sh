#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: a layer of four damped resonators, z' = a z + W u with a complex number of two real states (x, y)
# each, has the same gradient whether x and y are two arrays [4] or the two columns of one array [4, 2]; or
# an array of two states a unit is refused.
#
# Found: with braintrace 0.2.8 (and 0.2.6) D-RTRL equals backpropagation through time to round-off with two
# arrays. With one array [4, 2] the gradient of W is zero: nothing is raised, and nothing is warned of.
#
# Why it matters to people who train networks online: this is how a resonate-and-fire neuron or a linear
# recurrent unit is written with real numbers, both parts in one array. The layer stays as it was drawn while
# the readout above it learns, which looks like slow training.
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

said = []
warnings.showwarning = lambda message, *_, **__: said.append(str(message))


class Resonators(brainstate.nn.Module):
    def __init__(self, together):
        super().__init__()
        self.together, self.product = together, braintrace.nn.Linear(3, 4)

    def init_state(self, *args, **kwargs):
        if self.together:
            self.z = brainstate.HiddenState(jnp.zeros((4, 2)))
        else:
            self.x, self.y = brainstate.HiddenState(jnp.zeros(4)), brainstate.HiddenState(jnp.zeros(4))

    def update(self, u):
        x, y = self.z.value.T if self.together else (self.x.value, self.y.value)
        x, y = 0.9 * x - 0.4 * y + self.product(u), 0.4 * x + 0.9 * y
        if self.together:
            self.z.value = jnp.stack([x, y], axis=-1)
        else:
            self.x.value, self.y.value = x, y
        return y


def error(together, steps=10):
    brainstate.random.seed(0)
    layer, us = Resonators(together), jax.random.normal(jax.random.key(0), (steps, 3))
    weights = layer.states(brainstate.ParamState)

    def gradient(model, rows):
        return brainstate.transform.grad(lambda: sum((model(u) ** 2).sum() for u in rows), weights)()

    brainstate.nn.init_all_states(layer)
    exact = gradient(layer, us)
    brainstate.nn.init_all_states(layer)
    learner = braintrace.D_RTRL(layer)
    learner.compile_graph(us[0])
    online = jax.tree.map(lambda *parts: sum(parts), *(gradient(learner, [u]) for u in us))
    (a,), (b,) = ([g["weight"] for g in found.values()] for found in (online, exact))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b)), float(jnp.linalg.norm(a))


apart, together = error(False), error(True)
print(f"two arrays: relative error {apart[0]:.1e}; one array: {together[0]:.3f}, norm {together[1]}")
print("warned of:", [text for text in said if "race" in text or "gradient" in text])
assert braintrace.__version__ == "0.2.6"
assert apart[0] < 1e-5 and together == (1.0, 0.0)
assert not any("race" in text or "gradient" in text for text in said)
PYTHON
