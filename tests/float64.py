# SPDX-License-Identifier: Apache-2.0
"""What tests of numbers share: float64, one seed, and diagnostics that are no errors."""

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
        brainstate.random.seed(0)
        yield


@pytest.fixture(autouse=True)
def diagnostics_are_not_errors() -> Iterator[None]:
    """Diagnostics are warnings; tests about them ask for them with ``pytest.warns``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", braintrace.CompilationWarning)
        yield
