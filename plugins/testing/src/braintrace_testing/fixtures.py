# SPDX-License-Identifier: Apache-2.0
"""Fixtures of pytest for the tests of a plugin: its ``conftest.py`` imports what it wants of them.

>>> from braintrace_testing.fixtures import double_precision, free_compiled_programs, known

``known(plugin)`` makes one that hands the plugin over where it is not installed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import brainstate
import jax
import pytest

import braintrace


def known(plugin: Any) -> Any:
    """A fixture: a plugin that no entry point names (in a bare checkout) is registered."""

    @pytest.fixture(scope="session", autouse=True)
    def known_plugin() -> None:
        family = plugin.braintrace_plugin_info().family
        if all(record.family != family for record in braintrace.plugins.records()):
            braintrace.plugins.register(plugin)

    return known_plugin


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    """Every test runs in double precision."""
    with brainstate.environ.context(precision=64):
        yield


@pytest.fixture(scope="module", autouse=True)
def free_compiled_programs() -> Iterator[None]:
    """Compiled programs of one file do not pile up on those of the next."""
    yield
    jax.clear_caches()


@pytest.fixture
def strict_jax() -> Iterator[None]:
    """No implicit promotion of dtypes or ranks."""
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield
