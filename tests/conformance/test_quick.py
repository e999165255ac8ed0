# SPDX-License-Identifier: Apache-2.0
"""Options of XLA with which the kit compiles its programs."""

from __future__ import annotations

import jax.numpy as jnp

from braintrace_testing import quick


def test_options_that_are_unknown_are_left_out(monkeypatch):
    quick.options.cache_clear()
    monkeypatch.setattr(quick, "OPTIONS", {"xla_no_such_option": True})
    try:
        assert quick.options() == {}
        assert quick.jit(lambda x: x + 1)(jnp.ones(2)).tolist() == [2.0, 2.0]
    finally:
        quick.options.cache_clear()
