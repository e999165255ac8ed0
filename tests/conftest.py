# SPDX-License-Identifier: Apache-2.0
"""Settings of the whole suite: the CPU, and float64 unless a test asks for less."""

from __future__ import annotations

import os
from collections.abc import Iterator

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import pytest

jax.config.update("jax_enable_x64", os.environ["JAX_ENABLE_X64"] != "0")


@pytest.fixture
def x64() -> Iterator[None]:
    """Float64 whatever the default."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def x32() -> Iterator[None]:
    """Float32, JAX's own default."""
    with jax.enable_x64(False):
        yield


@pytest.fixture(scope="module", autouse=True)
def _clear_caches() -> Iterator[None]:
    """Compiled programs of one file do not pile up on those of the next."""
    yield
    jax.clear_caches()
