# SPDX-License-Identifier: Apache-2.0
"""Fixtures, found by their names."""

from tests.unit.drivers.net import data  # noqa: F401
from tests.unit.learners.bench import bench  # noqa: F401
