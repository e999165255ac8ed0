# SPDX-License-Identifier: Apache-2.0
"""Cells against ``brainstate.nn`` with the same parameters, or against their equations in numpy."""

from __future__ import annotations

import inspect
from functools import partial

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

from braintrace_dense import nn

IN, OUT, BATCH, STEPS = 4, 3, 5, 4
#: For each linear map of brainstate's cell, ours in the order of its columns.
COLUMNS = {
    "ValinaRNNCell": {"W": ("W",)},
    "GRUCell": {"Wrz": ("Wr", "Wz"), "Wh": ("Wh",)},
    "MGUCell": {"Wf": ("Wf",), "Wh": ("Wh",)},
    "LSTMCell": {"W": ("Wi", "Wg", "Wf", "Wo")},
    "URLSTMCell": {"W": ("Wf", "Wr", "Wu", "Wo")},
}
#: Shapes of the weights of all cells, by name of the map.
JOINED, INPUT = (IN + OUT, OUT), (IN, OUT)
WEIGHTS = {
    **{n: dict.fromkeys(sum(maps.values(), ()), JOINED) for n, maps in COLUMNS.items()},
    "MinimalRNNCell": {"phi": INPUT, "W_u": (2 * OUT, OUT)},
    "MiniGRU": {"W_x": INPUT, "W_z": JOINED},
    "MiniLSTM": {"W_x": INPUT, "W_f": JOINED, "W_i": JOINED},
    "CFNCell": {"Wf": JOINED, "Wi": JOINED, "Wh": INPUT},
}
ACTIVATED = ("ValinaRNNCell", "GRUCell", "MGUCell", "LSTMCell", "URLSTMCell", "CFNCell")
every_cell = pytest.mark.parametrize("name", WEIGHTS)


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def options_of(name, **options):
    return {k: v for k, v in options.items() if not (name == "URLSTMCell" and k == "b_init")}


random_bias = brainstate.nn.init.Normal(scale=1.0)


def make(name, batch=None, **options):
    """A cell with random parameters and states."""
    cell = getattr(nn, name)(IN, OUT, key=1, **options_of(name, b_init=random_bias) | options)
    set_states(cell, batch)
    return cell


def set_states(cell, batch):
    brainstate.nn.init_all_states(cell, batch_size=batch)
    for i, state in enumerate(cell.states(brainstate.HiddenState).values()):
        state.value = draw(*state.value.shape, seed=i)


def twin(ours, name, batch, **options):
    """brainstate's cell with the parameters of ours."""
    theirs = getattr(brainstate.nn, name)(IN, OUT, **options)
    for whole, parts in COLUMNS[name].items():
        values = [getattr(ours, part).weight.value for part in parts]
        getattr(theirs, whole).weight.value = {
            key: jnp.concatenate([v[key] for v in values], axis=-1) for key in values[0]
        }
    if name == "URLSTMCell":
        theirs.bias.value = ours.bias.value
    set_states(theirs, batch)
    return theirs


def assert_same_steps(ours, theirs, lead):
    for t in range(STEPS):
        x = draw(*lead, IN, seed=t)
        np.testing.assert_allclose(ours(x), theirs(x), 1e-12, 1e-12)
    for path, state in ours.states(brainstate.HiddenState).items():
        expected = theirs.states(brainstate.HiddenState)[path].value
        np.testing.assert_allclose(state.value, expected, 1e-12, 1e-12)
        assert float(jnp.abs(expected).max()) > 1e-2


# --- values --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize(
    ("batch", "options"),
    [(None, {}), (BATCH, {}), (1, {"b_init": None, "activation": jax.nn.softplus})],
)
def test_cell_equals_brainstate(name, batch, options):
    options = options_of(name, **options)
    ours = make(name, batch, **options)
    theirs = twin(ours, name, batch, **options)
    assert_same_steps(ours, theirs, () if batch is None else (batch,))


def sigmoid(v):
    return 1 / (1 + np.exp(-v))


def minimal_rnn(p, x, h):
    z = p["phi"](x)
    u = sigmoid(p["W_u"](np.concatenate([z, h], -1)))
    return u * h + (1 - u) * z


def mini_gru(p, x, h, recurrent=True):
    z = sigmoid(p["W_z"](np.concatenate([x, h], -1) if recurrent else x))
    return (1 - z) * h + z * p["W_x"](x)


def mini_lstm(p, x, h, recurrent=True):
    seen = np.concatenate([x, h], -1) if recurrent else x
    return sigmoid(p["W_f"](seen)) * h + sigmoid(p["W_i"](seen)) * p["W_x"](x)


