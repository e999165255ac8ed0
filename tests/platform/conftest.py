# SPDX-License-Identifier: Apache-2.0
"""Fixtures, found by their names."""

from tests.sites import make_site, plugin_source, run, site  # noqa: F401
