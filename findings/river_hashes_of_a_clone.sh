#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: the hashing trick has no state, so that two hashers of the same size, a hasher and its clone at
# least, put a feature into the same place, as those of scikit-learn do.
#
# Found: river 0.26.1's FeatureHasher draws a seed when none is given, one for each instance. A clone, and a
# hasher that another program makes in the same words, puts the same feature elsewhere and gives it another
# sign. A copy (copy.deepcopy, pickle) keeps the seed.
#
# Why it matters to people who train networks online: a network that goes on with the weights of yesterday
# behind a hasher of today reads its inputs in another order, and nothing tells so; scores differ from run to
# run although the network has a seed. Give the hasher a seed, or keep the pipeline as a whole.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check river==0.26.1 scikit-learn==1.9.1
"$folder/env/bin/python" - <<'PYTHON'
import copy

import river
from river.preprocessing import FeatureHasher
from sklearn.feature_extraction import FeatureHasher as OfSklearn

assert river.__version__ == "0.26.1"
names = {f"sensor {k}": 1.0 + k for k in range(6)}  # values tell the features apart
drawn = FeatureHasher(n_features=1024)
places = [drawn.transform_one(names), drawn.clone().transform_one(names)]
print("a hasher and its clone:", *map(dict, places), sep="\n  ")
assert set(places[0]) != set(places[1]), "a clone hashes alike now"
assert copy.deepcopy(drawn).transform_one(names) == places[0]
seeded = FeatureHasher(n_features=1024, seed=0)
assert seeded.clone().transform_one(names) == seeded.transform_one(names)
one, other = (OfSklearn(n_features=1024).transform([names]).toarray() for _ in range(2))
assert (one == other).all()
PYTHON
