#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: io_callback with ordered=True runs once per step of a scan, whether a gradient is taken or not:
# it is the callback that JAX promises not to drop.
#
# Found: with jax 0.10.2 (and 0.12.0) it never runs in a scan under jax.grad, ordered or not, and
# nothing tells of it; without the gradient it runs 3 times in 3 steps, and jax.debug.callback does both
# times.
#
# Why it matters to people who train networks online: a monitor of spikes or an environment that is
# stepped from inside of the model is silent as soon as the same step is trained by backpropagation, so
# the comparison of online learning with BPTT is between two programs. Use jax.debug.callback to watch,
# and return from the scan what has to be written.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
from jax.experimental import io_callback

assert jax.__version__ == "0.10.2"


def calls(watch, transform):
    told = []

    def loss(weight):
        def body(h, x):
            h = jnp.tanh(weight * h + x)
            watch(told.append, jax.lax.stop_gradient(h))
            return h, None

        return jax.lax.scan(body, 0.0, jnp.arange(3.0))[0]

    jax.block_until_ready(jax.jit(transform(loss))(0.5))
    jax.effects_barrier()
    return len(told)


watches = {
    "io_callback, ordered": lambda f, h: io_callback(f, None, h, ordered=True),
    "io_callback": lambda f, h: io_callback(f, None, h),
    "debug.callback": lambda f, h: jax.debug.callback(f, h),
}
counts = {name: (calls(w, lambda f: f), calls(w, jax.grad)) for name, w in watches.items()}
print(f"calls in 3 steps, without and with a gradient: {counts}")
assert counts == {
    "io_callback, ordered": (3, 0),
    "io_callback": (3, 0),
    "debug.callback": (3, 3),
}
PYTHON
