# SPDX-License-Identifier: Apache-2.0
"""Models that are written for one example and run for a batch, and batches of another size.

What a batch has to equal is the sum over its examples of what the same rule gives for each.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace as bt
from braintrace.compiler.batch_states import examples_in, init_batched_states, reset_batched_states
from braintrace.testing import assert_tree_close

B, T, IN, HIDDEN = 3, 3, 2, 3
#: A branch ends what credit passes by filters, and the select that vmap makes of it does not: both
#: are exact with the trace of D-RTRL, but pp_prop is nearer to it where its trace is a filter.
RULES = {
    "d_rtrl": (bt.D_RTRL, {}),
    "pp_prop": (bt.pp_prop, {"decay_or_rank": 0.7, "downstream": "step"}),
}


def draw(*shape: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def param(*shape: int, seed: int = 0) -> brainstate.ParamState:
    return brainstate.ParamState(0.6 * draw(*shape, seed=seed))


class OneExample(brainstate.nn.Module):
    """A leaky state of one example."""

    shape: tuple[int, ...] = (HIDDEN,)
    inputs: tuple[int, ...] = (IN,)

    def __init__(self) -> None:
        super().__init__()
        self.w = param(IN, HIDDEN)

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = brainstate.HiddenState(jnp.zeros(self.shape))

    def reset_state(self, batch_size: int | None = None) -> None:
        self.h.value = jnp.zeros(self.shape)

    def drive(self, x: Any) -> Any:
        return bt.matmul(x, self.w.value)

    def update(self, x: Any) -> Any:
        self.h.value = 0.6 * self.h.value + self.drive(x)
        return self.h.value


class Image(OneExample):
    shape, inputs = (4, 2), (4, 2)

    def __init__(self) -> None:
        super().__init__()
        self.w = param(3, 2, 2)

    def drive(self, x: Any) -> Any:
        return jnp.tanh(bt.conv(x[None], self.w.value, dimension_numbers=("NWC", "WIO", "NWC"))[0])


class Leak(OneExample):
    def __init__(self) -> None:
        super().__init__()
        self.leak = param(HIDDEN, seed=1)

    def update(self, x: Any) -> Any:
        leak = jax.nn.sigmoid(bt.element_wise(self.leak.value))
        self.h.value = leak * self.h.value + self.drive(x)
        return self.h.value


class LowRank(OneExample):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.a = param(IN, 1), param(1, HIDDEN)

    def drive(self, x: Any) -> Any:
        return jnp.tanh(bt.lora_matmul(x, self.w.value, self.a.value))


class Branches(OneExample):
    """Each example takes its own branch."""

    def __init__(self) -> None:
        super().__init__()
        self.v = param(IN, HIDDEN, seed=1)

    def drive(self, x: Any) -> Any:
        return jax.lax.cond(
            x[0] > 0,
            lambda x: bt.matmul(x, self.w.value),
            lambda x: jnp.sin(bt.matmul(x**2, self.v.value)),
            x,
        )


class Iterated(OneExample):
    def __init__(self) -> None:
        super().__init__()
        self.r = param(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        def body(h: Any, _: Any) -> tuple[Any, None]:
            return 0.5 * h + jnp.tanh(bt.matmul(h, self.r.value)), None

        self.h.value = jax.lax.scan(body, self.h.value, None, length=2)[0] + self.drive(x)
        return self.h.value


class Remembers(OneExample):
    """A state that is no hidden one, made before ``init_state``, and one that is only read."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = brainstate.ShortTermState(jnp.zeros(()))
        self.scale = brainstate.ShortTermState(jnp.arange(1.0, 1.0 + HIDDEN))

    def drive(self, x: Any) -> Any:
        self.sum.value = 0.5 * self.sum.value + x.sum()
        return super().drive(x * self.sum.value) * self.scale.value


class Mixes(OneExample):
    """A place that depends on the example, and a tail that mixes positions."""

    def update(self, x: Any) -> Any:
        drive = jnp.roll(self.drive(x), 1) * x[jnp.argmax(x)]
        self.h.value = 0.6 * self.h.value + drive + 0.1 * jnp.cumsum(self.h.value)
        return self.h.value


