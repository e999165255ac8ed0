# SPDX-License-Identifier: Apache-2.0
"""Every kind of diagnostic is triggered by a model, and parameters without gradient are errors."""

from __future__ import annotations

import inspect
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.compiler.graph import summarize
from tests import zoo
from tests.zoo import HIDDEN, IN, OUT, weight

Kind, Level = bt.DiagnosticKind, bt.DiagnosticLevel
DOCUMENT = Path(__file__).parents[4] / "docs" / "diagnostics.md"


class Base(zoo.Model):
    """A leaky integrator; most models below change one line of it."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)


class WithMore(Base):
    """With a second weight."""

    def __init__(self) -> None:
        super().__init__()
        self.u = weight(HIDDEN, HIDDEN)


class Included(Base):
    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value)  # here
        return self.h.value


class NoParameter(Base):
    def update(self, x: Any) -> Any:
        fixed = bt.matmul(x, jnp.ones((IN, HIDDEN)))  # here
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value) + fixed
        return self.h.value


class Readout(WithMore):
    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value)
        return bt.matmul(self.h.value, self.u.value)  # here


class WeightToWeight(WithMore):
    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)  # here
        self.h.value = 0.8 * self.h.value + bt.matmul(jnp.tanh(y), self.u.value)
        return self.h.value


class PartialPath(WithMore):
    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)  # here
        self.h.value = 0.8 * self.h.value + y + bt.matmul(jnp.tanh(y), self.u.value)
        return self.h.value


class ConstantBias(Base):
    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.w.value, jnp.ones(HIDDEN))  # here
        self.h.value = 0.8 * self.h.value + drive
        return self.h.value


class SeveralLeaves(zoo.Model):
    def __init__(self) -> None:
        super().__init__()
        self.p = brainstate.ParamState({"w": weight(IN, HIDDEN).value, "scale": jnp.ones(HIDDEN)})

    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.p.value["w"] * self.p.value["scale"])  # here
        self.h.value = 0.8 * self.h.value + drive
        return self.h.value


@jax.custom_jvp
def two_results(v: Any) -> Any:
    return jnp.tanh(v), v**2


@two_results.defjvp
def _two_results_jvp(primals: Any, tangents: Any) -> Any:
    (v,), (dv,) = primals, tangents
    return two_results(v), ((1 - jnp.tanh(v) ** 2) * dv, 2 * v * dv)


class SeveralResults(Base):
    def update(self, x: Any) -> Any:
        a, b = two_results(self.h.value)  # here
        self.h.value = 0.8 * a + 0.1 * b + bt.matmul(x, self.w.value)
        return self.h.value


class Merged(Base):
    names = ("h", "a")

    def update(self, x: Any) -> Any:
        old = self.h.value
        self.h.value = 0.8 * old - self.a.value + bt.matmul(x, self.w.value)
        self.a.value = 0.9 * self.a.value + 0.1 * old  # here
        return self.h.value


class StructurallyZero(WithMore):
    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.w.value) + bt.matmul(self.h.value, self.u.value)
        self.h.value = jnp.tanh(drive)  # here
        return self.h.value


class Bounded(WithMore):
    def update(self, x: Any) -> Any:
        recurrent = bt.matmul(self.h.value, self.u.value)  # here
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value) + jnp.tanh(recurrent)
        return self.h.value


class MixingTransition(Base):
    def update(self, x: Any) -> Any:
        mean = self.h.value.mean(-1, keepdims=True)  # here
        self.h.value = 0.8 * self.h.value - mean + bt.matmul(x, self.w.value)
        return self.h.value


class MixingTail(Base):
    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        y = y - y.mean(-1, keepdims=True)  # here
        self.h.value = 0.8 * self.h.value + y
        return self.h.value


class CrossGroup(brainstate.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [Included(), Included()]
        self.layers[1].w = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        low, high = self.layers
        y = low(x)
        high.h.value = 0.5 * high.h.value + bt.matmul(y, high.w.value) + jnp.sin(y)  # here
        return high.h.value


class Carrier(Base):
    def __init__(self) -> None:
        super().__init__()
        self.trail = brainstate.ShortTermState(jnp.zeros((2, HIDDEN)))

    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.w.value) + self.trail.value
        self.h.value = 0.8 * self.h.value + drive
        self.trail.value = 0.5 * (self.trail.value + self.h.value)  # here
        return self.h.value


class PlainBias(Base):
    def __init__(self) -> None:
        super().__init__()
        self.b = weight(HIDDEN)

    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.w.value) + self.b.value  # here
        self.h.value = 0.8 * self.h.value + drive
        return self.h.value


class Unused(Base):
    def __init__(self) -> None:
        super().__init__()
        self.dead = weight(HIDDEN)

    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value)
        return self.h.value + jax.lax.stop_gradient(self.dead.value)  # blocked


class IdleState(Base):
    names = ("h", "idle")

    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value)
        return self.h.value


STRANGER = brainstate.ShortTermState(jnp.zeros(HIDDEN))


class Stranger(Base):
    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value) + STRANGER.value
        return self.h.value


class InsideJit(Base):
    def update(self, x: Any) -> Any:
        @jax.jit
        def drive(x: Any, w: Any) -> Any:
            return jnp.tanh(bt.matmul(x, w))  # here

        self.h.value = 0.8 * self.h.value + drive(x, self.w.value)
        return self.h.value


class InsideCond(Base):
    def update(self, x: Any) -> Any:
        drive = jax.lax.cond(  # cond
            x.sum() > 0,
            lambda: bt.matmul(x, self.w.value),  # here
            lambda: jnp.zeros_like(self.h.value),
        )
        self.h.value = 0.8 * self.h.value + drive
        return self.h.value


class WeightInCond(WithMore):
    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value)
        return jax.lax.cond(  # here
            x.sum() > 0, lambda: self.h.value @ self.u.value, lambda: self.h.value
        )


class Fixed:
    """A layer of another library: not known to brainstate, and called."""

    def __init__(self) -> None:
        self.matrix = jnp.eye(IN)

    def __call__(self, x: Any) -> Any:
        return x @ self.matrix


class WithForeignLayer(Base):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Fixed()

    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + bt.matmul(self.encoder(x), self.w.value)
        return self.h.value


@dataclass(frozen=True)
class Trigger:
    """What a model makes the compiler say, and where: the line with ``mark``."""

    kind: Kind
    model: type
    level: Level
    primitive: str | None = None
    weight: Any = None
    hidden: Any = ()
    mark: str | None = "# here"
    frozen: Any = ()


H, MM = (("h",),), "etp_mm"
TRIGGERS = [
    Trigger(Kind.RELATION_INCLUDED, Included, Level.INFO, MM, ("w",), H),
    Trigger(Kind.RELATION_EXCLUDED_NO_PARAMSTATE, NoParameter, Level.INFO, MM),
    Trigger(Kind.RELATION_EXCLUDED_NON_TEMPORAL, Readout, Level.WARNING, MM, ("u",)),
    Trigger(Kind.RELATION_EXCLUDED_WEIGHT_TO_WEIGHT, WeightToWeight, Level.INFO, MM, ("w",)),
    Trigger(Kind.RELATION_PARTIAL_PATH, PartialPath, Level.INFO, MM, ("w",), H),
    Trigger(Kind.TRAINABLE_INVAR_NOT_PARAMSTATE, ConstantBias, Level.INFO, MM),
    Trigger(Kind.PYTREE_WEIGHT_LEAF_AMBIGUOUS, SeveralLeaves, Level.INFO, MM, ("p",)),
    Trigger(
        Kind.MULTI_OUTPUT_PRIMITIVE_DETECTED,
        SeveralResults,
        Level.INFO,
        "custom_jvp_call",
        hidden=H,
    ),
    Trigger(Kind.HIDDEN_GROUP_MERGED, Merged, Level.INFO, "add", hidden=(("a",), ("h",))),
    Trigger(Kind.TRANSITION_STRUCTURALLY_ZERO, StructurallyZero, Level.WARNING, "tanh", hidden=H),
    Trigger(Kind.TRANSITION_TAIL_BOUNDED, Bounded, Level.INFO, MM, hidden=H),
    Trigger(
        Kind.TRANSITION_NOT_POSITION_WISE, MixingTransition, Level.WARNING, "reduce_sum", hidden=H
    ),
    Trigger(Kind.TAIL_NOT_POSITION_WISE, MixingTail, Level.WARNING, "reduce_sum", ("w",), H),
    Trigger(
        Kind.CROSS_GROUP_DEPENDENCE,
        CrossGroup,
        Level.WARNING,
        "add",
        hidden=(("layers", 1, "h"), ("layers", 0, "h")),
    ),
    Trigger(Kind.CREDIT_THROUGH_OTHER_STATE, Carrier, Level.WARNING, "mul", hidden=(("trail",),)),
    Trigger(Kind.PARAMETER_OUTSIDE_OPERATION, PlainBias, Level.WARNING, None, ("b",)),
    Trigger(Kind.PARAMETER_UNUSED, Unused, Level.INFO, None, ("dead",), mark=None, frozen=["dead"]),
    Trigger(Kind.STATE_MISMATCH, IdleState, Level.WARNING, None, hidden=(("idle",),), mark=None),
    Trigger(Kind.WEIGHTS_ARE_CONSTANTS, WithForeignLayer, Level.WARNING, mark=None),
    Trigger(Kind.PRIMITIVE_INSIDE_NESTED_JIT, InsideJit, Level.INFO, MM, ("w",), H),
    Trigger(Kind.PRIMITIVE_INSIDE_CONTROL_FLOW, InsideCond, Level.INFO, MM, ("w",), H),
    Trigger(Kind.CONTROL_FLOW_REWRITTEN, InsideCond, Level.INFO, "cond", mark="# cond"),
    Trigger(Kind.WEIGHT_IN_CONTROL_FLOW, WeightInCond, Level.INFO, "cond", ("u",)),
]


def line_of(function: Any, marker: str) -> int:
    """The line in this file of a function's source that holds ``marker``."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, text in enumerate(lines) if marker in text)


