# SPDX-License-Identifier: Apache-2.0
"""A buffer of the last steps is a shift of states, however it is written, and credit passes it."""

from __future__ import annotations

from typing import Any, ClassVar

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.compiler.delay_lines import with_delay_lines
from braintrace.testing import assert_tree_close, bptt

T, B, IN, OUT, UNITS, STEPS = 7, 2, 3, 2, 5, 4
KIND = bt.DiagnosticKind
EACH = np.array([0, 1, 3, 2, 1])  # a delay for each unit
CONNECTION = np.random.default_rng(1).integers(0, STEPS, (UNITS, UNITS))


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape)


class Model(brainstate.nn.Module):
    """Leaky units, what they say some steps later, and a readout of it."""

    kind: Any = brainstate.ShortTermState
    shape: tuple[int, ...] = (STEPS, B, UNITS)

    def __init__(self) -> None:
        super().__init__()
        self.drive, self.readout = bt.nn.Linear(IN, UNITS, key=1), bt.nn.Linear(UNITS, OUT, key=2)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((B, UNITS)))
        self.line = self.kind(jnp.asarray(draw(*self.shape)))
        self.t = brainstate.ShortTermState(jnp.zeros((), int))

    def late(self, z: Any) -> Any:
        raise NotImplementedError

    def update(self, x: Any) -> Any:
        self.h.value = 0.9 * self.h.value + self.drive(x)
        late = self.late(jnp.tanh(self.h.value))
        self.t.value = self.t.value + 1
        return self.readout(late)


class Rolled(Model):
    def late(self, z: Any) -> Any:
        self.line.value = jnp.roll(self.line.value, 1, axis=0).at[0].set(z)
        return self.line.value[-1]


class RolledHidden(Rolled):
    kind = brainstate.HiddenState


class Joined(Model):
    shape = (B, UNITS, STEPS)

    def late(self, z: Any) -> Any:
        late = self.line.value[..., 0]
        self.line.value = jnp.concatenate([self.line.value[..., 1:], z[..., None]], -1)
        return late


class Counted(Model):
    kind = brainstate.HiddenState

    def late(self, z: Any) -> Any:
        late = self.line.value[self.t.value % STEPS]
        self.line.value = self.line.value.at[self.t.value % STEPS].set(z)
        return late


class CountedInTheMiddle(Model):
    shape = (B, STEPS, UNITS)

    def late(self, z: Any) -> Any:
        self.line.value = self.line.value.at[:, self.t.value % STEPS].set(z)
        return self.line.value[:, (self.t.value + 1) % STEPS]


class Sliced(Model):
    def late(self, z: Any) -> Any:
        k = self.t.value % STEPS
        self.line.value = jax.lax.dynamic_update_slice(self.line.value, z[None], (k, 0, 0))
        return jax.lax.dynamic_index_in_dim(self.line.value, (k + 1) % STEPS, 0, False)


class ForEachUnit(Rolled):
    def late(self, z: Any) -> Any:
        super().late(z)
        return self.line.value[EACH, :, jnp.arange(UNITS)].T


class ForEachConnection(Model):
    def __init__(self) -> None:
        super().__init__()
        self.w = brainstate.ParamState(jnp.asarray(draw(UNITS, UNITS, seed=3)))

    def late(self, z: Any) -> Any:
        self.line.value = self.line.value.at[self.t.value % STEPS].set(z)
        steps = (self.t.value - CONNECTION) % STEPS
        arrived = self.line.value[steps, :, jnp.arange(UNITS)[:, None]]
        return jnp.einsum("ijb,ij->bj", arrived, self.w.value)


class Delay(Model):
    options: ClassVar[Any] = {"entries": {"a": 3.0, "b": 1.0}}

    def __init__(self) -> None:
        super().__init__()
        options = {"interpolation": "nearest", "time": 4.0, **self.options}
        self.delay = brainstate.nn.Delay(jnp.zeros(UNITS), **options)

    def late(self, z: Any) -> Any:
        late = sum(self.delay.at(name) for name in self.options["entries"])
        self.delay.update(z)
        return late


class DelayForEachUnit(Delay):
    options: ClassVar[Any] = {"entries": {"a": (jnp.asarray(EACH, float),)}}


class DelayBetweenSteps(Delay):
    options: ClassVar[Any] = {"entries": {"a": 2.5}, "interpolation": "linear"}


class DelayWrittenAtTimes(Delay):
    options: ClassVar[Any] = {"entries": {"a": 4.0}, "update_every": 2.0}


class OfCurrents(Rolled):
    """The line is driven by the operation, and drives the units."""

    def update(self, x: Any) -> Any:
        self.h.value = 0.5 * self.h.value + jnp.tanh(self.late(self.drive(x)))
        return self.readout(self.h.value)


class OfTwoLines(Rolled):
    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        super().init_state(batch_size)
        self.second = brainstate.ShortTermState(jnp.asarray(draw(2, B, UNITS, seed=4)))

    def late(self, z: Any) -> Any:
        late, before = super().late(z), self.second.value
        self.second.value = jnp.concatenate([(z * late)[None], before[:-1]])
        return late + before[-1]


MODELS = (
    Rolled, RolledHidden, Joined, Counted, CountedInTheMiddle, Sliced, ForEachUnit,
    ForEachConnection, Delay, DelayForEachUnit, DelayBetweenSteps, DelayWrittenAtTimes, OfCurrents,
    OfTwoLines,
)  # fmt: skip
XS = draw(T, B, IN, seed=5)


def loss(y: Any) -> Any:
    return (jnp.sin(y) + y**2).sum()


def compiled(build: Any, rule: str = "d_rtrl", **options: Any) -> Any:
    with brainstate.environ.context(dt=1.0):
        return bt.compile(build(), rule, jnp.asarray(XS[0]), batch_size=B, **options)


def gradient(learner: Any, **options: Any) -> Any:
    with brainstate.environ.context(dt=1.0):
        return learner.etrace_grad(
            jnp.asarray(XS), step_fn=lambda x: loss(learner(x)), reduction="sum", **options
        )


def compared(learner: Any, **options: Any) -> None:
    """The gradient of a learner, and that of backpropagation from the same states."""
    states = brainstate.graph.states(learner.model).values()
    start = {state: state.value for state in states}
    grads = gradient(learner, **options)
    for state, value in start.items():
        state.value = value
    with brainstate.environ.context(dt=1.0):
        _, expected = bptt(learner.model, (jnp.asarray(XS),), loss)
    assert_tree_close(grads, expected, rtol=1e-9)
    assert all(float(jnp.abs(leaf).max()) > 1e-3 for leaf in jax.tree.leaves(grads))


@pytest.mark.parametrize("build", MODELS)
def test_credit_passes_a_delay_exactly(build: Any) -> None:
    learner = compiled(build)
    assert learner.graph.coverage()[("drive", "weight")] == "trace"
    group = learner.graph.hidden_groups[0]
    assert group.varshape == (B, UNITS) and group.num_state > 2 and group.mixed_axes == ()
    assert not learner.graph.explain(kind=KIND.CREDIT_THROUGH_OTHER_STATE)
    compared(learner)


@pytest.mark.parametrize("options", [{"rule": "rtrl"}, {"recurrence_scope": "coupled"}], ids=str)
def test_other_rules_and_steps_in_blocks(options: Any) -> None:
    compared(compiled(Counted, **options), block_size=3)


@pytest.mark.parametrize("build", [Rolled, Joined, CountedInTheMiddle])
def test_snap_keeps_a_line_with_its_positions(build: Any) -> None:
    """No unit of these models hears another one."""
    compared(compiled(build, "snap"))


class Layers(brainstate.nn.Module):
    """Layers of a list are apart, but a line is of the layer that writes to it."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [Units(), Line(), bt.nn.Linear(UNITS, OUT, key=2)]

    def update(self, x: Any) -> Any:
        for layer in self.layers:
            x = layer(x)
        return x


class Units(brainstate.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.drive = bt.nn.Linear(IN, UNITS, key=1)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((B, UNITS)))

    def update(self, x: Any) -> Any:
        self.h.value = 0.9 * self.h.value + self.drive(x)
        return jnp.tanh(self.h.value)


class Line(brainstate.nn.Module):
    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.line = brainstate.ShortTermState(jnp.asarray(draw(STEPS, B, UNITS)))

    def update(self, z: Any) -> Any:
        self.line.value = jnp.roll(self.line.value, 1, axis=0).at[0].set(z)
        return self.line.value[-1]


class BelowALeak(Rolled):
    """Between spikes and a layer: with ``downstream="linear"``, credit passes that, too."""

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        super().init_state(batch_size)
        self.out = brainstate.HiddenState(jnp.zeros((B, OUT)))

    def update(self, x: Any) -> Any:
        self.out.value = 0.8 * self.out.value + super().update(x)
        return self.out.value


def test_a_delay_between_layers() -> None:
    learner = compiled(Layers)
    assert learner.graph.hidden_groups[0].num_state == 1 + STEPS
    compared(learner)
    compared(compiled(BelowALeak, downstream="linear"))


class Zeros(Rolled):
    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        super().init_state(batch_size)
        self.line.value = jnp.zeros_like(self.line.value)


class CountedZeros(Counted):
    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        super().init_state(batch_size)
        self.line.value = jnp.zeros_like(self.line.value)


class OfOne(Rolled):
    """Written for one example: the steps lie behind the axis of examples."""

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros(UNITS))
        self.line = brainstate.ShortTermState(jnp.zeros((STEPS, UNITS)))
        self.t = brainstate.ShortTermState(jnp.zeros((), int))


class RingOfOne(OfOne):
    """An index per example."""

    late = Counted.late


@pytest.mark.parametrize(("build", "of_all"), [(OfOne, Zeros), (RingOfOne, CountedZeros)])
def test_a_model_of_one_example(build: Any, of_all: Any) -> None:
    one, batch = compiled(build, vmap=True), compiled(of_all)
    (group,) = one.graph.hidden_groups
    assert {*group.state_axes} == {-1, 1} and group.varshape == (B, UNITS)
    assert_tree_close(gradient(one), gradient(batch))


# --- what is no line, and says so -----------------------------------------------------------------


class OfAPart(Rolled):
    """Of another shape than any state."""

    shape = (STEPS, B, 3)

    def late(self, z: Any) -> Any:
        late = self.line.value[-1]
        super().late(z[:, :3])
        return jnp.pad(late, ((0, 0), (0, 2)))


class Mixing(Rolled):
    """What arrives is mixed by a product of its own."""

    def update(self, x: Any) -> Any:
        self.h.value = 0.9 * self.h.value + self.drive(x) + self.line.value[-1] @ draw(UNITS, UNITS)
        self.late(jnp.tanh(self.h.value))
        return self.readout(self.h.value)


class OneAfterAnother(Model):
    """A state of the last step, and one of the step before."""

    shape = (B, UNITS)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        super().init_state(batch_size)
        self.before = brainstate.ShortTermState(jnp.zeros(self.shape))

    def late(self, z: Any) -> Any:
        late, self.before.value = self.before.value, self.line.value
        self.line.value = z
        return late


class Refractory(Model):
    """Units that hear what they said a step before."""

    shape = (B, UNITS)

    def update(self, x: Any) -> Any:
        self.h.value = 0.9 * self.h.value * (1 - self.line.value) + self.drive(x)
        self.line.value = jnp.tanh(self.h.value) ** 2
        return self.readout(self.h.value)


class LastValue(Model):
    """Units that hear their own value of a step before: two states take up the same array."""

    shape = (B, UNITS)

    def update(self, x: Any) -> Any:
        late = self.line.value
        self.h.value = 0.8 * self.h.value - 0.3 * jnp.tanh(late) + self.drive(x)
        self.line.value = self.h.value
        return self.readout(self.h.value * late)


class Recurrent(Model):
    """Units that hear of one another's last value by an operation alone."""

    shape = (B, UNITS)

    def update(self, x: Any) -> Any:
        own = self.drive(x + self.line.value[:, :IN])
        self.h.value = 0.9 * self.h.value + own
        self.line.value = jnp.tanh(self.h.value)
        return self.readout(self.line.value)


class WithoutMemory(Model):
    """What a product gives is written into a buffer of another shape, and no state is hidden."""

    shape = (B, STEPS, UNITS, 2)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        super().init_state(batch_size)
        del self.h

    def late(self, z: Any) -> Any:
        k, old = self.t.value % STEPS, self.line.value
        self.line.value = old.at[:, k].set(jnp.stack([z, z**2], -1))
        return old[:, k].sum(-1)

    def update(self, x: Any) -> Any:
        late = self.late(jnp.tanh(self.drive(x)))
        self.t.value = self.t.value + 1
        return self.readout(late)


class OfAPartWithoutMemory(WithoutMemory):
    shape = (STEPS, B, 3)

    def late(self, z: Any) -> Any:
        late = jnp.pad(self.line.value[-1], ((0, 0), (0, 2)))
        self.line.value = jnp.roll(self.line.value, 1, axis=0).at[0].set(z[:, :3])
        return late


class LastPartWithoutMemory(WithoutMemory):
    shape = (B, 3)

    def late(self, z: Any) -> Any:
        late, self.line.value = jnp.pad(self.line.value, ((0, 0), (0, 2))), z[:, :3]
        return late


