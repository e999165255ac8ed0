# SPDX-License-Identifier: Apache-2.0
"""Gradients of tables: exact within the rows that are kept, and honest beyond."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace.testing import assert_tree_close, bptt
from braintrace_embedding import embedding
from braintrace_embedding.nn import Embedding

COUNT, SIZE, BATCH, STEPS = 7, 3, 2, 9


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def tokens(*shape, seed=0, count=COUNT):
    return jnp.asarray(np.random.default_rng([seed, *shape]).integers(0, count, size=shape))


class Leaky(brainstate.nn.Module):
    """Two leaky states that drive each other position by position, behind a table."""

    def __init__(self, *head, **options):
        super().__init__()
        self.shape, self.options = (*head, SIZE), options
        self.table = brainstate.ParamState(draw(COUNT, SIZE, seed=1))

    def init_state(self, **_):
        self.v = brainstate.HiddenState(jnp.full(self.shape, 0.1))
        self.h = brainstate.HiddenState(jnp.full(self.shape, -0.2))

    def reset_state(self, **_):
        self.v.value, self.h.value = jnp.full(self.shape, 0.1), jnp.full(self.shape, -0.2)

    def read(self, x):
        return embedding(x, self.table.value, **self.options)

    def update(self, x):
        v, h, y = self.v.value, self.h.value, self.read(x)
        self.v.value = 0.6 * v * jnp.cos(0.3 * y) + y + 0.2 * h
        self.h.value = 0.7 * h + jnp.sin(self.v.value)
        return self.h.value


class Delayed(Leaky):
    """The loss sees what was six steps ago, in a buffer by roll."""

    def init_state(self, **_):
        super().init_state()
        self.line = brainstate.HiddenState(jnp.zeros((6, *self.shape)))

    def reset_state(self, **_):
        super().reset_state()
        self.line.value = jnp.zeros((6, *self.shape))

    def update(self, x):
        h = super().update(x)
        self.line.value = jnp.roll(self.line.value, 1, 0).at[0].set(h)
        return self.line.value[-1]


class Words(Leaky):
    """Several words of a step, added up."""

    def read(self, x):
        return super().read(x).sum(-2)


class Many(Leaky):
    """So many words that they stay a loop."""

    def read(self, x):
        def add(y, word):
            return y + 0.1 * Leaky.read(self, word), None

        return jax.lax.scan(add, jnp.zeros(self.shape), x.T)[0]


class Spoken(Delayed):
    read = Many.read


class Twice(Leaky):
    """A table that is read in two places, through a function."""

    def read(self, x):
        return super().read(x) * super().read((x + 1) % COUNT)


class Layered(Leaky):
    def __init__(self, *head, **options):
        super().__init__(*head)
        self.table = Embedding(COUNT, SIZE, draw(COUNT, SIZE, seed=1), **options)

    def read(self, x):
        return self.table(x)


MODELS = {
    "batch": (lambda: Leaky(BATCH), (BATCH,)),
    "one_example": (lambda: Leaky(), ()),
    "processed": (lambda: Leaky(BATCH, weight_fn=jnp.tanh), (BATCH,)),
    "positions": (lambda: Leaky(BATCH, 4), (BATCH, 4)),
    "delayed": (lambda: Delayed(BATCH), (BATCH,)),
    "words": (lambda: Words(BATCH), (BATCH, 4)),
    "many": (lambda: Many(BATCH), (BATCH, 40)),
    "delayed_many": (lambda: Spoken(BATCH), (BATCH, 40)),
    "twice": (lambda: Twice(BATCH), (BATCH,)),
    "layer": (lambda: Layered(BATCH, padding_idx=2, max_norm=1.0), (BATCH,)),
}


def loss(h, target):
    return jnp.sum((h - target) ** 2)


def gradient(learner, data, **options):
    learner.reset_state(model_states=True)
    return learner.etrace_grad(
        *data, step_fn=lambda x, y: loss(learner(x), y), reduction="sum", **options
    )


@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_those_of_backpropagation(name):
    make, shape = MODELS[name]
    model = make()
    data = tokens(STEPS, *shape), draw(STEPS, *model.shape, seed=4)
    learner = braintrace.compile(model, "d_rtrl", data[0][0])
    assert set(learner.graph.coverage().values()) == {"trace"}
    exact = bptt(model, data, loss)[1]
    for block in (1, 4, STEPS, "auto"):
        assert_tree_close(gradient(learner, data, block_size=block), exact, 1e-9)


def test_two_calls_and_a_mask_and_other_rules():
    model = Leaky(BATCH)
    data = tokens(STEPS, BATCH), draw(STEPS, *model.shape, seed=4)
    for rule in ("d_rtrl", "ostl_feedforward"):
        learner = braintrace.compile(model, rule, data[0][0])
        whole = gradient(learner, data)
        learner.reset_state(model_states=True)
        parts = [
            learner.etrace_grad(
                *(v[cut] for v in data),
                step_fn=lambda x, y: loss(learner(x), y),  # noqa: B023
                reduction="sum",
            )
            for cut in (slice(0, 4), slice(4, None))
        ]
        assert_tree_close(jax.tree.map(jnp.add, *parts), whole, 1e-9)


product = braintrace.register_primitive("embedding_test_product", jnp.matmul, batched=True)


class OneHot(Leaky):
    def read(self, x):
        return product.bind(jax.nn.one_hot(x, COUNT, dtype=float), self.table.value)


def test_filtered_traces_are_those_of_a_product():
    published = {"kappa_filter_decay": 0.5, "downstream": "step"}
    data = tokens(STEPS, BATCH), draw(STEPS, BATCH, SIZE, seed=4)
    reference = braintrace.compile(OneHot(BATCH), "eprop", data[0][0], **published)
    learner = braintrace.compile(Leaky(BATCH), "eprop", data[0][0], **published)
    for block in (1, 4, STEPS):
        expected = gradient(reference, data, block_size=block)
        assert_tree_close(gradient(learner, data, block_size=block), expected, 1e-9)


class Emitted(Leaky):
    """The first state is not read by the next step, so that it has no trace of its own."""

    def update(self, x):
        y = self.read(x)
        self.v.value = 0.8 * jnp.tanh(self.v.value) + y
        self.h.value = jnp.sin(self.v.value) * jnp.cos(y)
        return self.h.value


class EmittedOfOneHot(Emitted):
    read = OneHot.read


def test_the_trace_of_states_that_have_none_of_their_own():
    data, found = tokens(STEPS, BATCH), {}
    for kind in (Emitted, EmittedOfOneHot):
        learner = braintrace.compile(kind(BATCH), "d_rtrl", data[0])
        for x in data:
            learner(x)
        (found[kind],) = learner.get_etrace_of(("table",))
    rows, weight = (np.asarray(found[Emitted][key]) for key in ("rows", "weight"))
    table = np.zeros((BATCH, COUNT + 1, SIZE, 2))
    for b in range(BATCH):
        np.add.at(table[b], rows[b, :, 0], weight[b])
    weight = np.einsum("bjmjs->bmjs", found[EmittedOfOneHot]["weight"])  # zero where not its output
    np.testing.assert_allclose(table[:, 1:], weight, atol=1e-12)


def test_a_trace_has_the_size_of_the_rows_and_not_of_the_table():
    for count in (300, 65_000):
        model = Leaky(BATCH, rows=16)
        model.table.value = jnp.zeros((count, SIZE))
        learner = braintrace.compile(model, "d_rtrl", tokens(BATCH))
        sizes = [leaf.size for leaf in jax.tree.leaves(learner.read_traces())]
        assert max(sizes) == 2 * BATCH * 16 * SIZE


@pytest.mark.parametrize("block", [1, 3, "auto"])
def test_rows_without_room_are_an_error_or_forgotten(block):
    data = jnp.array([[0], [1], [2], [1], [2]]), jnp.zeros((5, 1, SIZE))
    model = Leaky(1, rows=2)
    learner = braintrace.compile(model, "d_rtrl", data[0][0])
    found = gradient(learner, data, block_size=block)["table",]
    after = gradient_after(learner, data)
    assert jnp.isnan(after).any() and (jnp.isnan(found).any() or block == "auto")
    says = r"the trace of table \(with rows=2, overflow='error'\), "
    with pytest.raises(FloatingPointError, match=says):
        gradient(learner, data, block_size=1, check=True)
    model.options["overflow"] = "forget"
    learner = braintrace.compile(model, "d_rtrl", data[0][0])
    gradient(learner, data, block_size=block)
    (trace,) = learner.get_etrace_of(("table",))
    assert trace["rows"][0, :, 0].tolist() == [3, 2] and trace["lost"].tolist() == [[1, 1]]
    kept = gradient_after(learner, data)
    assert jnp.isfinite(kept).all() and not kept[0].any() and kept[1:3].all()


def gradient_after(learner, data):
    """The gradient of one more step."""
    step = learner.etrace_grad(
        data[0][-1:], data[1][-1:], step_fn=lambda x, y: loss(learner(x), y), block_size=1
    )
    return step["table",]


def test_pp_prop_says_what_it_can_do():
    model = Leaky(BATCH)
    with pytest.raises(braintrace.NotSupportedError, match="etp_embedding_batched"):
        braintrace.compile(model, "pp_prop", tokens(BATCH), decay_or_rank=0.9)
    learner = braintrace.compile(model, "pp_prop", tokens(BATCH), decay_or_rank=(0.0, 0.9))
    data = tokens(STEPS, BATCH), draw(STEPS, *model.shape)
    assert jnp.isfinite(gradient(learner, data)["table",]).all()


def test_a_padding_token_is_not_trained_by_whatever_index_it_is_read():
    layer = Embedding(COUNT, SIZE, padding_idx=COUNT - 1, key=0)
    read = jnp.array([0, -1, COUNT - 1, COUNT + 3, 2])
    gradient = brainstate.transform.grad(lambda: layer(read).sum(), layer.weight)()
    assert [float(row.sum()) for row in gradient] == [SIZE, 0, SIZE, 0, 0, 0, 0]
    small = jnp.array([0, 255], jnp.uint8)
    assert layer(small).shape == (2, SIZE)


class Reading(Leaky):
    """A table that is a layer."""

    def __init__(self, **options):
        super().__init__(BATCH)
        del self.table
        self.layer = Embedding(COUNT, SIZE, key=0, **options)

    def read(self, x):
        return self.layer(x)


def test_a_file_of_another_table_is_refused_by_the_name_of_the_option(tmp_path):
    made = {"rows": 4, "overflow": "error", "padding_idx": 0}

    def learner(**options):
        return braintrace.compile(Reading(**{**made, **options}), "d_rtrl", tokens(BATCH))

    learner().save(tmp_path / "file")
    learner().restore(tmp_path / "file")
    for option, there, here in (
        ("rows", "rows=4,", "rows=3,"),
        ("overflow", "overflow='error'", "overflow='forget'"),
        ("padding_idx", "padding_idx: 0 in", "1 here"),
    ):
        other = learner(**{option: {"rows": 3, "overflow": "forget", "padding_idx": 1}[option]})
        with pytest.raises(ValueError, match=f"(?s){there}.*{here}"):
            other.restore(tmp_path / "file")