def compiled(model: Any, **options: Any) -> Any:
    brainstate.nn.init_all_states(model, batch_size=2)
    return bt.compile_etrace_graph(model, jnp.ones((2, IN)), **options)


@pytest.mark.parametrize("trigger", TRIGGERS, ids=lambda t: t.kind.value)
def test_every_kind_is_triggered(trigger: Trigger) -> None:
    graph = compiled(trigger.model(), frozen=trigger.frozen)
    (record,) = graph.explain(kind=trigger.kind)
    assert record.level is trigger.level
    assert record.weight_path == trigger.weight
    assert record.hidden_paths == trigger.hidden
    if trigger.kind is not Kind.PARAMETER_OUTSIDE_OPERATION:
        assert record.primitive == trigger.primitive
    if trigger.mark is None:
        assert record.source is None
    else:
        line = line_of(trigger.model.update, trigger.mark)
        assert re.match(rf".*test_model\.py:{line}\b.*update", record.source), record.source
    text = str(record)
    assert text.startswith(f"{record.level.value}: {record.kind.value}: {record.message}")
    if trigger.kind is not Kind.RELATION_INCLUDED:
        assert record.remedy
        assert record.remedy in text


#: Kinds with tests of their own, in test_downstream.py, test_rolled.py and test_rewrite.py; all are
#: informations.
ELSEWHERE = {Kind.UNIFORM_DYNAMICS, Kind.EXACT_CREDIT, Kind.CREDIT_STOPS, Kind.SCAN_DESCENT_APPLIED}
ELSEWHERE |= {Kind.CONTROL_FLOW_OPAQUE_FWD, Kind.WEIGHT_IN_WHILE}


