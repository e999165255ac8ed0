# SPDX-License-Identifier: Apache-2.0
"""Every test runs in double precision."""

from __future__ import annotations

import brainstate
import pytest


@pytest.fixture(autouse=True)
def double_precision():
    with brainstate.environ.context(precision=64):
        yield
