# SPDX-License-Identifier: Apache-2.0
"""The examples in docstrings run, and public names say what they take."""

from __future__ import annotations

import doctest
import inspect
from importlib import import_module

import pytest

import braintrace_river


@pytest.mark.parametrize("name", ["_estimators", "_networks"])
def test_examples_in_docstrings(name):
    results = doctest.testmod(import_module(f"braintrace_river.{name}"))
    assert results.attempted > 2 and results.failed == 0


@pytest.mark.parametrize("name", braintrace_river.__all__)
def test_docstrings_name_every_parameter(name):
    public = getattr(braintrace_river, name)
    text = inspect.getdoc(public).partition("Parameters\n")[2]
    named = {word for line in text.splitlines() if line[:1].strip() for word in line.split(", ")}
    assert {*inspect.signature(public.__init__).parameters} - {"self"} <= named
