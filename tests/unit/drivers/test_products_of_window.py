# SPDX-License-Identifier: Apache-2.0
"""Gradients of a window by its products, in parts or whole, are those of reverse mode."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.drivers.products_of_window import WindowProducts
from braintrace.testing import assert_tree_close
from tests.devices.meshes import Twice

RNG = np.random.default_rng(0)
W, B, XS = RNG.normal(size=(3, 3)), RNG.normal(size=3), RNG.normal(size=(4, 6, 3))


def test_results_are_those_of_the_step_and_gradients_of_its_products() -> None:
    def step(params: Any, states: Any, now: Any) -> Any:
        (h,), w = states, params["w"]
        new = jnp.tanh(bt.matmul(now + h, w) * params["b"])
        return (new @ w, (new,)), (now,)

    params = {"w": W, "b": B}
    own = WindowProducts.of(step, params, (XS[0],), XS[0])
    shifts = [v[0] for v in own.shifts(1)]
    found, moving = own.run(params, (XS[0],), XS[1], shifts)
    assert_tree_close(found, step(params, (XS[0],), XS[1]), 1e-12)
    assert len(own.direct.products) == len(moving) == 3


@pytest.mark.parametrize("rule", ["d_rtrl", "uoro", "pp_prop"])
def test_windows_of_examples_on_several_devices_have_the_same_gradient(rule: str) -> None:
    options = {"decay_or_rank": 0.9} if rule == "pp_prop" else {}

    def gradient(parts: int) -> Any:
        brainstate.random.seed(0)
        how = {"vjp_method": "multi-step", **options}
        learner = bt.compile(Twice(3, 3), rule, XS[0], batch_size=6, **how)
        learner.rule.executor.divide((parts, None))

        def loss(x: Any) -> Any:
            return (learner(bt.MultiStepData(x)) ** 2).sum((1, 2))

        return learner.etrace_grad(XS, step_fn=loss, chunk_size=2)

    whole = gradient(1)
    assert_tree_close(gradient(3), whole, 1e-12)
    assert any(jnp.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(whole))
