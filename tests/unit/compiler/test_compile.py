# SPDX-License-Identifier: Apache-2.0
"""What the compiler finds, says and refuses."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxpr_as_fun

import braintrace as bt
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.zoo import HIDDEN, IN, weight

Kind, Level = bt.DiagnosticKind, bt.DiagnosticLevel


class Reference(brainstate.nn.Module):
    """The model of the design's reference values."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn1 = bt.nn.ValinaRNNCell(10, 32)
        self.rnn2 = bt.nn.ValinaRNNCell(32, 16)
        self.out = bt.nn.Linear(16, 4)

    def update(self, x: Any) -> Any:
        return self.out(self.rnn2(self.rnn1(x)))


RNN1, RNN2 = ("rnn1", "W", "weight"), ("rnn2", "W", "weight")


@pytest.fixture
def reference() -> Any:
    model = Reference()
    brainstate.nn.init_all_states(model)
    return bt.compile_etrace_graph(model, jnp.ones(10))


def compiled(model: Any, *args: Any, batch: int | None = None) -> Any:
    brainstate.nn.init_all_states(model, batch_size=batch)
    return bt.compile_etrace_graph(model, *args)


def compiled_case(name: str, batch: int | None = 2) -> Any:
    case = zoo.case(name, batch, steps=1)
    return case, bt.compile_etrace_graph(case.model, case.xs[0])


# --- reference values -------------------------------------------------------------------------


def test_groups_of_the_reference_model(reference: Any) -> None:
    groups = reference.hidden_groups
    assert [g.index for g in groups] == [0, 1]
    assert [g.varshape for g in groups] == [(32,), (16,)]
    assert [g.num_state for g in groups] == [1, 1]
    assert [g.hidden_paths for g in groups] == [(("rnn1", "h"),), (("rnn2", "h"),)]
    assert reference.hid_path_to_group == {("rnn1", "h"): groups[0], ("rnn2", "h"): groups[1]}


def test_relations_of_the_reference_model(reference: Any) -> None:
    relations = reference.hidden_param_op_relations
    assert [r.primitive.name for r in relations] == ["etp_mv", "etp_mv"]
    assert [r.path for r in relations] == [RNN1, RNN2]
    assert [r.weight_path for r in relations] == [RNN1, RNN2]
    assert [r.parameter_paths for r in relations] == [(RNN1,), (RNN2,)]
    assert [list(r.group_alignments) for r in relations] == [[0], [1]]
    assert [r.x_var.aval.shape for r in relations] == [(42,), (48,)]
    assert [r.y_var.aval.shape for r in relations] == [(32,), (16,)]
    assert relations[0].primitive is relations[1].primitive


def test_states_of_the_reference_model(reference: Any) -> None:
    info = reference.module_info
    assert len(info.compiled_model_states) == 5
    assert {path: len(v) for path, v in info.weight_path_to_invars.items()} == {
        RNN1: 2,
        RNN2: 2,
        ("out", "weight"): 2,
    }
    assert set(info.hidden_path_to_invar) == {("rnn1", "h"), ("rnn2", "h")}
    assert info.outvar_to_hidden_path == {v: p for p, v in info.hidden_path_to_outvar.items()}
    assert reference.hidden_perturb.perturb_hidden_paths == (("rnn1", "h"), ("rnn2", "h"))
    assert [p.shape for p in reference.hidden_perturb.init_perturb_data()] == [(32,), (16,)]


def test_diagnostics_of_the_reference_model(reference: Any) -> None:
    included = reference.explain(kind=Kind.RELATION_INCLUDED)
    assert [record.message for record in included] == [
        "etp_mv(('rnn1', 'W', 'weight')) -> [0]",
        "etp_mv(('rnn2', 'W', 'weight')) -> [1]",
    ]
    assert [record.level for record in included] == [Level.INFO, Level.INFO]
    assert [record.context["hidden_group_indices"] for record in included] == [(0,), (1,)]
    assert [record.hidden_paths for record in included] == [(("rnn1", "h"),), (("rnn2", "h"),)]
    (readout,) = reference.explain(kind=Kind.RELATION_EXCLUDED_NON_TEMPORAL)
    assert readout.level is Level.WARNING
    assert readout.weight_path == ("out", "weight")
    zero = reference.explain(kind=Kind.TRANSITION_STRUCTURALLY_ZERO)
    assert [record.hidden_paths for record in zero] == [(("rnn1", "h"),), (("rnn2", "h"),)]
    assert len(reference.diagnostics) == 5


