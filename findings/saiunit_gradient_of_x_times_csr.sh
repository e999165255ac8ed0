#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: where a product is right, and its forward derivative is right, its gradient is right too, as
# both come from one rule: jax.grad through x @ CSR gives the gradient of the stored values.
#
# Found: with saiunit 0.5.2 on jax 0.10.2 the values and jax.jvp of x @ CSR(data) agree with the dense
# product to round-off, and jax.grad with respect to data does not; no error, no warning. CSR @ y is
# right in all three. (saiunit 0.6.0 on jax 0.12.0 is right.)
#
# Why it matters to people who train networks online: a sparse recurrent layer multiplies from the
# left, h @ W. Its weights then learn from a wrong gradient while the loss still falls. Use the
# transposed product, check a gradient against a dense one once, or an operation with a rule of its own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    saiunit==0.5.2 jax==0.10.2 jaxlib==0.10.2
"$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp
import saiunit

data = jnp.array([0.5, -1.0, 2.0, 0.3, 1.5])
columns, starts, shape = jnp.array([0, 2, 1, 0, 3]), jnp.array([0, 2, 3, 5]), (3, 4)
rows = jnp.array([0, 0, 1, 2, 2])
x, y = jnp.array([1.0, -2.0, 0.7]), jnp.array([0.2, 1.0, -0.4, 0.9])


def sparse(values):
    return saiunit.sparse.CSR((values, columns, starts), shape=shape)


def dense(values):
    return jnp.zeros(shape).at[rows, columns].set(values)


def errors(product):
    """Of the value, the forward derivative and the gradient of a sum of sines."""

    def loss(matrix):
        return lambda values: jnp.sin(product(matrix(values))).sum()

    ones = (jnp.ones_like(data),)
    value = jnp.abs(product(sparse(data)) - product(dense(data))).max()
    forward = jnp.abs(
        jax.jvp(loss(sparse), (data,), ones)[1] - jax.jvp(loss(dense), (data,), ones)[1]
    )
    gradient = jnp.abs(jax.grad(loss(sparse))(data) - jax.grad(loss(dense))(data)).max()
    return [float(value), float(forward), float(gradient)]


left, right = errors(lambda matrix: x @ matrix), errors(lambda matrix: matrix @ y)
print(f"saiunit {saiunit.__version__}, jax {jax.__version__}")
print(f"x @ CSR: errors of value, jvp, grad {left}")
print(f"CSR @ y: errors of value, jvp, grad {right}")
assert (saiunit.__version__, jax.__version__) == ("0.5.2", "0.10.2")
assert max(left[:2]) < 1e-5 and left[2] > 0.01, left
assert max(right) < 1e-5, right
PYTHON
