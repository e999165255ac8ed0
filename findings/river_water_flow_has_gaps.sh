#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: river's WaterFlow, "hourly measurements", has one row an hour, so that the place in the series
# is the time and 24 rows back is the same hour of the day before.
#
# Found: in river 0.26.1 ten of its 1267 steps are longer than an hour: three of 2 hours, and one each
# of 4, 7, 11, 16, 22, 23 and 32 hours. There is no row and no NaN for what is missing, and nothing tells of it.
#
# Why it matters to people who train networks online: a recurrent network takes a row for a step, so
# after each gap its phase of the day is off by as much, and a seasonal baseline of lag 24 compares
# different hours. Give the network the hour as an input, hold its leak by the length of the step, or
# reset it at gaps; and say which when comparing prequential errors.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check river==0.26.1
"$folder/env/bin/python" - <<'PYTHON'
import datetime
from collections import Counter

import river
from river import datasets

assert river.__version__ == "0.26.1"
times = [features["Time"] for features, _ in datasets.WaterFlow()]
steps = Counter(late - early for early, late in zip(times, times[1:]))
hours = {step / datetime.timedelta(hours=1): count for step, count in sorted(steps.items())}
print(f"{len(times)} rows; hours from one to the next, and how often: {hours}")
assert len(times) == 1268
assert hours.pop(1.0) == 1257
assert hours == {2.0: 3, 4.0: 1, 7.0: 1, 11.0: 1, 16.0: 1, 22.0: 1, 23.0: 1, 32.0: 1}
PYTHON
