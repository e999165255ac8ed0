#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: an array carries its mesh, so that the gradient of a mean over examples that are divided among
# devices can be taken as on one device, compiled or not.
#
# Found: with jax 0.10.2, jax.make_mesh makes axes of the explicit kind. The mean is computed, its gradient
# is not: "Length of device assignment 1 is not equal to the size of the mesh 2", of a scalar that the
# derivative begins with. The same function under jax.jit, or inside of jax.set_mesh, has its gradient, and
# so has it on axes of the automatic kind.
#
# Why it matters to people who train networks online: a step that is tried by hand before it is compiled,
# and updates one after the other in a notebook, take gradients without jit. Put jax.set_mesh around them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
XLA_FLAGS=--xla_force_host_platform_device_count=2 JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import numpy as np

assert jax.__version__ == "0.10.2"


def trained_on(mesh):
    states = jax.device_put(jnp.ones((4, 3)), jax.NamedSharding(mesh, jax.P("data", None)))
    weight = jax.device_put(jnp.ones(3), jax.NamedSharding(mesh, jax.P()))
    return lambda w: (jnp.tanh(states * w) ** 2).mean(), weight


mesh = jax.make_mesh((2,), ("data",))
print("axes of jax.make_mesh:", mesh.axis_types)
assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
loss, weight = trained_on(mesh)
print("the loss:", loss(weight))
try:
    jax.grad(loss)(weight)
except ValueError as error:
    print("its gradient:", error)
else:
    raise SystemExit("the gradient is computed now")
compiled = jax.jit(jax.grad(loss))(weight)
with jax.set_mesh(mesh):
    assert np.allclose(jax.grad(loss)(weight), compiled)
loss, weight = trained_on(jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)))
assert np.allclose(jax.grad(loss)(weight), compiled)
print("compiled, with jax.set_mesh, and on automatic axes:", compiled)
PYTHON
