#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: the gradients of single examples, jax.vmap of a gradient, are the same numbers when the examples
# are divided among devices: no example has to do with another, and nothing needs to be sent.
#
# Found: with jax 0.10.2 (and 0.12.0.1) on CPU devices, those of the kernel of a convolution are wrong, by 0.8
# to 1 of their size, on meshes of one axis and 2, 4 or 8 devices, with kernels of 2 and of 3. Nothing is said.
# The gradient of their sum, without vmap, is right on the same devices, and so is vmap on one device.
#
# Why it matters to people who train networks online: gradients of examples are what a trace holds, what
# clipping by example and rules with a reward for each example need, and what one looks at to see whether
# a batch agrees. A gradient made of them is wrong. Sum over examples first, or use jax.shard_map.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=8 "$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

assert jax.__version__ == "0.10.2"
B, LENGTH, CHANNELS = 8, 6, 4
axes = ("NWC", "WIO", "NWC")
mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def loss(kernel, x, y):
    out = jax.lax.conv_general_dilated(x[None], kernel, (1,), "SAME", dimension_numbers=axes)[0]
    return (out * y).sum()


for width in (2, 3):
    kernel = jnp.ones((width, CHANNELS, CHANNELS))
    data = [jax.random.normal(jax.random.key(k), (B, LENGTH, CHANNELS)) for k in (0, 1)]
    there = jax.device_put(data, jax.NamedSharding(mesh, jax.P("data")))
    each = jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0, 0)))
    summed = jax.jit(jax.grad(lambda k, x, y: jax.vmap(loss, (None, 0, 0))(k, x, y).sum()))
    by_hand = np.stack([jax.grad(loss)(kernel, x, y) for x, y in zip(*data)])

    def off(found, right):
        return float(np.linalg.norm(np.asarray(found) - right) / np.linalg.norm(right))

    one, divided = off(each(kernel, *data), by_hand), off(each(kernel, *there), by_hand)
    total = off(summed(kernel, *there), by_hand.sum(0))
    print(f"width {width}: relative error {one:.1e} on one device, {divided:.2f} on eight, sum {total:.1e}")
    assert one < 1e-5 and total < 1e-5 and divided > 0.8
PYTHON
