# SPDX-License-Identifier: Apache-2.0
"""Units are compared in float64."""

from __future__ import annotations

from collections.abc import Iterator

import brainstate
import jax
import pytest

jax.config.update("jax_disable_most_optimizations", True)  # hundreds of small programs


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with brainstate.environ.context(precision=64):
        brainstate.random.seed(0)
        yield
