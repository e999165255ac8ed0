# SPDX-License-Identifier: Apache-2.0
"""The layer ``LoRA`` against ``brainstate.nn.LoRA``, alone and over a base."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit

import braintrace
from braintrace.testing import assert_tree_close, bptt
from braintrace_lora.nn import LoRA

IN, RANK, OUT, BATCH, STEPS = 4, 2, 3, 5, 5


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng([seed, *shape]).normal(size=shape))


def pair(base=None, alpha=1.0, **options):
    """Ours and ``brainstate.nn.LoRA``, which has no ``alpha``."""
    ours = LoRA(IN, RANK, OUT, base_module=base, alpha=alpha, **options)
    theirs = brainstate.nn.LoRA(IN, RANK, OUT, base_module=base)
    theirs.weight.value = ours.weight.value
    return ours, theirs


def dense():
    return brainstate.nn.Linear(IN, OUT, b_init=brainstate.nn.init.Normal(1.0))


# --- forward ---------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [(), (BATCH,), (2, BATCH), (2, 1, BATCH), (0,), (2, 0)])
@pytest.mark.parametrize("with_base", [False, True])
def test_equals_brainstate(lead, with_base):
    ours, theirs = pair(dense() if with_base else None)
    x = draw(*lead, IN)
    y = ours(x)
    assert y.shape == (*lead, OUT)
    np.testing.assert_allclose(y, theirs(x), 1e-12, 1e-12)
    np.testing.assert_array_equal(y, ours.update(x))


def test_gradients_equal_brainstate():
    ours, theirs = pair(dense())
    x = draw(BATCH, IN)

    def grads(layer):
        return brainstate.transform.grad(lambda: jnp.sin(layer(x)).sum(), layer.states())()

    assert_tree_close(grads(ours), grads(theirs))


def test_is_a_drop_in():
    layer = LoRA(IN, RANK, OUT)
    assert isinstance(layer, brainstate.nn.LoRA)
    assert isinstance(layer.weight, brainstate.ParamState)
    assert {key: v.shape for key, v in layer.weight.value.items()} == {
        "lora_a": (IN, RANK),
        "lora_b": (RANK, OUT),
    }
    assert (layer.in_size, layer.out_size) == ((IN,), (OUT,))
    assert (layer.in_features, layer.lora_rank, layer.out_features) == (IN, RANK, OUT)
    wide = LoRA(IN, RANK, OUT, in_size=(2, IN))
    assert (wide.in_size, wide.out_size) == ((2, IN), (2, OUT))
    assert wide(draw(BATCH, 2, IN)).shape == (BATCH, 2, OUT)


def test_binds_one_primitive_for_all_leading_axes():
    layer = LoRA(IN, RANK, OUT, alpha=2)
    jaxpr = brainstate.transform.make_jaxpr(layer)(jnp.ones((2, BATCH, IN)))[0]
    (eqn,) = [eqn for eqn in jaxpr.eqns if eqn.primitive.name.startswith("etp_")]
    assert eqn.primitive.name == "etp_lora_mm"
    assert eqn.params["alpha"] == 2.0
    assert eqn.invars[0].aval.shape == (2 * BATCH, IN)


def test_alpha_multiplies_the_product_alone():
    base, x = dense(), draw(BATCH, IN)
    ours, theirs = pair(base, alpha=-0.5)
    product = theirs(x) - base(x)
    np.testing.assert_allclose(ours(x), base(x) - 0.5 * product, 1e-12, 1e-12)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_without_alpha_the_product_is_divided_by_the_rank(rank):
    layer, x = LoRA(IN, rank, OUT), draw(BATCH, IN)
    factors = layer.weight.value
    expected = x @ factors["lora_a"] @ factors["lora_b"] / rank
    np.testing.assert_allclose(layer(x), expected, 1e-12, 1e-12)
    assert layer.alpha == 1 / rank


def test_initial_values_and_their_key():
    def factors(key, **options):
        return LoRA(IN, RANK, OUT, key=key, **options).weight.value

    assert_tree_close(factors(1), factors(1))
    assert_tree_close(factors(jax.random.key(1)), factors(jax.random.key(1)))
    assert (factors(1)["lora_a"] != factors(2)["lora_a"]).any()
    constant = factors(None, kernel_init=0.5)
    np.testing.assert_array_equal(constant["lora_b"], np.full((RANK, OUT), 0.5))

    class Mine(brainstate.ParamState):
        pass

    assert isinstance(LoRA(IN, RANK, OUT, param_type=Mine).weight, Mine)


def test_the_base_may_be_any_function():
    x = draw(BATCH, IN)
    added = LoRA(IN, RANK, IN, base_module=jnp.sin, key=3)(x) - jnp.sin(x)
    np.testing.assert_allclose(added, LoRA(IN, RANK, IN, key=3)(x), 1e-12, 1e-12)


def test_units_of_the_product_and_of_the_base():
    layer = LoRA(IN, RANK, OUT, base_module=lambda x: x[..., :OUT] * 1e-3, key=0)
    plain = LoRA(IN, RANK, OUT, key=0)
    x = draw(BATCH, IN)
    y = layer(x * saiunit.mV)
    expected = plain(x) + 1e-3 * x[..., :OUT]
    np.testing.assert_allclose(y.to_decimal(saiunit.mV), expected, 1e-12, 1e-12)
    other = LoRA(IN, RANK, OUT, base_module=lambda x: x[..., :OUT] / saiunit.ohm)
    with pytest.raises(TypeError, match="base_module returns the unit mA, expected .* mV"):
        other(x * saiunit.mV)


# --- frozen bases ------------------------------------------------------------------------------


def test_a_frozen_base_is_constant_but_lets_gradients_through():
    base, x = dense(), draw(BATCH, IN)
    frozen, free = pair(base, freeze_base=True)
    np.testing.assert_allclose(frozen(x), free(x), 1e-12, 1e-12)
    grads = brainstate.transform.grad(lambda: jnp.sin(frozen(x)).sum(), frozen.states())()
    assert not any(leaf.any() for leaf in grads["base_module", "weight"].values())
    assert all(leaf.any() for leaf in grads["weight",].values())
    for layer in (frozen, free):
        layer.of_x = jax.grad(lambda x, layer=layer: jnp.sin(layer(x)).sum())(x)
    np.testing.assert_allclose(frozen.of_x, free.of_x, 1e-12, 1e-12)


def test_a_frozen_base_keeps_its_parameters_under_every_transformation():
    base, x = dense(), draw(BATCH, IN)
    before = base.weight.value
    layer, _ = pair(base, freeze_base=True)
    expected = layer(x)
    for transform in (
        jax.jit,
        jax.vmap,
        jax.checkpoint,
        brainstate.transform.jit,
        brainstate.transform.vmap,
        brainstate.transform.checkpoint,
        lambda f: lambda x: brainstate.transform.for_loop(f, x),
    ):
        np.testing.assert_allclose(transform(layer)(x), expected, 1e-12, 1e-12)
        assert all(base.weight.value[key] is before[key] for key in before)


def test_a_frozen_base_keeps_its_parameters_when_it_fails():
    class Fails(brainstate.nn.Linear):
        def update(self, x):
            raise KeyError("no")

    base = Fails(IN, OUT)
    before = base.weight.value["weight"]
    with pytest.raises(KeyError):
        LoRA(IN, RANK, OUT, base_module=base, freeze_base=True)(draw(IN))
    assert base.weight.value["weight"] is before


class Cell(brainstate.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def init_state(self, **_):
        self.h = brainstate.HiddenState(jnp.zeros((BATCH, OUT)))

    def update(self, x):
        self.h.value = 0.8 * self.h.value + jnp.tanh(self.layer(x))
        return self.h.value


def loss(out, target):
    return jnp.sum((out - target) ** 2)


def trained(cell, **options):
    xs, ys = draw(STEPS, BATCH, IN), draw(STEPS, BATCH, OUT)
    learner = braintrace.compile(cell, "d_rtrl", xs[0], **options)
    grads = learner.etrace_grad(
        xs, ys, step_fn=lambda x, y: loss(learner(x), y), reduction="sum", block_size=2
    )
    cell.init_state()
    return learner, grads, bptt(cell, (xs, ys), loss)[1]


def test_over_a_frozen_base_only_the_adapter_learns():
    layer = LoRA(IN, RANK, OUT, base_module=dense(), freeze_base=True)
    with pytest.raises(braintrace.CompilationError, match=r"frozen=\['layer.base_module.weight'\]"):
        trained(Cell(layer))
    learner, grads, expected = trained(Cell(layer), frozen=["layer.base_module"])
    path = ("layer", "weight")
    assert learner.graph.coverage() == {path: "trace", ("layer", "base_module", "weight"): "none"}
    assert_tree_close(grads[path], expected[path])


def test_a_frozen_base_may_itself_be_a_layer_of_the_family():
    layer = LoRA(IN, RANK, OUT, base_module=LoRA(IN, 1, OUT), freeze_base=True)
    _, grads, expected = trained(Cell(layer), frozen=["layer.base_module"])
    assert not any(leaf.any() for leaf in grads["layer", "base_module", "weight"].values())
    assert_tree_close(grads["layer", "weight"], expected["layer", "weight"])


def test_over_a_trained_base_both_learn():
    base = LoRA(IN, 1, OUT, alpha=0.3)  # itself a layer with traces
    learner, grads, expected = trained(Cell(LoRA(IN, RANK, OUT, base_module=base)))
    assert set(learner.graph.coverage().values()) == {"trace"}
    assert_tree_close(grads, expected)


# --- errors ----------------------------------------------------------------------------------

CONSTRUCTOR = {
    "in": ((0, RANK, OUT), {}, ValueError, "in_features must be a positive integer .*got 0"),
    "rank": ((IN, -1, OUT), {}, ValueError, "lora_rank must be a positive integer .*got -1"),
    "out": ((IN, RANK, (2, 3)), {}, ValueError, r"out_features must be one positive .*\(2, 3\)"),
    "in_size": ((IN, RANK, OUT), {"in_size": (IN, 2)}, ValueError, "last entry of in_size .*4"),
    "init": ((IN, RANK, OUT), {"kernel_init": None}, ValueError, "kernel_init gives None"),
    "init_shape": (
        (IN, RANK, OUT),
        {"kernel_init": np.ones((3, 3))},
        ValueError,
        r"kernel_init gives the shape \(3, 3\), expected \(4, 2\)",
    ),
    "alpha": ((IN, RANK, OUT), {"alpha": "1"}, TypeError, "LoRA: alpha must be a real number"),
    "base": ((IN, RANK, OUT), {"base_module": 3}, TypeError, "base_module must be a module .*int"),
    "freeze": ((IN, RANK, OUT), {"freeze_base": True}, TypeError, "freeze_base=True needs .*none"),
    "freeze_function": (
        (IN, RANK, OUT),
        {"freeze_base": True, "base_module": jnp.sin},
        TypeError,
        "needs a brainstate.nn.Module as base_module",
    ),
}


@pytest.mark.parametrize("case", CONSTRUCTOR)
def test_constructor_errors(case):
    args, options, kind, message = CONSTRUCTOR[case]
    with pytest.raises(kind, match=message):
        LoRA(*args, **options)


def test_call_errors():
    with pytest.raises(ValueError, match="last axis of x has size 2, expected 4"):
        LoRA(IN, RANK, OUT)(jnp.ones((2, 5, 2)))
    with pytest.raises(
        ValueError, match=r"base_module returns the shape \(5, 4\), expected \(5, 3"
    ):
        LoRA(IN, RANK, OUT, base_module=jnp.sin)(jnp.ones((BATCH, IN)))
    with pytest.raises(TypeError, match="x has dtype int"):
        LoRA(IN, RANK, OUT)(jnp.ones(IN, int))
