#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: a graph that nir.write has written is one that nir.read reads.
#
# Found: with nir 1.0.8, a convolution with groups whose input shape is left open is written without a
# word. nir.read raises ValueError: it takes the weight's number of channels, which is that of one group,
# for the number of channels of the input.
#
# Why it matters to people who train networks online: depthwise layers are what fits small and
# neuromorphic devices, and the file is where a trained network leaves the library. Read a file back
# before the network that it came from is gone.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    nir==1.0.8 h5py==3.15.1 numpy==2.4.6
"$folder/env/bin/python" - "$folder" <<'PYTHON'
import sys
from importlib.metadata import version

import nir
import numpy as np

assert version("nir") == "1.0.8"


def graph(groups):
    weight = np.ones((4, 4 // groups, 3, 3))
    nodes = {
        "input": nir.Input({"input": np.array([4, 5, 5])}),
        "conv": nir.Conv2d(None, weight, 1, 0, 1, groups, np.ones(4)),
        "output": nir.Output({"output": np.array([4, 3, 3])}),
    }
    return nir.NIRGraph(nodes, [("input", "conv"), ("conv", "output")])


path = f"{sys.argv[1]}/graph.nir"
nir.write(path, graph(1))
nir.read(path)
nir.write(path, graph(4))
try:
    nir.read(path)
except ValueError as error:
    print(f"four groups: ValueError: {error}")
    assert "type mismatch" in str(error)
else:
    raise SystemExit("a convolution with groups is read now")
PYTHON
