# SPDX-License-Identifier: Apache-2.0
"""The step in which leaks stand in front of what drives them."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.compiler.filters import check_downstream, move_leaks
from braintrace.compiler.uniform.find import find_uniform
from braintrace.compiler.uniform.moving import Moving


class Leaky(brainstate.nn.Module):
    """v <- 0.9 v + W x + b."""

    def __init__(self) -> None:
        super().__init__()
        self.w = bt.nn.Linear(4, 3, key=1)
        self.v = brainstate.HiddenState(jnp.full((2, 3), 0.5))

    def update(self, x: Any) -> Any:
        self.v.value = 0.9 * self.v.value + self.w(x)
        return jnp.sin(self.v.value)


def test_the_step_keeps_its_values_and_its_credit_passes_through_filters() -> None:
    x = np.random.default_rng(0).normal(size=(2, 4))
    minfo = bt.extract_module_info(Leaky(), x)
    _, groups = bt.find_hidden_groups_from_minfo(minfo)
    uniform, _ = find_uniform(minfo, groups)
    moved = move_leaks(Moving(minfo, uniform))
    filters = [slot for slot in moved.slots if slot.is_filter]
    states = [leaf for slot in minfo.slots for leaf in jax.tree.leaves(slot.state.value)]
    old = [jnp.full(slot.state.value.shape, 2.0) for slot in filters]
    plain = versions.jaxpr_as_fun(minfo.jaxpr)(x, *states)

    def run(*leaves: Any) -> list[Any]:
        return versions.jaxpr_as_fun(moved.jaxpr)(x, *leaves)

    found = run(*states, *old)
    for a, b in zip(found, plain, strict=False):
        np.testing.assert_allclose(a, b, rtol=1e-12)
    news = {value.shape: value for value in found[len(plain) :]}
    np.testing.assert_allclose(news[2, 4], 0.9 * 2.0 + x, rtol=1e-10)
    np.testing.assert_allclose(news[()], 0.9 * 2.0 + 1.0, rtol=1e-10)
    # the derivative in the weight is that of all steps since the filters were zero
    leaves = [*states, *old]
    (k,) = [i for i, leaf in enumerate(leaves) if leaf.shape == (4, 3)]
    slope = np.cos(np.asarray(found[1 if found[0].shape != (2, 3) else 0]))
    grad = jax.grad(lambda w: run(*leaves[:k], w, *leaves[k + 1 :])[0].sum())(leaves[k])
    v = 0.9 * 0.5 + x @ leaves[k]
    bias = next(leaf for leaf in states if leaf.shape == (3,))
    slope = np.cos(v + bias)
    np.testing.assert_allclose(grad, (0.9 * 2.0 + x).T @ slope, rtol=1e-10)


def test_another_downstream_is_refused() -> None:
    check_downstream("linear")
    with pytest.raises(ValueError, match=r"downstream must be one of \('step', .*got 'x'"):
        check_downstream("x")
