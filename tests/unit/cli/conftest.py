# SPDX-License-Identifier: Apache-2.0
"""Fixtures, found by their names."""

from tests.unit.cli.nets import explain, folder, in_a_process  # noqa: F401