def cfn(p, x, h):
    xh = np.concatenate([x, h], -1)
    return sigmoid(p["Wf"](xh)) * np.tanh(h) + sigmoid(p["Wi"](xh)) * np.tanh(p["Wh"](x))


EQUATIONS = {
    "MinimalRNNCell": minimal_rnn,
    "MiniGRU": mini_gru,
    "MiniLSTM": mini_lstm,
    "CFNCell": cfn,
}


def affine(layer):
    value = jax.tree.map(np.asarray, layer.weight.value)
    return lambda v: v @ value["weight"] + value.get("bias", 0)


def assert_follows(equation, cell, name):
    maps = {part: affine(getattr(cell, part)) for part in WEIGHTS[name]}
    h = np.asarray(cell.h.value)
    for t in range(STEPS):
        x = np.asarray(draw(*h.shape[:-1], IN, seed=t))
        h = equation(maps, x, h)
        np.testing.assert_allclose(cell(x), h, 1e-12)


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("batch", [None, BATCH])
def test_cell_equals_its_equation(name, batch):
    assert_follows(EQUATIONS[name], make(name, batch), name)


@pytest.mark.parametrize("name", ["MiniGRU", "MiniLSTM"])
@pytest.mark.parametrize("batch", [None, BATCH])
def test_gates_that_do_not_see_the_hidden_state(name, batch):
    cell = make(name, batch, recurrent_gates=False)
    assert_follows(partial(EQUATIONS[name], recurrent=False), cell, name)
    assert {s.value["weight"].shape for s in cell.states(brainstate.ParamState).values()} == {INPUT}


def test_minimal_rnn_with_a_map_of_its_own():
    cell = make("MinimalRNNCell", BATCH, phi=lambda x: jnp.tanh(x[..., :OUT]))
    assert set(cell.states(brainstate.ParamState)) == {("W_u", "weight")}
    h = np.asarray(cell.h.value)
    maps = {"phi": lambda x: np.tanh(x[..., :OUT]), "W_u": affine(cell.W_u)}
    expected = minimal_rnn(maps, np.asarray(draw(BATCH, IN)), h)
    np.testing.assert_allclose(cell(draw(BATCH, IN)), expected, 1e-12)
    with pytest.raises(TypeError, match="phi must be a function or a module, got 3"):
        nn.MinimalRNNCell(IN, OUT, phi=3)
    cell = make("MinimalRNNCell", phi=lambda x: x)
    with pytest.raises(ValueError, match=r"phi makes the shape \(4,\), expected \(3,\)"):
        cell(draw(IN))


# --- linear recurrent unit -----------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (BATCH,)])
def test_linear_recurrent_unit_is_a_complex_recurrence(lead):
    cell = nn.LRUCell(IN, OUT, key=0)
    set_states(cell, *lead or (None,))
    maps = {n: affine(getattr(cell, n)) for n in ("B_re", "B_im", "C_re", "C_im")}
    nu, theta, gamma = (
        np.exp(getattr(cell, n).value) for n in ("nu_log", "theta_log", "gamma_log")
    )
    h = np.asarray(cell.h_re.value) + 1j * np.asarray(cell.h_im.value)
    for t in range(STEPS):
        x = np.asarray(draw(*lead, IN, seed=t))
        h = np.exp(-nu + 1j * theta) * h + gamma * (maps["B_re"](x) + 1j * maps["B_im"](x))
        y = maps["C_re"](h.real) - maps["C_im"](h.imag) + cell.D.value * x
        np.testing.assert_allclose(cell(x), y, 1e-12)
        np.testing.assert_allclose(cell.h_im.value, h.imag, 1e-12)
    cell.reset_state()
    assert not cell.h_re.value.any()
    assert cell.h_re.value.shape == (OUT,)


def test_linear_recurrent_unit_starts_in_its_ring():
    cell = nn.LRUCell(2, 1000, r_min=0.5, r_max=0.9, max_phase=1.0, key=0)
    radius, phase = np.exp(-np.exp(cell.nu_log.value)), np.exp(cell.theta_log.value)
    assert 0.5 <= radius.min() < 0.52
    assert 0.88 < radius.max() <= 0.9
    assert abs((radius**2).mean() - (0.25 + 0.81) / 2) < 0.02  # uniform in the area
    assert (phase > 0).all() and (phase <= 1).all() and abs(phase.mean() - 0.5) < 0.05
    np.testing.assert_allclose(np.exp(2 * cell.gamma_log.value), 1 - radius**2, 1e-9)
    scale = {"B_re": 2**-0.5, "B_im": 2**-0.5, "C_re": 1000**-0.5, "C_im": 1000**-0.5}
    for part, expected in scale.items():
        assert abs(getattr(cell, part).weight.value["weight"].std() / expected - 1) < 0.05
    assert (cell.in_size, cell.out_size, cell.d_model, cell.d_hidden) == ((2,), (2,), 2, 1000)


