#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: where a recurrent network has weights in bfloat16, its gradient by backpropagation through time is
# rounded to three digits: products are summed in float32, as in any product of matrices on such weights.
#
# Found: with jax 0.10.2 (and 0.12.0.1) the parts of a weight's gradient are added up from step to step in the
# dtype of the weight. Where each of 3000 steps gives 1, jax.grad of a scan gives 256 in bfloat16 and 2048 in
# float16: adding 1 no longer changes the sum. The same 3000 as a batch give 3008 and 3000. Compiled or not
# makes no difference.
#
# Why it matters to people who train networks online: this gradient is what online rules are compared with,
# and the longer the stream, the more of it is missing, with the right sign and a smooth loss. The first
# steps backward count and the others do not. Keep the weight in float32 and convert it inside of the step.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

assert jax.__version__ == "0.10.2"
STEPS, UNITS = 3000, 4
x = jnp.ones((STEPS, UNITS))


def loss(weight, inside):
    """The sum of what a layer gives in all steps; the weight is converted inside of each step."""

    def step(carry, x):
        return carry, (weight.astype(inside) @ x.astype(inside)).astype(jnp.float32).sum()

    return jax.lax.scan(step, 0.0, x)[1].sum()


def batched(weight):
    return jax.vmap(lambda x: weight @ x.astype(weight.dtype))(x).astype(jnp.float32).sum()


for half, stops, rounded in ((jnp.bfloat16, 256, 3008), (jnp.float16, 2048, 3000)):
    weight = jnp.ones((UNITS, UNITS), half)
    gradient = jax.grad(loss)
    scanned = gradient(weight, half)
    compiled = jax.jit(gradient, static_argnums=1)(weight, half)
    batch = jax.grad(batched)(weight)
    kept = gradient(weight.astype(jnp.float32), half)
    print(
        f"{weight.dtype}: scan {scanned[0, 0]}, compiled {compiled[0, 0]}, batch {batch[0, 0]}, "
        f"weight kept in float32 {kept[0, 0]}"
    )
    assert (scanned == stops).all() and (compiled == stops).all()
    assert (batch == rounded).all() and (kept == STEPS).all()
PYTHON
