# SPDX-License-Identifier: Apache-2.0
"""Layers and cells against their ``brainstate.nn`` counterparts with the same parameters."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

from braintrace_dense.nn import GRUCell, Linear, LSTMCell, ValinaRNNCell

IN, OUT, BATCH, STEPS = 4, 3, 5, 6
CELLS = (ValinaRNNCell, GRUCell, LSTMCell)
#: For each linear map of brainstate's cell, ours in the order of its columns.
COLUMNS = {
    ValinaRNNCell: {"W": ("W",)},
    GRUCell: {"Wrz": ("Wr", "Wz"), "Wh": ("Wh",)},
    LSTMCell: {"W": ("Wi", "Wg", "Wf", "Wo")},
}


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


random_bias = brainstate.nn.init.Normal(scale=1.0)


def pair(cls, batch=None, **options):
    """A cell of ours and brainstate's, with the same parameters and the same random state."""
    options = {"b_init": random_bias} | options
    brainstate.random.seed(1)
    ours = cls(IN, OUT, **options)
    theirs = getattr(brainstate.nn, cls.__name__)(IN, OUT, **options)
    for name, parts in COLUMNS[cls].items():
        values = [getattr(ours, part).weight.value for part in parts]
        getattr(theirs, name).weight.value = {
            key: jnp.concatenate([v[key] for v in values], axis=-1) for key in values[0]
        }
    for cell in (ours, theirs):
        brainstate.nn.init_all_states(cell, batch_size=batch)
        for i, name in enumerate(ours.hidden_names):
            state = getattr(cell, name)
            state.value = draw(*state.value.shape, seed=i)
    return ours, theirs


# --- cells -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", CELLS)
@pytest.mark.parametrize("batch", [None, 1, BATCH])
@pytest.mark.parametrize("options", [{}, {"b_init": None}, {"activation": jax.nn.softplus}])
def test_cell_equals_brainstate(cls, batch, options):
    ours, theirs = pair(cls, batch, **options)
    largest = 0.0
    for t in range(STEPS):
        x = draw(*(() if batch is None else (batch,)), IN, seed=t)
        y, expected = ours(x), theirs(x)
        np.testing.assert_allclose(y, expected, 1e-12, 1e-12)
        for name in ours.hidden_names:
            got = getattr(ours, name).value
            np.testing.assert_allclose(got, getattr(theirs, name).value, 1e-12, 1e-12)
            largest = max(largest, float(jnp.abs(got).max()))
    assert largest > 1e-2


@pytest.mark.parametrize("cls", CELLS)
def test_cell_gradients_equal_brainstate(cls):
    ours, theirs = pair(cls, BATCH)
    xs = draw(STEPS, BATCH, IN)

    def bptt(cell):
        def loss():
            return jnp.sin(brainstate.transform.for_loop(cell, xs)).sum()

        return brainstate.transform.grad(loss, cell.states(brainstate.ParamState))()

    start = {name: getattr(ours, name).value for name in ours.hidden_names}
    got = bptt(ours)
    for name, value in start.items():
        getattr(ours, name).value = value
    expected = bptt(theirs)
    for name, parts in COLUMNS[cls].items():
        for key in ("weight", "bias"):
            joined = jnp.concatenate([got[part, "weight"][key] for part in parts], axis=-1)
            np.testing.assert_allclose(joined, expected[name, "weight"][key], 1e-12, 1e-12)
            assert float(jnp.abs(joined).max()) > 1e-3


@pytest.mark.parametrize("cls", CELLS)
@pytest.mark.parametrize("batch", [None, BATCH])
def test_cell_binds_one_primitive_per_gate(cls, batch):
    cell = cls(IN, OUT)
    cell.init_state(batch)
    x = jnp.ones((IN,) if batch is None else (batch, IN))
    jaxpr = brainstate.transform.make_jaxpr(cell)(x)[0]
    names = [eqn.primitive.name for eqn in jaxpr.eqns if eqn.primitive.name.startswith("etp_")]
    gates = sum(len(parts) for parts in COLUMNS[cls].values())
    assert names == ["etp_mv" if batch is None else "etp_mm"] * gates


@pytest.mark.parametrize("cls", CELLS)
def test_cell_runs_under_strict_promotion(cls, strict_jax):
    cell = cls(IN, OUT, w_init=lambda shape: draw(*shape))
    cell.init_state(BATCH)
    assert cell(draw(BATCH, IN)).shape == (BATCH, OUT)


