# SPDX-License-Identifier: Apache-2.0
"""A progress bar without dependencies: redrawn in a terminal, plain lines everywhere else."""

from __future__ import annotations

import shutil
import sys
import time
from types import TracebackType
from typing import TextIO

WIDTH = 24
PLAIN_LINES = 5


class Progress:
    """Shows how far a loop of ``total`` rounds has come.

    In a terminal one line is redrawn after every round; in a file or a pipe about five plain
    lines are written in all.

    Example
    -------
    >>> with Progress("GRU", total=2) as progress:
    ...     progress.advance("loss 0.5")
    ...     progress.advance("loss 0.1")
    """

    def __init__(self, label: str, total: int, stream: TextIO | None = None) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self.stream = sys.stderr if stream is None else stream
        self.start = time.perf_counter()

    def __enter__(self) -> Progress:
        self._draw("compiling")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.stream.isatty():
            self.stream.write("\n")

    def advance(self, note: str) -> None:
        """One more round is done; ``note`` says what came out of it."""
        self.done += 1
        self._draw(note)

    def _draw(self, note: str) -> None:
        seconds = time.perf_counter() - self.start
        count = f"{self.done:>{len(str(self.total))}}/{self.total}"
        if self.stream.isatty():
            filled = WIDTH * self.done // self.total
            bar = "#" * filled + "." * (WIDTH - filled)
            line = f"{self.label} [{bar}] {count}  {note}  {seconds:.0f} s"
            columns = shutil.get_terminal_size().columns
            self.stream.write(f"\r\x1b[K{line[: columns - 1]}")
        elif self.done and self.done % max(1, self.total // PLAIN_LINES) == 0:
            self.stream.write(f"{self.label} {count}  {note}  {seconds:.1f} s\n")
        self.stream.flush()
