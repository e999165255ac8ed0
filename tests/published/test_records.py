# SPDX-License-Identifier: Apache-2.0
"""The records of the notebooks' models answer as the named tuples of ``braintrace`` 0.2.8 did."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace
from tests.published.attributes import TwoLayerRNN

pytestmark = pytest.mark.filterwarnings("ignore::braintrace.CompilationWarning")


@pytest.fixture(scope="module")
def graph():
    model = TwoLayerRNN()
    brainstate.nn.init_all_states(model)
    return braintrace.compile_etrace_graph(model, jnp.zeros(10))


@pytest.fixture(scope="module")
def cell():
    """A GRU of one example, whose transition and tails read other variables."""
    cell = braintrace.nn.GRUCell(3, 4)
    brainstate.nn.init_all_states(cell)
    return braintrace.compile_etrace_graph(cell, jnp.ones(3))


def shapes(tree):
    return jax.tree.map(lambda var: var.aval.shape, tree)


FIELDS = {
    "ETraceGraph": "module_info hidden_groups hid_path_to_group hidden_param_op_relations "
    "hidden_perturb diagnostics",
    "ModuleInfo": "stateful_model closed_jaxpr retrieved_model_states compiled_model_states "
    "state_id_to_path state_tree_invars state_tree_outvars hidden_path_to_invar "
    "hidden_path_to_outvar invar_to_hidden_path outvar_to_hidden_path hidden_outvar_to_invar "
    "weight_invars weight_path_to_invars invar_to_weight_path num_var_out num_var_state "
    "control_flow",
    "HiddenGroup": "index hidden_paths hidden_states hidden_invars hidden_outvars transition_jaxpr "
    "transition_jaxpr_constvars is_diagonal_recurrence snap descent",
    "HiddenParamOpRelation": "primitive x_var y_var hidden_groups y_to_hidden_group_jaxprs "
    "connected_hidden_paths eqn_params path_classification trainable_vars trainable_paths "
    "trainable_leaf_indices trainable_param_states trainable_processing_chains "
    "control_flow_context",
    "HiddenPerturbation": "perturb_vars perturb_hidden_paths perturb_hidden_states perturb_jaxpr",
}


@pytest.mark.parametrize("name", FIELDS)
def test_named_tuples(graph, name):
    records = (
        graph,
        graph.module_info,
        graph.hidden_groups[0],
        graph.hidden_param_op_relations[0],
        graph.hidden_perturb,
    )
    (record,) = (r for r in records if type(r) is getattr(braintrace, name))
    assert record._fields == tuple(FIELDS[name].split())
    assert [*record._asdict()] == [*record.dict()] == [*record._fields]
    values = [getattr(record, field) for field in record._fields]
    assert [type(v) for v in record] == [type(v) for v in values]
    missing = {"snap", "descent", "control_flow_context"}  # they are None there, too
    assert all(v is not None for k, v in record.dict().items() if k not in missing)


def test_a_changed_copy(graph):
    other = graph._replace(diagnostics=())
    assert other.diagnostics == () and other.module_info is graph.module_info
    with pytest.raises(TypeError, match="no_such_field"):
        graph._replace(no_such_field=1)


def test_the_step(graph):
    info = graph.module_info
    assert (info.num_var_out, info.num_var_state) == (1, 8)
    assert info.closed_jaxpr is info.jaxpr
    layer = [(32,), {"bias": (32,), "weight": (42, 32)}]
    layers = [*layer, (16,), {"bias": (16,), "weight": (48, 16)}]
    readout = {"bias": (5,), "weight": (16, 5)}
    assert shapes(info.state_tree_invars) == shapes(info.state_tree_outvars) == [*layers, readout]
    kinds = [type(s).__name__ for s in info.compiled_model_states.values()]
    assert kinds == ["HiddenState", "ParamState"] * 2 + ["ParamState"]
    weights = [(32,), (42, 32), (16,), (48, 16), (5,), (16, 5)]
    assert [var.aval.shape for var in info.weight_invars] == weights
    assert [*info.invar_to_hidden_path.values()] == [("rnn1", "h"), ("rnn2", "h")]
    pairs = zip(
        info.hidden_path_to_outvar.values(), info.hidden_path_to_invar.values(), strict=True
    )
    assert info.hidden_outvar_to_invar == dict(pairs)
    of_weights, hidden, other = info.split_state_outvars()
    assert (len(of_weights), len(hidden), other) == (3, 2, [])
    assert isinstance(info.control_flow, braintrace.ControlFlowPolicy)
    assert isinstance(info.stateful_model, brainstate.transform.StatefulFunction)
    assert info.stateful_model(jnp.zeros(10)).shape == (5,)


def test_a_step_with_further_outputs(cell):
    x, y_var = jnp.ones(3), cell.hidden_param_op_relations[0].y_var
    out, hidden, other, values = cell.module_info.jaxpr_call(x)
    assert out.shape == (4,) and [*hidden] == [("h",)] and other == {}
    assert (hidden["h",] == out).all() and y_var not in values
    more = cell.module_info.add_jaxpr_outs([y_var])
    assert (more.num_var_out, more.num_var_state) == (1, 7)
    weight = cell.module_info.compiled_model_states["Wz", "weight"].value
    y = jnp.concatenate([x, jnp.zeros(4)]) @ weight["weight"] + weight["bias"]
    assert jnp.allclose(more.jaxpr_call(x)[3][y_var], y)


def test_gru_in_the_order_of_the_module(cell):
    assert [path[0] for path in cell.module_info.weight_path_to_invars] == ["Wz", "Wr", "Wh"]


def test_y_to_hidden_groups_of_constant_variables(cell):
    """As the reference page of relations does; JAX from 0.11 on has inputs for the constants."""
    relation = cell.hidden_param_op_relations[0]
    (jaxpr,) = relation.y_to_hidden_group_jaxprs
    variables = [*(jaxpr.constvars or relation.y_to_hidden_group_constvars[0])]
    assert len(variables) == 2
    step = cell.module_info.add_jaxpr_outs([*variables, relation.y])
    _, hidden, _, values = step.jaxpr_call(jnp.ones(3))
    constants = {var: values[var] for var in variables}
    (found,) = relation.y_to_hidden_groups(values[relation.y], constants)
    assert jnp.allclose(found, hidden["h",][:, None], atol=1e-6) and found.shape == (4, 1)
    ((split,),) = relation.y_to_hidden_groups(values[relation.y], constants, False)
    assert jnp.allclose(split, hidden["h",], atol=1e-6)


def test_transitions_of_constant_variables(cell):
    (group,) = cell.hidden_groups
    free = [jnp.full(var.aval.shape, 0.3) for var in group.transition_jaxpr_constvars]
    old = [jnp.ones(4)]
    if group.transition_jaxpr.constvars:
        assert group.transition_jaxpr.constvars == [*group.transition_jaxpr_constvars]
        found = jax.core.eval_jaxpr(group.transition_jaxpr, free, *old)
        assert jnp.allclose(found[0], group.transition(old, free)[0])
    full = group.full_jacobian(old, free)
    assert group.trace_state_width == group.num_state and group.check_consistent_varshape() is None
    assert full.shape == (4, 1, 4, 1) and group.is_diagonal_recurrence
    diagonal = jnp.einsum("iaib->iab", full)
    assert jnp.allclose(diagonal, group.diagonal_jacobian(old, free))


def test_relations(graph, cell):
    relation = graph.hidden_param_op_relations[0]
    assert relation.x is relation.x_var and relation.y is relation.y_var
    assert relation.path == relation.weight_path == ("rnn1", "W", "weight")
    direct = braintrace.PathClassification.ALL_DIRECT
    assert [*relation.path_classification.values()] == [direct] == ["all_direct"]


def test_the_perturbed_step(graph):
    perturb, info = graph.hidden_perturb, graph.module_info
    zero, x = perturb.init_perturb_data(), jnp.zeros(10)
    parts = perturb.perturb_data_to_hidden_group_data(zero, graph.hidden_groups)
    assert [part.shape for part in parts] == [(32, 1), (16, 1)]
    with pytest.raises(ValueError, match="zip"):
        perturb.perturb_data_to_hidden_group_data(zero[:1], graph.hidden_groups)
    out, hidden, other, values = graph.call_hidden_perturb((x,), zero)
    expected = info.jaxpr_call(x)
    assert jnp.allclose(out, expected[0]) and other == {} and values.keys() == expected[3].keys()
    moved = graph.call_hidden_perturb((x,), [zero[0] + 1, zero[1]])[1]
    assert jnp.allclose(moved["rnn1", "h"], hidden["rnn1", "h"] + 1)
    states = [leaf for s in info.slots for leaf in jax.tree.leaves(s.state.value)]
    assert len(perturb.eval_jaxpr([x, *states], zero)) == 9


def test_records_of_a_weight_behind_another_weight(cell):
    (record,) = cell.explain(kind="relation_excluded_weight_to_weight")
    assert record.weight_path == ("Wr", "weight")
    (primitive,) = record.context["blocking_primitives"]
    assert primitive.name == "etp_mv"
    assert record.kind == "relation_excluded_weight_to_weight" and record.level == "info"
    assert record.context["blocking_weight_paths"] == (("Wh", "weight"),)


class Mixed(brainstate.nn.Module):
    """A weight that drives its state directly and through another weight."""

    def __init__(self):
        super().__init__()
        self.w, self.u = (brainstate.ParamState(jnp.ones((3, 3))) for _ in range(2))

    def init_state(self, batch_size=None, **kwargs):
        self.h = brainstate.HiddenState(jnp.zeros(3))

    def update(self, x):
        y = braintrace.matmul(x, self.w.value)
        self.h.value = 0.5 * self.h.value + y + braintrace.matmul(jnp.tanh(y), self.u.value)
        return self.h.value


def test_records_of_a_partial_path():
    model = Mixed()
    brainstate.nn.init_all_states(model)
    graph = braintrace.compile_etrace_graph(model, jnp.ones(3))
    (record,) = graph.explain(kind="relation_partial_path")
    assert record.context == {"classification": braintrace.PathClassification.MIXED}
    assert record.context == {"classification": "mixed"} and record.hidden_paths == (("h",),)
