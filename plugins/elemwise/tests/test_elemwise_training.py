# SPDX-License-Identifier: Apache-2.0
"""D-RTRL through ``element_wise`` equals backpropagation, whatever the shapes and functions are."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

import braintrace
from braintrace.testing import assert_tree_close, bptt
from braintrace_elemwise import element_wise

STEPS = 6


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


class Leaky(brainstate.nn.Module):
    """Two states that drive each other position by position.

    The first makes the leak, so credit over time passes through the operation, too.
    """

    def __init__(self, shape, step, parameters):
        super().__init__()
        self.shape, self.step = shape, step
        for name, value in parameters.items():
            setattr(self, name, brainstate.ParamState(value))

    def init_state(self, **_):
        self.v = brainstate.HiddenState(jnp.full(self.shape, 0.1))
        self.h = brainstate.HiddenState(jnp.full(self.shape, -0.2))

    def reset_state(self, **_):
        self.v.value, self.h.value = jnp.full(self.shape, 0.1), jnp.full(self.shape, -0.2)

    def update(self, x):
        leak, gain = self.step(self)
        self.v.value = leak * self.v.value + gain * x + 0.2 * self.h.value
        self.h.value = 0.7 * self.h.value + jnp.sin(self.v.value)
        return self.h.value


def loss(out, target):
    return jnp.sum((out - target) ** 2)


def check(model, block_sizes=(1, 4, STEPS, "auto")):
    xs, ys = draw(STEPS, *model.shape, seed=7), draw(STEPS, *model.shape, seed=8)
    brainstate.nn.init_all_states(model)
    learner = braintrace.D_RTRL(model, downstream="step")
    learner.compile_graph(xs[0])
    assert set(learner.graph.coverage().values()) == {"trace"}
    _, expected = bptt(model, (xs, ys), loss)

    def step(x, y):
        return loss(learner(x), y)

    for block_size in block_sizes:
        learner.reset_state(model_states=True)
        grads = learner.etrace_grad(xs, ys, step_fn=step, reduction="sum", block_size=block_size)
        assert_tree_close(grads, expected, rtol=1e-9)
    return learner


# --- shapes ------------------------------------------------------------------------------------


def of_all_shapes(self):
    values = [state.value for state in self.states(brainstate.ParamState).values()]
    leak = sum(element_wise(w, fn=jax.nn.sigmoid) for w in values) / len(values)
    return leak, 1.0


#: By the shape of the group: shapes of weights, all in one cell.
SHAPES = {
    (): [(), ()],
    (3,): [(), (1,), (3,)],
    (2, 3): [(), (1,), (3,), (1, 3), (2, 1), (2, 3)],
    (1, 1): [(), (1,), (1, 1)],
    (2, 3, 2, 4): [(), (3, 1, 1), (4,), (1, 3, 2, 1), (2, 1, 1, 4)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_that_broadcasts(shape):
    parameters = {f"w{i}": draw(*own, seed=i) for i, own in enumerate(SHAPES[shape])}
    learner = check(Leaky(shape, of_all_shapes, parameters), block_sizes=(1, 4))
    for i, own in enumerate(SHAPES[shape]):
        for trace in learner.get_etrace_of((f"w{i}",)):
            held = trace["weight"].shape
            assert np.prod(held) == 2 * np.prod(shape), held  # each position and state, once
            assert held[len(held) - 1 - len(own) :] == (*own, 2)


# --- functions -------------------------------------------------------------------------------


def new_shape(self):
    u = element_wise(self.u.value, fn=lambda w: jnp.outer(w, w) / 9)
    return jnp.tanh(u), element_wise(self.w.value, fn=lambda w: w.reshape(3, 2).T[0])


def new_unit(self):
    tau = element_wise(self.u.value, fn=lambda w: jnp.exp(w) * saiunit.ms)
    gain = element_wise(self.w.value * saiunit.volt, fn=lambda w: w / (2 * saiunit.mV))
    leak = element_wise(self.w.value * saiunit.ms, weight_fn=jnp.cosh)
    return jnp.exp(-(0.5 * saiunit.ms / (tau + leak))), 1e-3 * gain


def new_dtype(self):
    wide = element_wise(self.u.value, fn=lambda w: jnp.sin(w).astype("float64"))
    return wide, element_wise(self.w.value.astype("float64"))


def of_sums(self):
    both = self.u.value + jnp.square(self.w.value)
    return element_wise(both, fn=jax.nn.sigmoid), element_wise(self.u.value * self.w.value)


def several_uses(self):
    """One result in two places, and one parameter in two operations."""
    u = element_wise(self.u.value, fn=jnp.tanh)
    return u, u * element_wise(self.u.value) + element_wise(self.w.value)


def inside_transformations(self):
    leak = jax.jit(lambda w: element_wise(w, fn=jnp.tanh))(self.u.value)
    gain = jax.checkpoint(lambda w: element_wise(w, fn=jnp.sin))(self.w.value)
    return leak, jax.vmap(lambda scale: scale * gain)(jnp.array([1.0, 0.5]))


FUNCTIONS = {
    "shape": ((3, 3), new_shape, {"u": (3,), "w": (6,)}),
    "unit": ((2, 3), new_unit, {"u": (3,), "w": (3,)}),
    "sums": ((2, 3), of_sums, {"u": (3,), "w": ()}),
    "several_uses": ((2, 3), several_uses, {"u": (3,), "w": (1,)}),
    "transformations": ((2, 3), inside_transformations, {"u": (3,), "w": (3,)}),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_uses(name):
    shape, step, parameters = FUNCTIONS[name]
    values = {key: draw(*own, seed=i) for i, (key, own) in enumerate(parameters.items())}
    check(Leaky(shape, step, values))


def test_parts_of_a_result_are_exact_at_a_price():
    """Several positions of the result act on one position of the state."""

    def parts(self):
        u = element_wise(self.u.value)
        return jax.nn.sigmoid(u[0]), u[1] * element_wise(self.w.value)

    check(Leaky((2, 3), parts, {"u": draw(2, 3), "w": draw(3, seed=1)}), (1, 4))


def test_function_that_changes_the_dtype():
    """The trace has the dtype of the operation, the gradient that of the parameter."""
    values = {"u": draw(3).astype("float32"), "w": draw(3, seed=1).astype("float32")}
    model = Leaky((2, 3), new_dtype, values)
    xs, ys = draw(STEPS, 2, 3, seed=7), draw(STEPS, 2, 3, seed=8)
    learner = braintrace.compile(model, "d_rtrl", xs[0])
    grads = learner.etrace_grad(
        xs, ys, step_fn=lambda x, y: loss(learner(x), y), reduction="sum", block_size=4
    )
    model.reset_state()
    assert_tree_close(grads, bptt(model, (xs, ys), loss)[1], rtol=1e-6)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {np.dtype("float32")}
    assert {t.dtype for s in learner.traces for t in s.value.values()} == {np.dtype("float64")}


def test_a_parameter_of_two_groups():
    """Each group has a trace of it; what leads from one to the other is in the signals."""

    class Pair(brainstate.nn.Module):
        shape = (2, 3)

        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(draw(3))

        def init_state(self, **_):
            self.a = brainstate.HiddenState(jnp.full(self.shape, 0.1))
            self.b = brainstate.HiddenState(jnp.full(self.shape, 0.3))

        def reset_state(self, **_):
            self.a.value, self.b.value = jnp.full(self.shape, 0.1), jnp.full(self.shape, 0.3)

        def update(self, x):
            leak = element_wise(self.w.value, fn=jax.nn.sigmoid)
            self.a.value = leak * self.a.value + x
            self.b.value = leak * self.b.value + jnp.cos(x)
            return self.a.value + jnp.sin(self.b.value)

    assert len(check(Pair()).get_etrace_of(("w",))) == 2


# --- batches -----------------------------------------------------------------------------------


def test_a_batch_is_the_sum_of_its_examples():
    values = {"u": draw(3), "w": draw(3, seed=1)}
    xs, ys = draw(STEPS, 4, 3, seed=7), draw(STEPS, 4, 3, seed=8)

    def gradient(xs, ys):
        model = Leaky(xs.shape[1:], of_sums, values)
        learner = braintrace.compile(model, "d_rtrl", xs[0])
        return learner.etrace_grad(
            xs, ys, step_fn=lambda x, y: loss(learner(x), y), reduction="sum", block_size=4
        )

    parts = [gradient(xs[:, b], ys[:, b]) for b in range(2)]
    whole = gradient(xs[:, :2], ys[:, :2])
    assert_tree_close(whole, jax.tree.map(jnp.add, *parts))


# --- sizes of zero -----------------------------------------------------------------------------


def test_no_elements():
    """The operation is right; a hidden state without elements is refused by the compiler."""
    empty = jnp.zeros((0, 3))
    assert element_wise(empty, fn=jnp.exp).shape == (0, 3)
    assert jax.grad(lambda w: element_wise(w).sum())(empty).shape == (0, 3)
    model = Leaky((0, 3), of_sums, {"u": empty, "w": jnp.ones(3)})
    with pytest.raises(braintrace.CompilationError, match="no elements"):
        braintrace.compile(model, "d_rtrl", empty)