class Spikes(OneExample):
    """Two hidden states, a reset through a surrogate gradient, and a plain readout."""

    def __init__(self) -> None:
        super().__init__()
        self.out = param(HIDDEN, 2)

    def init_state(self, batch_size: int | None = None) -> None:
        super().init_state()
        self.g = brainstate.HiddenState(jnp.zeros(HIDDEN))

    def update(self, x: Any) -> Any:
        spike = surrogate(self.h.value - 0.2)
        self.g.value = 0.5 * self.g.value + self.drive(x)
        self.h.value = 0.9 * self.h.value * (1.0 - spike) + self.g.value
        return {"rate": surrogate(self.h.value - 0.2), "out": self.h.value @ self.out.value}


@jax.custom_jvp
def surrogate(v: Any) -> Any:
    return jnp.where(v > 0, 1.0, 0.0)


@surrogate.defjvp
def _(primals: Any, tangents: Any) -> Any:
    return surrogate(*primals), jnp.exp(-(primals[0] ** 2)) * tangents[0]


def loss(out: Any, y: Any) -> jax.Array:
    """A loss of one example that tells every number of the result from the others."""
    leaves = jax.tree.leaves(out)
    return sum(jnp.sum(jnp.sin(v + y * jnp.arange(1, 1 + v.size).reshape(v.shape))) for v in leaves)


def data(model: type[OneExample], batch: int = B) -> tuple[jax.Array, jax.Array]:
    return draw(T, batch, *model.inputs, seed=3), draw(T, batch, seed=4)


def learner_of_batch(model: brainstate.nn.Module, rule: str, *inputs: Any) -> Any:
    """What ``braintrace.compile(model, rule, *inputs, vmap=True)`` makes."""
    algorithm, options = RULES[rule]
    learner = algorithm(model, vmap=True, **options)
    init_batched_states(model, examples_in(inputs))
    learner.compile_graph(*inputs)
    return learner


def gradient(learner: Any, xs: Any, ys: Any) -> Any:
    def step(x: Any, y: Any) -> Any:
        return jnp.sum(jax.vmap(loss)(learner(x), y))

    return learner.etrace_grad(xs, ys, step_fn=step, reduction="sum", block_size=2)


def gradient_of_one(learner: Any) -> Callable[..., Any]:
    def step(x: Any, y: Any) -> Any:
        return loss(learner(x), y)

    return lambda xs, ys: learner.etrace_grad(xs, ys, step_fn=step, reduction="sum", block_size=2)


def sum_over_examples(model: type[OneExample], rule: str, xs: Any, ys: Any) -> Any:
    algorithm, options = RULES[rule]
    learner = algorithm(brainstate.nn.init_all_states(model()), **options)
    learner.compile_graph(xs[0, 0])
    states = {s: s.value for s in learner.model.states().values()}
    total, of_one = None, gradient_of_one(learner)
    for b in range(xs.shape[1]):
        for state, value in states.items():
            state.value = value
        learner.reset_state()
        found = of_one(xs[:, b], ys[:, b])
        total = found if total is None else jax.tree.map(jnp.add, total, found)
    return total


# --- the gradient of a batch ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "rule"),
    [(m, "d_rtrl") for m in (Image, Leak, LowRank, Branches, Iterated, Remembers, Mixes, Spikes)]
    + [(m, "pp_prop") for m in (Leak, Branches, Spikes)],
)
def test_a_batch_is_the_sum_of_its_examples(model: type[OneExample], rule: str) -> None:
    xs, ys = data(model)
    expected = sum_over_examples(model, rule, xs, ys)
    learner = learner_of_batch(model(), rule, xs[0])
    found = gradient(learner, xs, ys)
    assert_tree_close(found, expected, 1e-12)
    assert all(jnp.any(leaf) for leaf in jax.tree.leaves(found))
    assert learner.model.h.value.shape == (B, *model.shape)


