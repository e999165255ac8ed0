# SPDX-License-Identifier: Apache-2.0
"""Hidden groups: who belongs together, and the transition."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.compiler.groups import member_of
from braintrace.testing import assert_tree_close, bptt
from tests.unit.compiler.reference import X, count


def test_groups_from_a_module(model: Any) -> None:
    groups, path_to_group = bt.find_hidden_groups_from_module(model, X)
    assert [group.index for group in groups] == [0, 1]
    assert [group.varshape for group in groups] == [(32,), (16,)]
    assert [group.hidden_paths for group in groups] == [(("rnn1", "h"),), (("rnn2", "h"),)]
    assert [group.hidden_states for group in groups] == [(model.rnn1.h,), (model.rnn2.h,)]
    assert path_to_group == {("rnn1", "h"): groups[0], ("rnn2", "h"): groups[1]}


def test_the_transition_is_whole(model: Any) -> None:
    """Five equations (those inside of the activation included) and three constants per layer."""
    groups, _ = bt.find_hidden_groups_from_module(model, X)
    assert [count(group.transition_jaxpr) for group in groups] == [5, 5]
    assert [len(group.transition_jaxpr_constvars) for group in groups] == [3, 3]
    names = [[eqn.primitive.name for eqn in g.transition_jaxpr.eqns] for g in groups]
    assert names == [["concatenate", "etp_mv", "custom_jvp_call"]] * 2


def test_wrong_shapes_are_refused(model: Any) -> None:
    (group, _), _ = bt.find_hidden_groups_from_module(model, X)
    free = [jnp.ones(var.aval.shape) for var in group.transition_jaxpr_constvars]
    with pytest.raises(ValueError, match=r"one value per member \(1\), got 2"):
        group.concat_hidden([X, X])
    with pytest.raises(
        ValueError, match=r"member 0 of group 0 has shape \(10,\); expected \(32,\)"
    ):
        group.transition([X], free)
    with pytest.raises(ValueError, match=r"one value per free variable \(3\), got 0"):
        group.diagonal_jacobian([jnp.ones(32)], [])
    with pytest.raises(ValueError, match=r"expected an array of shape \(32, 1\)"):
        group.split_hidden(jnp.ones(32))
    relation = bt.find_hidden_param_op_relations_from_module(model, X)[0]
    with pytest.raises(ValueError, match=r"y of 'etp_mv' has shape \(32,\), got \(10,\)"):
        relation.y_to_hidden_groups(X, {})


class TwoStates(brainstate.nn.Module):
    """Two states of one layer, and one of another."""

    def __init__(self) -> None:
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones((3, 4)))
        self.i, self.v = (
            brainstate.HiddenState(jnp.zeros((2, 4), d)) for d in ("float64", "float32")
        )
        self.other = brainstate.HiddenState(jnp.zeros((2, 4)))

    def update(self, x: Any) -> Any:
        self.i.value = 0.5 * self.i.value + bt.matmul(x, self.w.value)
        self.v.value = (0.25 * self.v.value + self.i.value).astype("float32")
        self.other.value = 0.5 * self.other.value + x[:, :1]
        return self.v.value


def test_states_that_depend_on_one_another_are_one_group() -> None:
    groups, _ = bt.find_hidden_groups_from_module(TwoStates(), jnp.ones((2, 3)))
    assert [g.hidden_paths for g in groups] == [(("i",), ("v",)), (("other",),)]
    group = groups[0]
    assert (group.num_state, group.ndim, group.varshape) == (2, 2, (2, 4))
    values = [jnp.ones((2, 4)), 2 * jnp.ones((2, 4), "float32")]
    joined = group.concat_hidden(values)
    assert joined.shape == (2, 4, 2) and joined[0, 0].tolist() == [1.0, 2.0]
    back = group.split_hidden(joined)
    assert [b.dtype.name for b in back] == ["float64", "float32"]
    assert all(jnp.array_equal(a, b) for a, b in zip(back, values, strict=True))


def test_the_diagonal_jacobian_by_hand() -> None:
    (group, _), _ = bt.find_hidden_groups_from_module(TwoStates(), jnp.ones((2, 3)))
    free = [jnp.ones(var.aval.shape, var.aval.dtype) for var in group.transition_jaxpr_constvars]
    old = [jnp.ones((2, 4)), jnp.ones((2, 4), "float32")]
    found = group.diagonal_jacobian(old, free)
    assert found.shape == (2, 4, 2, 2)
    assert jnp.allclose(found[1, 2], jnp.array([[0.5, 0.0], [0.5, 0.25]]))
    assert member_of((group,)) == dict.fromkeys(group.hidden_outvars, 0)
    assert group.mixed_axes == ()


class Detached(brainstate.nn.Module):
    """A state that follows another one behind ``stop_gradient``, and acts on it."""

    def __init__(self) -> None:
        super().__init__()
        self.drive = bt.nn.Linear(3, 4, key=0)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.v, self.rate = (brainstate.HiddenState(jnp.zeros((2, 4))) for _ in range(2))

    def update(self, x: Any) -> Any:
        self.rate.value = jax.lax.stop_gradient(0.9 * self.rate.value + jnp.tanh(self.v.value))
        self.v.value = (0.8 - 0.1 * self.rate.value) * self.v.value + self.drive(x)
        return self.v.value


def test_a_detached_state_is_a_group_of_its_own() -> None:
    xs, ys = jnp.ones((5, 2, 3)), jnp.zeros(5)
    learner = bt.compile(Detached(), "d_rtrl", xs[0], batch_size=2)
    assert [g.hidden_paths for g in learner.graph.hidden_groups] == [(("rate",),), (("v",),)]

    def loss(out: Any, y: Any) -> Any:
        return ((out - y) ** 2).sum()

    _, exact = bptt(learner.model, (xs, ys), loss)
    found = learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y), reduction="sum")
    assert_tree_close(found, exact)
