# SPDX-License-Identifier: Apache-2.0
"""Everything here is compared in float64."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import brainstate
import jax
import pytest

import braintrace
from braintrace.drivers import in_stages, loops

jax.config.update("jax_disable_most_optimizations", True)  # hundreds of small programs


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with brainstate.environ.context(precision=64):
        yield


@pytest.fixture(autouse=True)
def stages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run in stages, which otherwise those of 16 steps and more do."""
    monkeypatch.setattr(loops, "LEAST", 2)
    monkeypatch.setattr(in_stages, "LEAST", 2)


@pytest.fixture(autouse=True)
def diagnostics_are_not_errors() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", braintrace.CompilationWarning)
        yield