def test_path_classification_of_the_reference_model(reference: Any) -> None:
    included = reference.explain(kind=Kind.RELATION_INCLUDED)
    assert [record.context["path_classification"] for record in included] == [
        {("rnn1", "h"): "all_direct"},
        {("rnn2", "h"): "all_direct"},
    ]


def test_kinds_are_lower_case_words() -> None:
    assert all(kind.value == kind.name.lower() for kind in Kind)


def test_warning_records_are_warnings() -> None:
    model = Reference()
    brainstate.nn.init_all_states(model)
    with pytest.warns(UserWarning) as issued:
        graph = bt.compile_etrace_graph(model, jnp.ones(10))
    texts = [str(w.message) for w in issued]
    warned = graph.explain(level=Level.WARNING)
    readout = Kind.RELATION_EXCLUDED_NON_TEMPORAL  # its gradient is exact
    assert texts == [str(r) for r in warned if r.kind is not readout] != [*map(str, warned)]
    assert {w.category for w in issued} == {bt.CompilationWarning}
    assert {Path(w.filename).name for w in issued} == {Path(__file__).name}


def test_explain_selects(reference: Any) -> None:
    assert {r.kind for r in reference.explain(weight_path=RNN1)} == {Kind.RELATION_INCLUDED}
    about = reference.explain(hidden_path=("rnn2", "h"))
    assert {r.kind for r in about} == {Kind.RELATION_INCLUDED, Kind.TRANSITION_STRUCTURALLY_ZERO}
    assert reference.explain() == reference.diagnostics
    assert reference.explain(weight_path=RNN1, kind=Kind.PARAMETER_UNUSED) == ()
    named = reference.explain(kind="relation_included", level="info")
    assert named == reference.explain(kind=Kind.RELATION_INCLUDED) != ()
    with pytest.raises(ValueError, match="'no_such_kind' is not a valid DiagnosticKind"):
        reference.explain(kind="no_such_kind")


def test_the_report_is_a_table_of_what_was_found(reference: Any) -> None:
    report = reference.report()
    for text in ("rnn1.h", "(32,)", "etp_mv", "rnn2.W.weight", "out.weight", "direct", "trace"):
        assert text in report
    here = f"test_compile.py:{line_of(Reference.update, 'return')}"
    assert here in report
    assert str(Path(__file__).parents[3]) + "/core/src" not in report


# --- relations and coverage -------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize(("cell", "relations"), [("vanilla", 1), ("gru", 2), ("lstm", 4)])
def test_relations_per_cell(cell: str, relations: int, batch: int | None) -> None:
    for layers in (1, 2):
        _, graph = compiled_case(f"{cell}-{layers}", batch)
        name = "etp_mv" if batch is None else "etp_mm"
        assert [r.primitive.name for r in graph.hidden_param_op_relations] == [name] * (
            relations * layers
        )
        driven = [tuple(r.group_alignments) for r in graph.hidden_param_op_relations]
        assert sorted(driven) == sorted((g,) for g in range(layers) for _ in range(relations))
        assert len(graph.hidden_groups) == layers


COVERAGE = {
    "leaky": {"w": "trace"},
    "gru-1": {
        "layers.0.Wz.weight": "trace",
        "layers.0.Wh.weight": "trace",
        "layers.0.Wr.weight": "direct",
        "out.weight": "direct",
    },
    "processed": {"p": "trace", "q": "trace+direct"},
    "used-twice": {"w": "trace+direct", "v": "direct"},
    "plain-parameters": {"w": "trace", "b": "direct", "v": "direct", "out": "direct"},
    "learned-leak": {"w": "trace", "leak": "trace", "gain": "trace"},
    "partial-path": {"w": "trace+direct", "u": "trace"},
    "residual": {"layers.0.w": "trace", "layers.1.w": "trace"},
    "top-down": {"layers.0.w": "trace", "layers.1.w": "trace", "back": "trace"},
}


