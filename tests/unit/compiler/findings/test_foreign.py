# SPDX-License-Identifier: Apache-2.0
"""Layers that the compiler cannot look into are named when their arrays are constants."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import saiunit as u

import braintrace as bt


@partial(jax.tree_util.register_dataclass, data_fields=["weight", "bias"], meta_fields=["name"])
@dataclass(frozen=True, eq=False)
class Pytree:
    """A layer as those of equinox: a pytree of arrays that is called."""

    weight: Any
    bias: Any
    name: str = "layer"

    def __call__(self, x: Any) -> Any:
        return x @ self.weight + self.bias


class Variable:
    """An array in a box, as the variables of flax."""

    def __init__(self, value: Any) -> None:
        self.raw = value


class Boxed:
    """A layer as those of flax: no pytree, with arrays in boxes, and a way back to itself."""

    def __init__(self, weight: Any) -> None:
        self.kernel, self.parts, self.me = Variable(weight), {"bias": Variable(weight[0])}, self

    def __call__(self, x: Any) -> Any:
        return x @ self.kernel.raw + self.parts["bias"].raw


class Settings:
    """Neither called nor a pytree: no layer."""

    def __init__(self) -> None:
        self.decay = jnp.full(3, 0.9)


class Net(brainstate.nn.Module):
    def __init__(self, layer: Any, weight: Any = None) -> None:
        super().__init__()
        self.encoder, self.core = layer, bt.nn.Linear(3, 3)
        self.settings, self.matrix = Settings(), jnp.eye(3) * u.mV
        self.leaks = [jnp.full(3, 0.5)]
        self.h = brainstate.HiddenState(jnp.zeros((2, 3)))

    def encoded(self, x: Any) -> Any:
        return self.encoder(x)

    def update(self, x: Any) -> Any:
        leak = self.settings.decay * self.leaks[0] * (self.matrix / u.mV).sum(0)
        self.h.value = leak * self.h.value + self.core(self.encoded(x))
        return self.h.value


def found(model: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", bt.CompilationWarning)
        graph = bt.compile_etrace_graph(model, jnp.ones((2, 3)), **options)
    return graph.explain(kind="weights_are_constants")


def weight() -> Any:
    return jnp.arange(9.0).reshape(3, 3)


@pytest.mark.parametrize("kind", [Pytree, Boxed])
@pytest.mark.parametrize("numpy", [False, True])
def test_a_layer_of_another_library_is_named(kind: Any, numpy: bool) -> None:
    own = np.asarray(weight()) if numpy else weight()
    (record,) = found(Net(kind(own, own[0]) if kind is Pytree else kind(own)))
    assert record.context == {"layer": "encoder", "count": 2}
    assert f"(a {kind.__module__}.{kind.__name__}) holds 2" in record.message
    assert "[3, 3], [3]" in record.message and "ParamState" in record.remedy


def test_it_is_a_warning_with_the_place_in_a_collection() -> None:
    class Several(Net):
        def encoded(self, x: Any) -> Any:
            return self.encoder["first"][0](x)

    unused = Pytree(weight(), weight()[1])
    layers = {"first": (Pytree(weight(), weight()[0]), unused)}
    with pytest.warns(bt.CompilationWarning, match=r"the layer encoder\.first\[0\] \(a "):
        bt.compile_etrace_graph(Several(layers), jnp.ones((2, 3)))
    (record,) = found(brainstate.nn.Sequential(Several(layers)))
    assert record.context["layer"] == "layers[0].encoder.first[0]"


def test_under_vmap() -> None:
    class Single(Net):
        def init_state(self, **kwargs: Any) -> None:
            self.h = brainstate.HiddenState(jnp.zeros(3))

    with pytest.warns(bt.CompilationWarning, match="the layer encoder "):
        bt.compile(
            Single(Pytree(weight(), weight()[0])),
            "d_rtrl",
            jnp.ones((2, 3)),
            batch_size=2,
            vmap=True,
        )


def test_nothing_is_said_where_the_weights_are_parameters() -> None:
    class Held(Net):
        def encoded(self, x: Any) -> Any:
            return self.encoder.value(x)

    model = Held(brainstate.ParamState(Pytree(weight(), weight()[0])))
    with warnings.catch_warnings():
        warnings.simplefilter("error", bt.CompilationWarning)
        warnings.filterwarnings("ignore", message=".*parameter_outside_operation")
        graph = bt.compile_etrace_graph(model, jnp.ones((2, 3)))
    assert graph.explain(kind="weights_are_constants") == ()
    assert graph.coverage()["encoder",] == "direct"


def test_a_layer_inside_of_a_function_has_the_name_of_the_function() -> None:
    layer = Pytree(weight(), weight()[0])
    for function in (lambda x: layer(x), jax.vmap(layer), jax.jit(layer), partial(layer)):
        assert [record.context["layer"] for record in found(Net(function))] == ["encoder"]


def test_nothing_is_said_of_functions_and_modules() -> None:
    for layer in (jnp.tanh, lambda x: x, partial(jnp.clip, max=1.0), bt.nn.Linear(3, 3)):
        assert found(Net(layer)) == ()


def test_a_dict_of_modules_is_no_dict_of_weights() -> None:
    """Whatever the modules are called: each is looked at by itself."""

    class Leak(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kept = np.full(3, 0.5)

        def update(self, x: Any) -> Any:
            return jnp.asarray(self.kept) * x

    class Named(Net):
        def encoded(self, x: Any) -> Any:
            return self.encoder["w"](x)

    assert found(Named({"w": Leak()})) == ()


@pytest.mark.parametrize("names", [("encoder", "params", "Dense_0"), ("encoder", "linear")])
def test_weights_in_a_dict_are_those_of_a_layer(names: tuple[str, ...]) -> None:
    """As flax and haiku keep them, beside a function; other dicts of arrays are constants."""
    held: Any = {"kernel": weight(), "bias": weight()[0]}
    for name in reversed(names[1:]):
        held = {name: held}

    class Functional(Net):
        def encoded(self, x: Any) -> Any:
            layer = self.encoder
            for name in names[1:]:
                layer = layer[name]
            return x @ layer["kernel"] + layer["bias"]

    (record,) = found(Functional(held))
    where = "encoder" if "params" in names else "encoder.linear"
    assert record.context == {"layer": where, "count": 2}
    assert "(a builtins.dict) holds 2" in record.message

    class Masked(Net):
        def encoded(self, x: Any) -> Any:
            return x @ self.encoder["mask"]

    assert found(Masked({"mask": weight()})) == ()


def test_a_layer_of_equinox() -> None:
    eqx = pytest.importorskip("equinox")
    (record,) = found(Net(jax.vmap(eqx.nn.Linear(3, 3, key=jax.random.key(0)))))
    assert record.context["count"] == 2
