# SPDX-License-Identifier: Apache-2.0
"""Gradients of cells and layers by D-RTRL, against the independent oracle and backpropagation."""

from __future__ import annotations

import contextlib

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

import braintrace
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle
from braintrace_dense import matmul, nn

IN, OUT, STEPS = 3, 2, 4
#: Weight paths of the relations of each cell, in the order of its operations.
RELATIONS = {
    "ValinaRNNCell": ["W"],
    "GRUCell": ["Wh", "Wz"],
    "MGUCell": ["Wf", "Wh"],
    "LSTMCell": ["Wf", "Wg", "Wi", "Wo"],
    "URLSTMCell": ["Wf", "Wo", "Wr", "Wu", "bias", "bias"],
    "MinimalRNNCell": ["W_u", "phi"],
    "MiniGRU": ["W_x", "W_z"],
    "MiniLSTM": ["W_f", "W_i", "W_x"],
    "CFNCell": ["Wf", "Wh", "Wi"],
    "LRUCell": ["B_im", "B_re", "gamma_log", "nu_log", "theta_log"],
}
#: What compiling warns of, as part of the rule or because the readout has no trace.
WARNS = {
    "ValinaRNNCell": ["transition_structurally_zero"],
    "LRUCell": ["relation_excluded_non_temporal"] * 3,
}
#: Whose recurrence is position by position, so that D-RTRL is backpropagation through time.
DIAGONAL = {
    "MiniGRU": {"recurrent_gates": False},
    "MiniLSTM": {"recurrent_gates": False},
    "LRUCell": {},
}
CASES = [*((name, {}) for name in RELATIONS if name != "LRUCell"), *DIAGONAL.items()]


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def expected_warnings(name):
    """That of a gradient that is not exact; that a gain has none through time is exact."""
    lossy = name == "ValinaRNNCell"
    return pytest.warns(braintrace.CompilationWarning) if lossy else contextlib.nullcontext()


def make(name, batch=None, width=OUT, **options):
    cell = getattr(nn, name)(IN, width, key=1, **options)
    for i, state in enumerate(cell.states(brainstate.ParamState).values()):
        state.value = jax.tree.map(lambda v, i=i: v + 0.3 * draw(*v.shape, seed=i), state.value)
    brainstate.nn.init_all_states(cell, batch_size=batch)
    return cell


def loss(y):
    return jnp.sin(y + 0.3).sum()


def trained(learner, xs, batch, block_size, loss=loss):
    learner.reset_state(batch, model_states=True)
    return learner.etrace_grad(
        xs, step_fn=lambda x: loss(learner(x)), reduction="sum", block_size=block_size
    )


