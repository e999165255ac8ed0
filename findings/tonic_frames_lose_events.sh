#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: the frames that ToFrame makes of a recording hold all of its events: their sum is the number of
# events, whatever their order, and the two polarities -1 and +1 have a channel each.
#
# Found: with tonic 1.7.0
#   - n_time_bins=10 of 50 events at t = 0 .. 49 has bins of 4 and drops the 10 last events; one event
#     at the end of the recording is always lost;
#   - counts are int16 and wrap: 70000 events in one pixel and bin are 4464;
#   - polarities -1 and +1 both fall into channel 1 (an index of -1 counts from the end);
#   - events that are not sorted by time give a frame that lacks most of them.
# None of these says a word.
#
# Why it matters to people who train networks online: the last frames of a stream carry the loss at the
# last step, and a long bin of a busy pixel is a negative input. Sort by time, map polarities to 0 and
# 1, give time_window with include_incomplete=True, and compare the sum with the number of events.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check tonic==1.7.0
"$folder/env/bin/python" - <<'PYTHON'
from importlib.metadata import version

import numpy as np
from tonic.transforms import ToFrame

assert version("tonic") == "1.7.0"
kind = np.dtype([("x", int), ("y", int), ("t", int), ("p", int)])


def recording(times, polarities=0):
    events = np.zeros(len(times), kind)
    events["t"], events["p"] = times, polarities
    return events


def frames(events, **bins):
    return ToFrame(sensor_size=(1, 1, 2), **bins)(events)


kept = int(frames(recording(np.arange(50)), n_time_bins=10).sum())
whole = frames(recording(np.arange(50)), time_window=4, include_incomplete=True)
busy = frames(recording(np.arange(70_000)), time_window=100_000)
signs = np.where(np.arange(100) % 2, 1, -1)
channels = frames(recording(np.arange(100), signs), time_window=1000).ravel().tolist()
mixed = int(frames(recording(np.arange(100)[::-1]), time_window=25, include_incomplete=True).sum())
print(f"50 events in 10 bins: {kept} kept; in windows with the last one: {whole.sum()}")
print(f"70000 events in one bin: {busy.ravel().tolist()}, {busy.dtype}")
print(f"50 events of polarity -1 and 50 of +1: channels {channels}")
print(f"100 events in the wrong order, in windows of 25: {mixed} kept")
assert kept < 50 == int(whole.sum())
assert busy.dtype == np.int16 and int(busy.sum()) == 70_000 - 2**16
assert channels == [0, 100]
assert mixed < 100
PYTHON
