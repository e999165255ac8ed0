#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: an estimator of river can have any value as a parameter, since clone hands over what the
# constructor was given.
#
# Found: with river 0.26.1, clone of an estimator with an empty tuple among its parameters raises
# IndexError. A tuple is looked at for a class in front, as its first item, without a look at its length.
# Tuples with something in them are handed over.
#
# Why it matters to people who train networks online: river is where streams and prequential evaluation
# are, and ensembles, model selection and its own checks clone what they are given. Sizes of hidden layers
# are tuples, and a network without hidden layers has none: take None for nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check river==0.26.1
"$folder/env/bin/python" - <<'PYTHON'
import river
from river import base

assert river.__version__ == "0.26.1"


class Network(base.Regressor):
    def __init__(self, hidden=()):
        self.hidden = hidden

    def learn_one(self, x, y):
        pass

    def predict_one(self, x):
        return 0.0


assert Network((8,)).clone().hidden == (8,)
try:
    Network().clone()
except IndexError as error:
    print(f"hidden=(): IndexError: {error}")
else:
    raise SystemExit("an empty tuple is handed over now")
PYTHON