@pytest.mark.parametrize("name", COVERAGE)
def test_coverage(name: str) -> None:
    _, graph = compiled_case(name)
    found = {".".join(map(str, path)): how for path, how in graph.coverage().items()}
    if name == "partial-path":  # credit of the far path: the learning signal of the near operation
        assert found.pop("w").startswith("trace")
        assert found == {"u": "trace"}
    else:
        assert found == COVERAGE[name]


KINDS = {
    "two-states": ({Kind.HIDDEN_GROUP_MERGED}, set()),
    "gru-1": ({Kind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT}, set()),
    "plain-parameters": ({Kind.PARAMETER_OUTSIDE_OPERATION}, set()),
    "residual": ({Kind.CROSS_GROUP_DEPENDENCE}, set()),
    "partial-path": ({Kind.RELATION_PARTIAL_PATH}, set()),
    "direct": ({Kind.TRANSITION_STRUCTURALLY_ZERO}, set()),
    "leaky": ({Kind.RELATION_INCLUDED}, set(Kind) - {Kind.RELATION_INCLUDED}),
}


@pytest.mark.parametrize("name", KINDS)
def test_kinds_of_diagnostics(name: str) -> None:
    _, graph = compiled_case(name)
    kinds = {record.kind for record in graph.diagnostics}
    present, absent = KINDS[name]
    assert present <= kinds
    assert not absent & kinds


class Unused(zoo.Leaky):
    def __init__(self) -> None:
        super().__init__()
        self.dead = weight(HIDDEN)

    def update(self, x: Any) -> Any:
        return super().update(x) + jax.lax.stop_gradient(self.dead.value)


def test_an_unused_parameter_is_an_error() -> None:
    line = f"test_compile.py:{line_of(Unused.update, 'stop_gradient')}"
    says = (
        rf"(?s)1 of the model's 2 parameters:\n  dead: .*stop_gradient.*{line}.*frozen=\['dead'\]"
    )
    with pytest.raises(bt.CompilationError, match=says):
        compiled(Unused(), jnp.ones(IN))


class Constant(zoo.Leaky):
    """The bias of the operation is a constant."""

    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.w.value, jnp.ones(HIDDEN))
        self.h.value = 0.5 * self.h.value + drive
        return self.h.value


class AllConstant(zoo.Leaky):
    """An operation without any parameter."""

    def update(self, x: Any) -> Any:
        self.h.value = 0.5 * self.h.value + bt.matmul(x, jnp.ones((IN, HIDDEN)))
        return self.h.value @ self.w.value.T


def test_operands_that_are_no_parameters() -> None:
    (record,) = compiled(Constant(), jnp.ones(IN)).explain(kind=Kind.TRAINABLE_INVAR_NOT_PARAMSTATE)
    assert record.context["key"] == "bias"
    graph = compiled(AllConstant(), jnp.ones(IN))
    assert graph.hidden_param_op_relations == ()
    assert graph.explain(kind=Kind.RELATION_EXCLUDED_NO_PARAMSTATE)
    assert graph.coverage() == {("w",): "direct"}


