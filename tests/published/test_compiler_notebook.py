# SPDX-License-Identifier: Apache-2.0
"""The notebook on the compiler, cell by cell: each test is a cell, and prints what it prints there.

The numbers in the names are those of the cells. Rewritten, with public names. What is otherwise
stands in ``but``, with its reason.
"""

from __future__ import annotations

import brainstate
import jax.numpy as jnp
import pytest

import braintrace
from braintrace import DiagnosticKind, DiagnosticLevel
from tests.published.attributes import TwoLayerRNN

pytestmark = pytest.mark.filterwarnings("ignore::braintrace.CompilationWarning")

#: The equations of then that change nothing, a conversion to the same type and a product with one,
#: are not in the program: 5 in the step, 2 in each transition.
NO_CHANGE = ("convert_element_type", "mul")


@pytest.fixture(scope="module")
def model():
    model = TwoLayerRNN()
    brainstate.nn.init_all_states(model)
    return model


@pytest.fixture(scope="module")
def minfo(model):
    return braintrace.extract_module_info(model, jnp.zeros(10))


@pytest.fixture(scope="module")
def groups(minfo):
    return braintrace.find_hidden_groups_from_minfo(minfo)


@pytest.fixture(scope="module")
def graph(model):
    return braintrace.compile_etrace_graph(model, jnp.zeros(10))


def test_cell_4_module_info(minfo, prints):
    print(f"Jaxpr equations: {len(minfo.jaxpr.eqns)}")
    print(f"Compiled model states: {len(minfo.compiled_model_states)}")
    print(f"Hidden states: {len(minfo.hidden_path_to_invar)}")
    print(f"Weight parameters: {len(minfo.weight_path_to_invars)}")
    stored = """
        Jaxpr equations: 12
        Compiled model states: 5
        Hidden states: 2
        Weight parameters: 3
    """
    prints(stored, but={"equations: 12": "equations: 7"})  # NO_CHANGE


def test_cell_6_states(minfo, prints):
    for path, var in minfo.hidden_path_to_invar.items():
        print(f"  {path}  ->  {var}")
    for path, invars in minfo.weight_path_to_invars.items():
        print(f"  {path}  ->  {len(invars)} variable(s)")
    prints("""
        ('rnn1', 'h')  ->  Var(id=...):float32[32]
        ('rnn2', 'h')  ->  Var(id=...):float32[16]
        ('rnn1', 'W', 'weight')  ->  2 variable(s)
        ('rnn2', 'W', 'weight')  ->  2 variable(s)
        ('out', 'weight')  ->  2 variable(s)
    """)


def test_cell_8_groups(groups, prints):
    found, path_to_group = groups
    print(f"Number of hidden groups discovered: {len(found)}")
    for g in found:
        print(f"Group {g.index}:")
        print(f"  Number of states: {g.num_state}")
        print(f"  Variable shape: {g.varshape}")
        print(f"  Hidden paths: {[*g.hidden_paths]}")
        print(f"  Transition Jaxpr equations: {len(g.transition_jaxpr.eqns)}")
        print(f"  Transition const vars: {len(g.transition_jaxpr_constvars)}")
        assert all(path_to_group[path] is g for path in g.hidden_paths)
    stored = """
        Number of hidden groups discovered: 2
        Group 0:
          Number of states: 1
          Variable shape: (32,)
          Hidden paths: [('rnn1', 'h')]
          Transition Jaxpr equations: 5
          Transition const vars: 3
        Group 1:
          Number of states: 1
          Variable shape: (16,)
          Hidden paths: [('rnn2', 'h')]
          Transition Jaxpr equations: 5
          Transition const vars: 3
    """
    prints(stored, but={"equations: 5": "equations: 3"})  # NO_CHANGE


