# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings run."""

from __future__ import annotations

import doctest
import pkgutil
import warnings
from importlib import import_module

import pytest

import braintrace

PACKAGES = (
    "braintrace",
    "braintrace_conv",
    "braintrace_dense",
    "braintrace_einsum",
    "braintrace_elemwise",
    "braintrace_embedding",
    "braintrace_lora",
    "braintrace_sparse",
    "braintrace_testing",
)


def modules():
    for package in PACKAGES:
        yield package
        path = import_module(package).__path__
        yield from (m.name for m in pkgutil.walk_packages(path, f"{package}."))


FORMER = {"braintrace.rules"}  # importing it is a warning


@pytest.mark.parametrize("name", sorted({*modules()} - FORMER))
def test_examples_in_docstrings(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", braintrace.CompilationWarning)  # what the compiler reports
        results = doctest.testmod(
            import_module(name),
            optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS,
        )
    assert results.failed == 0