# --- programs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("name", zoo.ALL)
def test_the_programs_are_right(name: str, batch: int | None) -> None:
    """Well-formed, and with zero perturbations the same function as the model."""
    case, graph = compiled_case(name, batch)
    zoo.stir(case)
    info, plan = graph.module_info, graph.hidden_perturb
    zoo.check_jaxpr(info.jaxpr)
    assert not any(eqn.primitive.name in ("jit", "pjit", "checkpoint") for eqn in info.eqns)
    outvars = [info.outvars_of(slot)[0] for slot in info.slots if slot.state in hidden_of(case)]
    assert len({*outvars}) == len(outvars)
    produced = {var for eqn in info.eqns for var in eqn.outvars}
    assert set(outvars) <= produced

    states = [leaf for slot in info.slots for leaf in jax.tree.leaves(slot.state.value)]
    inputs = [*jax.tree.leaves((case.xs[0],)), *states]
    plain = jaxpr_as_fun(info.jaxpr)(*inputs)
    perturbed = plan.eval_jaxpr(inputs, plan.init_perturb_data())
    shifted = plan.eval_jaxpr(inputs, [p + 0.5 for p in plan.init_perturb_data()])
    out = case.model(case.xs[0])
    new = [leaf for slot in info.slots for leaf in jax.tree.leaves(slot.state.value)]
    expected = [*jax.tree.leaves(out), *new]
    for found in (list(plain), perturbed):  # biases are zero
        assert_tree_close({"all": found}, {"all": expected}, 1e-12, scale=1.0, allow_zero=["all"])
    assert any(not jnp.array_equal(a, b) for a, b in zip(shifted, perturbed, strict=True))


def hidden_of(case: Any) -> list[Any]:
    return list(brainstate.graph.states(case.model, brainstate.HiddenState).values())


# --- determinism ------------------------------------------------------------------------------

TWICE = """
import warnings
import brainstate
warnings.simplefilter("ignore")
from tests import zoo
from tests.unit.compiler.findings import test_model as test_diagnostics
import braintrace as bt

def told(context):
    return context and (sorted(context.hold), context.near)

def show(graph):
    print(graph.report())
    print(*graph.diagnostics, sep="\\n")
    print(*(sorted(record.context) for record in graph.diagnostics))
    for step in graph.perturbed.instructions:
        reads = [(told(r.context), r.perturb, r.stop) for r in step.operands]
        print(step.eqn, told(step.context), reads)
    print(graph.module_info.jaxpr, graph.perturbed.perturb_jaxpr)
    print(*graph.perturbed.perturb_hidden_paths)
    for group in graph.hidden_groups:
        print(group.hidden_paths, group.transition_jaxpr)
    for relation in graph.hidden_param_op_relations:
        print(relation.parameter_paths, *relation.y_to_hidden_group_jaxprs)

with brainstate.environ.context(precision=64):
    for name in {names!r}:
        brainstate.random.seed(0)
        case = zoo.case(name, 2, steps=1)
        show(bt.compile_etrace_graph(case.model, case.xs[0]))
    for trigger in test_diagnostics.TRIGGERS:
        show(test_diagnostics.compiled(trigger.model(), frozen=trigger.frozen))
"""


def test_compiling_twice_gives_the_same() -> None:
    for name in ("lstm-2", "processed", "nested"):
        case, first = compiled_case(name)
        second = bt.compile_etrace_graph(case.model, case.xs[0])
        assert first.report() == second.report()
        assert first.diagnostics == second.diagnostics
        assert str(first.module_info.jaxpr) == str(second.module_info.jaxpr)
        assert (
            first.hidden_perturb.perturb_hidden_paths == second.hidden_perturb.perturb_hidden_paths
        )


def test_two_processes_give_the_same() -> None:
    names = ["lstm-2", "processed", "used-twice", "top-down", "residual", "plain-parameters"]
    code = TWICE.format(names=names)
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[3],
            env={**os.environ, "PYTHONHASHSEED": seed},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    texts = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert texts[0] == texts[1]
    assert "etp_mm" in texts[0]


# --- refused ----------------------------------------------------------------------------------