class SumsWithoutMemory(WithoutMemory):
    shape = (STEPS, B)

    def late(self, z: Any) -> Any:
        k, old = self.t.value % STEPS, self.line.value
        self.line.value = jax.lax.dynamic_update_slice(old, z.sum(1)[None], (k, 0))
        return jnp.broadcast_to(old[k][:, None], z.shape)


class OfInputs(Rolled):
    shape = (STEPS, B, IN)

    def update(self, x: Any) -> Any:
        self.h.value = 0.9 * self.h.value + self.drive(self.late(x))
        return self.readout(self.h.value)


LINES_OF_ONE = {OneAfterAnother: 3, Refractory: 2, LastValue: 2, LastPartWithoutMemory: 1}
WITHOUT_MEMORY = (WithoutMemory, OfAPartWithoutMemory, SumsWithoutMemory)


@pytest.mark.parametrize(
    ("build", "states"), [*LINES_OF_ONE.items(), *((m, STEPS) for m in WITHOUT_MEMORY)]
)
def test_lines_of_one_step_and_of_units_without_memory(build: Any, states: int) -> None:
    """What is kept for one step, and what a product writes, whatever its shape."""
    learner = compiled(build, downstream="step")
    assert learner.graph.coverage()[("drive", "weight")] == "trace"
    assert [group.num_state for group in learner.graph.hidden_groups] == [states]
    assert not learner.graph.explain(kind=KIND.CREDIT_THROUGH_OTHER_STATE)
    compared(learner)


@pytest.mark.parametrize(
    ("build", "coverage"), [(OfAPart, "lost"), (Recurrent, "trace"), (Mixing, "trace")]
)
def test_what_cannot_be_followed_is_said(build: Any, coverage: str) -> None:
    with pytest.warns(bt.CompilationWarning, match="credit_through_other_state"):
        learner = compiled(build)
    assert learner.graph.coverage()[("drive", "weight")] == coverage
    (record,) = learner.graph.explain(kind=KIND.CREDIT_THROUGH_OTHER_STATE)
    zero = "so that the gradient of drive.weight is zero" in record.message
    assert zero == (coverage == "lost") and "needs one more axis" in record.remedy


def test_what_carries_nothing_is_left_alone() -> None:
    learner = compiled(OfInputs)
    minfo = learner.graph.module_info
    assert with_delay_lines(minfo) is minfo
    assert all(slot.steps_along is None for slot in minfo.slots)
    compared(learner)


def test_lines_that_are_left_out() -> None:
    with pytest.warns(bt.CompilationWarning, match="no credit passes through it"):
        learner = compiled(Joined, delay_lines=False)
    assert learner.graph.hidden_groups[0].num_state == 1
    assert learner.graph.coverage()[("drive", "weight")] == "lost"
    assert "delay line" not in str(learner.report)


class Kept(Rolled):
    """A readout that adds up in a state without credit."""

    shape = (B, OUT)

    def update(self, x: Any) -> Any:
        self.h.value = 0.9 * self.h.value + self.drive(x)
        self.line.value = self.line.value + self.readout(self.h.value)
        return self.line.value


class Square(brainstate.nn.Module):
    """As many units as examples, so that a shape does not tell one axis from the other."""

    def __init__(self, mixed: Any) -> None:
        super().__init__()
        self.mixed, self.product = mixed, bt.nn.Linear(2, 2, key=1)
        self.leak = brainstate.ParamState(jnp.full(2, 0.5))
        self.h = brainstate.HiddenState(jnp.zeros((2, 2)))

    def update(self, x: Any) -> Any:
        h = self.h.value
        self.h.value = bt.element_wise(self.leak.value) * self.mixed(h) + self.product(h + x)
        return self.h.value


@pytest.mark.parametrize("mixed", [lambda h: h, lambda h: h - h.mean(1, keepdims=True)])
def test_what_mixes_units_is_no_delay(mixed: Any) -> None:
    graph = bt.compile_etrace_graph(Square(mixed), jnp.ones((2, 2)))
    assert [group.num_state for group in graph.hidden_groups] == [1]


def test_a_readout_that_is_kept_elsewhere_is_not_said_to_be_exact() -> None:
    with pytest.warns(bt.CompilationWarning, match="the state line takes up hidden values"):
        graph = compiled(Kept).graph
    (record,) = graph.explain(kind=KIND.RELATION_EXCLUDED_NON_TEMPORAL)
    assert "exact" not in record.message and record.hidden_paths == (("line",),)
    assert graph.coverage()[("drive", "weight")] == "trace"
