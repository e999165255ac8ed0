#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: progressive_val_score counts a sample for which a classifier gives no prediction as a mistake,
# or refuses it: scores of two models on one stream are over the same samples.
#
# Found: with river 0.26.1 such samples are left out. A model that says "True" at every second sample
# and nothing at the others has an accuracy of 100 % over 500 of 1000 samples; the same model that
# always says "True" has 50 % over 1000. (Accuracy.update(y, None) itself does count a mistake.)
#
# Why it matters to people who train networks online: a network that waits for its window to fill, or
# abstains until the first spike, is scored on the easy part of the stream. Report the number of samples
# (metric.cm.n_samples) beside a prequential score, or predict a prior instead of nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check river==0.26.1
"$folder/env/bin/python" - <<'PYTHON'
import river
from river import base, evaluate, metrics

assert river.__version__ == "0.26.1"


class Always(base.Classifier):
    calls = 0

    def learn_one(self, x, y):
        self.calls += 1

    def predict_proba_one(self, x):
        return {True: 1.0}


class Abstains(Always):
    def predict_proba_one(self, x):
        return {True: 1.0} if self.calls % 2 else {}


scores = {}
for kind in (Always, Abstains):
    metric = metrics.Accuracy()
    evaluate.progressive_val_score([({"a": i}, i % 2 == 1) for i in range(1000)], kind(), metric)
    scores[kind.__name__] = metric.get(), metric.cm.n_samples
told = metrics.Accuracy()
told.update(True, None)
print(f"accuracy and samples: {scores}; a prediction of None given by hand: {told.get()}")
assert scores == {"Always": (0.5, 1000), "Abstains": (1.0, 500)}
assert told.get() == 0.0 and told.cm.n_samples == 1
PYTHON
