# SPDX-License-Identifier: Apache-2.0
"""Everything here is compared in float64."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest

jax.config.update("jax_disable_most_optimizations", True)  # hundreds of small programs


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield
