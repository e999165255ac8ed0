# SPDX-License-Identifier: Apache-2.0
"""Models that mix positions on the way to a hidden state: right, and said where.

A *tail* leads from an operation to a state, a *transition* from an old state to a new one. Where a
tail mixes positions, the gradient is exact with a larger trace. Where a transition does, ``D`` is
the true diagonal of its Jacobian. Cutting, folding and permuting positions is no mixing.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace import DiagnosticKind
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle
from tests import zoo
from tests.zoo import HIDDEN, IN, Model, weight

MATRIX = np.random.default_rng(5).normal(size=(HIDDEN, HIDDEN))


def line_of(function: Any, marker: str) -> int:
    """The line in this file of a function's source that holds ``marker``."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, text in enumerate(lines) if marker in text)


class Driven(Model):
    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)


class PlainProduct(Driven):
    """With a constant for a product that is no ETP operation."""

    u = MATRIX


class NormOnTransition(Driven):
    def update(self, x: Any) -> Any:
        centred = self.h.value - self.h.value.mean(-1, keepdims=True)  # here
        self.h.value = 0.5 * centred + bt.matmul(x, self.w.value)
        return self.h.value


class RollOnTransition(Driven):
    def update(self, x: Any) -> Any:
        turned = jnp.roll(self.h.value, 1, axis=-1)  # here
        self.h.value = 0.5 * turned + bt.matmul(x, self.w.value)
        return self.h.value


class PlainProductOnTransition(PlainProduct):
    def update(self, x: Any) -> Any:
        self.h.value = jnp.tanh(
            self.h.value @ self.u  # here
            + bt.matmul(x, self.w.value)
        )
        return self.h.value


class BatchMeanOnTransition(Driven):
    def update(self, x: Any) -> Any:
        mean = self.h.value.mean(0)  # here
        self.h.value = 0.5 * self.h.value + 0.1 * mean + bt.matmul(x, self.w.value)
        return self.h.value


class TransposedTransition(Model):
    """A square of positions that is turned over at every step."""

    width = 2

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, 2)

    def update(self, x: Any) -> Any:
        self.h.value = 0.5 * self.h.value.T + bt.matmul(x, self.w.value)
        return self.h.value


class NormOnTail(Driven):
    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        drive = y / (1.0 + jnp.sqrt((y**2).sum(-1, keepdims=True)))  # here
        self.h.value = 0.5 * self.h.value + drive
        return self.h.value


class SliceOnTail(Driven):
    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, 2 * HIDDEN)

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        gate = y[..., HIDDEN:]  # here
        self.h.value = 0.5 * self.h.value + gate
        return self.h.value


class SplitOnTail(SliceOnTail):
    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        a, b = jnp.split(y, 2, axis=-1)  # here
        self.h.value = jax.nn.sigmoid(a) * self.h.value + b
        return self.h.value


class PoolOnTail(SliceOnTail):
    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        pooled = y.reshape(*y.shape[:-1], HIDDEN, 2).max(-1)  # here
        self.h.value = 0.5 * self.h.value + pooled
        return self.h.value


class MeanOnTail(Driven):
    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        self.h.value = 0.5 * self.h.value + y.mean(-1, keepdims=True)  # here
        return self.h.value


class RollOnTail(Driven):
    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        self.h.value = 0.5 * self.h.value + y + jnp.roll(y, 1, axis=-1)  # here
        return self.h.value


class ReversedTail(Driven):
    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        self.h.value = 0.5 * self.h.value + jnp.flip(y, -1)  # here
        return self.h.value


class PlainProductOnTail(PlainProduct):
    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        self.h.value = 0.5 * self.h.value + y @ self.u  # here
        return self.h.value


class ConditionalTail(Driven):
    """Control flow behind the operation."""

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        y = jax.lax.cond(x.sum() > 0, jnp.sin, jnp.cos, y)  # here
        self.h.value = 0.5 * self.h.value + y
        return self.h.value


class SurrogateThenRoll(Driven):
    """Only the surrogate's derivative crosses positions; the surrogate's own body has none."""

    surrogate = staticmethod(zoo.spike)

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        drive = y + self.surrogate(y)[..., ::-1]  # here
        self.h.value = 0.5 * self.h.value + drive
        return self.h.value


class SurrogateVjpThenRoll(SurrogateThenRoll):
    surrogate = staticmethod(zoo.spike_vjp)


class SurrogateTransitionMixes(PlainProduct):
    def update(self, x: Any) -> Any:
        drive = 0.5 * self.h.value - zoo.spike(self.h.value) @ self.u  # here
        self.h.value = drive + bt.matmul(x, self.w.value)
        return self.h.value


class MixingSurrogate(Driven):
    """Element-wise in its value, but its derivative is a sum over the positions."""

    def update(self, x: Any) -> Any:
        @jax.custom_jvp
        def competing(v: Any) -> Any:
            return (v > 0.0).astype(v.dtype)

        @competing.defjvp
        def competing_jvp(primals: Any, tangents: Any) -> Any:
            (v,), (dv,) = primals, tangents
            return competing(v), dv - dv.mean(-1, keepdims=True)

        drive = competing(bt.matmul(x, self.w.value))  # here
        self.h.value = 0.5 * self.h.value + drive
        return self.h.value


class BroadcastThroughCustomVjp(Driven):
    def __init__(self) -> None:
        super().__init__()
        self.a = weight(HIDDEN)

    def update(self, x: Any) -> Any:
        leak = bt.element_wise(self.a.value)
        spike = zoo.spike_vjp(self.h.value - leak)
        self.h.value = 0.5 * self.h.value + bt.matmul(x, self.w.value) - spike  # here
        return self.h.value


class FusedGates(Model):
    """One product per operand, cut into four gates."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, 4 * HIDDEN)
        self.r = weight(HIDDEN, 4 * HIDDEN)

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value) + bt.matmul(self.h.value, self.r.value)
        a, b, c, d = jnp.split(y, 4, -1)
        self.h.value = jax.nn.sigmoid(a) * self.h.value + jnp.tanh(b) * jnp.sin(c) * d
        return self.h.value


class FusedLSTM(Model):
    """Gates by reshape and index, two states with a same-step path, unequal use."""

    names = ("c", "h")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, 4 * HIDDEN)
        self.r = weight(HIDDEN, 4 * HIDDEN)

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value) + bt.matmul(self.h.value, self.r.value)
        i, f, g, o = (y.reshape(*y.shape[:-1], 4, HIDDEN)[..., k, :] for k in range(4))
        self.c.value = jax.nn.sigmoid(f) * self.c.value + jax.nn.sigmoid(i) * jnp.tanh(g)
        self.h.value = jax.nn.sigmoid(o) * jnp.tanh(self.c.value)
        return self.h.value


class UnequalParts(Model):
    """Two layers driven by parts of one product, and one part by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN + 6)

    def init_state(self, batch_size: int | None = None) -> None:
        super().init_state(batch_size)
        head = () if batch_size is None else (batch_size,)
        self.k = brainstate.HiddenState(jnp.full((*head, 3), 0.2))

    def reset_state(self, batch_size: int | None = None) -> None:
        self.init_state(batch_size)

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        self.h.value = 0.5 * self.h.value + jnp.tanh(y[..., :HIDDEN])
        self.k.value = 0.7 * self.k.value * jnp.cos(y[..., HIDDEN : HIDDEN + 3])
        return jnp.concatenate([self.h.value, self.k.value, y[..., -3:]], -1)


class Folded(Model):
    """Axes folded in front of the operation and unfolded behind it."""

    width = 2 * HIDDEN

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        pair = jnp.stack([x, jnp.sin(x)], -2)
        y = bt.matmul(pair.reshape(-1, IN), self.w.value)
        self.h.value = 0.8 * self.h.value + jnp.tanh(y.reshape(*x.shape[:-1], 2 * HIDDEN))
        return self.h.value


class HalvesApart(Driven):
    """The state is cut and joined again, element-wise in between."""

    def update(self, x: Any) -> Any:
        a, b = jnp.split(self.h.value, 2, -1)
        kept = jnp.concatenate([jnp.sin(a), 0.5 * b], -1)
        self.h.value = kept + bt.matmul(x, self.w.value)
        return self.h.value


class MixesMembers(PlainProduct):
    """The way from one member of the group to the other mixes positions in the same step."""

    names = ("c", "h")

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        self.c.value = 0.7 * self.c.value + jnp.tanh(y)
        mixed = jnp.tanh(self.c.value @ self.u)  # here
        self.h.value = 0.6 * self.h.value * self.c.value + mixed
        return self.h.value


class BatchNormTail(Driven):
    """Examples are mixed, too."""

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        centred = y - y.mean(0)  # here
        self.h.value = 0.5 * self.h.value + jnp.tanh(centred)
        return self.h.value


class SoftmaxOfParameters(Model):
    """A parameter is mixed and broadcast over the examples."""

    def __init__(self) -> None:
        super().__init__()
        self.g = weight(HIDDEN)

    def update(self, x: Any) -> Any:
        gain = jax.nn.softmax(bt.element_wise(self.g.value))  # here
        self.h.value = 0.5 * self.h.value * gain + x.sum(-1, keepdims=True)
        return self.h.value


Finding = DiagnosticKind | None
TAIL, TRANSITION = (
    DiagnosticKind.TAIL_NOT_POSITION_WISE,
    DiagnosticKind.TRANSITION_NOT_POSITION_WISE,
)

MODELS: dict[type, Finding] = {
    NormOnTransition: TRANSITION,
    RollOnTransition: TRANSITION,
    PlainProductOnTransition: TRANSITION,
    BatchMeanOnTransition: TRANSITION,
    SurrogateTransitionMixes: TRANSITION,
    NormOnTail: TAIL,
    MeanOnTail: TAIL,
    RollOnTail: TAIL,
    PlainProductOnTail: TAIL,
    SurrogateThenRoll: TAIL,
    SurrogateVjpThenRoll: TAIL,
    MixingSurrogate: TAIL,
    BatchNormTail: TAIL,
    SoftmaxOfParameters: TAIL,
    SliceOnTail: None,
    SplitOnTail: None,
    PoolOnTail: None,
    ReversedTail: None,
    ConditionalTail: None,
    FusedGates: None,
    FusedLSTM: None,
    UnequalParts: None,
    Folded: None,
    HalvesApart: None,
    BroadcastThroughCustomVjp: None,
}

FEATURES = [m for m in MODELS if m not in (BatchMeanOnTransition, BatchNormTail)]
CASES = [(m, 2) for m in MODELS] + [(m, None) for m in FEATURES]


def data(model: Any, batch: int | None, steps: int = 5) -> tuple[Any, Any]:
    brainstate.nn.init_all_states(model, batch_size=batch)
    head = () if batch is None else (batch,)
    rng = np.random.default_rng(3)
    for state in brainstate.graph.states(model, brainstate.HiddenState).values():
        state.value = jnp.asarray(0.4 + rng.normal(size=state.value.shape))
    return jnp.asarray(rng.normal(size=(steps, *head, IN))), {
        path: state.value for path, state in brainstate.graph.states(model).items()
    }


def loss_of(out: Any) -> Any:
    return jnp.sum(jnp.sin(out) + out**2)


def gradient(model: Any, xs: Any, start: Any, block_size: Any, **options: Any) -> Any:
    for path, state in brainstate.graph.states(model).items():
        state.value = start[path]
    learner = bt.D_RTRL(model, downstream="step", **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bt.CompilationWarning)
        learner.compile_graph(xs[0])
    grads = learner.etrace_grad(
        xs, step_fn=lambda x: loss_of(learner(x)), reduction="sum", block_size=block_size
    )
    return learner, grads


@pytest.mark.parametrize(("model", "batch"), CASES)
def test_equals_the_oracle(model: Callable[[], Any], batch: int | None) -> None:
    built = model()
    xs, start = data(built, batch)
    oracle = d_rtrl_oracle(built, (xs,), loss_of)
    for block_size in (1, 2, "auto"):
        assert_tree_close(gradient(built, xs, start, block_size)[1], oracle.grads)


@pytest.mark.parametrize("model", [FusedGates, FusedLSTM, NormOnTail, MixesMembers])
def test_one_step_at_a_time_and_carried_traces(model: Callable[[], Any]) -> None:
    built = model()
    xs, start = data(built, 2)
    learner, whole = gradient(built, xs, start, "auto")
    traces = [t.value for t in learner.traces]
    again, _ = gradient(built, xs[:2], start, "auto")
    rest = again.etrace_grad(xs[2:], step_fn=lambda x: loss_of(again(x)), reduction="sum")
    assert_tree_close([t.value for t in again.traces], traces)
    again, first = gradient(built, xs[:2], start, 1)
    for x in xs[2:]:
        step = brainstate.transform.grad(lambda x=x: loss_of(again(x)), again.param_states)()
        first = jax.tree.map(jnp.add, first, step)
    assert_tree_close(first, whole)
    del rest


