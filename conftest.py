# SPDX-License-Identifier: Apache-2.0
"""What all tests share, those in ``tests`` and those of the plugins."""

from __future__ import annotations

import gc
import os
import zlib
from collections import defaultdict
from typing import Any

#: Of three cells of a test with parameters, how many a run with ``BRAINTRACE_CELLS`` takes.
SHARES = {"all": range(3), "third": range(1), "rest": range(1, 3)}


def pytest_collection_finish() -> None:
    """Collect garbage seldom, and what was imported never: tracing makes many small objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """With ``BRAINTRACE_CELLS``, a third of the cells of a test with parameters, or the rest.

    For two Pythons, which share the cells; a test with one cell runs on both. Their order is that
    of a checksum, so that no parameter goes with a share. What is left out counts as deselected.
    """
    share = SHARES[os.environ.get("BRAINTRACE_CELLS", "all")]
    by_test = defaultdict(list)
    for item in items:
        by_test[item.nodeid.partition("[")[0]].append(item)
    left_out = set()
    for cells in by_test.values():
        cells.sort(key=lambda cell: zlib.crc32(cell.nodeid.encode()))
        if len(cells) > 1:
            left_out.update(cell for k, cell in enumerate(cells) if k % 3 not in share)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
