# SPDX-License-Identifier: Apache-2.0
"""Gradients of recurrent models around ``conv``, against references that share no code with it."""

from __future__ import annotations

import warnings
from functools import lru_cache

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace.testing import assert_tree_close, d_rtrl_oracle
from braintrace_conv import conv
from braintrace_conv.nn import Conv1d, Conv2d

STEPS, BATCH = 6, 2
NORMAL = brainstate.nn.init.Normal(scale=0.5)
LAST = ("NWC", "WIO", "NWC")


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


class Leaky(brainstate.nn.Module):
    """Two states around ``operation(x, *parameters)``, coupled position by position::

    v' = 0.6 v cos(0.3 y) + 0.2 h + y
    h' = 0.7 h + sin(v')
    """

    def __init__(self, operation, *parameters, y):
        super().__init__()
        self.operation = operation
        self.parameters = [brainstate.ParamState(value) for value in parameters]
        self.shape, self.start = y.shape, jnp.full(y.shape, 0.1, y.dtype)

    def init_state(self, batch_size=None, **kwargs):
        self.v = brainstate.HiddenState(self.start)
        self.h = brainstate.HiddenState(self.start)

    def reset_state(self, batch_size=None, **kwargs):
        self.v.value = self.h.value = self.start

    def update(self, x):
        y = self.operation(x, *(state.value for state in self.parameters))
        v, h = self.v.value, self.h.value
        self.v.value = 0.6 * v * jnp.cos(0.3 * y) + 0.2 * h + y
        self.h.value = 0.7 * h + jnp.sin(self.v.value)
        return self.h.value


def leaky(operation, x, *parameters):
    y = jax.eval_shape(operation, x, *parameters)
    cell = Leaky(operation, *parameters, y=y)
    brainstate.nn.init_all_states(cell)
    return cell


def loss(h, target):
    return jnp.sum((h - target) ** 2)


def backpropagated(model, xs, targets):
    model.reset_state()

    def total():
        return brainstate.transform.for_loop(lambda x, y: loss(model(x), y), xs, targets).sum()

    grads = brainstate.transform.grad(total, model.states(brainstate.ParamState))()
    model.reset_state()
    return grads


def compiled(model, x):
    """With the trace of the family's rules, also where a filter could take its place."""
    learner = braintrace.D_RTRL(model, downstream="step")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", braintrace.CompilationWarning)
        learner.compile_graph(x)
    assert set(learner.graph.coverage().values()) == {"trace"}
    return learner


@lru_cache(maxsize=4)
def step_of(learner):
    """One function for all calls of a learner: equal blocks, as of ``"auto"``, compile once."""
    return lambda x, y: loss(learner(x), y)


def online(learner, xs, targets, block_size, **options):
    learner.reset_state(model_states=True)
    return learner.etrace_grad(
        xs,
        targets,
        step_fn=step_of(learner),
        reduction="sum",
        block_size=block_size,
        **options,
    )


def check(model, xs, blocks=(1, 4), expected=None):
    targets = draw(STEPS, *model.shape, seed=9)
    expected = backpropagated(model, xs, targets) if expected is None else expected
    learner = compiled(model, xs[0])
    for block in blocks:
        assert_tree_close(online(learner, xs, targets, block), expected, rtol=1e-9)
    return expected


# --- leaky cells: equal to backpropagation through time -------------------------------------------

MASK = np.random.default_rng(3).random((3, 3, 1, 4)) > 0.4


def test_strides_groups_bias_and_mask():
    layer = Conv2d(
        (5, 4, 2), 4, 3, stride=(2, 1), groups=2, w_mask=MASK, b_init=NORMAL, w_init=NORMAL, key=1
    )
    xs = draw(STEPS, BATCH, 5, 4, 2)
    grads = check(leaky(layer, xs[0]), xs, (1, 4, STEPS, "auto"))
    (grads,) = grads.values()
    assert (np.asarray(grads["weight"] != 0) == MASK).all()


def shared(x, a, b):
    """A sum of two parameters, the absolute value of one; and that one used twice."""
    first = conv(x, jnp.abs(a) + b, dimension_numbers=LAST)
    return first * jnp.tanh(conv(jnp.sin(x), a, dimension_numbers=LAST))


def arranged(x, kernel, bias):
    """The batch is the last axis of the result, and it is in groups."""
    return conv(
        x,
        kernel,
        bias,
        padding=((0, 1),),
        rhs_dilation=2,
        batch_group_count=2,
        kernel_fn=jnp.sin,
        bias_fn=jnp.exp,
        dimension_numbers=("CNW", "WOI", "CWN"),
    )


#: Operation, shape of ``x``, shapes of the parameters.
MODELS = {
    "absolute value, sum of two parameters, one used twice": (
        shared,
        (BATCH, 4, 2),
        (3, 2, 3),
        (3, 2, 3),
    ),
    "layouts, groups of the batch, dilation, functions of parameters": (
        arranged,
        (2, 2 * BATCH, 5),
        (2, 4, 2),
        (4,),
    ),
    "sizes of one": (conv, (1, 1, 1, 1), (1, 1, 1, 1), (1,)),
}


@pytest.mark.parametrize("name", MODELS)
def test_leaky_cell_equals_backpropagation(name):
    operation, shape, *shapes = MODELS[name]
    xs = draw(STEPS, *shape)
    check(leaky(operation, xs[0], *(draw(*s, seed=i) for i, s in enumerate(shapes))), xs)


# --- batches ------------------------------------------------------------------------------------


def layered(x, mapped=False):
    layer = Conv1d((4, 2), 3, 2, b_init=NORMAL, key=2)
    cell = leaky(jax.vmap(layer) if mapped else layer, x)
    cell.layer = layer
    return cell


