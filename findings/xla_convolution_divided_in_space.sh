#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: where arrays lie on devices changes the speed of a compiled program, and not its numbers.
#
# Found: with jax 0.10.2 (and 0.12.0.1) on CPU devices, the derivative of a convolution by its kernel is
# wrong, of the size of the derivative itself, where the positions in space are divided along one axis of
# a mesh that has a second axis. Nothing is said. The forward pass is right, and so is the derivative
# with examples or channels divided, or on a mesh of one axis.
#
# Why it matters to people who train networks online: convolutional networks on long streams are divided
# when they outgrow a device, and a gradient of the wrong size still lowers a loss for a while. Divide
# examples or channels, or compare one gradient with that of one device.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

assert jax.__version__ == "0.10.2"
jax.config.update("jax_num_cpu_devices", 4)
draw = np.random.default_rng(0).normal
x, dy, kernel = (draw(size=s).astype("f") for s in ((8, 8, 2), (8, 8, 2), (3, 2, 2)))


def convolve(x, kernel):
    layout = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=layout)


@jax.jit
def both(x, kernel, dy):
    y, pull = jax.vjp(lambda kernel: convolve(x, kernel), kernel)
    return y, pull(dy)[0]


def error(sizes, names, where):
    """The relative errors of the convolution and of its derivative, beside one device."""
    mesh = jax.make_mesh(sizes, names, axis_types=(AxisType.Auto,) * len(names))
    put = lambda v, spec: jax.device_put(v, NamedSharding(mesh, spec))
    divided = both(put(x, where), put(kernel, PartitionSpec()), put(dy, where))
    pairs = zip(divided, both(x, kernel, dy), strict=True)
    return [float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in pairs]


in_space = PartitionSpec(None, "b")
wrong = error((2, 2), ("a", "b"), in_space)
right = [error((4,), ("b",), in_space), error((2, 2), ("a", "b"), PartitionSpec("b"))]
print("in space, two axes (forward, derivative):", wrong, "otherwise:", right)
assert max(map(max, right)) < 1e-5 and wrong[0] < 1e-5
assert wrong[1] > 0.1
PYTHON
