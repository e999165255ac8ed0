# SPDX-License-Identifier: Apache-2.0
"""The networks, weights and sequences that are measured; runs beside either library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from . import layers
from .layers import SIDE, Make, Shape
from .settings import Sizes

OUTPUTS = 10
Layer = Callable[[Make, int, int], brainstate.nn.Module]


@dataclass(frozen=True)
class Model:
    """A layer, how often it is stacked, and what it is fed with.

    Attributes
    ----------
    image
        Whether inputs are images [*, SIDE, SIDE, channels].
    plain
        Whether brainstate has all the layers, too.
    inward
        Whether the last layer returns as many features as it is given.
    """

    layer: Layer
    depth: int = 1
    spiking: bool = True
    image: bool = False
    plain: bool = True
    inward: bool = False

    def outputs(self, sizes: Sizes) -> int:
        """Features of the last layer."""
        return sizes.inputs if self.inward else sizes.units


MODELS = {
    "gru": Model(layers.gru, spiking=False),
    "lstm": Model(layers.lstm, spiking=False),
    "lru": Model(layers.lru, spiking=False, plain=False, inward=True),
    "lif": Model(layers.lif),
    "alif": Model(layers.alif),
    "stack": Model(layers.lif, depth=3),
    "forward": Model(layers.forward, depth=3),
    "conv": Model(layers.conv, image=True),
    "sparse": Model(layers.sparse),
    "lora": Model(layers.low_rank),
    "groups": Model(layers.grouped),
    "table": Model(layers.table, spiking=False),
}


class Network(brainstate.nn.Module):
    """Recurrent layers and a linear readout: x [B, *in] to [B, OUTPUTS].

    Images are averaged, and groups joined.
    """

    def __init__(self, model: Model, make: Make, sizes: Sizes, depth: int) -> None:
        super().__init__()
        widths = (sizes.inputs, *(sizes.units,) * depth)
        stacked = (model.layer(make, *pair) for pair in pairwise(widths))
        self.layers = brainstate.nn.Sequential(*stacked)
        self.readout = make.nn.Linear(model.outputs(sizes), OUTPUTS)

    def update(self, x: jax.Array) -> jax.Array:
        activity = self.layers(x)
        if activity.ndim == 4:
            activity = activity.mean((1, 2))
        return self.readout(activity.reshape(len(activity), -1))


def network(name: str, sizes: Sizes, make: Make = layers.TRACED, depth: int = 0) -> Network:
    """A network with states and the same weights in every process and of either make."""
    built = Network(MODELS[name], make, sizes, depth or MODELS[name].depth)
    brainstate.nn.init_all_states(built, batch_size=sizes.batch)
    if make is layers.PLAIN:
        set_weights(built, fused(weights(network(name, sizes, depth=depth)), weights_of(built)))
        return built
    rng = np.random.default_rng(0)
    states = weights_of(built)
    for path in sorted(states, key=str):
        states[path].value = jax.tree.map(partial(_draw, rng, path), states[path].value)
    return built


def _draw(rng: np.random.Generator, path: tuple[Any, ...], leaf: jax.Array) -> jax.Array:
    spread = 1.0 / np.sqrt(layers.fan_in(leaf.shape)) if leaf.ndim > 1 else 0.1
    centre = -3.0 if path[-1] in ("nu_log", "theta_log") else 0.0  # a slow linear unit
    return jnp.asarray(centre + spread * rng.standard_normal(leaf.shape), leaf.dtype)


# --- weights of both makes -----------------------------------------------------------------------

Values = dict[Any, Any]

#: One layer of brainstate and the layers that stand for it here, in the order of their outputs.
FUSED = {"Wrz": ("Wr", "Wz"), "W": ("Wi", "Wg", "Wf", "Wo")}


def weights_of(module: brainstate.nn.Module) -> dict[Any, Any]:
    """The parameters by path."""
    return dict(module.states(brainstate.ParamState).items())  # type: ignore[union-attr]


def weights(module: brainstate.nn.Module) -> Values:
    """The values of the parameters by path."""
    return {path: state.value for path, state in weights_of(module).items()}


def set_weights(module: brainstate.nn.Module, values: Mapping[Any, Any]) -> None:
    """Give a network other weights."""
    for path, state in weights_of(module).items():
        state.value = values[path]


def fused(values: Values, like: Mapping[Any, Any]) -> Values:
    """Weights of a traced network in the arrays of a plain one with the paths ``like``."""
    return {path: _join([values[part] for part in _parts(path)]) for path in like}


def parted(values: Values) -> Values:
    """What :func:`fused` joined, weights or gradients, in the arrays of a traced network."""
    return {
        part: value
        for path, joined in values.items()
        for part, value in zip(_parts(path), _split(joined, len(_parts(path))), strict=True)
    }


def _parts(path: tuple[Any, ...]) -> list[tuple[Any, ...]]:
    """The paths that stand for one of a plain network."""
    fused = next((name for name in path if name in FUSED), None)
    names = (None,) if fused is None else FUSED[fused]
    return [tuple(name if key == fused else key for key in path) for name in names]


def _join(parts: list[Any]) -> Any:
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays, -1), *parts)


def _split(joined: Any, count: int) -> list[Any]:
    pieces = jax.tree.map(lambda array: jnp.split(array, count, -1), joined)
    shape = jax.tree.structure(joined)
    return list(jax.tree.transpose(shape, jax.tree.structure([0] * count), pieces))


# --- data ----------------------------------------------------------------------------------------


def input_shape(name: str, sizes: Sizes) -> Shape:
    """[B, *in] of one step."""
    features = (SIDE, SIDE, sizes.inputs) if MODELS[name].image else (sizes.inputs,)
    return (sizes.batch, *features)


def example(name: str, sizes: Sizes) -> jax.Array:
    """An input of one step, for the compiler."""
    return jnp.zeros(input_shape(name, sizes))


def sequences(name: str, sizes: Sizes) -> tuple[jax.Array, jax.Array]:
    """Inputs [T, B, *in] and targets [T, B, OUTPUTS]."""
    rng = np.random.default_rng(1)
    xs = rng.standard_normal((sizes.steps, *input_shape(name, sizes)), np.float32)
    ys = rng.standard_normal((sizes.steps, sizes.batch, OUTPUTS), np.float32)
    return jnp.asarray(xs > 0.8 if MODELS[name].spiking else xs, "float32"), jnp.asarray(ys)


def loss(output: jax.Array, target: jax.Array) -> jax.Array:
    """Mean squared error of one step."""
    return jnp.mean((output - target) ** 2)
