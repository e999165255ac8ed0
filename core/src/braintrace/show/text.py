# SPDX-License-Identifier: Apache-2.0
"""Fitting names and tables into a number of columns without losing what tells them apart."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, groupby, pairwise

from ..base.types import Path, show_path

ELLIPSIS = "…"


def columns(text: str) -> int:
    """How many columns of a monospaced font a text takes."""
    return sum(_width(char) for char in text)


def _width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Cf", "Cc", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in ("W", "F") else 1


def listed(words: Iterable[str]) -> list[str]:
    """Words with a comma behind each but the last."""
    *first, last = words
    return [*(f"{word}," for word in first), last]


def wrap(words: Iterable[str], width: int) -> list[str]:
    """Lines of words, each at most ``width`` columns; a longer word is cut into pieces."""
    lines: list[str] = []
    for word in words:
        for piece in _pieces(word, width):
            if lines and columns(lines[-1]) + 1 + columns(piece) <= width:
                lines[-1] += f" {piece}"
            else:
                lines.append(piece)
    return lines or [""]


def _pieces(word: str, width: int) -> Iterator[str]:
    """A word in pieces of at most ``width`` columns, cut behind a dot where one is near."""
    while columns(word) > width:
        cut = max(1, sum(taken <= width for taken in accumulate(map(_width, word))))
        dot = max(word.rfind(mark, 0, cut) for mark in "./]_") + 1
        cut = dot if dot > cut // 2 else cut
        yield word[:cut]
        word = word[cut:]
    yield word


class Names:
    """Paths that are shown side by side.

    Parts in which one of them differs from another are never left out.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        heads = {path[: k + 1] for path in paths for k in range(len(path))}
        followers = Counter(head[:-1] for head in heads)
        self.telling = {head for head in heads if followers[head[:-1]] > 1}

    def short(self, path: Path, width: int) -> str:
        """A path with as few parts left out as make it fit into ``width`` columns.

        They go from the middle outwards; the first, the last and all telling parts stay, even if
        the path is then still wider.
        """
        kept = list(range(len(path)))
        spare = [k for k in kept[1:-1] if path[: k + 1] not in self.telling]
        spare.sort(key=lambda k: (abs(2 * k - len(path)), k))
        while spare and columns(_elided(path, kept)) > width:
            kept.remove(spare.pop(0))
        return _elided(path, kept)


def _elided(path: Path, kept: Sequence[int]) -> str:
    """A path with each run of left-out parts replaced by one ellipsis."""
    runs = groupby(enumerate(kept), lambda numbered: numbered[1] - numbered[0])
    return ELLIPSIS.join(show_path(tuple(path[k] for _, k in run)) for _, run in runs)


#: ``file:line:column (function)``
_SOURCE = re.compile(r"(.*?)((?::\d+)*)(?: \((.*)\))?", re.DOTALL)


def short_sources(sources: Iterable[str]) -> dict[str, str]:
    """Each ``folder/file:line (function)`` with as many folders as tell its file from others.

    Of a function defined in another one, the own name is left.
    """
    found = {source: _SOURCE.fullmatch(source).groups("") for source in sources}  # type: ignore[union-attr]
    folders = {file: re.split(r"[\\/]", file) for file, _, _ in found.values()}

    def short(file: str) -> str:
        for n in range(1, len(folders[file])):
            tail = folders[file][-n:]
            if sum(other[-n:] == tail for other in folders.values()) == 1:
                return "/".join(tail)
        return file

    return {
        source: short(file) + place + (f" ({name.split('<locals>.')[-1]})" if name else "")
        for source, (file, place, name) in found.items()
    }


def numbers(values: Sequence[int]) -> str:
    """``3``, ``1, 4``, ``0-19`` or ``1, 5, …, 77``."""
    steps = {b - a for a, b in pairwise(values)}
    if len(values) <= 3 or len(steps) > 1:
        return ", ".join(map(str, values))
    first, second, *_, last = values
    if first == last:
        return str(first)
    return f"{first}-{last}" if steps == {1} else f"{first}, {second}, {ELLIPSIS}, {last}"
