# SPDX-License-Identifier: Apache-2.0
"""D-RTRL through ``lora_matmul``: exact where recurrence is position-wise, and low-rank inside."""

from __future__ import annotations

from functools import lru_cache

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle
from braintrace_lora import lora_matmul

IN, RANK, OUT, BATCH, STEPS, ALPHA = 3, 2, 4, 2, 6, -0.7


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


class Leaky(brainstate.nn.Module):
    """Two leaky states that drive each other position by position around a product of ``x``."""

    def __init__(self, product, batch=None, out=OUT, recurrent=None, **parameters):
        super().__init__()
        self.product, self.recurrent = product, recurrent
        self.shape = (out,) if batch is None else (batch, out)
        for name, value in parameters.items():
            setattr(self, name, brainstate.ParamState(value))

    def init_state(self, **_):
        self.v = brainstate.HiddenState(jnp.full(self.shape, 0.1))
        self.h = brainstate.HiddenState(jnp.full(self.shape, -0.2))

    def reset_state(self, **_):
        self.v.value, self.h.value = jnp.full(self.shape, 0.1), jnp.full(self.shape, -0.2)

    def update(self, x):
        v, h = self.v.value, self.h.value
        if self.recurrent is not None:
            x = x + jnp.tanh(h @ self.recurrent)
        y = self.product(self, x)
        self.v.value = 0.6 * v * jnp.cos(0.3 * y) + y + 0.2 * h
        self.h.value = 0.7 * h + jnp.sin(self.v.value)
        return self.h.value


def factors(n=IN, rank=RANK, out=OUT, **more):
    return {"B": draw(n, rank, seed=1), "A": draw(rank, out, seed=2), **more}


def with_bias():
    return factors(bias=draw(OUT, seed=3))


def product(**options):
    def run(self, x):
        given = {"bias": self.bias.value} if hasattr(self, "bias") else {}
        return lora_matmul(x, self.B.value, self.A.value, **given, **options)

    return run


def of_sums(self, x):
    B = self.B.value + self.more.value
    A = self.scale.value * jnp.tanh(self.A.value)
    return lora_matmul(x, B, A, bias=self.more.value.sum(0), alpha=ALPHA)


def of_one_parameter(self, x):
    return lora_matmul(x, self.B.value, self.B.value.T, alpha=ALPHA)


def twice(self, x):
    y = lora_matmul(x, self.B.value, self.A.value, alpha=ALPHA)
    return jnp.tanh(y) * lora_matmul(jnp.cos(x), self.B.value, self.A.value)


def only_first(self, x):
    return lora_matmul(x, self.B.value, draw(RANK, OUT, seed=2), alpha=ALPHA)


def only_second(self, x):
    return lora_matmul(x, draw(IN, RANK, seed=1), self.A.value, alpha=ALPHA)


def masked(B):
    return B * (draw(IN, RANK, seed=5) > 0)


MODELS = {
    "plain": lambda: Leaky(product(alpha=ALPHA), **factors()),
    "batch_bias": lambda: Leaky(product(alpha=ALPHA), BATCH, **with_bias()),
    "processed": lambda: Leaky(
        product(b_fn=masked, a_fn=jnp.abs, bias_fn=jnp.exp), BATCH, **with_bias()
    ),
    "sums": lambda: Leaky(
        of_sums,
        BATCH,
        out=RANK,
        **factors(out=RANK, more=draw(IN, RANK, seed=4), scale=jnp.array(1.3)),
    ),
    "shared": lambda: Leaky(of_one_parameter, BATCH, out=IN, B=draw(IN, RANK, seed=1)),
    "twice": lambda: Leaky(twice, BATCH, **factors()),
    "only_first": lambda: Leaky(only_first, BATCH, B=draw(IN, RANK, seed=1)),
    "only_second": lambda: Leaky(only_second, A=draw(RANK, OUT, seed=2)),
    "ones": lambda: Leaky(product(alpha=ALPHA), 1, out=1, **factors(1, 1, 1)),
}


def loss(out, target):
    return jnp.sum((out - target) ** 2)


def task(model):
    n = model.B.value.shape[0] if hasattr(model, "B") else IN
    head, out = model.shape[:-1], model.shape[-1]
    return draw(STEPS, *head, n, seed=7), draw(STEPS, *head, out, seed=8)


def compiled(model, xs, **options):
    """With the traces of the family's rules, also where filters could take their place."""
    brainstate.nn.init_all_states(model)
    learner = braintrace.D_RTRL(model, **{"downstream": "step", **options})
    learner.compile_graph(xs[0])
    return learner


@lru_cache(maxsize=4)
def step_of(learner):
    """One function for all calls of a learner: equal blocks, as of ``"auto"``, compile once."""
    return lambda x, y: loss(learner(x), y)


def online(learner, xs, ys, **options):
    learner.reset_state(model_states=True)
    return learner.etrace_grad(xs, ys, step_fn=step_of(learner), reduction="sum", **options)