def test_no_kind_is_left_out() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    never = re.findall(r"`([a-z_]+)`", "".join(re.findall(r"^\| (`.*?) \|", text, re.MULTILINE)))
    assert {trigger.kind for trigger in TRIGGERS} == {*Kind} - {*map(Kind, never)} - ELSEWHERE
    assert all(kind.value == kind.name.lower() for kind in Kind)


def test_a_state_of_nobody_is_a_mismatch() -> None:
    (record,) = compiled(Stranger()).explain(kind=Kind.STATE_MISMATCH)
    assert record.level is Level.WARNING
    assert record.context == {"direction": "compiled_not_in_retrieved"}
    assert "not reachable from the model" in record.message


@pytest.mark.parametrize(
    "trigger",
    [t for t in TRIGGERS if t.level is Level.WARNING],
    ids=lambda t: t.kind.value,
)
def test_a_warning_is_issued_once(trigger: Trigger) -> None:
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        graph = compiled(trigger.model())
    warned = graph.explain(level=Level.WARNING)
    readout = {Kind.RELATION_EXCLUDED_NON_TEMPORAL} if trigger.model is Readout else set()
    exact = readout | {Kind.TAIL_NOT_POSITION_WISE}
    expected = [str(record) for record in warned if record.kind not in exact]
    notes = [str(record) for record in warned if record.kind in exact]
    assert trigger.kind in {record.kind for record in warned}
    told = summarize(graph)
    assert [[*map(str, told.warnings)], [*map(str, told.notes)]] == [expected, notes]
    assert [str(w.message) for w in issued] == expected
    assert len(set(expected)) == len(expected)
    assert {w.category for w in issued} <= {bt.CompilationWarning}
    assert {Path(w.filename).name for w in issued} <= {Path(__file__).name}


