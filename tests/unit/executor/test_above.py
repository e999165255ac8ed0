# SPDX-License-Identifier: Apache-2.0
"""``D`` of values of small groups above, read from the step and not from reverse sweeps."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.executor.cascade import Cascade
from tests import zoo
from tests.unit.executor.test_cascade import UNITS, X, steps_of


class Below(brainstate.nn.Module):
    """Neurons of two states, the second an array of two, below two small layers."""

    def __init__(self, late: bool, mixed: bool = False) -> None:
        super().__init__()
        self.product = bt.nn.Linear(zoo.IN, UNITS, key=1)
        self.low, self.high = bt.nn.GRUCell(UNITS, 2), bt.nn.Linear(2 + 3, 3, key=3)
        self.late, self.mixed = late, mixed

    def init_state(self, batch_size: int) -> None:
        self.v = brainstate.HiddenState(0.3 * jnp.ones((batch_size, UNITS)))
        self.a = brainstate.HiddenGroupState(0.2 * jnp.ones((batch_size, UNITS, 2)))
        self.u = brainstate.HiddenState(0.1 * jnp.ones((batch_size, 3)))

    def update(self, x: Any) -> Any:
        v, a = self.v.value, self.a.value
        self.v.value = 0.9 * v - 0.3 * a[..., 0] * v + self.product(x)
        self.a.value = 0.8 * a + jnp.tanh(v * self.v.value)[..., None] * jnp.asarray([1.0, 0.5])
        z = jnp.tanh((v if self.late else self.v.value) - 0.2 * self.a.value.sum(-1))
        y = self.low(z - z.mean(0) if self.mixed else z)
        self.u.value = jnp.tanh(self.high(jnp.concatenate([y, self.u.value], -1)))
        return self.u.value


@pytest.mark.parametrize(("late", "mixed"), [(False, False), (True, False), (False, True)])
def test_what_is_read_is_what_sweeps_find(late: bool, mixed: bool) -> None:
    executor, found, plain = steps_of(Below(late, mixed), downstream="exact")
    D, examples = found.transition[0], 1 if mixed else X.shape[0]
    values = (2 + 3) * (X.shape[0] if mixed else 1)
    assert isinstance(D, Cascade) and D.num_first == 3 and D.is_large
    assert D.last.shape == (values, values, examples, 1) and (D.old is not None) == late
    assert executor.above[0].reads_old == late and len([*executor.above[0].atoms]) >= 5
    types = [
        [(v.shape, v.dtype) for v in jax.tree.leaves(one)]
        for one in (found, executor.jacobian_types)
    ]
    assert types[0] == types[1]
    whole = found.composed(executor.links)
    np.testing.assert_allclose(whole.transition[0], plain.transition[0], rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(whole.f[0], plain.f[0], rtol=1e-10, atol=1e-13)


def test_a_coupled_transition_is_found_by_sweeps() -> None:
    model = brainstate.nn.init_all_states(Below(False), batch_size=X.shape[0])
    learner = bt.OSTLRecurrent(model, downstream="exact")
    learner.compile_graph(X)
    assert not learner.rule.executor.above
