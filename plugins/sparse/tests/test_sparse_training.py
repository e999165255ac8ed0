# SPDX-License-Identifier: Apache-2.0
"""Online gradients of models around sparse products, against references that know no trace."""

from __future__ import annotations

import sys
from functools import lru_cache

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit
from jax.experimental.sparse import BCOO
from saiunit.sparse import COO, CSC, CSR

import braintrace
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle

IN, OUT, BATCH, STEPS = 4, 3, 2, 5
# unsorted, with an empty row (1), an empty column (2) and one position twice
ROW, COL = np.array([2, 0, 3, 2, 0]), np.array([1, 0, 0, 1, 1])


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def matrix_of(row=ROW, col=COL, shape=(IN, OUT)):
    return COO((jnp.zeros(len(row)), row, col), shape=shape)


def plain(w):
    return {"weight": w["a"]}


def with_bias(w):
    return {"weight": w["a"], "bias": w["bias"]}


def absolute(w):
    return {"weight": w["a"], "bias": w["bias"], "weight_fn": jnp.abs, "bias_fn": jnp.exp}


def masked_sum(w):
    mask = jnp.array([1.0, 0.0, 1.0, 1.0, 2.0])
    return {"weight": (w["a"] + w["b"] * w["a"]) * mask}


FORMS = {"bias": with_bias, "abs": absolute, "mask-sum": masked_sum}


class Leaky(brainstate.nn.Module):
    """Two leaky states behind a sparse product; ``shared``: its weight is used twice."""

    def __init__(self, matrix, form=with_bias, *, op=braintrace.sparse_matmul, shared=False):
        super().__init__()
        nnz, out = matrix.data.shape[0], matrix.shape[1]
        self.matrix, self.form, self.op, self.shared = matrix, form, op, shared
        used = {plain: "a", masked_sum: "ab"}.get(form, ("a", "bias"))
        shapes = {"a": (nnz,), "b": (nnz,), "bias": (out,)}
        self.w = {k: brainstate.ParamState(draw(*shapes[k], seed=i)) for i, k in enumerate(used)}

    def init_state(self, batch_size=None):
        shape = (() if batch_size is None else (batch_size,)) + self.matrix.shape[1:]
        self.v = brainstate.HiddenState(jnp.full(shape, 0.1))
        self.h = brainstate.HiddenState(jnp.full(shape, -0.1))

    def reset_state(self, batch_size=None):
        self.v.value = jnp.full_like(self.v.value, 0.1)
        self.h.value = jnp.full_like(self.h.value, -0.1)

    def _product(self, x):
        arguments = self.form({k: state.value for k, state in self.w.items()})
        weight = arguments.pop("weight")
        return self.op(x, weight, sparse_mat=self.matrix, **arguments)

    def update(self, x):
        y = self._product(x)
        if self.shared:
            y = y * jnp.sin(self._product(jnp.cos(x)))
        self.v.value = 0.6 * self.v.value + y
        self.h.value = 0.7 * self.h.value + jnp.tanh(self.v.value)
        return self.h.value


class Recurrent(Leaky):
    """A square sparse product of the old state and the input."""

    def update(self, x):
        self.v.value = 0.6 * self.v.value + self._product(x + self.h.value)
        self.h.value = 0.7 * self.h.value + jnp.tanh(self.v.value)
        return self.h.value


def loss(h, y):
    return jnp.sum((h - y) ** 2)


def sequences(matrix, lead=(), steps=STEPS):
    return draw(steps, *lead, matrix.shape[0]), draw(steps, *lead, matrix.shape[1], seed=5)


def compiled(model, x, batch=None, **options):
    """With the trace of the family's rules, also where a filter could take its place."""
    return braintrace.compile(
        model, "d_rtrl", x, batch_size=batch, **{"downstream": "step", **options}
    )


@lru_cache(maxsize=4)
def step_of(learner):
    """One function for all calls of a learner: equal blocks, as of ``"auto"``, compile once."""
    return lambda x, y: loss(learner(x), y)


def online(learner, xs, ys, **options):
    learner.reset_state(model_states=True)
    grads = learner.etrace_grad(xs, ys, step_fn=step_of(learner), reduction="sum", **options)
    learner.reset_state(model_states=True)
    return grads


def reference(model, xs, ys):
    return bptt(model, (xs, ys), loss)[1]