def test_a_clean_model_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = compiled(Included())
    assert [record.kind for record in graph.diagnostics] == [Kind.RELATION_INCLUDED]


def test_random_numbers_are_no_mismatch() -> None:
    class Noisy(Base):
        def update(self, x: Any) -> Any:
            noise = brainstate.random.randn(HIDDEN)
            self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value) + noise
            return self.h.value

    graph = compiled(Noisy())
    assert any(isinstance(s.state, brainstate.random.RandomState) for s in graph.module_info.slots)
    assert [record.kind for record in graph.diagnostics] == [Kind.RELATION_INCLUDED]


def test_the_order_of_the_fields_is_that_of_the_interface() -> None:
    record = bt.CompilationRecord(
        Kind.STATE_MISMATCH, Level.INFO, "text", "add", ("w",), (("h",),), {"a": 1}, "file.py:1"
    )
    assert (record.primitive, record.weight_path, record.hidden_paths) == ("add", ("w",), (("h",),))
    assert (record.context, record.source, record.remedy) == ({"a": 1}, "file.py:1", "")
    assert str(record) == "info: state_mismatch: text [file.py:1]"


def test_coupled_keeps_what_diagonal_bounds() -> None:
    graph = compiled(Bounded(), recurrence_scope="coupled")
    assert graph.recurrence_scope == "coupled"
    assert graph.explain(kind=Kind.TRANSITION_TAIL_BOUNDED) == ()
    zero = compiled(StructurallyZero(), recurrence_scope="coupled")
    assert zero.explain(kind=Kind.TRANSITION_STRUCTURALLY_ZERO) == ()


# --- coverage ---------------------------------------------------------------------------------


