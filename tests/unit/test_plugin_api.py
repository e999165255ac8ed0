# SPDX-License-Identifier: Apache-2.0
"""Binding an operation of a plugin, which is loaded first."""

from __future__ import annotations

import jax.numpy as jnp
import pytest

import braintrace
from braintrace.ops.primitive import find_primitive
from braintrace.plugin_api import CompilationError, ETPPrimitiveSpec, bind
from braintrace.plugins.resolution import resolve
from tests.sites import record_of, scale


def test_bind_without_any_plugin_registers_the_specification(host_of):
    host_of()
    spec = ETPPrimitiveSpec("on_the_spot", scale)
    assert bind(spec, jnp.ones(2), jnp.full(2, 5.0)).tolist() == [5, 5]
    assert find_primitive("on_the_spot").owner == scale.__module__.partition(".")[0]


def test_bind_loads_the_owner_first(site, host_of, plugin_source):
    text = plugin_source("lazyown", "lazyown_p")
    host = host_of(site.add("lazyown", "lazyown", text, family="lazyown"))
    import lazyown

    assert record_of(host, "lazyown").state == "discovered"
    assert lazyown.op(jnp.ones(1), jnp.ones(1)).tolist() == [1]
    assert record_of(host, "lazyown").state == "loaded"


def test_bind_of_a_primitive_that_its_plugin_does_not_declare(site, host_of, plugin_source):
    text = plugin_source("hidden", "hidden_p") + "\nMORE = ETPPrimitiveSpec('undeclared', scale)\n"
    host_of(site.add("hidden", "hidden_module", text, family="hidden"))
    import hidden_module

    with pytest.raises(CompilationError, match="'undeclared' is not among those that 'hidden'"):
        bind(hidden_module.MORE, jnp.ones(1), jnp.ones(1))


@pytest.mark.parametrize("change", [{"disable": ["late"]}, {"allow": []}, {"disable": ["*"]}])
def test_bind_of_a_family_disabled_later(change, site, host_of, plugin_source):
    host = host_of(site.add("late", "late_module", plugin_source("late", "late_p"), family="late",
                            ops=["late_op"]))  # fmt: skip
    op = resolve(host, "ops", "late_op")
    op(jnp.ones(1), jnp.ones(1))
    braintrace.plugins.configure(**change)
    assert record_of(host, "late").state == "disabled"
    with pytest.raises(CompilationError, match="'late_p' is provided by 'late' 1.0, which"):
        op(jnp.ones(1), jnp.ones(1))
    with pytest.raises(AttributeError, match="which is disabled"):
        _ = braintrace.late_op
    braintrace.plugins.configure(allow=None, disable=[])
    assert braintrace.late_op(jnp.ones(1), jnp.ones(1)).tolist() == [1]