def test_cell_10_relations(minfo, groups, prints):
    relations = braintrace.find_hidden_param_op_relations_from_minfo(minfo, groups[1])
    print(f"Number of ETP relations discovered: {len(relations)}")
    for i, r in enumerate(relations):
        print(f"Relation {i}:")
        print(f"  Primitive: {r.primitive.name}")
        print(f"  Weight path: {r.weight_path}")
        print(f"  x_var: {r.x_var}")
        print(f"  y_var: {r.y_var}")
        print(f"  Connected hidden groups: {[g.index for g in r.hidden_groups]}")
        print(f"  Connected hidden paths: {[*r.connected_hidden_paths]}")
        print(f"  Equation params: {r.eqn_params}")
    prints("""
        Number of ETP relations discovered: 2
        Relation 0:
          Primitive: etp_mv
          Weight path: ('rnn1', 'W', 'weight')
          x_var: Var(id=...):float32[42]
          y_var: Var(id=...):float32[32]
          Connected hidden groups: [0]
          Connected hidden paths: [('rnn1', 'h')]
          Equation params: {'has_bias': True}
        Relation 1:
          Primitive: etp_mv
          Weight path: ('rnn2', 'W', 'weight')
          x_var: Var(id=...):float32[48]
          y_var: Var(id=...):float32[16]
          Connected hidden groups: [1]
          Connected hidden paths: [('rnn2', 'h')]
          Equation params: {'has_bias': True}
    """)


def test_cell_12_perturbation(minfo, prints):
    perturb = braintrace.add_hidden_perturbation_from_minfo(minfo)
    print(f"Number of perturbation variables: {len(perturb.perturb_vars)}")
    print(f"Number of perturbation paths: {len(perturb.perturb_hidden_paths)}")
    columns = perturb.perturb_hidden_paths, perturb.perturb_vars, perturb.perturb_hidden_states
    for path, var, state in zip(*columns, strict=True):
        print(f"  Path: {path}")
        print(f"  Perturbation var: {var}")
        print(f"  State type: {type(state).__name__}")
    prints("""
        Number of perturbation variables: 2
        Number of perturbation paths: 2
          Path: ('rnn1', 'h')
          Perturbation var: Var(id=...):float32[32]
          State type: HiddenState
          Path: ('rnn2', 'h')
          Perturbation var: Var(id=...):float32[16]
          State type: HiddenState
    """)


def test_cell_14_graph(graph, prints):
    print(f"Hidden groups: {len(graph.hidden_groups)}")
    print(f"ETP relations: {len(graph.hidden_param_op_relations)}")
    print(f"Module info available: {graph.module_info is not None}")
    print(f"Hidden perturbation available: {graph.hidden_perturb is not None}")
    print(f"ETraceGraph fields: {list(graph._asdict().keys())}")
    prints("""
        Hidden groups: 2
        ETP relations: 2
        Module info available: True
        Hidden perturbation available: True
        ETraceGraph fields: ['module_info', 'hidden_groups', 'hid_path_to_group',
        'hidden_param_op_relations', 'hidden_perturb', 'diagnostics']
    """)


def test_cell_17_primitives(minfo, prints):
    for eqn in minfo.jaxpr.eqns:
        given = [v.aval.shape if hasattr(v, "aval") else "literal" for v in eqn.invars]
        marker = "**ETP**" if braintrace.is_etp_primitive(eqn.primitive) else "      "
        print(f"{marker} {eqn.primitive.name}: {given} -> {[v.aval.shape for v in eqn.outvars]}")
    stored = """
               convert_element_type: [(32,)] -> [(32,)]
               concatenate: [(10,), (32,)] -> [(42,)]
        **ETP** etp_mv: [(42,), (42, 32), (32,)] -> [(32,)]
               mul: [(32,), ()] -> [(32,)]
               custom_jvp_call: [(32,)] -> [(32,)]
               convert_element_type: [(16,)] -> [(16,)]
               concatenate: [(32,), (16,)] -> [(48,)]
        **ETP** etp_mv: [(48,), (48, 16), (16,)] -> [(16,)]
               mul: [(16,), ()] -> [(16,)]
               custom_jvp_call: [(16,)] -> [(16,)]
        **ETP** etp_mv: [(16,), (16, 5), (5,)] -> [(5,)]
               mul: [(5,), ()] -> [(5,)]
    """
    lines = map(str.strip, stored.splitlines())
    prints(stored, but={line: "" for line in lines if line.startswith(NO_CHANGE)})