@pytest.mark.parametrize("cls", CELLS)
def test_state_shapes_and_reset(cls):
    cell = cls(IN, OUT, state_init=brainstate.nn.init.Constant(0.5))
    for batch, shape in ((None, (OUT,)), (BATCH, (BATCH, OUT))):
        cell.init_state(batch_size=batch)
        cell(draw(*shape[:-1], IN))
        cell.reset_state(batch_size=batch)
        for name in cell.hidden_names:
            state = getattr(cell, name)
            assert isinstance(state, brainstate.HiddenState)
            np.testing.assert_array_equal(state.value, np.full(shape, 0.5))
    cell.reset_state()
    assert cell.h.value.shape == (OUT,)


@pytest.mark.parametrize("cls", CELLS)
def test_parameters_are_one_state_per_gate(cls):
    cell = cls(IN, OUT)
    gates = [part for parts in COLUMNS[cls].values() for part in parts]
    params = cell.states(brainstate.ParamState)
    assert set(params) == {(gate, "weight") for gate in gates}
    for state in params.values():
        assert {k: v.shape for k, v in state.value.items()} == {
            "weight": (IN + OUT, OUT),
            "bias": (OUT,),
        }


@pytest.mark.parametrize("cls", CELLS)
def test_constructor_matches_brainstate(cls):
    cell = cls(IN, OUT, name="cell")
    assert isinstance(cell, brainstate.nn.RNNCell)
    assert (cell.in_size, cell.out_size, cell.name) == ((IN,), (OUT,), "cell")
    assert (cell.num_in, cell.num_out) == (IN, OUT)
    assert cls(in_size=(IN,), out_size=(OUT,)).in_size == (IN,)
    assert cls(1, 1).out_size == (1,)


@pytest.mark.parametrize("cls", CELLS)
def test_values_as_initialisers(cls):
    weight = draw(IN + OUT, OUT)
    cell = cls(IN, OUT, w_init=weight, b_init=0.25, state_init=draw(OUT), activation="relu")
    cell.init_state(2)
    np.testing.assert_array_equal(cell.h.value, jnp.stack([draw(OUT)] * 2))
    for state in cell.states(brainstate.ParamState).values():
        np.testing.assert_array_equal(state.value["weight"], weight)
        np.testing.assert_array_equal(state.value["bias"], np.full(OUT, 0.25))
        assert state.value["bias"].dtype == np.float64


@pytest.mark.parametrize("cls", CELLS)
def test_cell_errors(cls):
    cell = cls(IN, OUT)
    with pytest.raises(RuntimeError, match=r"has no state '[ch]' yet: call init_state"):
        cell(jnp.ones(IN))
    with pytest.raises(RuntimeError, match=r"has no state '[ch]' yet: call init_state"):
        cell.reset_state()
    cell.init_state(2)
    old = [getattr(cell, name).value for name in cell.hidden_names]
    with pytest.raises(ValueError, match=r"x has shape \(3, 4\), expected \(2, 4\).*batch"):
        cell(jnp.ones((3, IN)))
    with pytest.raises(ValueError, match=r"x has shape \(2, 5\), expected \(2, 4\)"):
        cell(jnp.ones((2, 5)))
    with pytest.raises(ValueError, match=r"x has shape \(4,\), expected \(2, 4\)"):
        cell(jnp.ones(IN))
    with pytest.raises(TypeError, match=r"x has the unit mV; .*divide it by a unit"):
        cell(jnp.ones((2, IN)) * saiunit.mV)
    assert all(getattr(cell, n).value is v for n, v in zip(cell.hidden_names, old, strict=True))
    with pytest.raises(ValueError, match="batch_size must be a positive integer"):
        cell.init_state(batch_size=0)
    with pytest.raises(ValueError, match="in_size must be a positive integer"):
        cls(0, OUT)
    with pytest.raises(ValueError, match=r"out_size must be a positive integer .*got 2.5"):
        cls(IN, 2.5)
    with pytest.raises(ValueError, match=r"activation must be a function .*got 'no_such'"):
        cls(IN, OUT, activation="no_such")
    with pytest.raises(ValueError, match=r"activation must be a function .*got 3"):
        cls(IN, OUT, activation=3)
    with pytest.raises(ValueError, match=r"w_init gives the shape \(2, 2\), expected \(7, 3\)"):
        cls(IN, OUT, w_init=lambda shape: jnp.ones((2, 2)))


# --- Linear ----------------------------------------------------------------------------------


