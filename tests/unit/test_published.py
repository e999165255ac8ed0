# SPDX-License-Identifier: Apache-2.0
"""What records answer to published code."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.published import PathClassification
from braintrace.testing import assert_tree_close
from tests.unit.compiler.reference import Reference, X


def test_a_step_from_the_records() -> None:
    model: Any = Reference()
    brainstate.nn.init_all_states(model)
    info = bt.extract_module_info(model, X)
    model.rnn1.h.value = jnp.ones(32)
    out, new, other, values = info.jaxpr_call(X)
    assert_tree_close(model.rnn1.h.value, jnp.ones(32), 1e-12)  # nothing was written
    shifted, *_ = info.jaxpr_call(X, old_state_vals={("rnn1", "h"): -jnp.ones(32)})
    states = [state.value for state in info.compiled_model_states.values()]
    assert_tree_close(info.jaxpr_call(X, old_state_vals=states)[0], out, 1e-12)
    assert_tree_close(out, model(X), 1e-12)
    assert_tree_close(new["rnn1", "h"], model.rnn1.h.value, 1e-12)
    assert not other and {*info.outvar_to_hidden_path} < values.keys()
    assert not np.allclose(out, shifted)
    with pytest.raises(ValueError, match=r"rnn1\.x is not a state of the step"):
        info.jaxpr_call(X, old_state_vals={("rnn1", "x"): X})
    with pytest.raises(ValueError, match="the arguments have structure"):
        info.jaxpr_call({"a": X})


def test_records_answer_as_named_tuples() -> None:
    model: Any = Reference()
    brainstate.nn.init_all_states(model)
    graph = bt.compile_etrace_graph(model, X)
    for record in (graph.module_info, *graph.hidden_groups, *graph.hidden_param_op_relations):
        assert [*record._asdict()] == [*record._fields] and len([*record]) == len(record._fields)
        copy = record._replace()
        assert type(copy) is type(record) and copy is not record
    (first, second) = graph.hidden_groups
    assert first._replace(index=7).index == 7 and second.index == 1


def test_how_a_relation_is_classified_is_a_word() -> None:
    model: Any = Reference()
    brainstate.nn.init_all_states(model)
    first, second = bt.compile_etrace_graph(model, X).hidden_param_op_relations
    assert first.path_classification == {("rnn1", "h"): PathClassification.ALL_DIRECT}
    assert first.x is first.x_var and second.y is second.y_var
