#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: a function with a surrogate derivative (jax.custom_jvp) that has a branch inside is
# differentiated for a batch as it is for one example; vmap makes a select of the branch.
#
# Found: with jax 0.10.2 (and 0.12.0), where the derivative rule holds a lax.cond, jax.grad of the
# function under vmap over the condition raises NotImplementedError: a transpose rule of stop_gradient
# is missing. For one example it has the right gradient, and so has the batch without custom_jvp.
#
# Why it matters to people who train networks online: spikes are functions with a surrogate
# derivative, and a refractory period or an episode's end is a branch. Such a neuron trains alone and
# fails in a batch. Write jnp.where in derivative rules.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

assert jax.__version__ == "0.10.2"


def plain(silent, v):
    return jax.lax.cond(silent, lambda v: v, jnp.tanh, v)


surrogate = jax.custom_jvp(plain)
surrogate.defjvp(lambda values, tangents: jax.jvp(plain, values, tangents))
silent, v = jnp.array([True, False]), jnp.ones((2, 3))


def gradient(function):
    return jax.grad(lambda v: jax.vmap(function)(silent, v).sum())(v)


one = jax.grad(lambda v: surrogate(False, v).sum())(v[1])
assert jnp.allclose(one, gradient(plain)[1])
try:
    gradient(surrogate)
except NotImplementedError as error:
    print(f"one example: {one.tolist()}; a batch: {error}")
    assert "stop_gradient" in str(error)
else:
    raise SystemExit("a batch has a gradient now")
PYTHON