# --- cells -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), CASES)
def test_cell_equals_the_oracle(name, options):
    """Two blocks, so that a trace is carried over; diagonal recurrences equal backpropagation."""
    cell, xs = make(name, batch=2, **options), draw(STEPS, 2, IN)
    with expected_warnings(name):
        learner = braintrace.compile(cell, "d_rtrl", xs[0], batch_size=2)
    assert (
        sorted(r.weight_path[0] for r in learner.graph.hidden_param_op_relations) == RELATIONS[name]
    )
    told = [d.kind.value for d in learner.graph.diagnostics if d.level.value == "warning"]
    assert told == WARNS.get(name, [])
    cell.reset_state(2)
    expected = [d_rtrl_oracle(cell, (xs,), loss).grads]
    if options == DIAGONAL.get(name):
        expected.append(bptt(cell, (xs,), loss)[1])
    got = trained(learner, xs, 2, STEPS // 2)
    for grads in expected:
        assert_tree_close(got, grads, rtol=1e-9)


def test_linear_recurrent_unit_alone():
    """One example and one unit, step by step."""
    cell, xs = make("LRUCell", width=1), draw(STEPS, IN)
    learner = braintrace.compile(cell, "d_rtrl", xs[0])
    cell.reset_state()
    _, expected = bptt(cell, (xs,), loss)
    assert_tree_close(trained(learner, xs, None, 1), expected, rtol=1e-9)


# --- leaky cells around one operation -----------------------------------------------------------

MASK = jnp.asarray([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])


class Leaky(brainstate.nn.Module):
    """Two states that leak and couple position by position, around many uses of ``matmul``."""

    def __init__(self, num_in, num_out):
        super().__init__()
        shape = (num_in, num_out)
        self.mask = MASK[:num_in, :num_out]
        for i, name in enumerate(("absolute", "one", "other", "shared")):
            setattr(self, name, brainstate.ParamState(draw(*shape, seed=i)))
        turned = {"weight": draw(num_out, num_in), "bias": draw(num_out)}
        self.turned = brainstate.ParamState(turned)
        self.unit = brainstate.ParamState(draw(*shape, seed=9) * saiunit.mS)
        bias = brainstate.nn.init.Normal(scale=0.5)
        self.linear = nn.Linear(num_in, num_out, b_init=bias, w_mask=self.mask, key=1)
        self.signed = nn.SignedWLinear(num_in, num_out, w_sign=2 * self.mask - 1, key=2)
        self.scaled = nn.ScaledWSLinear(num_in, num_out, b_init=bias, w_mask=self.mask, key=3)

    def init_state(self, batch_size=None, **kwargs):
        shape = self.linear.out_size if batch_size is None else (batch_size, *self.linear.out_size)
        self.slow, self.fast = (brainstate.HiddenState(jnp.zeros(shape)) for _ in range(2))

    def reset_state(self, batch_size=None, **kwargs):
        self.slow.value, self.fast.value = 0 * self.slow.value, 0 * self.fast.value

    def products(self, x):
        yield matmul(x, self.mask * jnp.abs(self.absolute.value))
        yield matmul(x, self.one.value + self.other.value**2)
        yield matmul(x, self.shared.value) + matmul(jnp.cos(x), self.shared.value)
        turned = self.turned.value
        yield matmul(x, turned["weight"], turned["bias"], weight_fn=jnp.transpose, bias_fn=jnp.exp)
        yield matmul(x * saiunit.mV, self.unit.value, weight_fn=jnp.sin).to_decimal(saiunit.uA)
        yield from (layer(x) for layer in (self.linear, self.signed, self.scaled))

    def update(self, x):
        y = sum(0.3 * jnp.sin(product) for product in self.products(x))
        slow, fast = self.slow.value, self.fast.value
        self.fast.value = 0.6 * fast + 0.2 * jnp.tanh(slow) + y
        self.slow.value = 0.9 * slow + 0.1 * self.fast.value
        return self.slow.value


@pytest.mark.parametrize(
    ("sizes", "batch", "block_sizes"),
    [((IN, OUT), 3, (1, 4, 6)), ((1, 1), 1, ("auto",))],
    ids=["several", "ones"],
)
def test_leaky_cell_equals_backpropagation(sizes, batch, block_sizes):
    steps = 6
    model, xs = Leaky(*sizes), draw(steps, *(() if batch is None else (batch,)), sizes[0])
    learner = braintrace.compile(model, "d_rtrl", xs[0], batch_size=batch, downstream="step")
    model.reset_state(batch)
    _, expected = bptt(model, (xs,), loss)
    expected = jax.tree.map(saiunit.get_mantissa, expected)
    for block_size in block_sizes:
        got = jax.tree.map(saiunit.get_mantissa, trained(learner, xs, batch, block_size))
        # With one input, the standardised weight is its difference to itself.
        zero = () if sizes[0] > 1 else ("scaled.weight.weight", "scaled.weight.gain")
        assert_tree_close(got, expected, rtol=1e-9, allow_zero=zero)


def test_leaky_readout_equals_backpropagation():
    with brainstate.environ.context(dt=1.0 * saiunit.ms):
        tau = jnp.asarray([2.0, 5.0]) * saiunit.ms
        model, xs = nn.LeakyRateReadout(IN, OUT, tau, key=0), draw(STEPS, 2, IN)
    learner = braintrace.compile(model, "d_rtrl", xs[0], batch_size=2)
    (relation,) = learner.graph.hidden_param_op_relations
    assert relation.weight_path == ("W",)
    model.reset_state(2)
    _, expected = bptt(model, (xs,), loss)
    assert_tree_close(trained(learner, xs, 2, "auto"), expected, rtol=1e-9)


# --- dtypes -------------------------------------------------------------------------------------


class Mixed(brainstate.nn.Module):
    """A leaky unit whose input, weight, bias and state have dtypes of their own."""

    def __init__(self, weight, bias):
        super().__init__()
        self.weight = brainstate.ParamState(draw(IN, OUT).astype(weight))
        self.bias = brainstate.ParamState(draw(OUT).astype(bias))

    def init_state(self, batch_size=None, **kwargs):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, OUT), jnp.float32))

    def reset_state(self, batch_size=None, **kwargs):
        self.h.value = 0 * self.h.value

    def update(self, x):
        y = matmul(x, self.weight.value, self.bias.value)
        self.h.value = 0.8 * self.h.value + jnp.tanh(y.astype(jnp.float32))
        return self.h.value


@pytest.mark.parametrize(
    ("x", "weight", "bias", "trace", "rtol"),
    [
        ("bfloat16", "float32", "bfloat16", None, 2e-2),
        ("float64", "float32", "float32", "float32", 1e-5),
        ("float32", "bfloat16", "float32", "bfloat16", 3e-2),
    ],
)
def test_mixed_dtypes(x, weight, bias, trace, rtol):
    model, xs = Mixed(weight, bias), draw(STEPS, 3, IN).astype(x)
    learner = braintrace.compile(model, "d_rtrl", xs[0], batch_size=3, trace_dtype=trace)
    model.reset_state(3)
    _, expected = bptt(model, (xs,), loss)
    got = trained(learner, xs, 3, 2)
    assert [g.dtype for g in got.values()] == [s.value.dtype for s in learner.param_states.values()]
    as_double = [jax.tree.map(lambda v: v.astype("float64"), dict(g)) for g in (got, expected)]
    for path in as_double[0]:
        np.testing.assert_allclose(as_double[0][path], as_double[1][path], rtol, rtol)