class Cell(brainstate.nn.Module):
    """A leaky recurrent layer that takes its batch from ``init_state``, as those of users do."""

    def __init__(self) -> None:
        super().__init__()
        self.w = param(IN + HIDDEN, HIDDEN)

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = brainstate.HiddenState(jnp.zeros(self.shape(batch_size)))

    def reset_state(self, batch_size: int | None = None) -> None:
        self.h.value = jnp.zeros(self.shape(batch_size))

    def shape(self, batch_size: int | None) -> tuple[int, ...]:
        return (HIDDEN,) if batch_size is None else (batch_size, HIDDEN)

    def update(self, x: Any) -> Any:
        drive = bt.matmul(jnp.concatenate([x, self.h.value], -1), self.w.value)
        self.h.value = 0.5 * self.h.value + jnp.tanh(drive)
        return self.h.value


class Net(brainstate.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = Cell(), param(HIDDEN, 2)

    def update(self, x: Any) -> Any:
        return self.cell(x) @ self.out.value


def net_data(batch: int = B) -> tuple[jax.Array, jax.Array]:
    return draw(T, batch, IN, seed=5), draw(T, batch, seed=6)


def batch_inside(rule: str, batch: int = B) -> Any:
    learner = bt.compile(Net(), rule, net_data(batch)[0][0], batch_size=batch, **RULES[rule][1])
    return learner


@pytest.mark.parametrize("rule", RULES)
def test_vmap_equals_the_batch_inside_the_model(rule: str) -> None:
    xs, ys = net_data()
    inside, mapped = batch_inside(rule), learner_of_batch(Net(), rule, xs[0])
    assert mapped.hidden_states.keys() == inside.hidden_states.keys()
    assert mapped.graph.coverage() == inside.graph.coverage()
    for x, y in zip(xs[:2], ys, strict=False):
        found = [
            brainstate.transform.grad(
                lambda of=of, x=x, y=y: jnp.sum(jax.vmap(loss)(of(x), y)), of.param_states
            )()
            for of in (inside, mapped)
        ]
        assert_tree_close(*found, 1e-12)
    of_weight = [of.get_etrace_of(("cell", "w")) for of in (inside, mapped)]
    assert_tree_close(*of_weight, 1e-12)
    assert mapped.traces[0].value is not inside.traces[0].value


def test_a_copy_is_mapped_as_well() -> None:
    x = draw(B, IN)
    learner = learner_of_batch(Remembers(), "d_rtrl", x)
    learner(x)
    twin = copy.deepcopy(learner)
    assert_tree_close(twin(x), learner(x), 1e-12)
    reset_batched_states(twin.model)
    assert twin(x).shape == (B, HIDDEN)
    assert twin.model.h is not learner.model.h


def test_compile_takes_vmap() -> None:
    xs, ys = net_data()
    expected = gradient(batch_inside("d_rtrl"), xs, ys)
    for options in ({}, {"batch_size": B}):
        learner = bt.compile(Net(), "d_rtrl", xs[0], vmap=True, **options)
        assert_tree_close(gradient(learner, xs, ys), expected, 1e-12)
    with pytest.raises(ValueError, match=r"argument\[0\] has shape \(3, 2\), but batch_size is 4"):
        bt.compile(Net(), "d_rtrl", xs[0], batch_size=4, vmap=True)


# --- what examples share, and what they do not ---------------------------------------------------


class Noisy(OneExample):
    """Noise from both kinds of random state, at every step and in the initial value."""

    def __init__(self) -> None:
        super().__init__()
        self.own = brainstate.random.RandomState(99)

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = brainstate.HiddenState(brainstate.random.normal(size=self.shape))

    def reset_state(self, batch_size: int | None = None) -> None:
        self.h.value = brainstate.random.normal(size=self.shape)

    def update(self, x: Any) -> Any:
        noise = jnp.stack([brainstate.random.normal(size=(3,)), self.own.normal(size=(3,))])
        self.h.value = 0.6 * self.h.value + self.drive(x)
        return noise


def all_differ(values: Any) -> bool:
    flat = np.asarray(values).ravel()
    return len(np.unique(flat)) == flat.size


def test_every_example_draws_its_own_numbers() -> None:
    model, x = Noisy(), jnp.ones((B, IN))
    learner = learner_of_batch(model, "d_rtrl", x)
    seen = [model.h.value, learner(x), learner(x)]
    assert model.own.value.shape == brainstate.random.DEFAULT.value.shape == ()

    @brainstate.transform.jit
    def again() -> Any:
        reset_batched_states(model)
        return model.h.value

    seen += [again(), again(), learner(x)]
    assert all_differ(np.concatenate([np.ravel(v) for v in seen]))


def test_numbers_follow_the_seed() -> None:
    def run() -> Any:
        brainstate.random.seed(7)
        model = Noisy()
        out = learner_of_batch(model, "d_rtrl", jnp.ones((B, IN)))(jnp.ones((B, IN)))
        return model.h.value, out

    assert_tree_close(run(), run(), 0.0)


class Arguments(OneExample):
    """Units, a scalar, and the time of the step."""

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = brainstate.HiddenState(jnp.zeros(self.shape) * u.mV)

    def update(self, given: Any, gain: Any) -> Any:
        drive = gain * brainstate.environ.get("t") * bt.matmul(given["x"], self.w.value)
        self.h.value = 0.6 * self.h.value + drive
        return self.h.value, gain


def test_scalars_and_the_environment_are_shared() -> None:
    x, model = draw(B, IN), Arguments()
    with brainstate.environ.context(t=1.0):
        learner = learner_of_batch(model, "d_rtrl", {"x": x * u.mV}, 2.0)
    with brainstate.environ.context(t=3.0):
        out, gain = learner({"x": x * u.mV}, 0.5)
    assert_tree_close(out.to_decimal(u.mV), 1.5 * x @ model.w.value, 1e-12)
    assert gain.tolist() == [0.5] * B


class Delayed(OneExample):
    def __init__(self) -> None:
        super().__init__()
        self.delay = brainstate.nn.Delay(jax.ShapeDtypeStruct((HIDDEN,), jnp.float64), time=0.2)

    def update(self, x: Any) -> Any:
        self.h.value = 0.6 * self.h.value + self.drive(x)
        self.delay.update(self.h.value)
        return self.delay.retrieve_at_step(1)


def test_the_pointer_of_a_delay_is_shared() -> None:
    xs = draw(T, B, IN)
    with brainstate.environ.context(dt=0.1):
        learner = learner_of_batch(Delayed(), "d_rtrl", xs[0])
        outs = [learner(x) for x in xs]
    drives = xs @ learner.model.w.value
    assert_tree_close(outs[-1], 0.6 * drives[0] + drives[1], 1e-12)
    states = learner.other_states | learner.hidden_states  # a delay line is hidden
    shapes = {path[-1]: jnp.shape(s.value) for path, s in states.items()}
    assert shapes["write_ptr"] == ()
    assert shapes["history"][0] == B


def test_initialising_again_starts_from_one_example() -> None:
    model, x = Remembers(), draw(B, IN)
    for rule in RULES:
        learner_of_batch(model, rule, x)(x)
        assert model.sum.value.shape == (B,)
    init_batched_states(model, 5)
    assert model.scale.value.shape == (5, HIDDEN)
    assert model.w.value.shape == (IN, HIDDEN)


def test_a_reset_starts_every_example_anew() -> None:
    model, x = Remembers(), draw(B, IN)
    learner_of_batch(model, "d_rtrl", x)(x)
    kept = model.sum.value
    reset_batched_states(model)
    assert model.sum.value is kept  # reset_state of the model leaves it as it is
    assert model.h.value.tolist() == np.zeros((B, HIDDEN)).tolist()
    before = model.h.value
    with pytest.raises(ValueError, match=r"batch_size=5 cannot reset scale, .* 3 examples"):
        reset_batched_states(model, 5)
    assert model.h.value is before


# --- what is refused -----------------------------------------------------------------------------


class Outside(OneExample):
    """Uses a state that is not the model's."""

    def __init__(self, change: Callable[[Any], Any]) -> None:
        super().__init__()
        state = brainstate.ShortTermState(jnp.zeros(()))
        self.outside, self.change = (lambda: state), change

    def drive(self, x: Any) -> Any:
        self.outside().value = self.outside().value + self.change(x)
        return super().drive(x) * self.outside().value


def test_a_state_outside_the_model_is_shared_or_refused() -> None:
    x = draw(B, IN)
    counts = Outside(lambda x: 1.0)
    assert_tree_close(learner_of_batch(counts, "d_rtrl", x)(x), x @ counts.w.value, 1e-12)
    assert counts.outside().value == 1.0
    with pytest.raises(bt.CompilationError, match="has no axis of examples.*attribute of the mod"):
        learner_of_batch(Outside(lambda x: x.sum()), "d_rtrl", x)


def test_states_without_an_axis_of_examples_are_refused() -> None:
    x, model = draw(B, IN), OneExample()
    learner = bt.D_RTRL(model, vmap=True)
    brainstate.nn.init_all_states(model)
    with pytest.raises(bt.CompilationError, match=r"no state .* axis of examples; let braintrace"):
        learner.compile_graph(x)
    init_batched_states(model, B)
    with pytest.raises(ValueError, match=r"argument\[0\] has shape \(4, 2\), but .* 3 examples"):
        learner.compile_graph(jnp.ones((4, IN)))
    model.h.value = model.h.value[0, 0]
    with pytest.raises(bt.CompilationError, match="state h was made for a batch and now holds"):
        learner.compile_graph(x)
    with pytest.raises(TypeError, match="vmap must be True or False, got 3"):
        bt.compile_etrace_graph(model, x, vmap=3)


@pytest.mark.parametrize(
    ("args", "size", "error", "says"),
    [
        ((), None, ValueError, "no example input has an axis"),
        ((2.0,), None, ValueError, "needs batch_size"),
        ((jnp.ones(2), jnp.ones((3, 2))), None, ValueError, r"argument\[1\].*before it have 2"),
        ((jnp.ones(2),), True, ValueError, "positive integer, got True"),
        ((jnp.ones(2),), 0, ValueError, "positive integer, got 0"),
        ((jnp.ones(2),), 2.0, TypeError, "positive integer, got 2.0"),
    ],
)
def test_the_number_of_examples(args: Any, size: Any, error: type, says: str) -> None:
    with pytest.raises(error, match=says):
        examples_in(args, size)


# --- learners under the vmap of brainstate -------------------------------------------------------


@pytest.fixture
def mapped() -> Any:
    """A learner for one example whose states were made under ``vmap``."""
    learner = bt.D_RTRL(Net())

    @brainstate.transform.vmap_new_states(state_tag="new", axis_size=B)
    def init() -> None:
        brainstate.nn.init_all_states(learner.model)
        learner.compile_graph(jnp.ones(IN))

    init()
    return learner


def test_a_learner_under_vmap(mapped: Any) -> None:
    """The loss around all steps, and the gradient of one example after the other."""
    xs, ys = net_data()
    expected = gradient(batch_inside("d_rtrl"), xs, ys)
    batch = brainstate.nn.Vmap(mapped, vmap_states="new")

    def total() -> Any:
        def step(x: Any, y: Any) -> Any:
            return jnp.sum(jax.vmap(loss)(batch(x), y))

        return brainstate.transform.for_loop(step, xs, ys).sum()

    assert_tree_close(brainstate.transform.grad(total, mapped.param_states)(), expected, 1e-12)
    states = brainstate.graph.states(mapped).filter(lambda path, s: "new" in (s.tag or ()))

    def each(f: Callable[..., Any], **options: Any) -> Any:
        return brainstate.transform.vmap(f, in_states=states, out_states=states, **options)

    each(lambda: mapped.reset_state(model_states=True), axis_size=B)()
    found = each(gradient_of_one(mapped), in_axes=1)(xs, ys)
    assert_tree_close(jax.tree.map(lambda v: v.sum(0), found), expected, 1e-12)


def test_traces_made_under_vmap_are_reset(mapped: Any) -> None:
    xs, _ = net_data()
    batch = brainstate.nn.Vmap(mapped, vmap_states="new")
    batch(xs[0])
    before = jax.tree.map(jnp.shape, [trace.value for trace in mapped.traces])
    mapped.reset_state()
    after = [trace.value for trace in mapped.traces]
    assert jax.tree.map(jnp.shape, after) == before
    assert not any(jnp.any(leaf) for leaf in jax.tree.leaves(after))
    assert batch(xs[1]).shape == (B, 2)


@pytest.mark.parametrize("around", ["vmap", "jit", "grad", "brainstate"])
def test_vmap_without_states_is_refused(around: str) -> None:
    learner = bt.D_RTRL(brainstate.nn.init_all_states(Net()))
    x = draw(B, IN)
    learner.compile_graph(x[0])
    over = jax.vmap(learner)
    uses = {
        "vmap": over,
        "jit": brainstate.transform.jit(lambda x: over(x)),
        "grad": lambda x: brainstate.transform.grad(
            lambda: jnp.sum(over(x)), learner.param_states
        )(),
        "brainstate": brainstate.transform.vmap(learner),
    }
    with pytest.raises(bt.NotSupportedError, match=r"under vmap.*state cell\.h.*vmap=True.*Vmap"):
        uses[around](x)
    assert learner(x[0]).shape == (2,)


def test_a_model_under_vmap_has_no_dead_copies() -> None:
    """``Vmap`` leaves equations behind that nothing reads; none of them is a readout."""
    model = brainstate.nn.vmap_init_all_states(Leak(), axis_size=B, state_tag="new")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = bt.compile_etrace_graph(
            brainstate.nn.Vmap(model, vmap_states="new"), jnp.ones((B, IN))
        )
    assert len(graph.hidden_param_op_relations) == 2
    assert {r.kind.value for r in graph.diagnostics} == {"relation_included"}


# --- another batch -------------------------------------------------------------------------------


@pytest.mark.parametrize(("rule", "vmap"), [("d_rtrl", False), ("pp_prop", True)])
def test_reset_for_another_batch(rule: str, vmap: bool) -> None:
    xs, ys = net_data()
    learner = learner_of_batch(Net(), rule, xs[0]) if vmap else batch_inside(rule)
    learner(xs[0])
    for batch in (1, 5):
        learner.reset_state(batch_size=batch, model_states=True)
        assert learner.model.cell.h.value.shape == (batch, HIDDEN)
        assert learner.running_index.value == 0
        xs, ys = net_data(batch)
        expected = gradient(batch_inside(rule, batch), xs, ys)
        assert_tree_close(gradient(learner, xs, ys), expected, 1e-12)


class Several(OneExample):
    """Arguments with the batch in front, behind, and not at all."""

    def init_state(self, batch_size: int | None = None) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size or 1, HIDDEN)))

    def reset_state(self, batch_size: int | None = None) -> None:
        self.h.value = jnp.zeros((batch_size or 1, HIDDEN))

    def update(self, x: Any, last: Any, table: Any, gain: float) -> Any:
        self.h.value = 0.6 * self.h.value + bt.matmul(x + last.T, self.w.value) * table.sum() * gain
        return self.h.value