@pytest.mark.parametrize("name", MODELS)
def test_leaky_cell_equals_backpropagation(name):
    model = MODELS[name]()
    xs, ys = task(model)
    learner = compiled(model, xs)
    assert set(learner.graph.coverage().values()) == {"trace"}
    _, expected = bptt(model, (xs, ys), loss)
    for block_size in (1, 4, STEPS, "auto"):
        assert_tree_close(online(learner, xs, ys, block_size=block_size), expected, rtol=1e-9)


@pytest.mark.filterwarnings("ignore::braintrace.CompilationWarning")
def test_recurrent_cell_equals_the_oracle():
    model = Leaky(product(alpha=ALPHA), recurrent=draw(OUT, IN, seed=6), **with_bias())
    xs, ys = task(model)
    learner = compiled(model, xs)
    expected = d_rtrl_oracle(model, (xs, ys), loss).grads
    for block_size in (1, 4):
        assert_tree_close(online(learner, xs, ys, block_size=block_size), expected)


def test_calls_one_by_one_and_parts_of_a_sequence():
    """The trace goes on from call to call, whatever the calls are."""
    model = MODELS["batch_bias"]()
    xs, ys = task(model)
    learner = compiled(model, xs)
    whole = online(learner, xs, ys)
    first = online(learner, xs[:2], ys[:2])
    rest = learner.etrace_grad(
        xs[2:], ys[2:], step_fn=lambda x, y: loss(learner(x), y), reduction="sum"
    )
    assert_tree_close(jax.tree.map(jnp.add, first, rest), whole, rtol=1e-9)


# --- what the traces are ---------------------------------------------------------------------


def test_the_traces_are_those_of_the_product_and_of_the_second_factor():
    """On ``h' = 0.8 h + y`` they are sums of inputs, without ``alpha`` for the product."""

    class Integrator(Leaky):
        def init_state(self, **_):
            self.h = brainstate.HiddenState(jnp.zeros(self.shape))

        def update(self, x):
            self.h.value = 0.8 * self.h.value + self.product(self, x)
            return self.h.value

    model = Integrator(product(alpha=ALPHA), BATCH, **with_bias())
    xs, _ = task(model)
    learner = compiled(model, xs)
    learner.etrace_evolve(xs)
    (trace,) = learner.get_etrace_of(model.B)
    assert {key: leaf.shape for key, leaf in trace.items()} == {
        "lora_b": (BATCH, IN, OUT, 1),
        "lora_a": (BATCH, RANK, OUT, 1),
        "bias": (BATCH, OUT, 1),
    }
    kept = 0.8 ** jnp.arange(STEPS)[::-1]
    inputs = jnp.einsum("t,tbi->bi", kept, xs)
    narrow = ALPHA * inputs @ model.B.value
    for key, rows in (("lora_b", inputs), ("lora_a", narrow)):
        expected = jnp.broadcast_to(rows[..., None, None], trace[key].shape)
        np.testing.assert_allclose(trace[key], expected, 1e-12, 1e-12)
    np.testing.assert_allclose(trace["bias"], np.full((BATCH, OUT, 1), kept.sum()), 1e-12)


def computed_sizes(jaxpr):
    """Sizes of all arrays that are computed, sub-programs included; zeros are not computed."""
    for eqn in jaxpr.eqns:
        values = [v for p in eqn.params.values() for v in (p if isinstance(p, tuple) else (p,))]
        inner = [getattr(v, "jaxpr", v) for v in values if hasattr(v, "eqns")]
        for sub in inner:
            yield from computed_sizes(sub)
        if not inner and any(atom.aval.shape for atom in eqn.invars):
            yield from (var.aval.size for var in eqn.outvars)


@pytest.mark.parametrize(("carry_trace", "batch"), [(False, None), (False, BATCH), (True, BATCH)])
def test_inside_a_block_everything_is_low_rank(carry_trace, batch):
    """In and out are primes, so an array over both has a multiple of their product elements."""
    n, out = 7, 11
    model = Leaky(product(alpha=ALPHA), batch, out=out, **factors(n, RANK, out, bias=draw(out)))
    xs, ys = task(model)
    learner = compiled(model, xs)
    jaxpr, *_ = brainstate.transform.make_jaxpr(
        lambda: online(learner, xs, ys, carry_trace=carry_trace)
    )()
    wide = [size for size in computed_sizes(jaxpr.jaxpr) if size and size % (n * out) == 0]
    assert bool(wide) == carry_trace  # at the end of a block, the trace is made


def test_traces_in_another_dtype():
    model = MODELS["batch_bias"]()
    xs, ys = task(model)
    learner = compiled(model, xs, trace_dtype="float32")
    _, expected = bptt(model, (xs, ys), loss)
    assert_tree_close(online(learner, xs, ys, block_size=1), expected, rtol=1e-4)
    assert {leaf.dtype for t in learner.traces for leaf in t.value.values()} == {
        np.dtype("float32")
    }
