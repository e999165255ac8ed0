# SPDX-License-Identifier: Apache-2.0
"""Eight CPU devices: this folder needs a process of its own, because JAX counts them once."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

import jax
import pytest

from tests.float64 import diagnostics_are_not_errors, float64  # noqa: F401  found by their names

os.environ.setdefault("NPROC", "64")  # threads of XLA: several wait at once for each device
with suppress(RuntimeError):  # something has used a device before
    jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(autouse=True)
def eight_devices() -> Any:
    """Skip a test where there are fewer."""
    if jax.device_count() < 8:
        pytest.skip("JAX has fewer than eight devices: run pytest tests/devices by itself")
