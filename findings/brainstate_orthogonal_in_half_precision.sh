#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: an initializer of brainstate that is given a dtype makes an array of that dtype, as
# jax.nn.initializers.orthogonal does in float32.
#
# Found: with brainstate 0.5.4 and jax 0.10.2, brainstate.nn.init.Orthogonal, the default of recurrent
# weights in several cells, raises NotImplementedError for bfloat16 and float16: it draws and
# factorises in that dtype, and there is no QR in 16 bits. Other initializers take both.
#
# Why it matters to people who train networks online: half precision is how larger recurrent networks fit
# a device, and recurrent weights are made orthogonal because gradients over long times depend on it.
# Make them in float32 and convert.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    jax==0.10.2 jaxlib==0.10.2 brainstate==0.5.4
JAX_PLATFORMS=cpu HOME="$folder" "$folder/env/bin/python" - <<'PYTHON'
import brainstate
import jax

assert (brainstate.__version__, jax.__version__) == ("0.5.4", "0.10.2")
init = brainstate.nn.init
assert init.Orthogonal()((4, 4), dtype="float32").dtype == "float32"
for dtype in ("bfloat16", "float16"):
    assert init.KaimingNormal()((4, 4), dtype=dtype).dtype == dtype
    try:
        init.Orthogonal()((4, 4), dtype=dtype)
    except NotImplementedError as error:
        print(f"{dtype}: NotImplementedError: {error}")
    else:
        raise SystemExit(f"{dtype} is made now")
PYTHON