class Lost(Base):
    """One parameter for every reason to have no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = weight(2)
        self.dangling = weight(HIDDEN)
        self.stopped = weight(HIDDEN)
        self.compared = weight(HIDDEN)
        self.counter = brainstate.ParamState(jnp.arange(HIDDEN))
        self.out = bt.nn.Linear(HIDDEN, OUT)

    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + bt.matmul(x, self.w.value)
        jnp.sin(self.dangling.value)
        behind = jax.lax.stop_gradient(self.stopped.value * 2)  # stopped
        sign = (self.compared.value > 0).astype(x.dtype)  # compared
        return self.out(self.h.value + behind * sign * self.counter.value)


LOST = ("unread", "dangling", "stopped", "compared", "counter")


def test_parameters_without_a_gradient_are_one_error_with_reasons() -> None:
    with pytest.raises(bt.CompilationError) as refusal:
        compiled(Lost())
    text = str(refusal.value)
    stopped, compared = (line_of(Lost.update, f"# {mark}") for mark in ("stopped", "compared"))
    assert text.startswith("no gradient can reach 5 of the model's 7 parameters:\n")
    for reason in (
        "  unread: the step does not read it\n",
        "  dangling: its value reaches neither the result nor a state\n",
        "  counter: it is of dtype int",
    ):
        assert reason in text
    assert re.search(rf"  stopped: .*stop_gradient.*test_model\.py:{stopped}\b", text)
    assert re.search(rf"  compared: .*booleans.*test_model\.py:{compared}\b", text)
    listed = re.search(r"frozen=\[(.*)\]$", text)
    assert listed is not None
    assert sorted(eval(listed[1])) == sorted(LOST)


def test_frozen_parameters_may_have_none() -> None:
    graph = compiled(Lost(), frozen=LOST)
    assert graph.coverage() == {
        ("w",): "trace",
        ("out", "weight"): "direct",
        **{(name,): "none" for name in LOST},
    }
    assert graph.frozen == {(name,) for name in LOST}
    unused = graph.explain(kind=Kind.PARAMETER_UNUSED)
    assert {record.weight_path for record in unused} == graph.frozen


@pytest.mark.parametrize(
    "frozen",
    [
        lambda model: ["dead"],
        lambda model: "dead",
        lambda model: [("dead",)],
        lambda model: {("dead",): True},
        lambda model: [model.dead],
        lambda model: model.dead,
        lambda model: lambda path: path[0] == "dead",
        lambda model: ("dead", model.w),
    ],
)
def test_ways_to_name_what_is_frozen(frozen: Any) -> None:
    model = Unused()
    graph = compiled(model, frozen=frozen(model))
    assert graph.coverage() == {("w",): "trace", ("dead",): "none"}
    assert ("dead",) in graph.frozen


def test_a_prefix_freezes_a_module() -> None:
    class Nested(Base):
        def __init__(self) -> None:
            super().__init__()
            self.aside = [bt.nn.Linear(2, 2), bt.nn.Linear(2, 2)]

        def update(self, x: Any) -> Any:
            return Included.update(self, x)  # type: ignore[arg-type]

    for frozen in (
        ["aside"],
        [("aside",)],
        ["aside[0]", ("aside", 1)],
        ["aside[0].weight", "aside[1]"],
    ):
        graph = compiled(Nested(), frozen=frozen)
        assert graph.frozen == {("aside", 0, "weight"), ("aside", 1, "weight")}
    with pytest.raises(bt.CompilationError, match=r"(?s)1 of .*aside\[1\]\.weight"):
        compiled(Nested(), frozen=["aside[0]"])


def test_unknown_frozen_parameters_are_errors() -> None:
    with pytest.raises(ValueError, match=r"no parameter: 'daed'; similar names are \['dead'\]"):
        compiled(Unused(), frozen=["daed"])
    with pytest.raises(ValueError, match=r"no parameter: \('dead', 'weight'\)"):
        compiled(Unused(), frozen=[("dead", "weight")])
    with pytest.raises(ValueError, match="holds a ParamState that is not a parameter"):
        compiled(Unused(), frozen=[weight(2)])
    with pytest.raises(TypeError, match="must be a path.*got int"):
        compiled(Unused(), frozen=[3])


def test_a_frozen_parameter_is_covered_as_it_would_be() -> None:
    assert compiled(Included(), frozen=["w"]).coverage() == {("w",): "trace"}


def test_learners_take_frozen_parameters() -> None:
    x = jnp.ones((2, IN))
    model = Unused()
    brainstate.nn.init_all_states(model, batch_size=2)
    by_hand = bt.D_RTRL(model, frozen=["dead"])
    by_hand.compile_graph(x)
    ready = bt.compile(Unused(), "d_rtrl", x, batch_size=2, frozen=["dead"])
    for learner in (by_hand, ready):
        grads = brainstate.transform.grad(
            lambda learner=learner: (learner(x) ** 2).sum(), learner.param_states
        )()
        assert not grads["dead",].any()
        assert grads["w",].any()
        grads = learner.etrace_grad(x[None], step_fn=lambda x, f=learner: (f(x) ** 2).sum())
        assert not grads["dead",].any()


# --- documentation ----------------------------------------------------------------------------


def test_every_kind_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    documented = re.findall(r"^### `([a-z_]+)`", text, re.MULTILINE)
    levels = {t.kind.value: t.level.value for t in TRIGGERS}
    levels |= {kind.value: "info" for kind in ELSEWHERE}
    assert sorted(documented) == sorted(levels)
    for kind, level in re.findall(r"^### `([a-z_]+)` \((\w+)\)", text, re.MULTILINE):
        assert levels[kind] == level