@pytest.mark.parametrize(
    ("form", "batch", "shared"),
    [("bias", None, False), ("abs", BATCH, False), ("mask-sum", BATCH, True)],
)
def test_a_leaky_cell_equals_backpropagation(form, batch, shared):
    model = Leaky(matrix_of(), FORMS[form], shared=shared)
    xs, ys = sequences(model.matrix, () if batch is None else (batch,))
    learner = compiled(model, xs[0], batch)
    assert set(learner.graph.coverage().values()) == {"trace"}
    expected = reference(model, xs, ys)
    for block_size in (1, 4, STEPS, "auto"):
        assert_tree_close(online(learner, xs, ys, block_size=block_size), expected, 1e-9)


class Shift(saiunit.sparse.SparseMatrix):
    """A class of one's own: each value stands along a diagonal, and in the first row twice."""

    def __init__(self, data, *, shape):
        super().__init__(data, shape=shape)
        self.data = data

    def with_data(self, data):
        return Shift(data, shape=self.shape)

    def todense(self):
        dense = sum(value * jnp.eye(*self.shape, k=-k) for k, value in enumerate(self.data))
        return dense.at[0].multiply(2)


def test_values_that_a_matrix_of_another_class_puts_in_several_places():
    model = Leaky(Shift(jnp.zeros(2), shape=(IN, OUT)))
    xs, ys = sequences(model.matrix, (BATCH,))
    learner = compiled(model, xs[0], BATCH)
    (relation,) = learner.graph.hidden_param_op_relations
    assert relation.primitive.name == "etp_sp_mm"
    for trace in learner.get_etrace_of(model.w["a"]):
        assert trace["weight"].shape == (BATCH, 2 * OUT, 2)
    expected = reference(model, xs, ys)
    assert_tree_close(online(learner, xs, ys, block_size=4), expected, 1e-9)


@pytest.mark.parametrize("scope", ["diagonal", "coupled"])
def test_a_recurrent_weight_equals_the_oracle(scope):
    row, col = np.array([2, 0, 1, 2, 0]), np.array([1, 0, 0, 1, 2])
    model = Recurrent(matrix_of(row, col, (OUT, OUT)))
    xs, ys = sequences(model.matrix, (BATCH,))
    learner = compiled(model, xs[0], BATCH, recurrence_scope=scope)
    expected = d_rtrl_oracle(model, (xs, ys), loss, recurrence_scope=scope).grads
    for block_size in (1, 4) if scope == "diagonal" else (4,):
        assert_tree_close(online(learner, xs, ys, block_size=block_size), expected, 1e-9)
    if scope == "diagonal":
        with pytest.raises(AssertionError, match="relative error"):
            assert_tree_close(expected, reference(model, xs, ys), 1e-3)


def test_vmap_is_batch_is_the_sum_over_examples():
    matrix = matrix_of()
    xs, ys = sequences(matrix, (BATCH,))
    batched = online(compiled(Leaky(matrix), xs[0], BATCH), xs, ys, block_size=4)
    mapped = Leaky(matrix)
    mapped.op = lambda x, w, **options: jax.vmap(
        lambda one: braintrace.sparse_matmul(one, w, **options)
    )(x)
    learner = compiled(mapped, xs[0], BATCH)
    assert [r.primitive.name for r in learner.graph.hidden_param_op_relations] == ["etp_sp_mm"]
    assert_tree_close(online(learner, xs, ys, block_size=4), batched, 1e-12)
    single = compiled(Leaky(matrix), xs[0, 0])
    parts = [online(single, xs[:, b], ys[:, b], block_size=4) for b in range(BATCH)]
    assert_tree_close(jax.tree.map(lambda *g: sum(g), *parts), batched, 1e-12)


def test_equals_the_dense_operation():
    """A position that is stored twice has the gradient of the dense weight there twice."""
    matrix = matrix_of()
    xs, ys = sequences(matrix, (BATCH,))

    def dense(x, weight, *, sparse_mat, bias):
        full = jnp.zeros(sparse_mat.shape).at[ROW, COL].add(weight)
        return braintrace.matmul(x, full, bias)

    pytest.importorskip("braintrace_dense")
    models = Leaky(matrix), Leaky(matrix, op=dense)
    found = [online(compiled(m, xs[0], BATCH), xs, ys, block_size=4) for m in models]
    assert_tree_close(found[0], found[1], 1e-12)


TINY = {
    "one-entry": ([0], [0], (1, 1)),
    "one-unit": ([0, 2, 2], [0, 0, 0], (IN, 1)),
}


@pytest.mark.parametrize("name", TINY)
def test_sizes_of_one(name):
    row, col, shape = TINY[name]
    matrix = matrix_of(np.array(row), np.array(col), shape)
    model = Leaky(matrix)
    xs, ys = sequences(matrix, (1,))
    grads = online(compiled(model, xs[0], 1), xs, ys, block_size=4)
    assert_tree_close(grads, reference(model, xs, ys), 1e-9)


