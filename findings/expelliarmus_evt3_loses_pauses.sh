#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: a recording that expelliarmus writes and reads in EVT3, the format of current event cameras, has
# the times that it had: they are whole microseconds in order, and below the 16.7 s that 24 bits hold.
#
# Found: with expelliarmus 1.1.12 a pause is kept modulo 4096 microseconds: events at 0 and 5000 are read at
# 0 and 904, and all later ones are early by as much. The file itself has it: there is one word with the
# high part of the time, at the front. DAT and EVT2 keep the times, and so does EVT3 while no two events
# are more than 4095 apart. Nothing is said.
#
# Why it matters to people who train networks online: gestures, spoken digits and a small sensor at rest have
# pauses, and recordings are cut, cropped and written again. What is left has the right events in the right
# order, with time running faster where less happens: leaks and traces decay too little, and the delays
# that a task is about are gone. Write DAT or EVT2, and compare the last time with the one that was written.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check expelliarmus==1.1.12 numpy==2.4.6
"$folder/env/bin/python" - "$folder" <<'PYTHON'
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from expelliarmus import Wizard

assert version("expelliarmus") == "1.1.12"
KIND = [("t", "<i8"), ("x", "<i2"), ("y", "<i2"), ("p", "u1")]
ENDS = {"dat": "dat", "evt2": "raw", "evt3": "raw"}


def there_and_back(encoding, times):
    events = np.zeros(len(times), KIND)
    events["t"], events["x"], events["y"] = times, range(len(times)), 7
    path = Path(sys.argv[1], f"{encoding}.{ENDS[encoding]}")
    Wizard(encoding=encoding).save(fpath=path, arr=events)
    read = Wizard(encoding=encoding).read(path)
    assert all((read[field] == events[field]).all() for field in "xyp")
    return read["t"].tolist(), path.read_bytes()


pauses = {
    (0, 5000): (0, 904),
    (10, 20, 9000, 9001, 20000): (10, 20, 808, 809, 3616),
    (1000, 2000000): (1000, 1152),
    (0, 4000, 8000, 12000): (0, 4000, 8000, 12000),
}
for times, expected in pauses.items():
    for encoding in ("dat", "evt2"):
        assert tuple(there_and_back(encoding, times)[0]) == times
    found, content = there_and_back("evt3", times)
    while content.startswith(b"%"):
        content = content[content.index(b"\n") + 1 :]
    words = np.frombuffer(content, "<u2")
    high = int((words >> 12 == 0x8).sum())
    print(f"written {list(times)}: EVT3 reads {found}, with {high} word for the high part of times")
    assert tuple(found) == expected and high == 1
    assert all(b % 4096 == a % 4096 for a, b in zip(times, found))
PYTHON
