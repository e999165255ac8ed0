#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: the type that a NIR convolution says of its output has the height and the width of the output.
#
# Found: with nir 1.0.8, a Conv2d with a kernel of 3 x 1 on 5 x 5 says 3 x 3; the output is 3 x 5. The
# first length of the kernel is taken for both axes. A graph with the right shapes is refused when it is
# made, and one with the wrong shapes passes.
#
# Why it matters to people who train networks online: kernels along one axis (time, frequency) are usual
# for audio and event data. A reader of such a graph has to compute shapes from the weights, and not
# from output_type.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check nir==1.0.8 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
from importlib.metadata import version

import nir
import numpy as np

assert version("nir") == "1.0.8"
conv = nir.Conv2d((5, 5), np.ones((2, 2, 3, 1)), 1, 0, 1, 1, np.ones(2))
said = conv.output_type["output"].tolist()
print(f"kernel {conv.weight.shape[2:]}, input (5, 5): says {said}, is [2, 3, 5]")
assert said == [2, 3, 3]


def graph(shape):
    nodes = {
        "input": nir.Input({"input": np.array([2, 5, 5])}),
        "conv": conv,
        "output": nir.Output({"output": np.array(shape)}),
    }
    return nir.NIRGraph(nodes, [("input", "conv"), ("conv", "output")])


graph([2, 3, 3])
try:
    graph([2, 3, 5])
except ValueError as error:
    print(f"the right shape: ValueError: {error}")
else:
    raise SystemExit("the right shape is taken now")
PYTHON
