#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: vmap_reset_all_states undoes what happened to states that vmap_init_all_states made: they are
# at their start again, one for each of the axis_size instances.
#
# Found: with brainstate 0.5.4 (and 0.6.0) a module whose reset_state writes a start value has a state
# of shape (4, 3) after vmap_init_all_states(axis_size=4) and of shape (3,) after
# vmap_reset_all_states(axis_size=4). There is no error; a later step broadcasts it.
#
# Why it matters to people who train networks online: several seeds or streams run as instances, and
# are reset between sequences. From the first reset on the state has the shape of one instance, and what
# reads the state of instance 2 reads neuron 2. Initialise the instances anew instead, or reset the
# states of one instance and broadcast them yourself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check brainstate==0.5.4 saiunit==0.5.2 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import brainstate
import jax.numpy as jnp

assert brainstate.__version__ == "0.5.4"


class Leak(brainstate.nn.Module):
    def init_state(self, batch_size=None, **kwargs):
        self.h = brainstate.HiddenState(jnp.zeros(3))

    def reset_state(self, batch_size=None, **kwargs):
        self.h.value = jnp.zeros(3)


leak = Leak()
brainstate.nn.vmap_init_all_states(leak, axis_size=4)
made = leak.h.value.shape
brainstate.nn.vmap_reset_all_states(leak, axis_size=4)
print(f"shape of the state of 4 instances: {made}; after their reset: {leak.h.value.shape}")
assert made == (4, 3) and leak.h.value.shape == (3,)
PYTHON
