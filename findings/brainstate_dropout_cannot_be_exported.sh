#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: a network of arrays and random numbers alone can be written as a program by jax.export.
#
# Found: with brainstate 0.5.4 and jax 0.10.2, one with an active brainstate.nn.Dropout cannot:
# NotImplementedError, serialization of host_callbacks is not yet implemented. Its random draw holds a
# check of its probability, which calls the host. With fit=False the same network is written, and so is
# dropout by jax.random.bernoulli.
#
# Why it matters to people who train networks online: a device that goes on learning where it is used runs
# an exported training step, with its noise. Draw from jax.random with a key that is an argument.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 brainstate==0.5.4 flatbuffers==25.12.19
JAX_PLATFORMS=cpu HOME="$folder" "$folder/env/bin/python" - <<'PYTHON'
import brainstate
import jax
import jax.numpy as jnp

assert (brainstate.__version__, jax.__version__) == ("0.5.4", "0.10.2")
x, layer = jnp.ones((2, 3)), brainstate.nn.Dropout(0.5)


def written(fit):
    """The size of the exported layer."""
    with brainstate.environ.context(fit=fit):
        program = brainstate.transform.StatefulFunction(layer, return_only_write=False)
        program.make_jaxpr(x)
        values = [state.value for state in program.get_states(x)]
        return len(jax.export.export(jax.jit(program.jaxpr_call))(values, x).serialize())


def own(key, x):
    return jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x / 0.5, 0.0)


jax.export.export(jax.jit(own))(jax.random.PRNGKey(0), x).serialize()
print("at rest:", written(False), "bytes")
try:
    written(True)
except NotImplementedError as error:
    print(f"active: NotImplementedError: {error}")
    assert "host_callbacks" in str(error)
else:
    raise SystemExit("an active Dropout is written now")
PYTHON
