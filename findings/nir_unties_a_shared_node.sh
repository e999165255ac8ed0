#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: a NIR graph that holds one node object under two names (a weight that two layers share) is
# still shared after it was written and read, or is refused; and nodes keep their order.
#
# Found: with nir 1.0.8 the node is written twice. What is read has two nodes of equal values, and
# nothing tells that they were one. Nodes come back in alphabetical order, whatever order they had.
#
# Why it matters to people who train networks online: a tied weight that goes to another simulator or
# back has two copies, which drift apart with the first update, and a list of parameters or of states
# of an optimizer that goes by the order of nodes is permuted. Tie by name after reading.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check nir==1.0.8
"$folder/env/bin/python" - "$folder/graph.nir" <<'PYTHON'
import sys

import nir
import numpy as np

shared = nir.Linear(np.eye(2))
nodes = {
    "input": nir.Input(np.array([2])),
    "second": shared,
    "first": shared,
    "output": nir.Output(np.array([2])),
}
edges = [("input", "second"), ("second", "first"), ("first", "output")]
graph = nir.NIRGraph(nodes, edges)
assert graph.nodes["first"] is graph.nodes["second"]
nir.write(sys.argv[1], graph)
read = nir.read(sys.argv[1])
first, second = read.nodes["first"], read.nodes["second"]
print(f"nir {nir.__version__}: written {list(graph.nodes)}, read {list(read.nodes)}")
print(f"one node before, one node after: {first is second}")
assert nir.__version__ == "1.0.8"
assert np.array_equal(first.weight, second.weight) and first is not second
assert not np.shares_memory(first.weight, second.weight)
assert list(graph.nodes) != list(read.nodes) == sorted(graph.nodes)
PYTHON