def test_cell_19_weights(minfo, prints):
    for eqn in minfo.jaxpr.eqns:
        if braintrace.is_etp_primitive(eqn.primitive):
            spec = braintrace.get_primitive_spec(eqn.primitive)
            weight = eqn.invars[spec.weight_invar_index]
            print(f"Primitive: {eqn.primitive.name}")
            print(f"  weight_invar_index: {spec.weight_invar_index}")
            print(f"  Weight var: {weight}")
            print(f"  Traced to ParamState: {minfo.trace_to_param(weight)}")
    prints("""
        Primitive: etp_mv
          weight_invar_index: 1
          Weight var: Var(id=...):float32[42,32]
          Traced to ParamState: (('rnn1', 'W', 'weight'), ())
        Primitive: etp_mv
          weight_invar_index: 1
          Weight var: Var(id=...):float32[48,16]
          Traced to ParamState: (('rnn2', 'W', 'weight'), ())
        Primitive: etp_mv
          weight_invar_index: 1
          Weight var: Var(id=...):float32[16,5]
          Traced to ParamState: (('out', 'weight'), ())
    """)


#: Kinds of records that the compiler of then had not.
NEW_KINDS = {DiagnosticKind.TRANSITION_STRUCTURALLY_ZERO}


def test_cell_21_diagnostics(graph, prints):
    diagnostics = [d for d in graph.diagnostics if d.kind not in NEW_KINDS]
    print(f"Diagnostics: {len(diagnostics)}")
    for d in diagnostics:
        print(f"  [{d.level.name:7s}] {d.kind.name}: {d.message}")
    errors = [d for d in diagnostics if d.level == DiagnosticLevel.ERROR]
    excluded = DiagnosticKind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT
    excluded = [d for d in diagnostics if d.kind == excluded]
    print(f"\nerrors: {len(errors)}, weight->weight exclusions: {len(excluded)}")
    stored = """
        Diagnostics: 3
          [INFO   ] RELATION_INCLUDED: etp_mv(('rnn1', 'W', 'weight')) -> [0]
          [INFO   ] RELATION_INCLUDED: etp_mv(('rnn2', 'W', 'weight')) -> [1]
          [WARNING] RELATION_EXCLUDED_NON_TEMPORAL: ETP primitive etp_mv (weight=('out', \
'weight')) has no connected hidden states. It will be treated as a non-temporal parameter.

        errors: 0, weight->weight exclusions: 0
    """
    prints(stored, but={READOUT: diagnostics[-1].message})


#: What is said of the readout is in the words of this compiler.
READOUT = (
    "ETP primitive etp_mv (weight=('out', 'weight')) has no connected hidden states. "
    "It will be treated as a non-temporal parameter."
)


def test_cell_21_explain(graph, prints):
    records = graph.explain()
    assert isinstance(records, tuple) and records == tuple(graph.diagnostics)
    print(tuple(d for d in records if d.kind not in NEW_KINDS))
    stored = """
        (CompilationRecord(kind=relation_included, level=info, primitive='etp_mv', \
weight_path=('rnn1', 'W', 'weight'), hidden_paths=[('rnn1', 'h')], \
message="etp_mv(('rnn1', 'W', 'weight')) -> [0]", context={'hidden_group_indices': (0,), \
'path_classification': {('rnn1', 'h'): 'all_direct'}}),
         CompilationRecord(kind=relation_included, level=info, primitive='etp_mv', \
weight_path=('rnn2', 'W', 'weight'), hidden_paths=[('rnn2', 'h')], \
message="etp_mv(('rnn2', 'W', 'weight')) -> [1]", context={'hidden_group_indices': (1,), \
'path_classification': {('rnn2', 'h'): 'all_direct'}}),
         CompilationRecord(kind=relation_excluded_non_temporal, level=warning, \
primitive='etp_mv', weight_path=('out', 'weight'), \
message="ETP primitive etp_mv (weight=('out', 'weight')) has no connected hidden states. It \
will be treated as a non-temporal parameter."))
    """
    (readout,) = (d for d in records if d.weight_path == ("out", "weight"))
    prints(stored, but={f'"{READOUT}"': f"{readout.message!r}"})
