#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: what safetensors.flax.save_file has written, safetensors.flax.load_file reads.
#
# Found: with safetensors 0.8.0 and jax 0.10.2, arrays in float8_e4m3fn and float8_e5m2 are written
# without a word, and reading them raises AttributeError: module 'numpy' has no attribute
# 'float8_e4m3fn'. bfloat16 comes back. The bytes are there: the safe_open of the same package shows
# the dtype F8_E4M3.
#
# Why it matters to people who train networks online: weights and traces in 8 bits are what is exported
# to small and neuromorphic devices. A file of a long run is found unreadable when it is needed. Write
# such arrays as unsigned integers of the same bits (jax.lax.bitcast_convert_type) and keep the dtype in
# the file's metadata.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 safetensors==0.8.0
JAX_PLATFORMS=cpu "$folder/env/bin/python" - "$folder" <<'PYTHON'
import sys

import jax
import jax.numpy as jnp
import safetensors
from safetensors.flax import load_file, save_file

assert (jax.__version__, safetensors.__version__) == ("0.10.2", "0.8.0")
path = f"{sys.argv[1]}/weights.safetensors"
values = jnp.array([1.0, -0.5, 2.0])
save_file({"w": values.astype("bfloat16")}, path)
assert (load_file(path)["w"].astype("float32") == values).all()
for dtype in (jnp.float8_e4m3fn, jnp.float8_e5m2):
    save_file({"w": values.astype(dtype)}, path)
    with safetensors.safe_open(path, "flax") as file:
        stored = file.get_slice("w").get_dtype()
    try:
        load_file(path)
    except AttributeError as error:
        print(f"written as {stored}; read: AttributeError: {error}")
    else:
        raise SystemExit(f"{stored} is read now")
PYTHON