def test_linear_recurrent_unit_errors():
    for options in ({"r_min": 0.9, "r_max": 0.5}, {"r_max": 1.5}, {"r_min": 1.0}):
        with pytest.raises(ValueError, match="r_min and r_max must satisfy 0 <= r_min <= r_max"):
            nn.LRUCell(IN, OUT, **options)
    with pytest.raises(ValueError, match="r_max must be positive, got 0"):
        nn.LRUCell(IN, OUT, r_max=0)
    with pytest.raises(ValueError, match="max_phase must be positive, got 0"):
        nn.LRUCell(IN, OUT, max_phase=0)
    with pytest.raises(ValueError, match=r"d_model must be one positive integer, got \(2, 3\)"):
        nn.LRUCell((2, 3), OUT)
    cell = nn.LRUCell(IN, OUT)
    with pytest.raises(RuntimeError, match="has no state 'h_re' yet: call init_state"):
        cell(jnp.ones(IN))
    cell.init_state(2)
    with pytest.raises(ValueError, match=r"x has shape \(4,\), expected \(2, 4\)"):
        cell(jnp.ones(IN))


# --- what all cells have in common ----------------------------------------------------------------


@every_cell
def test_parameters(name):
    cell = make(name)
    params = {k: s.value for k, s in cell.states(brainstate.ParamState).items()}
    if name == "URLSTMCell":
        assert params.pop(("bias",)).shape == (OUT,)
    assert {path[0]: value["weight"].shape for path, value in params.items()} == WEIGHTS[name]
    for path, value in params.items():
        assert path[1:] == ("weight",)
        assert set(value) == {"weight"} | ({"bias"} if name != "URLSTMCell" else set())
    bias = {} if name == "URLSTMCell" else {"b_init": None}
    for state in getattr(nn, name)(IN, OUT, **bias).states(brainstate.ParamState).values():
        assert not isinstance(state.value, dict) or set(state.value) == {"weight"}


@every_cell
def test_constructor(name):
    cls = getattr(nn, name)
    cell = cls(num_in=IN, num_out=OUT, name="cell", key=2)
    assert isinstance(cell, brainstate.nn.RNNCell)
    assert (cell.in_size, cell.out_size, cell.name) == ((IN,), (OUT,), "cell")
    assert (cell.num_in, cell.num_out) == (IN, OUT)
    assert cls(in_size=(IN,), out_size=(OUT,)).in_size == (IN,)
    with pytest.raises(TypeError, match=f"{name}: give either in_size or num_in, not both"):
        cls(in_size=IN, num_in=IN, out_size=OUT)
    parameters = list(inspect.signature(cls.__init__).parameters)
    assert parameters[-1] == "key"
    if name in COLUMNS:
        theirs = list(inspect.signature(getattr(brainstate.nn, name).__init__).parameters)
        assert parameters[3:-1] == theirs[3:]


@pytest.mark.parametrize("name", [*WEIGHTS, "LRUCell"])
def test_key_makes_parameters_reproducible(name):
    def leaves(key):
        states = getattr(nn, name)(IN, OUT, key=key).states(brainstate.ParamState)
        return jax.tree.leaves({path: state.value for path, state in states.items()})

    first, again = leaves(7), leaves(jax.random.key(7))
    assert all((a == b).all() for a, b in zip(first, leaves(7), strict=True))
    assert all(jnp.isfinite(a).all() for a in again)
    assert any((a != b).any() for a, b in zip(first, leaves(8), strict=True))


@pytest.mark.parametrize("name", [*WEIGHTS, "LRUCell"])
def test_sizes_of_one_under_strict_promotion(name, strict_jax):
    # The default of most cells, brainstate's orthogonal matrices, promotes ranks itself.
    weight = {} if name == "LRUCell" else {"w_init": lambda shape: draw(*shape)}
    cell = getattr(nn, name)(1, 1, **weight)
    cell.init_state(1)
    y = cell(draw(1, 1))
    assert y.shape == (1, 1)
    assert jnp.isfinite(y).all()


