# SPDX-License-Identifier: Apache-2.0
"""One text, raised as the type that each kind of access expects."""

from __future__ import annotations

import sys

import pytest

from braintrace.plugins.errors import PluginAttributeError, PluginError, PluginImportError


def test_an_error_names_its_provider():
    assert (str(PluginError("text", "a-b")), PluginError("text", "a-b").provider) == ("text", "a-b")
    assert PluginError("text").provider == ""


def test_of_an_attribute_it_is_an_attribute_error():
    module = sys.modules[__name__]
    error = PluginAttributeError.of(PluginError("text", "a-b"), "conv", module)
    assert (error.name, error.obj, error.provider, str(error)) == ("conv", module, "a-b", "text")

    class Lacking:
        def __getattr__(self, name):
            raise error

    assert not hasattr(Lacking(), "conv")


def test_of_an_import_it_names_the_package_that_is_missing():
    error = PluginImportError.of(PluginError("text", "braintrace-conv"))
    assert (error.name, error.provider) == ("braintrace_conv", "braintrace-conv")
    with pytest.raises(ModuleNotFoundError, match="text"):
        raise error