def test_which_axes_of_the_arguments_are_the_batch() -> None:
    def inputs(batch: int) -> Any:
        return jnp.ones((batch, IN)), jnp.ones((IN, batch)), jnp.ones((7, 2)), 2.0

    learner = bt.compile(Several(), "d_rtrl", *inputs(4), batch_size=4)
    learner.reset_state(batch_size=6, model_states=True)
    assert learner(*inputs(6)).shape == (6, HIDDEN)
    learner.reset_state(batch_size=7, model_states=True)  # now the table looks like a batch
    before = learner.model.h.value
    with pytest.raises(
        ValueError, match=r"argument\[2\] has shape \(7, 2\).*compiled for shape \(5, 2\)"
    ):
        learner.reset_state(batch_size=5, model_states=True)
        learner(*inputs(5))
    assert before.shape == (7, HIDDEN)


def test_a_failed_reset_leaves_everything_as_it_was() -> None:
    class Fixed(Several):
        def update(self, x: Any) -> Any:
            self.h.value = 0.6 * self.h.value + bt.matmul(x, self.w.value) + jnp.ones((4, 1))
            return self.h.value

    x = jnp.ones((4, IN))
    learner = bt.compile(Fixed(), "d_rtrl", x, batch_size=4)
    learner(x)
    values = [learner.model.h.value, *(trace.value for trace in learner.traces)]
    says = (
        r"cannot be compiled for a batch of 6 instead of 4, with arguments of shapes \[\(6, 2\)\]"
    )
    with pytest.raises(ValueError, match=says):
        learner.reset_state(batch_size=6, model_states=True)
    assert_tree_close(
        [learner.model.h.value, *(trace.value for trace in learner.traces)], values, 0.0
    )
    assert learner(x).shape == (4, HIDDEN)


