# SPDX-License-Identifier: Apache-2.0
"""Every test runs in double precision, with the plugin known to braintrace."""

from __future__ import annotations

import brainstate
import jax
import pytest

import braintrace
from braintrace_dense._plugin import plugin

jax.config.update("jax_disable_most_optimizations", True)  # hundreds of small programs


@pytest.fixture(scope="session", autouse=True)
def known_plugin():
    """Without an installed entry point (a bare checkout), hand the plugin over directly."""
    if all(record.family != "dense" for record in braintrace.plugins.records()):
        braintrace.plugins.register(plugin)


@pytest.fixture(autouse=True)
def double_precision():
    with brainstate.environ.context(precision=64):
        yield


@pytest.fixture(scope="module", autouse=True)
def free_compiled_programs():
    yield
    jax.clear_caches()


@pytest.fixture
def strict_jax():
    """No implicit promotion of dtypes or ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
