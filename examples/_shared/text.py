# SPDX-License-Identifier: Apache-2.0
"""The texts of the standard library's ``pydoc_data.topics``, character by character.

The texts differ a little from one Python to the next, and so do the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pydoc_data import topics

import numpy as np

RARE = 20  # characters that occur less often are one character


@dataclass(frozen=True)
class Text:
    """Characters as whole numbers below ``size``: the first 90 % to train on, the rest held out.

    ``letters`` [size] says which they are; 0 stands for all rare ones.
    """

    train: np.ndarray
    test: np.ndarray
    letters: np.ndarray

    @property
    def size(self) -> int:
        """How many characters there are."""
        return len(self.letters)


def load() -> Text:
    """All topics in the order of their names."""
    text = "\n".join(topics.topics[name] for name in sorted(topics.topics))
    found, codes, counts = np.unique(np.array(list(text)), return_inverse=True, return_counts=True)
    common = counts >= RARE
    number = np.where(common, np.cumsum(common), 0)
    codes = number[codes].astype(np.int32)
    cut = int(0.9 * len(codes))
    return Text(codes[:cut], codes[cut:], np.concatenate([["~"], found[common]]))


def streams(codes: np.ndarray, count: int, update_every: int) -> tuple[np.ndarray, np.ndarray]:
    """A text in ``count`` parallel streams, and what comes next in each.

    Two arrays [updates, update_every, count]; what is left over at the end is dropped.
    """
    steps = (len(codes) - 1) // count // update_every * update_every
    now, after = (
        codes[first : first + count * steps].reshape(count, -1, update_every) for first in (0, 1)
    )
    return np.moveaxis(now, 0, -1), np.moveaxis(after, 0, -1)


def order_two(text: Text) -> float:
    """Bits per held-out character of a model that knows the two characters before each.

    Counts of all three orders, mixed by the rule of Witten and Bell (IEEE Transactions on
    Information Theory 37 (1991) 1085-1094).
    """
    size = text.size
    train, test = text.train.astype(np.int64), text.test.astype(np.int64)
    chance = np.full(len(test) - 2, 1.0 / size)
    for order in range(3):
        known, asked = (_contexts(codes, order, size) for codes in (train, test))
        pairs = np.bincount(known * size + train[2:], minlength=size ** (order + 1))
        table = pairs.reshape(-1, size)
        seen, kinds = table.sum(1)[asked], (table > 0).sum(1)[asked]
        hits = table[asked, test[2:]]
        with np.errstate(invalid="ignore"):
            mixed = (hits + kinds * chance) / (seen + kinds)
        chance = np.where(seen > 0, mixed, chance)
    return float(-np.log2(chance).mean())


def _contexts(codes: np.ndarray, order: int, size: int) -> np.ndarray:
    """The ``order`` characters before each one from the third on, as one number."""
    found = np.zeros(len(codes) - 2, np.int64)
    for back in range(order, 0, -1):
        found = found * size + codes[2 - back : len(codes) - back]
    return found
