# SPDX-License-Identifier: Apache-2.0
"""Which operation drives which group."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import pytest

import braintrace as bt
from tests.unit.compiler.reference import RNN1, RNN2, X


def test_relations_from_a_module(model: Any) -> None:
    relations = bt.find_hidden_param_op_relations_from_module(model, X)
    assert [r.primitive.name for r in relations] == ["etp_mv", "etp_mv"]
    assert [r.path for r in relations] == [RNN1, RNN2]
    assert [r.parameter_paths for r in relations] == [(RNN1,), (RNN2,)]
    assert [r.connected_hidden_paths for r in relations] == [(("rnn1", "h"),), (("rnn2", "h"),)]
    assert [r.hidden_groups[0].index for r in relations] == [0, 1]
    (first, second) = relations
    assert first.trainable_paths == {"weight": RNN1, "bias": RNN1}
    assert first.trainable_leaf_indices == {"weight": 1, "bias": 0}
    assert first.trainable_param_states["weight"] is model.rnn1.W.weight
    assert first.trainable_processing_chains == {"weight": (), "bias": ()}
    assert {k: v.aval.shape for k, v in second.trainable_vars.items()} == {
        "weight": (48, 16),
        "bias": (16,),
    }


def test_relations_take_the_groups_or_the_paths(model: Any) -> None:
    minfo = bt.extract_module_info(model, X)
    groups, path_to_group = bt.find_hidden_groups_from_minfo(minfo)
    by_path, by_group = (
        bt.find_hidden_param_op_relations_from_minfo(minfo, given)
        for given in (path_to_group, groups)
    )
    assert [r.eqn_index for r in by_path] == [r.eqn_index for r in by_group]
    assert [r.hidden_groups for r in by_path] == [(groups[0],), (groups[1],)]
    with pytest.raises(ValueError, match=r"lacks the group of rnn2\.h"):
        bt.find_hidden_param_op_relations_from_minfo(minfo, groups[:1])


def test_the_tail_of_a_relation(model: Any) -> None:
    relation, _ = bt.find_hidden_param_op_relations_from_module(model, X)
    y = jnp.linspace(-1.0, 1.0, 32)
    (free,) = relation.y_to_hidden_group_constvars
    values = {var: jnp.zeros(var.aval.shape) for var in free}
    (found,) = relation.y_to_hidden_groups(y, values)
    assert found.shape == (32, 1) and jnp.allclose(found[:, 0], jnp.maximum(y, 0.0))
    (members,) = relation.y_to_hidden_groups(y, values, concat_hidden_vals=False)
    assert [v.shape for v in members] == [(32,)]


class Moving(brainstate.nn.Module):
    """A constant of the operation is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones((3, 4)))
        self.h = brainstate.HiddenState(jnp.zeros((2, 4)))

    def update(self, x: Any) -> Any:
        self.h.value = 0.5 * self.h.value + shifted.bind(jnp.sin(x), self.w.value, x)
        return self.h.value


shifted = bt.register_primitive(
    "unit_relation_shifted", lambda x, w, shift: (x + shift) @ w, batched=True
)


def test_an_operand_that_changes_from_step_to_step_is_refused() -> None:
    text = r"operand 2 of 'unit_relation_shifted' at .*test_relation.py:\d+.* depends on inputs"
    with pytest.raises(bt.NotSupportedError, match=text):
        bt.find_hidden_param_op_relations_from_module(Moving(), jnp.ones((2, 3)))
