# SPDX-License-Identifier: Apache-2.0
"""What a gradient takes in memory, for sequences of several lengths and beside its largest array.

Two measurements: XLA's analysis of the program, and the peak resident memory of a process while the
program runs, above what it held just before. Sequences are left out of both. Programs may write new
states over the old ones, as a learner's own drivers do.
"""

from __future__ import annotations

import json
import re
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .processes import run_json, variables
from .settings import BPTT, DEFAULT, FRESH, Contender, Sizes

BLOCK = 50
LENGTHS = (100, 1000)
GROWTH = {
    "gru": Sizes(0, 16, 64, 256),
    "lif": Sizes(0, 16, 64, 256),
    "stack": Sizes(0, 16, 64, 128),
}
#: Models whose traces have an entry per parameter and position. A gradient has no need of such an
#: array; over few steps nothing else in it is as large.
SPACE = {"conv": Sizes(50, 16, 2, 16), "lora": Sizes(100, 16, 64, 512)}
SHORT_LENGTHS, SHORT_BLOCK = (8, 16), 4
BLOCKED = Contender("D-RTRL, fixed block", "sequence", block=BLOCK)
FEW = 4


def measure(python: Path, short: bool = False) -> dict[str, Any]:
    """Bytes of programs and processes.

    Returns
    -------
    dict
        ``growth``: by model and length, ``program`` and ``resident`` bytes;
        ``space``: by model and contender those bytes, and under ``few`` those of the gradient over
        few steps, with its ``temporary`` bytes and those of the largest ``trace``.
    """

    def ask(one: Contender, name: str, sizes: Sizes) -> Any:
        return run_json(python, "_bench.memory", one, name, sizes, env=variables(python))

    lengths = SHORT_LENGTHS if short else LENGTHS
    blocked = BLOCKED._replace(block=SHORT_BLOCK) if short else BLOCKED
    growth = {
        name: {t: ask(blocked, name, sizes._replace(steps=t)) for t in lengths}
        for name, sizes in (list(GROWTH.items())[:1] if short else GROWTH.items())
    }
    space = {
        name: {
            **{one.name: ask(one, name, sizes) for one in (DEFAULT, FRESH, BPTT)},
            "few": ask(FRESH, name, sizes._replace(steps=FEW)),
        }
        for name, sizes in ({} if short else SPACE).items()
    }
    return {"growth": growth, "space": space}


# --- in the process that is measured -------------------------------------------------------------


def bytes_of(contender: Sequence[Any], name: str, sizes: Sequence[int]) -> dict[str, int]:
    """Bytes of a program and of its process while it runs, without the sequences."""
    from .cases import sequences
    from .counting import traces_of
    from .programs import program_of

    one, chosen = Contender(*contender), Sizes(*sizes)
    data = sequences(name, chosen)
    program = program_of(one, name, chosen, donated=True)
    compiled = program.compile(data)
    program.reset()
    before = resident()
    with Peak() as peak:
        program.execute(data)
    return {
        "program": int(compiled["bytes"]) - sum(part.nbytes for part in data),
        "temporary": int(compiled["temporary"]),
        "resident": max(0, peak.bytes - before),
        "trace": max(traces_of(name, chosen)),
    }


def resident() -> int:
    """Bytes of memory that the process has now; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return 1024 * int(found[1]) if found else 0


class Peak:
    """The most memory that the process has inside a block, looked at every millisecond."""

    def __enter__(self) -> Peak:
        self.bytes, self.done = resident(), threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    def _watch(self) -> None:
        while not self.done.is_set():
            self.bytes = max(self.bytes, resident())
            time.sleep(1e-3)

    def __exit__(self, *_: object) -> None:
        self.done.set()
        self.thread.join()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(json.dumps(bytes_of(*json.loads(sys.argv[1]))))
