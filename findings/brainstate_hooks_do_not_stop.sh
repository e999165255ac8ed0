#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: a hook that raises in front of a write of a state stops the write, and the caller sees the
# error; and a clone of a module has hooks of its own.
#
# Found: with brainstate 0.5.4 (and 0.6.0) the error of a "write_before" or "write_after" hook is
# a warning, and the write happens. With 0.5.4 a clone made by brainstate.graph.clone shares the hooks of the
# original (0.6.0 does not): writes to the clone call the hooks that were put on the original.
#
# Why it matters to people who train networks online: a hook is the natural place for a guard against
# values that are not finite, and a training on an endless stream goes on with them; and a copy that
# evaluates between updates counts as the original. Check values in the step itself.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check brainstate==0.5.4 saiunit==0.5.2 jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PYTHON'
import warnings

import brainstate
import jax.numpy as jnp

assert brainstate.__version__ == "0.5.4"
warnings.simplefilter("ignore")


def refuse(context):
    raise ValueError("not finite")


written = {}
for place in ("write_before", "write_after"):
    state = brainstate.HiddenState(jnp.zeros(2))
    state.register_hook(place, refuse)
    state.value = jnp.full(2, jnp.nan)
    written[place] = state.value.tolist()


class Holder(brainstate.nn.Module):
    def __init__(self):
        super().__init__()
        self.h = brainstate.HiddenState(jnp.zeros(2))


calls = []
holder = Holder()
holder.h.register_hook("write_after", lambda context: calls.append(context))
brainstate.graph.clone(holder).h.value = jnp.ones(2)
print(f"values behind hooks that refuse: {written}; calls by a write to the clone: {len(calls)}")
assert all(str(value) == "[nan, nan]" for value in written.values())
assert len(calls) == 1 and holder.h.value.tolist() == [0.0, 0.0]
PYTHON
