#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: in a pipeline "scaler | model" of river, the model learns from the very features that it
# predicted from one call before.
#
# Found: with river 0.26.1 predict_one leaves the scaler alone and learn_one updates it first, so that
# the model is given two different inputs for each sample: for 0, 1, 2, 3 the model predicts from 0, 0,
# 3 and 2.45 and learns from 0, 1, 1.22 and 1.34.
#
# Why it matters to people who train networks online: a recurrent model that advances its state when it
# predicts and takes its gradient when it learns has the state of one input and the loss of another, and
# the second call may not be skipped as "seen already". Advance in learn_one alone, from what it is
# given, and treat predict_one as a look ahead that changes nothing; or scale inside of the model.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check river==0.26.1
"$folder/env/bin/python" - <<'PYTHON'
import river
from river import base, evaluate, metrics, preprocessing

assert river.__version__ == "0.26.1"


class Listener(base.Regressor):
    seen: dict[str, list[float]] = {"predicted from": [], "learnt from": []}

    def predict_one(self, x):
        self.seen["predicted from"].append(round(x["a"], 2))
        return 0.0

    def learn_one(self, x, y):
        self.seen["learnt from"].append(round(x["a"], 2))


samples = [({"a": float(i)}, 1.0) for i in range(4)]
model = preprocessing.StandardScaler() | Listener()
evaluate.progressive_val_score(samples, model, metrics.MAE())
for name, values in Listener.seen.items():
    print(f"{name} {values}")
assert Listener.seen["predicted from"] == [0.0, 0.0, 3.0, 2.45]
assert Listener.seen["learnt from"] == [0.0, 1.0, 1.22, 1.34]
PYTHON
