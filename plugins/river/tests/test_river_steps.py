# SPDX-License-Identifier: Apache-2.0
"""Steps, predictions, features and classes, beside NumPy and beside the learner itself."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from river import evaluate, metrics, preprocessing
from river_networks import LEAK, Feedback, Leaky

import braintrace
from braintrace_river import GRUNetwork, RecurrentClassifier, RecurrentRegressor

RATE = 0.05
SGD = partial(optax.sgd, RATE)


def series(count, width=2, seed=0):
    rng = np.random.default_rng(seed)
    xs = rng.normal(size=(count, width))
    ys = np.convolve(xs.sum(1), [0.5, 0.3, 0.2])[:count]
    return [
        ({f"x{i}": float(v) for i, v in enumerate(x)}, float(y))
        for x, y in zip(xs, ys, strict=True)
    ]


def weights(model):
    """The values of a :class:`Leaky` estimator: drive, readout."""
    of = dict(zip(model._programs._paths, model._values, strict=True))
    return tuple(np.array(of[name, "weight"]["weight"]) for name in ("drive", "readout"))


def by_hand(drive, readout, data, every):
    """Prequential errors of real-time recurrent learning in NumPy, and the weights at the end.

    ``h' = leak h + x W`` depends on ``W[i, j]`` by ``e'[i, j] = leak e[i, j] + x[i]``, in unit j
    alone, so the gradient ``e r d`` is exact.
    """
    h, e = np.zeros(3), np.zeros_like(drive)
    of_drive, of_readout, outputs = np.zeros_like(drive), np.zeros_like(readout), []
    for step, (x, y) in enumerate(data, 1):
        x = np.array(list(x.values()))
        h, e = LEAK * h + x @ drive, LEAK * e + x[:, None]
        outputs.append(float(h @ readout[:, 0]))
        error = outputs[-1] - y
        of_drive += e * readout[:, 0] * error
        of_readout += h[:, None] * error
        if step % every == 0:
            drive, readout = drive - RATE * of_drive / every, readout - RATE * of_readout / every
            of_drive, of_readout = np.zeros_like(drive), np.zeros_like(readout)
    return np.array(outputs), drive, readout


@pytest.mark.parametrize("every", [1, 4])
def test_a_stream_is_real_time_recurrent_learning(every):
    data = series(41)
    model = RecurrentRegressor(
        Leaky, optimizer=SGD, update_every=every, features=("x0", "x1"), seed=3
    )
    start = model.clone()
    start.learn_one(data[0][0], data[0][1], w=0.0)
    expected, drive, readout = by_hand(*weights(start), data, every)
    found = []
    for x, y in data:
        twice = model.predict_one(x), model.predict_one(x)
        assert twice[0] == twice[1]
        found.append(twice[0])
        model.learn_one(x, y)
    assert found[0] == 0.0  # there is no network yet
    np.testing.assert_allclose(found[1:], expected[1:], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(weights(model)[0], drive, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(weights(model)[1], readout, rtol=1e-12, atol=1e-14)
    metric = evaluate.progressive_val_score(data, model.clone(), metrics.MSE())
    ys = np.array([y for _, y in data])
    assert metric.get() == pytest.approx(np.mean((np.array(found) - ys) ** 2), rel=1e-12)


@pytest.mark.parametrize("options", [("d_rtrl", {}), ("pp_prop", {"decay_or_rank": 0.9})])
def test_it_is_what_the_learner_computes_for_a_sequence(options):
    data, every, adam = series(12), 3, optax.adam(1e-2)
    algorithm, more = options
    gru = partial(GRUNetwork, units=4)
    model = RecurrentRegressor(gru, algorithm, more, partial(optax.adam, 1e-2), None, every, 2, 5)
    with brainstate.random.seed_context(5):
        network = gru(2, 1)
        learner = braintrace.compile(network, algorithm, jnp.zeros((1, 2)), batch_size=1, **more)
    xs = jnp.array([[list(x.values())] for x, _ in data])
    learner.etrace_update(
        xs, jnp.array([y for _, y in data]), optimizer=adam, update_every=every,
        step_fn=lambda x, y: 0.5 * ((learner(x)[0, 0] - y) ** 2),
    )  # fmt: skip
    for x, y in data:
        model.learn_one(x, y)
    expected = float(network(xs[0])[0, 0])
    assert model.predict_one(data[0][0]) == pytest.approx(expected, rel=1e-9)


def test_a_stream_that_is_pickled_goes_on_to_the_last_bit(tmp_path):
    """In another process, with dropout; so do copies, and copies learn on their own."""
    data = [(x, "ab"[y > 0]) for x, y in series(30)]
    model = RecurrentClassifier(
        partial(Leaky, keep=0.7), optimizer=partial(optax.adam, 1e-2), update_every=4, seed=0
    )
    for x, y in data[:10]:
        model.learn_one(x, y)
    saved = pickle.dumps(model)
    other = copy.deepcopy(model)
    (tmp_path / "saved").write_bytes(saved)
    (tmp_path / "data").write_bytes(pickle.dumps(data[10:]))
    program = (
        "import pickle, sys, jax, brainstate\n"
        "jax.config.update('jax_disable_most_optimizations', True)\n"
        "with brainstate.environ.context(precision=64):\n"
        "    model, data = (pickle.load(open(p, 'rb')) for p in sys.argv[1:3])\n"
        "    print([(model.predict_proba_one(x), model.learn_one(x, y))[0] for x, y in data])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "saved", tmp_path / "data"],
        cwd=Path(__file__).parent, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    went_on = [(model.predict_proba_one(x), model.learn_one(x, y))[0] for x, y in data[10:]]
    assert done.stdout.strip() == str(went_on)
    assert pickle.dumps(other) == pickle.dumps(pickle.loads(saved))
    assert [(other.predict_proba_one(x), other.learn_one(x, y))[0] for x, y in data[10:]] == went_on


def test_what_was_saved_with_another_precision_is_refused():
    model = RecurrentRegressor(Leaky, seed=0)
    model.learn_one({"x": 1.0}, 1.0)
    saved = pickle.loads(pickle.dumps(model))
    with brainstate.environ.context(precision=32), pytest.raises(ValueError, match="precision"):
        saved.predict_one({"x": 1.0})


def test_a_reset_forgets_the_past_and_keeps_the_weights():
    model, data = RecurrentRegressor(Leaky, seed=0), series(5)
    model.reset_state()  # nothing to do
    for x, y in data:
        model.learn_one(x, y)
    drive, readout = weights(model)
    model.reset_state()
    x = np.array([*data[0][0].values(), 0.0, 0.0])
    assert model.predict_one(data[0][0]) == pytest.approx(float((x @ drive @ readout)[0]))
    np.testing.assert_array_equal(weights(model)[0], drive)


def test_features_have_inputs_in_the_order_of_their_names_and_then_of_time():
    model = RecurrentRegressor(Leaky, seed=0)
    model.learn_one({"b": 1.0, "a": 2.0}, 0.0)
    model.learn_one({"a": 1.0, 7: 1.0}, 0.0)
    assert model._inputs == {"a": 0, "b": 1, 7: 2} and model._many_inputs == 4
    assert model.predict_one({"new": 5.0}) == model.predict_one({})
    model.learn_one({"d": 1}, 0.0)
    with pytest.warns(UserWarning, match="'e' is left out.*RecurrentRegressor.*features=8"):
        model.learn_one({"e": 1.0, "f": True}, 0.0)
    model.learn_one({"g": np.float32(1.0)}, 0.0)  # no second warning
    with pytest.raises(TypeError, match="feature 'a' must be a number, got 'red'"):
        model.predict_one({"a": "red"})
    named = RecurrentRegressor(Leaky, features=("a",), seed=0)
    named.learn_one({"b": 1.0, "a": 1.0}, 0.0)
    assert named._inputs == {"a": 0}


def test_hashed_features_fit_where_there_is_an_input_for_each():
    hashed = preprocessing.FeatureHasher(n_features=4, seed=0)  # a seed at random by default
    model = hashed | RecurrentRegressor(Leaky, features=4, seed=0)
    for k in range(20):  # no warning
        model.learn_one({f"f{k}": 1.0}, 0.0)
    assert {*model[-1]._inputs} == {0, 1, 2, 3}
    model = hashed.clone() | RecurrentRegressor(Leaky, seed=0)
    with pytest.warns(UserWarning, match="with as many as the n_features of a river"):
        for k in range(20):
            model.learn_one({f"f{k}": 1.0}, 0.0)


def test_classes_appear_over_time():
    model = RecurrentClassifier(Leaky, optimizer=SGD, seed=0)
    assert model.predict_proba_one({"x": 1.0}) == {} and model.predict_one({"x": 1.0}) is None
    known = RecurrentClassifier(Leaky, classes=("no", "yes"))
    assert known.predict_proba_one({}) == {"no": 0.5, "yes": 0.5}
    for label in "abcd":
        model.learn_one({"x": 1.0}, label)
    before = model.predict_proba_one({"x": 0.5})
    assert [*before] == [*"abcd"] and sum(before.values()) == pytest.approx(1)
    model.learn_one({"x": 1.0}, "e", w=0.0)  # a wider network; nothing is learned
    assert model._outputs() == 8
    model.reset_state()
    narrow = RecurrentClassifier(Leaky, optimizer=SGD, seed=0)
    for label in "abcd":
        narrow.learn_one({"x": 1.0}, label)
    narrow.reset_state()
    found, expected = (m.predict_proba_one({"x": 0.5}) for m in (model, narrow))
    rest = 1 - found.pop("e")
    assert found == pytest.approx({k: rest * v for k, v in expected.items()})
    for _ in range(300):
        model.learn_one({"x": 1.0}, "e")
    assert model.predict_one({"x": 1.0}) == "e"


def test_a_network_that_cannot_be_wider_says_so():
    model = RecurrentClassifier(Feedback, optimizer=SGD, seed=0)
    for label in "abcdabcd":
        model.learn_one({"x": 1.0}, label)
    before = model.predict_proba_one({"x": 1.0})
    with pytest.raises(ValueError, match="cannot be widened.*classes="):
        model.learn_one({"x": 1.0}, "e")
    assert model.predict_proba_one({"x": 1.0}) == before
    RecurrentClassifier(Feedback, classes=tuple("abcde"), seed=0).learn_one({"x": 1.0}, "e")


def huber(output, target):
    return optax.losses.huber_loss(output, target)


def test_losses_weights_and_optimizers():
    once, twice = (RecurrentRegressor(Leaky, optimizer=optax.sgd(r), seed=0) for r in (0.2, 0.1))
    once.learn_one({"x": 1.0}, 3.0)
    twice.learn_one({"x": 1.0}, 3.0, w=2.0)
    assert once.predict_one({"x": 1.0}) == pytest.approx(twice.predict_one({"x": 1.0}))
    steep = RecurrentRegressor(Leaky, optimizer=SGD, loss=huber, seed=0)
    flat = RecurrentRegressor(Leaky, optimizer=SGD, loss=huber, seed=0)
    steep.learn_one({"x": 1.0}, 1e3)
    flat.learn_one({"x": 1.0}, 1e6)
    assert steep.predict_one({"x": 1.0}) == flat.predict_one({"x": 1.0})
    clone = once.clone()
    assert clone.predict_one({"x": 1.0}) == 0.0
    clone.learn_one({"x": 1.0}, 3.0)
    assert clone.predict_one({"x": 1.0}) == once.predict_one({"x": 1.0})
    assert clone._programs is once._programs
    whole = once.clone(include_attributes=True)
    once.learn_one({"x": 1.0}, 3.0)
    whole.learn_one({"x": 1.0}, 3.0)
    assert whole.predict_one({"x": 1.0}) == once.predict_one({"x": 1.0})


def test_labels_that_come_late_are_learned_when_they_come():
    data = series(20)
    timed = [({**x, "t": float(i)}, y) for i, (x, y) in enumerate(data)]
    model = RecurrentRegressor(Leaky, optimizer=SGD, features=("x0", "x1"), seed=0)
    metric = evaluate.progressive_val_score(timed, model, metrics.MSE(), delay=3)
    assert np.isfinite(metric.get())
    same = RecurrentRegressor(Leaky, optimizer=SGD, features=("x0", "x1"), seed=0)
    for x, y in data:
        same.learn_one(x, y)
    assert same.predict_one({"x0": 1.0}) == model.predict_one({"x0": 1.0})


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"update_every": 0}, "update_every"),
        ({"features": 0}, "features"),
        ({"features": ()}, "features"),
        ({"features": True}, "features"),
        ({"features": "ab"}, "features must be a tuple of different names, got 'ab'"),
        ({"features": ["a", "a"]}, "different names"),
        ({"options": {"vmap": True}}, "one example"),
        ({"model": lambda inputs, outputs: GRUNetwork(inputs, 3)}, r"maps \[1, 2\] to \[1, 1\]"),
        ({"algorithm": "nothing"}, "nothing"),
    ],
)
def test_what_cannot_be_is_refused(options, text):
    with pytest.raises(ValueError, match=text):
        RecurrentRegressor(**options).learn_one({"x": 1.0}, 1.0)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"model": GRUNetwork(1, 1)}, "model must be a class or a function.*got GRUNetwork"),
        ({"optimizer": "adam"}, "optax transformation, or a function.*got 'adam'"),
    ],
)
def test_another_thing_in_its_place_is_refused_before_the_first_step(options, text):
    with pytest.raises(TypeError, match=text):
        RecurrentRegressor(**options)


def test_numbers_that_are_not_finite_change_nothing():
    """One of them would make every weight NaN, for the rest of the stream."""
    model = RecurrentRegressor(Leaky, features=["a", "b"], update_every=np.int64(1), seed=0)
    model.learn_one({"a": 1e200, "b": -1e200}, 1.0, w=0.0)  # large, and finite
    model.reset_state()
    model.learn_one({"a": 1.0, "c": np.nan}, 1.0)  # c has no input
    before = model.predict_one({"a": 1.0})
    for x in (np.nan, None, np.inf):
        with pytest.raises(ValueError, match="feature 'b' is .*0, or"):
            model.learn_one({"a": 1.0, "b": x}, 1.0)
        with pytest.raises(ValueError, match="feature 'b' is .*0, or"):
            model.predict_one({"b": x})
    with pytest.raises(TypeError, match="feature 'b' must be a number"):
        model.predict_one({"b": 10**400})
    for y, w in ((np.nan, 1.0), (np.inf, 0.0), (1.0, np.nan)):
        with pytest.raises(ValueError, match="target and weight must be finite"):
            model.learn_one({"a": 1.0}, y, w=w)
    assert model.predict_one({"a": 1.0}) == before and model._inputs == {"a": 0, "b": 1}
    with pytest.raises(ValueError, match="the class is nan"):
        RecurrentClassifier(Leaky).learn_one({"a": 1.0}, np.nan)


def test_each_class_has_a_place_of_its_own():
    for classes in ("no", ("no", "no")):
        with pytest.raises(ValueError, match="classes must be a tuple of different names"):
            RecurrentClassifier(Leaky, classes=classes)
    model = RecurrentClassifier(Leaky, classes=["no", "yes"])
    model.learn_one({"x": 1.0}, "may be")
    assert model._labels == {"no": 0, "yes": 1, "may be": 2}


def test_memory_does_not_grow():
    model, x = RecurrentRegressor(Leaky, seed=0), {"x": 1.0}
    model.learn_one(x, 1.0)
    model.predict_one(x)
    before = model._raw_memory_usage, len(jax.live_arrays())
    for _ in range(2000):
        model.predict_one(x)
        model.learn_one(x, 1.0)
    assert (model._raw_memory_usage, len(jax.live_arrays())) == before