@pytest.mark.parametrize("model", MODELS)
def test_what_mixes_is_said_with_the_line(model: Any) -> None:
    built = model()
    xs, _ = data(built, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        graph = bt.compile_etrace_graph(built, xs[0])
    found = [r for r in graph.diagnostics if r.kind in (TAIL, TRANSITION)]
    assert [r.kind for r in found] == ([] if MODELS[model] is None else [MODELS[model]])
    for record in found:
        assert f"test_mixing.py:{line_of(model.update, '# here')}" in str(record.source)
        warned = any(record.message in str(w.message) for w in caught)
        assert warned == (record.kind is TRANSITION)  # a mixing tail costs memory, and is exact


ROWS = {
    "one row reversed": lambda y: jnp.stack([y[0], y[1][::-1]]),
    "one row turned": lambda y: jnp.stack([y[0], jnp.roll(y[1], 1)]),
    "parts of the rows": lambda y: jnp.stack([y[0, :2], y[1, 2:]]),
    "rows in turn": lambda y: jnp.stack([y[1], y[0][::-1]]),
    "the diagonal": lambda y: jnp.diagonal(y),
    "one entry of each row": lambda y: jnp.stack([y[0, 0], y[1, 1]]),
    "a row beside a column": lambda y: jnp.stack([y[0, :2], y[:, 1]]),
    "one row left out": lambda y: jnp.stack([y[0], jnp.zeros_like(y[1])]),
}


class Rows(brainstate.nn.Module):
    """Two rows of a product, whose entries reach positions that differ from row to row."""

    def __init__(self, tail: Callable[[Any], Any]) -> None:
        super().__init__()
        self.w, self.tail = weight(IN, HIDDEN), tail
        shape = jax.eval_shape(tail, jax.ShapeDtypeStruct((2, HIDDEN), float)).shape
        self.h = brainstate.HiddenState(jnp.zeros(shape))

    def update(self, x: Any) -> Any:
        self.h.value = jnp.tanh(0.7 * self.h.value + self.tail(bt.matmul(x, self.w.value)))
        return self.h.value


@pytest.mark.parametrize("tail", ROWS)
def test_rows_that_reach_different_positions(tail: str) -> None:
    rng, model = np.random.default_rng(2), Rows(ROWS[tail])
    xs = jnp.asarray(rng.normal(size=(5, 2, IN)))
    ys = jnp.asarray(rng.normal(size=(5, *model.h.value.shape)))

    def loss(out: Any, y: Any) -> Any:
        return (jnp.sin(out) * y).sum()

    learner = bt.D_RTRL(model)
    learner.compile_graph(xs[0])
    _, reference = bptt(model, (xs, ys), loss)
    for size in (1, 2, 5):
        model.h.value = jnp.zeros_like(model.h.value)
        learner.reset_state()
        step = lambda x, y: loss(learner(x), y)  # noqa: E731
        grads = learner.etrace_grad(xs, ys, step_fn=step, reduction="sum", block_size=size)
        assert_tree_close(grads, reference)


def test_a_transposed_transition() -> None:
    built = TransposedTransition()
    xs, start = data(built, 2)
    oracle = d_rtrl_oracle(built, (xs,), loss_of)
    learner, grads = gradient(built, xs, start, 2)
    assert_tree_close(grads, oracle.grads)
    (record,) = learner.graph.explain(kind=TRANSITION)
    assert f"test_mixing.py:{line_of(TransposedTransition.update, '.T')}" in str(record.source)


def test_a_tail_whose_derivative_would_not_fit_is_refused(monkeypatch: Any) -> None:
    from braintrace.compiler import relation

    monkeypatch.setattr(relation, "LARGEST_FACTOR", 10)
    built = NormOnTail()
    xs, _ = data(built, 2)
    says = r"between 'etp_mm' at .* and the hidden state h, .*takes 32 numbers .*in front of"
    with pytest.raises(bt.NotSupportedError, match=f"(?s){says}") as refusal:
        bt.compile_etrace_graph(built, xs[0])
    assert f"test_mixing.py:{line_of(NormOnTail.update, '# here')}" in str(refusal.value)


# --- the coupled scope ------------------------------------------------------------------------


class Vanilla(Driven):
    def __init__(self) -> None:
        super().__init__()
        self.r = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        self.h.value = jnp.tanh(bt.matmul(x, self.w.value) + bt.matmul(self.h.value, self.r.value))
        return self.h.value


class Coupled(Model):
    """Products between members, behind new values, and one inside another."""

    names = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.r = weight(HIDDEN, HIDDEN)
        self.u = weight(HIDDEN, HIDDEN)
        self.q = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        gate = jax.nn.sigmoid(bt.matmul(self.b.value, self.u.value))
        inner = bt.matmul(gate * self.a.value, self.r.value)
        self.a.value = 0.3 * self.a.value + jnp.tanh(bt.matmul(x, self.w.value) + inner)
        jump = jnp.tanh(bt.matmul(jnp.sin(self.a.value), self.q.value))
        self.b.value = 0.5 * self.a.value * self.b.value + jump
        return self.b.value + bt.matmul(self.a.value, self.q.value)


class TwoLayers(brainstate.nn.Module):
    """The lower layer reads the upper one's old state."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [Vanilla(), Vanilla()]
        self.layers[1].w = weight(HIDDEN, HIDDEN)
        self.back = weight(HIDDEN, IN)

    def update(self, x: Any) -> Any:
        feedback = bt.matmul(self.layers[1].h.value, self.back.value)
        return self.layers[1](self.layers[0](x + feedback))


COUPLED: list[Callable[[], Any]] = [
    Vanilla,
    Coupled,
    TwoLayers,
    FusedGates,
    FusedLSTM,
    MixesMembers,
    lambda: bt.nn.GRUCell(IN, HIDDEN),
    lambda: bt.nn.LSTMCell(IN, HIDDEN),
]


@pytest.mark.parametrize("batch", [None, 2])
@pytest.mark.parametrize("model", COUPLED)
def test_coupled_equals_the_oracle(model: Callable[[], Any], batch: int | None) -> None:
    built = model()
    xs, start = data(built, batch)
    oracle = d_rtrl_oracle(built, (xs,), loss_of, recurrence_scope="coupled")
    for block_size in (1, "auto"):
        grads = gradient(built, xs, start, block_size, recurrence_scope="coupled")[1]
        assert_tree_close(grads, oracle.grads)


def test_coupled_differs_from_diagonal_and_is_exact_for_one_unit() -> None:
    class One(Model):
        width = 1

        def __init__(self) -> None:
            super().__init__()
            self.w, self.r = weight(IN, 1), weight(1, 1)

        update = Vanilla.update

    built = One()
    xs, start = data(built, 2)
    coupled = gradient(built, xs, start, 2, recurrence_scope="coupled")[1]
    diagonal = gradient(built, xs, start, 2)[1]
    for path, state in brainstate.graph.states(built).items():
        state.value = start[path]
    _, reference = bptt(built, (xs,), loss_of)
    assert_tree_close(coupled, reference)
    assert not np.allclose(diagonal[("r",)], reference[("r",)], rtol=1e-3)


def test_one_step_is_exact_in_either_scope() -> None:
    for scope in ("diagonal", "coupled"):
        built = Coupled()
        xs, start = data(built, 2, steps=1)
        grads = gradient(built, xs, start, 1, recurrence_scope=scope)[1]
        for path, state in brainstate.graph.states(built).items():
            state.value = start[path]
        assert_tree_close(grads, bptt(built, (xs,), loss_of)[1])


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match=r"recurrence_scope must be one of .*'diagonal'.*got 'x'"):
        bt.D_RTRL(Vanilla(), recurrence_scope="x")


def test_coupled_leaves_no_transition_zero() -> None:
    built = Vanilla()
    xs, _ = data(built, 2)
    with pytest.warns(UserWarning, match=r"structurally zero.*recurrence_scope='coupled'"):
        bt.compile_etrace_graph(built, xs[0])
    graph = bt.compile_etrace_graph(built, xs[0], recurrence_scope="coupled")
    assert not graph.explain(kind=DiagnosticKind.TRANSITION_STRUCTURALLY_ZERO)


@pytest.mark.parametrize("scope", ["diagonal", "coupled"])
def test_plain_mixing_is_reported_in_every_scope(scope: str) -> None:
    built = RollOnTransition()
    xs, _ = data(built, 2)
    with pytest.warns(UserWarning, match="transition_not_position_wise"):
        graph = bt.compile_etrace_graph(built, xs[0], recurrence_scope=scope)
    (record,) = graph.explain(kind=DiagnosticKind.TRANSITION_NOT_POSITION_WISE)
    assert f"{line_of(RollOnTransition, '# here')}" in str(record.source)


class Memoryless(Driven):
    def update(self, x: Any) -> Any:
        self.h.value = jnp.tanh(bt.matmul(x, self.w.value))
        return self.h.value


@pytest.mark.parametrize("scope", ["diagonal", "coupled"])
def test_a_state_without_memory_leaves_nothing_out(scope: str) -> None:
    built = Memoryless()
    xs, start = data(built, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        grads = gradient(built, xs, start, 1, recurrence_scope=scope)[1]
    for path, state in brainstate.graph.states(built).items():
        state.value = start[path]
    assert_tree_close(grads, bptt(built, (xs,), loss_of)[1])
