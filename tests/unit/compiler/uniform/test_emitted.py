# SPDX-License-Identifier: Apache-2.0
"""What layers emit, and where it is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.compiler.uniform.emitted import RESULT, keeps_positions
from braintrace.compiler.uniform.find import find_uniform
from braintrace.compiler.uniform.moving import Moving
from tests.zoo import spike


class Two(brainstate.nn.Module):
    """A recurrent layer, and one above it that is ``read`` in some way."""

    def __init__(self, above: Callable[[Any, Any], Any], read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.w, self.up, self.above, self.read = bt.nn.Linear(7, 3), bt.nn.Linear(3, 5), above, read
        self.v = brainstate.HiddenState(jnp.zeros((2, 3)))
        self.y = brainstate.HiddenState(jnp.zeros((2, 5)))

    def update(self, x: Any) -> Any:
        z = spike(self.v.value)
        v = 0.9 * self.v.value * (1 - z)
        self.v.value = v + self.w(jnp.concatenate([x, z], -1))
        self.y.value = self.above(self.y.value, self.up(spike(self.v.value)))
        return self.read(self.y.value)


def leak(y: Any, x: Any) -> Any:
    return 0.8 * y + x


def reset(y: Any, x: Any) -> Any:
    return 0.8 * y * (1 - spike(y)) + x


@pytest.mark.parametrize(
    ("above", "read", "layers"),
    [
        (leak, lambda y: y, []),  # the leak of a readout is known, and nothing is above it
        (leak, jax.nn.softmax, []),
        (leak, lambda y: 1e3 * y - 1, []),
        (leak, lambda y: jnp.tanh(y + 1), ["y"]),  # a layer, as spikes without a hard reset are
        (reset, lambda y: y, ["v", "y"]),
        (reset, lambda y: spike(y) @ jnp.ones((5, 2)), ["v", "y"]),
    ],
)
def test_who_emits(above: Any, read: Any, layers: list[str]) -> None:
    minfo = bt.extract_module_info(Two(above, read), jnp.ones((2, 4)))
    groups = bt.find_hidden_groups_from_minfo(minfo)[1]
    moving = Moving(minfo, find_uniform(minfo, groups)[0]).with_kappa(0.5, groups)
    assert sorted(path[0] for path in moving.layers.values()) == layers
    for (i, k), var in moving.emitted.items():
        assert (minfo.jaxpr.outvars[k] if i == RESULT else minfo.eqns[i].invars[k]) is var


def test_equations_that_keep_positions() -> None:
    def equation(function: Callable[[Any], Any]) -> Any:
        return jax.make_jaxpr(function)(jnp.ones((2, 3))).eqns[-1]

    assert keeps_positions(equation(jnp.tanh), 0)
    assert keeps_positions(equation(spike), 0)
    assert not keeps_positions(equation(lambda x: x.sum(1)), 0)
    assert not keeps_positions(equation(lambda x: jax.lax.rev(x, (1,))), 0)