def linears(**options):
    ours = Linear(IN, OUT, **({"b_init": random_bias} | options))
    theirs = brainstate.nn.Linear(IN, OUT, **({"b_init": random_bias} | options))
    theirs.weight.value = ours.weight.value
    return ours, theirs


MASK = np.random.default_rng(3).random((IN, OUT)) > 0.5


@pytest.mark.parametrize("lead", [(), (BATCH,), (2, BATCH), (2, 1, BATCH), (0,), (2, 0)])
@pytest.mark.parametrize("options", [{}, {"b_init": None}, {"w_mask": MASK}])
def test_linear_equals_brainstate(lead, options):
    ours, theirs = linears(**options)
    x = draw(*lead, IN)
    y = ours(x)
    assert y.shape == (*lead, OUT)
    np.testing.assert_allclose(y, theirs(x), 1e-12, 1e-12)


def test_linear_is_a_drop_in():
    layer = Linear(IN, OUT)
    assert isinstance(layer, brainstate.nn.Linear)
    assert isinstance(layer.weight, brainstate.ParamState)
    assert {k: v.shape for k, v in layer.weight.value.items()} == {
        "weight": (IN, OUT),
        "bias": (OUT,),
    }
    assert set(Linear(IN, OUT, b_init=None).weight.value) == {"weight"}


def test_masked_weights_get_no_gradient():
    layer, _ = linears(w_mask=lambda shape: jnp.asarray(MASK))
    x = draw(BATCH, IN)
    grads = brainstate.transform.grad(lambda: (layer(x) ** 2).sum(), layer.weight)()
    assert (np.asarray(grads["weight"] != 0) == MASK).all()


def test_linear_folds_leading_axes_into_one_batch():
    layer = Linear((2, IN), (2, OUT), w_mask=MASK)
    jaxpr = brainstate.transform.make_jaxpr(layer)(jnp.ones((BATCH, 2, IN)))[0]
    (eqn,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name.startswith("etp_")]
    assert eqn.primitive.name == "etp_mm"
    assert eqn.invars[0].aval.shape == (2 * BATCH, IN)


def test_linear_with_units():
    layer = Linear(
        IN,
        OUT,
        w_init=brainstate.nn.init.KaimingNormal(unit=saiunit.mS),
        b_init=brainstate.nn.init.Constant(2.0 * saiunit.nA),
        w_mask=MASK,
    )
    x = draw(2, BATCH, IN)
    y = layer(x * saiunit.mV)
    weight = layer.weight.value["weight"].mantissa * MASK
    np.testing.assert_allclose(y.to_decimal(saiunit.uA), x @ weight + 2e-3, 1e-12)


def test_linear_custom_parameter_class():
    class Mine(brainstate.ParamState):
        pass

    assert isinstance(Linear(IN, OUT, param_type=Mine).weight, Mine)


def test_linear_is_reproducible():
    def weight():
        brainstate.random.seed(5)
        return Linear(IN, OUT).weight.value["weight"]

    np.testing.assert_array_equal(weight(), weight())


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        ((0, OUT), {}, "in_size must be a positive integer or a tuple of them, got 0"),
        ((IN, "3"), {}, "out_size must be a positive integer or a tuple of them, got '3'"),
        (((), OUT), {}, "in_size must be a positive integer"),
        (((2, IN), OUT), {}, "must agree in all but the last axis"),
        ((IN, OUT), {"w_init": None}, r"w_init gives None, expected a value of shape \(4, 3\)"),
        ((IN, OUT), {"w_init": np.ones((OUT, IN))}, r"w_init gives the shape \(3, 4\), expected"),
        ((IN, OUT), {"b_init": np.ones(2)}, r"b_init gives the shape \(2,\), expected \(3,\)"),
        ((IN, OUT), {"b_init": lambda s: jnp.ones((2, OUT))}, r"b_init gives the shape \(2, 3\)"),
        ((IN, 1), {"b_init": np.ones(3)}, r"b_init gives the shape \(3,\), expected \(1,\)"),
        ((IN, OUT), {"w_mask": np.ones((IN, 2))}, r"w_mask gives the shape \(4, 2\), expected"),
    ],
)
def test_linear_constructor_errors(args, options, message):
    with pytest.raises(ValueError, match=message):
        Linear(*args, **options)


def test_linear_call_errors():
    layer = Linear(IN, OUT)
    with pytest.raises(ValueError, match="last axis of x has size 2, expected 4"):
        layer(jnp.ones((2, 5, 2)))
    with pytest.raises(TypeError, match="x has dtype int"):
        layer(jnp.ones(IN, int))
