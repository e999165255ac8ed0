# SPDX-License-Identifier: Apache-2.0
"""Fixtures, found by their names."""

import jax

from tests.sites import make_site, plugin_source, run, site  # noqa: F401

jax.config.update("jax_disable_most_optimizations", True)  # hundreds of small programs
