#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: where JAX was told to compute in 64 bits, by its configuration or by JAX_ENABLE_X64, importing a
# library leaves that as it is.
#
# Found: with brainstate 0.5.4 and jax 0.10.2, import brainstate turns 64 bits off: arrays made before
# are float64, those made after are float32. brainstate 0.6.0 leaves the setting alone. With 0.5.4,
# brainstate.environ.set(precision=64) turns it on again.
#
# Why it matters to people who train networks online: gradients of online rules are compared with those
# of backpropagation in float64, and a difference of 1e-7 then looks like an error of the rule. Long
# streams sum up in float32 where double was asked for.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 brainstate==0.5.4
JAX_PLATFORMS=cpu JAX_ENABLE_X64=1 HOME="$folder" "$folder/env/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

jax.config.update("jax_enable_x64", True)
before = jnp.ones(1).dtype
import brainstate

assert (brainstate.__version__, jax.__version__) == ("0.5.4", "0.10.2")
after = jnp.ones(1).dtype
print(f"before the import {before}, after it {after}")
assert (before, after) == ("float64", "float32")
brainstate.environ.set(precision=64)
assert jnp.ones(1).dtype == "float64"
PYTHON
