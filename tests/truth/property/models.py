# SPDX-License-Identifier: Apache-2.0
"""A random program as a ``brainstate`` model with data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace as bt

from .kinds import KEEP, KINDS, MIX, PROCESS, WIDTH
from .programs import Call, Make, Program, Ref, State, Use, Write

LEAVES = {"matrix": (WIDTH, WIDTH), "vector": (WIDTH,), "wide": (WIDTH, 4 * WIDTH)}
STATES: dict[str, Callable[[Any], brainstate.State]] = {
    "plain": brainstate.HiddenState,
    "group": brainstate.HiddenGroupState,
    "other": brainstate.ShortTermState,
}


def normal(rng: np.random.Generator, *shape: int) -> jax.Array:
    return jnp.asarray(rng.normal(scale=0.8, size=shape))


class Layer(brainstate.nn.Module):
    """States ``s0``, ``s1``, ..."""

    def __init__(self, states: Sequence[brainstate.State]) -> None:
        super().__init__()
        for k, state in enumerate(states):
            setattr(self, f"s{k}", state)


class Cell(brainstate.nn.Module):
    """The model of a program."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        rng = np.random.default_rng(0)
        self.program = program
        self.parameters = [_parameter(rng, tree, program) for tree in program.trees]
        self.states = [[self.make_state(rng, state) for state in lay] for lay in program.layers]
        layers = [Layer(states) for states in self.states]
        if program.container == "attributes":
            for k, layer in enumerate(layers):
                setattr(self, f"layer_{k}", layer)
        else:
            named = {chr(ord("a") + k): layer for k, layer in enumerate(layers)}
            self.layers = layers if program.container == "list" else named

    def make_state(self, rng: np.random.Generator, state: State) -> brainstate.State:
        lead = () if self.program.batch is None else (self.program.batch,)
        last = (2,) if state.kind == "group" else ()
        return STATES[state.kind](normal(rng, *lead, WIDTH, *last))

    def update(self, x: Any) -> Any:
        return Step(self, x).run()


def _parameter(rng: np.random.Generator, tree: bool, program: Program) -> Any:
    wide = any("wide" in KINDS[make.kind].leaves for make in program.makes)
    names = ["matrix", "vector", *(["wide"] if wide else [])]
    values = {name: normal(rng, *LEAVES[name]) for name in names}
    if tree:
        return brainstate.ParamState(values)
    return {name: brainstate.ParamState(value) for name, value in values.items()}


class Step:
    """One step of a cell while it is computed."""

    def __init__(self, cell: Cell, x: Any) -> None:
        self.cell, self.x = cell, x
        self.old: dict[int, Any] = {}
        self.values: list[Any] = []
        self.states = [state for states in cell.states for state in states]
        self.sources = self.sources_of(0)

    def sources_of(self, k: int) -> list[Callable[[], Any]]:
        """What is there before anything is made, as state ``k`` counts it."""
        ordered = self.states[k:] + self.states[:k]
        olds = [part for state in ordered for part in self.components(state)]
        return [lambda: self.x, *olds, lambda: jnp.full(self.x.shape, 0.4)]

    def components(self, state: brainstate.State) -> list[Callable[[], Any]]:
        """The old value of a state; each part of it when it holds two."""
        if not isinstance(state, brainstate.HiddenGroupState):
            return [lambda: self.old_value(state)]
        return [lambda: self.old_value(state)[..., 0], lambda: self.old_value(state)[..., 1]]

    def old_value(self, state: brainstate.State) -> Any:
        """The value that a state had before the step: a state nobody asks for is not touched."""
        return self.old.setdefault(id(state), state.value)

    def read(self, ref: Ref, values: Sequence[Any]) -> Any:
        if ref >= 0 and values:
            return values[-1 - ref % len(values)]
        return self.sources[(-1 - ref if ref < 0 else ref) % len(self.sources)]()

    def leaf(self, use: Use, name: str) -> Any:
        count = len(self.cell.parameters)

        def of(k: int) -> Any:
            parameter = self.cell.parameters[k % count]
            if isinstance(parameter, dict):
                return parameter[name].value
            return parameter.value[name]

        return PROCESS[use.process](of(use.parameter), of(use.parameter + 1))

    def make(self, make: Make, values: Sequence[Any]) -> Any:
        kind = KINDS[make.kind]
        leaves = [self.leaf(use, name) for use, name in zip(make.uses, kind.leaves, strict=True)]
        return kind.run(*(self.read(ref, values) for ref in make.args), *leaves)

    def call(self, call: Call, values: Sequence[Any]) -> list[Any]:
        def body(values: Sequence[Any]) -> list[Any]:
            new = list(values)
            for make in call.body:
                new.append(self.make(make, new))
            return new[len(values) :]

        wraps = {
            "jit": jax.jit,
            "jit jit": lambda f: jax.jit(lambda v: jax.jit(f)(v)),
            "checkpoint": jax.checkpoint,
        }
        return wraps[call.wrap](body)(list(values))

    def write(self, state: brainstate.State, write: Write) -> None:
        keep, b = KEEP[write.keep], self.leaf(write.use, "vector")
        old = self.old_value(state)
        values = [self.read(ref, self.values) for ref in write.args]
        if isinstance(state, brainstate.HiddenGroupState):
            both = [keep(old[..., k], values[k], values[1 - k], b) for k in range(2)]
            mixed = jnp.tanh(old @ MIX) if write.keep == "value" else 0.0
            state.value = jnp.stack(both, -1) + mixed
            self.values.extend([state.value[..., 0], state.value[..., 1]])
        else:
            state.value = keep(old, *values, b)
            self.values.append(state.value)

    def run(self) -> Any:
        described = [state for states in self.cell.program.layers for state in states]
        for k, (spec, state) in enumerate(zip(described, self.states, strict=True)):
            self.sources = self.sources_of(k)
            for item in spec.body:
                if isinstance(item, Call):
                    self.values.extend(self.call(item, self.values))
                else:
                    self.values.append(self.make(item, self.values))
            for write in spec.writes:
                self.write(state, write)
        return self.readout()

    def readout(self) -> Any:
        program = self.cell.program
        parts = [self.read(ref, self.values) for ref in program.outputs]
        out = sum((k + 1.0) * part for k, part in enumerate(parts))
        weight = self.leaf(Use(0, "as it is"), "matrix")
        if program.readout == "sum":
            return out
        return out @ weight if program.readout == "plain" else bt.matmul(out, weight)


def loss_fn(out: Any, target: Any) -> Any:
    return jnp.sum(jnp.sin(out) * target + 0.5 * out**2)


def data(program: Program, steps: int) -> tuple[jax.Array, jax.Array]:
    rng = np.random.default_rng(1)
    lead = () if program.batch is None else (program.batch,)
    return normal(rng, steps, *lead, WIDTH), normal(rng, steps, *lead, WIDTH)