def test_a_batch_is_the_sum_of_its_examples_and_vmap():
    xs, targets = draw(STEPS, BATCH, 4, 2), draw(STEPS, BATCH, 4, 3, seed=9)

    def gradient(learner, *sequences):
        (grads,) = online(learner, *sequences, STEPS // 2).values()
        return grads

    whole = gradient(compiled(layered(xs[0]), xs[0]), xs, targets)
    mapped = gradient(compiled(layered(xs[0], mapped=True), xs[0]), xs, targets)
    assert_tree_close(mapped, whole, rtol=1e-10)
    single = compiled(layered(xs[0, 0]), xs[0, 0])  # an example without a batch
    parts = [gradient(single, xs[:, b], targets[:, b]) for b in range(BATCH)]
    assert_tree_close(jax.tree.map(lambda *p: sum(p), *parts), whole, rtol=1e-10)


# --- recurrent ----------------------------------------------------------------------------------


class Recurrent(brainstate.nn.Module):
    """``h' = 0.5 h + tanh(conv([x, h]))``."""

    def __init__(self):
        super().__init__()
        self.layer = Conv1d((3, 3), 2, 2, b_init=NORMAL, key=3)
        self.shape = (1, 3, 2)

    def init_state(self, batch_size=None, **kwargs):
        self.h = brainstate.HiddenState(jnp.full(self.shape, 0.3))

    def reset_state(self, batch_size=None, **kwargs):
        self.h.value = jnp.full(self.shape, 0.3)

    def update(self, x):
        h = self.h.value
        self.h.value = 0.5 * h + jnp.tanh(self.layer(jnp.concatenate([x, h], axis=-1)))
        return self.h.value


def test_recurrent_convolution_equals_the_oracle():
    model, xs = Recurrent(), draw(STEPS, 1, 3, 1)
    brainstate.nn.init_all_states(model)
    targets = draw(STEPS, *model.shape, seed=9)
    expected = d_rtrl_oracle(model, (xs, targets), loss).grads
    check(model, xs, expected=expected)
    exact = backpropagated(model, xs, targets)
    gaps = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), exact, expected)
    assert max(jax.tree.leaves(gaps)) > 1e-2  # the recurrence through the kernel counts here


# --- what is computed ---------------------------------------------------------------------------


def sizes(jaxpr):
    """Numbers of elements of all arrays that a program computes from other arrays."""
    for eqn in jaxpr.eqns:
        inner = [v for v in jax.tree.leaves(list(eqn.params.values())) if hasattr(v, "eqns")]
        for sub in inner:
            yield from sizes(sub)
        if not inner and any(v.aval.shape for v in eqn.invars):
            yield from (int(np.prod(v.aval.shape)) for v in eqn.outvars)


@pytest.mark.parametrize("carried", [False, True])
def test_nothing_of_the_size_of_a_patch_without_a_trace(carried):
    positions, taps, inputs = 12, 15, 4
    xs = draw(3, BATCH, positions, inputs)
    layer = Conv1d((positions, inputs), 3, taps, b_init=NORMAL, key=2)
    model = leaky(layer, xs[0])
    targets = draw(3, *model.shape)
    learner = compiled(model, xs[0])
    program = brainstate.transform.make_jaxpr(
        lambda xs: online(learner, xs, targets, 3, carry_trace=carried)
    )(xs)[0]
    patches = BATCH * positions * taps * inputs
    largest = max(sizes(program.jaxpr))
    assert (largest >= patches) == carried
    assert largest > BATCH * positions


def test_the_trace_keeps_output_positions():
    xs = draw(STEPS, BATCH, 5, 2)
    model = leaky(Conv1d((5, 2), 4, 3, stride=2, groups=2, b_init=NORMAL, key=2), xs[0])
    learner = compiled(model, xs[0])
    (trace,) = learner.traces
    shapes = {key: leaf.shape for key, leaf in trace.value.items()}
    assert shapes == {"weight": (2, BATCH, 3, 4, 3, 1), "bias": (2, BATCH, 3, 4)}


def test_blocks_write_the_trace_over_itself():
    xs, steps = draw(24, 8, 16, 4), 24
    model = leaky(Conv1d((16, 4), 8, 15, b_init=NORMAL, key=2), xs[0])
    learner, targets = compiled(model, xs[0]), draw(steps, *model.shape, seed=9)
    options = {"step_fn": step_of(learner), "block_size": 3}
    program = brainstate.transform.StatefulFunction(
        lambda xs: learner.etrace_grad(xs, targets, **options), return_only_write=False
    )
    program.make_jaxpr(xs)
    values = [state.value for state in program.get_states(xs)]
    run = jax.jit(program.jaxpr_call, donate_argnums=0).lower(values, xs).compile()
    (trace,) = learner.traces
    size = sum(leaf.nbytes for leaf in trace.value.values())
    assert run.memory_analysis().temp_size_in_bytes < 2 * size  # three with sums of arrays


def test_half_precision_runs():
    xs, kernel = draw(STEPS, BATCH, 4, 2), draw(3, 2, 3, seed=1)

    def gradient(dtype):
        x, weight = xs.astype(dtype), kernel.astype(dtype)
        model = leaky(lambda x, k: conv(x, k, dimension_numbers=LAST), x[0], weight)
        targets = draw(STEPS, *model.shape, seed=9).astype(dtype)
        (grads,) = online(compiled(model, x[0]), x, targets, STEPS, carry_trace=False).values()
        assert grads.dtype == dtype
        return grads.astype("float64")

    exact = gradient("float64")
    assert jnp.abs(gradient("float16") - exact).max() < 0.02 * jnp.abs(exact).max()