@every_cell
def test_state_shapes_reset_and_values_as_initialisers(name):
    weights = set(WEIGHTS[name].values())
    weight = {"w_init": draw(*weights.pop())} if len(weights) == 1 else {}
    bias = options_of(name, b_init=0.25)
    cell = getattr(nn, name)(IN, OUT, state_init=draw(OUT), **weight, **bias)
    for batch, shape in ((None, (OUT,)), (BATCH, (BATCH, OUT))):
        cell.init_state(batch_size=batch)
        cell(draw(*shape[:-1], IN))
        cell.reset_state(batch_size=batch)
        for hidden in cell.hidden_names:
            state = getattr(cell, hidden)
            assert isinstance(state, brainstate.HiddenState)
            np.testing.assert_array_equal(state.value, np.broadcast_to(draw(OUT), shape))
    cell.reset_state()
    assert cell.h.value.shape == (OUT,)
    for part in WEIGHTS[name]:
        value = getattr(cell, part).weight.value
        if weight:
            np.testing.assert_array_equal(value["weight"], weight["w_init"])
        if bias:
            np.testing.assert_array_equal(value["bias"], np.full(OUT, 0.25))
            assert value["bias"].dtype == np.float64


@every_cell
def test_errors(name):
    cls = getattr(nn, name)
    cell = cls(IN, OUT)
    with pytest.raises(RuntimeError, match=r"has no state '[ch]' yet: call init_state"):
        cell(jnp.ones(IN))
    with pytest.raises(RuntimeError, match=r"has no state '[ch]' yet: call init_state"):
        cell.reset_state()
    cell.init_state(2)
    old = [getattr(cell, hidden).value for hidden in cell.hidden_names]
    with pytest.raises(ValueError, match=r"x has shape \(3, 4\), expected \(2, 4\).*batch"):
        cell(jnp.ones((3, IN)))
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\), expected \(2, 4\)"):
        cell(jnp.ones((2, 5)))
    with pytest.raises(TypeError, match=r"x has the unit mV; .*divide it by a unit"):
        cell(jnp.ones((2, IN)) * saiunit.mV)
    assert all(getattr(cell, n).value is v for n, v in zip(cell.hidden_names, old, strict=True))
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        cell.init_state(batch_size=0)
    with pytest.raises(ValueError, match="in_size must be a positive integer"):
        cls(0, OUT)
    with pytest.raises(ValueError, match=r"out_size must be a positive integer .*got 2.5"):
        cls(IN, 2.5)
    with pytest.raises(ValueError, match=r"w_init gives the shape \(2, 2\), expected"):
        cls(IN, OUT, w_init=lambda shape: jnp.ones((2, 2)))
    with pytest.raises(TypeError, match=f"{name}: w_init gives the unit mS, expected none"):
        cls(IN, OUT, w_init=1.0 * saiunit.mS)
    with pytest.raises(TypeError, match=f"{name}: state_init gives the unit mV, expected none"):
        cls(IN, OUT, state_init=1.0 * saiunit.mV).init_state()
    with pytest.raises(TypeError):
        cls(IN, OUT, key="seed")


@pytest.mark.parametrize("name", ACTIVATED)
def test_activations_are_checked(name):
    cls = getattr(nn, name)
    assert cls(IN, OUT, w_init=1.0, activation="relu").activation is brainstate.nn.relu
    with pytest.raises(ValueError, match=r"activation must be a function .*got 'no_such'"):
        cls(IN, OUT, activation="no_such")
    with pytest.raises(ValueError, match=r"activation must be a function .*got 3"):
        cls(IN, OUT, activation=3)


@every_cell
def test_the_key_is_a_keyword(name):
    parameters = inspect.signature(getattr(nn, name).__init__).parameters.values()
    *before, key = list(parameters)[1:]
    assert (key.name, key.kind) == ("key", inspect.Parameter.KEYWORD_ONLY)
    by_position = [p.default for p in before[2:] if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    given = (IN, OUT, *by_position, 3)
    with pytest.warns(DeprecationWarning, match=rf"write {name}\(\.\.\., key=\.\.\.\)"):
        old = getattr(nn, name)(*given)
    new = getattr(nn, name)(IN, OUT, key=3)
    weights = [
        jax.tree.leaves(
            [s.value for s in brainstate.graph.states(cell, brainstate.ParamState).values()]
        )
        for cell in (old, new)
    ]
    assert all(np.array_equal(a, b) for a, b in zip(*weights, strict=True))
