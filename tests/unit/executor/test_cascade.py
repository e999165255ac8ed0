# SPDX-License-Identifier: Apache-2.0
"""States that follow new values of others, composed to ``f`` and ``D`` of all states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms.block_algebra import accumulate, apply, meet, suffix_products
from braintrace.executor.cascade import Cascade
from tests import zoo

B, UNITS, K, V = 2, 4, 3, 2
X = jnp.linspace(-1, 1, B * zoo.IN).reshape(B, zoo.IN)


class Network(brainstate.nn.Module):
    """Neurons of two states, and a readout of two leaks, or one that differs between examples."""

    def __init__(self, late: bool = False, varying: bool = False) -> None:
        super().__init__()
        self.product = bt.nn.Linear(zoo.IN, UNITS, key=1)
        self.readout = bt.nn.Linear(UNITS, 2, key=2)
        self.late, self.varying = late, varying

    def init_state(self, batch_size: int) -> None:
        draw = np.random.default_rng(0).normal
        for name, units in {"v": UNITS, "a": UNITS, "i": 2, "out": 2}.items():
            setattr(self, name, brainstate.HiddenState(jnp.asarray(draw(size=(batch_size, units)))))

    def update(self, x: Any) -> Any:
        v, a = self.v.value, self.a.value
        self.v.value = 0.9 * v - 0.3 * a * v + self.product(x)
        self.a.value = 0.8 * a + jnp.tanh(v) * self.v.value
        z = jnp.tanh((v if self.late else self.v.value) - 0.2 * self.a.value)
        leak = jax.nn.sigmoid(x[:, :1]) if self.varying else 0.7
        self.i.value = leak * self.i.value + self.readout(z)
        self.out.value = 0.6 * self.out.value + self.i.value
        return self.out.value


def steps_of(model: Any, **options: Any) -> Any:
    """The executor of a model and its plain one, each with its Jacobians."""
    brainstate.nn.init_all_states(model, batch_size=B)
    executor = bt.compile(model, "d_rtrl", X, batch_size=B, **options).rule.executor
    plain = replace(executor, cascaded=False)
    params = {path: s.value for path, s in model.states(brainstate.ParamState).items()}
    slots = executor.graph.module_info.slots
    draw = np.random.default_rng(1).normal
    states = {
        s.path: jnp.asarray(draw(size=s.shape)) if s.is_filter else s.state.value for s in slots
    }
    found = (one.jacobians_at(one.run([X], states | params)[2]) for one in (executor, plain))
    return executor, *found


@pytest.mark.parametrize("varying", [False, True])
def test_what_follows_composes_to_the_whole(varying: bool) -> None:
    executor, found, plain = steps_of(Network(varying=varying))
    (D,), (link, *_) = found.transition, executor.links
    assert isinstance(D, Cascade) and len(D.follows) == 2 and D.num_first == 2
    types = [
        [(v.shape, v.dtype) for v in jax.tree.leaves(one)]
        for one in (found, executor.jacobian_types)
    ]
    assert types[0] == types[1] and found.f[0].shape[0] == 2 and D.last.shape == (2, 2, B, 1)
    whole = found.composed(executor.links)
    np.testing.assert_allclose(whole.transition[0], plain.transition[0], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(whole.f[0], plain.f[0], rtol=1e-12, atol=1e-14)
    assert link.group.num_state == 4


def test_what_reads_an_old_value_does_not_follow() -> None:
    executor, found, plain = steps_of(Network(late=True))
    assert not executor.cascades and not isinstance(found.transition[0], Cascade)
    np.testing.assert_array_equal(found.transition[0], plain.transition[0])
    assert not steps_of(Network(), downstream="step")[0].cascades


def drawn(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(len(shape)).normal(size=shape))


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize(("first", "last"), [(1, 2), (2, 2), (1, 6), (5, 7)])
def test_a_block_of_what_follows_is_that_of_the_whole(first: int, last: int, old: bool) -> None:
    follows = ((True,) * first, *((True,) + (False,) * (first - 1) for _ in range(last - 1)))
    between = drawn(K, last, first, V) * jnp.asarray(follows)[..., None]
    more = drawn(K, last, first, V, 1)[..., 0] if old else None
    D = Cascade(drawn(K, first, first, V), 1 + drawn(K, last, last, 1), between, follows, more)
    whole, f = jax.vmap(Cascade.composed)(D), drawn(K, first, V)
    signal = drawn(K, first + last, V)
    every = jnp.concatenate([f, jnp.einsum("kqhv,khv->kqv", between, f)], 1)
    e = 2 * signal if old else None
    met, entry = accumulate(D, signal, e)
    expected, start = accumulate(whole, signal, e)
    np.testing.assert_allclose(meet(f, met), meet(every, expected), rtol=1e-10)
    np.testing.assert_allclose(entry, start, rtol=1e-10)
    products, ahead = suffix_products(D)
    expected, start = suffix_products(whole)
    assert isinstance(ahead, Cascade) == D.is_large == (first + last > 4)
    ahead = ahead.composed() if D.is_large else ahead
    driven, known = jax.vmap(apply)(products, f), jax.vmap(apply)(expected, every)
    np.testing.assert_allclose(driven, known, rtol=1e-10)
    np.testing.assert_allclose(ahead, start, rtol=1e-10, atol=1e-12)