def test_every_format_trains():
    """One weight through a matrix of each format; each product has a trace of its own."""
    dense = jnp.zeros((IN, OUT)).at[ROW, COL].set(1.0)
    kinds = [CSR, CSC, COO, BCOO]
    if events := sys.modules.get("brainevent"):
        kinds += [events.CSR, events.CSC]
    matrices = [kind.fromdense(dense) for kind in kinds]

    class Formats(Leaky):
        def _product(self, x):
            weight, factors = self.w["a"].value, draw(len(kinds))
            found = [braintrace.sparse_matmul(x, weight, sparse_mat=m) for m in matrices]
            return sum(f * y for f, y in zip(factors, found, strict=True))

    model = Formats(COO.fromdense(dense), plain)
    xs, ys = sequences(model.matrix)
    learner = compiled(model, xs[0])
    assert len(learner.graph.hidden_param_op_relations) == len(kinds)
    assert_tree_close(online(learner, xs, ys, block_size=4), reference(model, xs, ys), 1e-9)


def test_padding_is_not_trained():
    indices = jnp.asarray(np.stack([np.append(ROW, IN), np.append(COL, OUT)], axis=1))
    matrix = BCOO((jnp.zeros(len(indices)), indices), shape=(IN, OUT))
    model = Leaky(matrix)
    xs, ys = sequences(matrix, (BATCH,))
    learner = compiled(model, xs[0], BATCH)
    grads = online(learner, xs, ys, block_size=4)
    assert_tree_close(grads, reference(model, xs, ys), 1e-9)
    assert float(grads[("w", "a")][-1]) == 0
    assert float(jnp.abs(grads[("w", "a")][:-1]).min()) > 0


def test_the_trace_has_an_entry_per_stored_value():
    model = Leaky(matrix_of())
    learner = compiled(model, draw(BATCH, IN), BATCH)
    (trace,) = learner.get_etrace_of(("w", "a"))
    assert trace["weight"].shape == (BATCH, len(ROW), 2)
    assert trace["bias"].shape == (BATCH, OUT, 2)


def test_a_matrix_among_the_inputs_of_a_step_is_refused():
    class Takes(Leaky):
        def update(self, x):
            x, indices = x
            self.matrix = BCOO((jnp.zeros(len(ROW)), indices), shape=(IN, OUT))
            return super().update(x)

    model = Takes(matrix_of())
    indices = jnp.asarray(np.stack([ROW, COL], axis=1))
    with pytest.raises(
        braintrace.NotSupportedError, match="operand 3.*depends on inputs or states"
    ):
        compiled(model, (draw(IN), indices))


def test_a_layer_learns_in_low_precision():
    dtype = "bfloat16"
    dense = (draw(IN, OUT) * (draw(IN, OUT, seed=1) > 0)).astype(dtype)

    class Model(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            b_init = jnp.zeros(OUT, dtype)
            self.linear = braintrace.nn.SparseLinear(CSR.fromdense(dense), b_init=b_init)

        def init_state(self, batch_size=None):
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, OUT), dtype))

        def reset_state(self, batch_size=None):
            self.h.value = jnp.zeros_like(self.h.value)

        def update(self, x):
            self.h.value = 0.5 * self.h.value + jnp.tanh(self.linear(x))
            return self.h.value

    model = Model()
    xs, ys = (v.astype(dtype) for v in sequences(model.linear.spar_mat, (BATCH,)))
    learner = compiled(model, xs[0], BATCH)
    (grads,) = online(learner, xs, ys, block_size=4).values()
    (expected,) = reference(model, xs, ys).values()
    assert [grads[k].dtype for k in ("weight", "bias")] == [dtype] * 2
    wide = [jax.tree.map(lambda v: v.astype("float64"), g) for g in (grads, expected)]
    assert_tree_close(*wide, 0.05)


def test_quantities():
    """Weights in mS, inputs in mV: the gradient of the mantissas is that without units."""

    class InUnits(Leaky):
        def _product(self, x):
            weight, bias = self.w["a"].value * saiunit.mS, self.w["bias"].value * saiunit.uA
            y = braintrace.sparse_matmul(x * saiunit.mV, weight, sparse_mat=self.matrix, bias=bias)
            return y.to_decimal(saiunit.uA)

    model = InUnits(matrix_of())
    xs, ys = sequences(model.matrix)
    grads = online(compiled(model, xs[0]), xs, ys, block_size=4)
    assert_tree_close(grads, reference(model, xs, ys), 1e-9)
