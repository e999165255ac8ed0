#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: a product of a brainevent.BinaryArray with a matrix has the gradient of what it computes: where
# a value counts as one spike, whatever its size, the gradient for the weights counts one, too.
#
# Found: with brainevent 0.2.1 the product takes every value above 0 for 1 and every other for 0, so a
# spike of -1 is lost; the derivative for the weights of a CSR matrix is that of the plain product with
# the values as they are, and not the one of the function that was computed. For spikes 2, 0.5 and 0 the
# product is linear in the weights with factors 1, 1, 0, and its gradient has 2, 0.5, 0.
#
# Why it matters to people who train networks online: graded spikes, scaled inputs and ternary (-1, 0,
# 1) events pass through the same call. The loss is that of binary ones while weights are trained for
# another network, and no step size mends that. Use plain arrays unless all values are 0 or 1.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check brainevent==0.2.1 jax==0.10.2 jaxlib==0.10.2 saiunit==0.5.2 numba==0.68.1
BRAINEVENT_CACHE_DIR=$folder/cache JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import brainevent
import jax
import jax.numpy as jnp
import numpy as np

assert brainevent.__version__ == "0.2.1"
matrix = brainevent.CSR.fromdense(jnp.arange(1.0, 13.0).reshape(3, 4))
graded = jnp.array([2.0, 0.5, 0.0])


def total(weights, spikes):
    csr = brainevent.CSR((weights, matrix.indices, matrix.indptr), shape=matrix.shape)
    return (brainevent.BinaryArray(spikes) @ csr).sum()


value = float(total(matrix.data, graded))
gradient = np.asarray(jax.grad(total)(matrix.data, graded)).reshape(3, 4)[:, 0]
step = (total(matrix.data.at[0].add(1.0), graded) - total(matrix.data, graded)).item()
negative = float(total(matrix.data, jnp.array([-1.0, 0.0, 0.0])))
print(f"spikes 2, 0.5, 0: {value}, of 36 for two ones; with a spike of -1: {negative}")
print(f"gradient for a weight of each row: {gradient}; difference in the first one: {step}")
assert value == float(total(matrix.data, jnp.array([1.0, 1.0, 0.0]))) == 36.0
assert negative == 0.0
assert step == 1.0 and gradient.tolist() == [2.0, 0.5, 0.0]
PYTHON
