# SPDX-License-Identifier: Apache-2.0
"""What all tests share, those in ``tests`` and those of the plugins."""

from __future__ import annotations

import gc
import os
import zlib
from collections import defaultdict
from typing import Any

import pytest


def pytest_collection_finish() -> None:
    """Collect garbage seldom, and what was imported never: tracing makes many small objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """With ``BRAINTRACE_CELLS=third``, a third of the tests of a file; with ``rest``, those left.

    For two Pythons. Of a test with parameters each cell is in one of the two, and at least one in
    either; a test without is always in the rest, and may be in the third as well. Their order is
    that of a checksum, so that no parameter goes with a share. What is left out is deselected.
    """
    share = os.environ.get("BRAINTRACE_CELLS", "all")
    if share not in ("all", "third", "rest"):
        raise pytest.UsageError(f"BRAINTRACE_CELLS is all, third or rest, not {share!r}")
    if share == "all":
        return
    by_test = defaultdict(list)
    for item in sorted(items, key=lambda item: zlib.crc32(item.nodeid.encode())):
        by_test[item.nodeid.partition("[")[0]].append(item)
    third, alone = set(), defaultdict(list)
    for cells in by_test.values():
        if len(cells) > 1:
            third.update(cells[::3])
        else:
            alone[cells[0].path] += cells
    always = {item for tests in alone.values() for item in tests}
    rest = {*items} - third | always
    third.update(item for tests in alone.values() for item in tests[::3])
    chosen = third if share == "third" else rest
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = [item for item in items if item in chosen]
