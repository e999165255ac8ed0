# SPDX-License-Identifier: Apache-2.0
"""What all tests share, those in ``tests`` and those of the plugins."""

from __future__ import annotations

import gc
import math
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
OF_NUMBERS = "benchmarks conformance devices platform/test_docstrings.py published/test_programs.py"
OF_NUMBERS += " truth unit"
NUMBERS = {ROOT / "plugins", *(ROOT / "tests" / name for name in OF_NUMBERS.split())}
FEWEST = 4


def pytest_collection_finish() -> None:
    """Collect garbage seldom, and what was imported never: tracing makes many small objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """With ``BRAINTRACE_PROPERTY_RUNS`` below 1, that share of the cells of tests of numbers.

    For a second Python, after all cells have been run with another. A test with parameters keeps
    cells at equal distances, at least ``FEWEST``; what is left out counts as deselected.
    """
    share = float(os.environ.get("BRAINTRACE_PROPERTY_RUNS", "1"))
    by_test = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and NUMBERS & {item.path, *item.path.parents}:
            by_test[item.nodeid.partition("[")[0]].append(item)
    left_out = set()
    for cells in by_test.values():
        count = max(FEWEST, math.ceil(share * len(cells)))
        if count < len(cells):
            kept = {i * len(cells) // count for i in range(count)}
            left_out.update(cell for i, cell in enumerate(cells) if i not in kept)
    if left_out:
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
