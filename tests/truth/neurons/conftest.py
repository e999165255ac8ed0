# SPDX-License-Identifier: Apache-2.0
"""Everything here is compared in float64, with a time step in the environment."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import brainstate
import jax
import pytest
import saiunit as u

import braintrace

jax.config.update("jax_disable_most_optimizations", True)  # many small programs


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    with brainstate.environ.context(precision=64, dt=0.5 * u.ms):
        brainstate.random.seed(0)
        yield


@pytest.fixture(autouse=True)
def diagnostics_are_not_errors() -> Iterator[None]:
    """Diagnostics are warnings; tests about them ask for them with ``pytest.warns``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", braintrace.CompilationWarning)
        yield