def test_states_that_do_not_come_out_for_a_batch() -> None:
    learner = batch_inside("d_rtrl")
    with pytest.raises(
        ValueError, match=r"batch_size=None resets cell.h to shape \(3,\).*\(3, 3\)"
    ):
        learner.reset_state(model_states=True)
    assert learner(net_data()[0][0]).shape == (B, 2)


# --- weights that are held -----------------------------------------------------------------------


class Held(OneExample):
    """A frozen weight, one that is trained elsewhere, and one of which half is held."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.half = param(IN, HIDDEN, seed=1), param(IN, HIDDEN, seed=2)

    def drive(self, x: Any) -> Any:
        stop = jax.lax.stop_gradient
        return (
            bt.matmul(x, stop(self.frozen.value))
            + bt.matmul(x, self.w.value, bias=stop(self.w.value[0]))
            + bt.matmul(x, self.half.value * stop(self.half.value))
        )


def test_a_held_weight_has_no_trace() -> None:
    model, (xs, ys) = Held(), data(Held)
    brainstate.nn.init_all_states(model)
    with pytest.raises(bt.CompilationError, match=r"frozen: it is used only behind stop_gradient"):
        bt.compile_etrace_graph(model, xs[0, 0])
    learner = bt.D_RTRL(model, frozen=["frozen"])
    learner.compile_graph(xs[0, 0])
    assert learner.graph.coverage() == {
        ("frozen",): "none",
        ("half",): "trace",
        ("w",): "trace",
    }
    assert "frozen" in re.search(r"\n.*frozen .*", learner.report)[0]
    relations = learner.graph.hidden_param_op_relations
    assert [r.parameter_paths for r in relations] == [(("w",),), (("half",),)]
    assert [t.key for t in relations[0].trainables] == ["weight"]
    with pytest.raises(KeyError, match="has no trace"):
        learner.get_etrace_of(("frozen",))
    found = {r.kind.value: r for r in learner.graph.explain(weight_path=("frozen",))}
    assert "frozen is held" in found["relation_excluded_no_paramstate"].message
    held = learner.graph.explain(kind=bt.DiagnosticKind.TRAINABLE_INVAR_NOT_PARAMSTATE)
    assert [r.weight_path for r in held] == [("w",)]
    found = gradient_of_one(learner)(xs[:, 0], ys[:, 0])

    def run(values: Any) -> Any:
        h, total = jnp.zeros(HIDDEN), 0.0
        for x, y in zip(xs[:, 0], ys[:, 0], strict=True):
            half = values[("half",)] * jax.lax.stop_gradient(values[("half",)])
            w = values[("w",)]
            bias = jax.lax.stop_gradient(w[0])
            h = 0.6 * h + x @ (w + half + model.frozen.value) + bias
            total += loss(h, y)
        return total

    expected = jax.grad(run)({path: s.value for path, s in learner.param_states.items()})
    assert_tree_close(found, expected, 1e-12, allow_zero=[("frozen",)])
    assert not jnp.any(found["frozen",])


@pytest.fixture(autouse=True)
def _states_are_counted() -> Iterator[None]:
    """Nothing here leaves a tracer in the random state of ``brainstate``."""
    yield
    assert not isinstance(brainstate.random.DEFAULT.value, jax.core.Tracer)
