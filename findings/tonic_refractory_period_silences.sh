#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: RefractoryPeriod(delta) does what a refractory period of a neuron does: after an event that got
# through, those of the same pixel within delta are dropped, and the next one gets through. Of events
# every 10 with a period of 15, every second one is left.
#
# Found: with tonic 1.7.0 a dropped event starts the period anew. Of events every 10 with a period of 15
# none but the first is left, and not that one if it is at t = 0, where a period is taken to end. The two
# polarities of a pixel have one period in common. A pixel that fires faster than 1 / delta is silent.
#
# Why it matters to people who train networks online: the transform is put in front of a network to limit
# rates, and it removes the busiest channels as a whole, so that the strongest input is none. Nothing is
# said, and slow channels are as one expects them. Limit rates in the network, or in a loop of one's own.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check tonic==1.7.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
from tonic import io, transforms

assert version("tonic") == "1.7.0"
PERIOD = 15


def events(times, polarity=0):
    zeros = np.zeros(len(times), int)
    return io.make_structured_array(zeros, zeros, times, zeros + polarity)


def by_tonic(recording):
    return transforms.RefractoryPeriod(delta=PERIOD)(recording)["t"].tolist()


def of_a_neuron(times):
    kept = []
    for t in times:
        if not kept or t - kept[-1] > PERIOD:
            kept.append(t)
    return kept


for name, times in {
    "every 10": list(range(100, 200, 10)),
    "every 20": list(range(100, 200, 20)),
    "every 10 from 0": list(range(0, 100, 10)),
    "three in a burst": [100, 110, 120],
}.items():
    found, expected = by_tonic(events(times)), of_a_neuron(times)
    print(f"{name}, period {PERIOD}: a neuron keeps {expected}, tonic {found}")
    assert len(expected) >= 2
    assert found == {"every 20": times, "every 10 from 0": []}.get(name, [100])
both = events([100, 110], np.array([0, 1]))
print(f"one event of each polarity, 10 apart: {by_tonic(both)}")
assert by_tonic(both) == [100]
PYTHON
