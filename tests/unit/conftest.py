# SPDX-License-Identifier: Apache-2.0
"""Tests of one file of core each: folders and names are those of core."""

from tests.float64 import diagnostics_are_not_errors, float64  # noqa: F401  found by their names
from tests.sites import command, host_of, make_site, plugin_source, run, site  # noqa: F401
