# SPDX-License-Identifier: Apache-2.0
"""What all tests share, those in ``tests`` and those of the plugins."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Collect garbage seldom, and what was imported never: tracing makes many small objects."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 100)
