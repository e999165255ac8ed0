# SPDX-License-Identifier: Apache-2.0
"""Everything here is compared in float64."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import brainstate
import jax
import pytest

import braintrace

jax.config.update("jax_disable_most_optimizations", True)  # hundreds of small programs


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with brainstate.environ.context(precision=64):
        yield


@pytest.fixture(autouse=True)
def diagnostics_are_not_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", braintrace.CompilationWarning)
        yield
