# SPDX-License-Identifier: Apache-2.0
"""The functions of ``braintrace.plugins``."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import braintrace
from braintrace.ops.primitive import find_primitive
from braintrace.plugin_api import ETPPrimitiveSpec, bind
from braintrace.plugins import PluginError, process
from tests.sites import plugin_object, scale


def test_isolated_plugins_are_alone_and_forgotten(host_of):
    host = host_of()
    spec = ETPPrimitiveSpec("isolated_p", scale)
    with braintrace.plugins.isolated([plugin_object("alone", [spec])]) as records:
        assert [(r.family, r.state, r.primitives) for r in records] == [
            ("alone", "loaded", ("isolated_p",))
        ]
        assert braintrace.plugins.records() == records
        assert not hasattr(braintrace, "matmul")
        assert bind(spec, jnp.ones(1), jnp.ones(1)).tolist() == [1]
    assert find_primitive("isolated_p") is None
    assert process.host() is host and hasattr(braintrace, "matmul")


def test_isolation_ends_when_a_plugin_is_refused(host_of):
    host = host_of()
    good = plugin_object("first", [ETPPrimitiveSpec("isolated_q", scale)])
    with (
        pytest.raises(PluginError, match="is not a plugin"),
        braintrace.plugins.isolated([good, object()]),
    ):
        pass
    assert find_primitive("isolated_q") is None and process.host() is host


def test_isolation_puts_replaced_rules_back(host_of):
    host_of()
    old = ETPPrimitiveSpec("isolated_r", scale)
    braintrace.register_primitive_spec(old, owner=__name__)
    new = ETPPrimitiveSpec("isolated_r", lambda x, w: x - w)
    with (
        pytest.warns(UserWarning, match="rules of the primitive 'isolated_r' are replaced"),
        braintrace.plugins.isolated(),
    ):
        braintrace.register_primitive_spec(new, owner=__name__)
    assert find_primitive("isolated_r").spec is old
    assert find_primitive("isolated_r").bind(2.0, 3.0) == 6


def test_configure_refuses_one_string():
    with pytest.raises(TypeError, match="disable must be an iterable of names, got the string"):
        braintrace.plugins.configure(disable="dense")


def test_functions_of_the_module_are_those_of_the_host(host_of, monkeypatch):
    host = host_of()
    assert braintrace.plugins.records() == host.records() == braintrace.plugins.refresh()
    braintrace.plugins.configure(allow=["dense"], strict=True)
    assert host.settings.allow == {"dense"} and host.settings.strict
    braintrace.plugins.configure(disable=["*"])
    assert host.settings.allow == {"dense"} and host.settings.disable == {"*"}
    braintrace.plugins.configure(allow=None)
    assert host.settings.allow is None
    assert {r.state for r in braintrace.plugins.load_all()} == {"disabled"}


def test_cases_of_a_family_that_has_none():
    with braintrace.plugins.isolated([plugin_object("caseless", [])]):
        assert braintrace.plugins.conformance_cases("caseless") == ()
