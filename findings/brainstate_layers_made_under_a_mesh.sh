#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: with a mesh of two devices set for the program, a layer can be made as without one; its
# parameters are plain arrays, to be placed afterwards.
#
# Found: with brainstate 0.5.4 on jax 0.10.2 (and 0.6.0 on 0.12.0) the constructor of nn.Linear raises
# "ordered effects are not supported for more than 1 device" inside of jax.set_mesh, whatever the axes.
# With explicit axes random numbers of brainstate.random raise as well, because the state that holds the
# key was made outside of the mesh, and so does nn.GRUCell; jax.random does not.
#
# Why it matters to people who train networks online: a program for one device does not become one for
# several by setting a mesh on top. Make the model first, and set the mesh, or place the arrays,
# afterwards.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check brainstate==0.5.4 saiunit==0.5.2 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu XLA_FLAGS=--xla_force_host_platform_device_count=2 "$folder/env/bin/python" - <<'PYTHON'
import brainstate
import jax
from jax.sharding import AxisType

assert (brainstate.__version__, jax.__version__) == ("0.5.4", "0.10.2")
WHAT = {
    "Linear": lambda: brainstate.nn.Linear(3, 2),
    "GRUCell": lambda: brainstate.nn.GRUCell(3, 2),
    "brainstate.random": lambda: brainstate.random.normal(0.0, 1.0, (2,)),
    "jax.random": lambda: jax.random.normal(jax.random.key(0), (2,)),
}


def outcome(make, kind):
    mesh = jax.make_mesh((2,), ("data",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        try:
            make()
        except ValueError as error:
            return "effects" if "ordered effects" in str(error) else "another mesh"
    return "made"


found = {kind.name: {name: outcome(f, kind) for name, f in WHAT.items()} for kind in (AxisType.Auto, AxisType.Explicit)}
print(found)
made = dict.fromkeys(WHAT, "made")
assert found["Auto"] == {**made, "Linear": "effects"}
assert found["Explicit"] == {**made, "Linear": "effects", "GRUCell": "another mesh", "brainstate.random": "another mesh"}
PYTHON