def line_of(function: Any, marker: str) -> int:
    """The line in this file of a function's source that holds ``marker``."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, text in enumerate(lines) if marker in text)


class Refused(zoo.Model):
    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)


class PlainProduct(Refused):
    """With a weight for a product that is no ETP operation."""

    def __init__(self) -> None:
        super().__init__()
        self.u = weight(HIDDEN, HIDDEN)


def normalised(h: Any) -> Any:
    return (h - h.mean(-1, keepdims=True)) / jnp.sqrt(h.var(-1, keepdims=True) + 1e-5)


class InsideCustomJvp(Refused):
    def update(self, x: Any) -> Any:
        @jax.custom_jvp
        def drive(x: Any, w: Any) -> Any:
            return bt.matmul(x, w)  # here

        drive.defjvp(lambda primals, tangents: (drive(*primals), drive(tangents[0], primals[1])))
        self.h.value = 0.5 * self.h.value + drive(x, self.w.value)
        return self.h.value


class InsideCustomVjp(Refused):
    def update(self, x: Any) -> Any:
        @jax.custom_vjp
        def drive(x: Any, w: Any) -> Any:
            return bt.matmul(x, w)  # here

        drive.defvjp(lambda x, w: (drive(x, w), None), lambda _, g: (None, None))
        self.h.value = 0.5 * self.h.value + drive(x, self.w.value)
        return self.h.value


NESTED = r"the ETP operation 'etp_m[mv]' at "

REFUSED = {
    InsideCustomJvp: NESTED + r".*inside 'custom_jvp_call' at ",
    InsideCustomVjp: NESTED + r".*inside 'custom_vjp_call.*' at ",
}


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("model", REFUSED)
def test_refused_with_the_line(model: type, batch: int | None) -> None:
    x = jnp.ones(IN if batch is None else (batch, IN))
    built = model()
    brainstate.nn.init_all_states(built, batch_size=batch)
    with pytest.raises(bt.NotSupportedError, match=f"(?s){REFUSED[model]}") as refusal:
        bt.compile_etrace_graph(built, x)
    text = str(refusal.value)
    assert f"test_compile.py:{line_of(model.update, '# here')}" in text, text
    assert model.update.__qualname__ in text


@pytest.mark.parametrize("surrogate", [zoo.spike, zoo.spike_vjp])
def test_a_surrogate_alone_on_the_tail_is_position_wise(surrogate: Any) -> None:
    """Nothing but the surrogate's derivative leads from the operation to the state."""

    class Spikes(Refused):
        def update(self, x: Any) -> Any:
            self.h.value = 0.5 * self.h.value + surrogate(bt.matmul(x, self.w.value))
            return self.h.value

    graph = compiled(Spikes(), jnp.ones((2, IN)), batch=2)
    (relation,) = graph.hidden_param_op_relations
    assert relation.weight_path == ("w",)
    assert relation.group_alignments[0].axes == (0, 1)


def test_mixing_in_the_output_alone_is_fine() -> None:
    """Normalisation behind the state disturbs nothing."""

    class Normalises(PlainProduct):
        def update(self, x: Any) -> Any:
            self.h.value = 0.5 * self.h.value + bt.matmul(x, self.w.value)
            return normalised(self.h.value) @ self.u.value

    graph = compiled(Normalises(), jnp.ones(IN))
    assert graph.coverage() == {("w",): "trace", ("u",): "direct"}


# --- module info ------------------------------------------------------------------------------


class Outsider(zoo.Leaky):
    """Uses a parameter that it does not own."""

    stranger = None

    def update(self, x: Any) -> Any:
        return super().update(x) * OUTSIDE[0].value


OUTSIDE: list[Any] = []


def test_a_state_outside_of_the_model_is_an_error() -> None:
    OUTSIDE[:] = [weight(HIDDEN)]
    with pytest.raises(bt.CompilationError, match=r"uses a ParamState that is not reachable"):
        compiled(Outsider(), jnp.ones(IN))


def test_module_info_of_pytrees_and_units() -> None:
    class Tree(zoo.Leaky):
        def update(self, x: Any) -> Any:
            out = super().update(x["a"] + x["b"][0])
            return {"out": out, "state": [self.h.value]}

    model = Tree()
    brainstate.nn.init_all_states(model)
    x = {"a": jnp.ones(IN), "b": [np.ones(IN)]}
    info = bt.extract_module_info(model, x)
    assert (info.num_args, info.num_out) == (2, 2)
    assert info.arg_treedef == jax.tree.structure((x,))
    learner = bt.D_RTRL(model)
    learner.compile_graph(x)
    assert learner(x)["state"][0].shape == (HIDDEN,)
