# SPDX-License-Identifier: Apache-2.0
"""A progress bar for sequences that run as one compiled program."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

import jax

WIDTH = 40
UPDATES = 100


@dataclass(frozen=True)
class Progress:
    """Shows how many of ``total`` parts of a loop are done, on standard error.

    The loop calls :meth:`advance` with the number of the part and with something that the part
    computed, so that it is shown when the part is done. Under ``jit`` and ``scan`` that leaves a
    call to the host in the program, about a hundred in all.
    """

    total: int

    def advance(self, number: Any, result: Any) -> None:
        """Part ``number`` (from 0) is done."""
        result = jax.tree.leaves(result)[:1]
        every = max(1, self.total // UPDATES)
        shown = (number % every == 0) | (number == self.total - 1)

        def call(number: Any, result: Any) -> None:
            jax.debug.callback(self.show, number, result)

        jax.lax.cond(shown, call, lambda number, result: None, number, result)

    def show(self, number: Any, result: Any = None) -> None:
        """Draw the bar."""
        done = int(number) + 1
        filled = WIDTH * done // self.total
        end = "\n" if done == self.total else ""
        bar = "#" * filled + "." * (WIDTH - filled)
        print(f"\r[{bar}] {done}/{self.total}", end=end, file=sys.stderr, flush=True)
