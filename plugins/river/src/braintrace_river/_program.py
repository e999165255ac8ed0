# SPDX-License-Identifier: Apache-2.0
"""The compiled programs of an estimator, as functions of all that it goes on from.

An estimator keeps values, and the programs take them and return new ones: a prediction leaves them
as they are because nobody keeps what it returns, and copies of an estimator share its programs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax

import braintrace

#: What follows the inputs in the array of a step: target, weight of the loss, classes so far.
EXTRA = 3

#: Values of all states: weights, hidden states, traces, moments of the optimizer, random key.
Values = list[Any]


@dataclass(frozen=True, eq=False)
class Spec:
    """What programs are made of; equal ones have the same programs.

    ``loss(outputs [outputs], target, classes)`` and ``shown(outputs, classes)`` say what is learned
    and what a prediction returns.
    """

    model: Callable[[int, int], brainstate.nn.Module]
    algorithm: Any
    options: Any
    optimizer: Any
    update_every: int
    loss: Callable[..., jax.Array]
    shown: Callable[..., jax.Array]
    inputs: int
    outputs: int
    settings: Any = ()

    def programs(self) -> Programs:
        """Those of this specification, shared if its parts can be compared."""
        settings = (
            jax.config.read("jax_enable_x64"),
            *sorted(map(repr, brainstate.environ.all().items())),
        )
        try:
            return _shared(replace(self, settings=settings))
        except _NotComparable:
            return Programs(self)

    def __hash__(self) -> int:
        return hash(self._parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spec) and self._parts == other._parts

    @property
    def _parts(self) -> Any:
        return tuple(comparable(part) for part in vars(self).values())


class _NotComparable(TypeError):
    """A part of a specification has no hash."""


def comparable(part: Any) -> Any:
    """Something that is equal for copies: partial functions and containers by what they hold."""
    if isinstance(part, partial):
        return partial, comparable(part.func), comparable(part.args), comparable(part.keywords)
    if isinstance(part, dict):
        return dict, tuple((key, comparable(value)) for key, value in part.items())
    if isinstance(part, tuple | list):
        return type(part), *map(comparable, part)
    try:
        hash(part)
    except TypeError as error:
        raise _NotComparable(str(error)) from None
    return type(part), part


class Programs:
    """A step that learns, a prediction and a reset, compiled when they are first used."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.precise = (
            bool(jax.config.read("jax_enable_x64")) and brainstate.environ.get_precision() == 64
        )
        with brainstate.random.seed_context(0):
            learner = _learner(spec)
            step, predict, reset = _functions(spec, learner)
            traced = [brainstate.transform.StatefulFunction(f, return_only_write=False)
                      for f in (step, predict, reset)]  # fmt: skip
            for function in traced:
                function.make_jaxpr(self.row())
            found = [state for function in traced for state in function.get_states(self.row())]
            self._places = {state: place for place, state in enumerate(dict.fromkeys(found))}
            self._start = [jax.tree.map(jnp.array, state.value) for state in self._places]
        paths = {state: path for path, state in learner.model.states().items()}
        self._paths = [paths.get(state) for state in self._places]
        learn, predict, reset = (partial(self._call, function) for function in traced)
        self.learn = jax.jit(lambda values, row: learn(values, row)[0], donate_argnums=0)
        self.predict = jax.jit(lambda values, row: predict(values, row)[1])
        self.reset = jax.jit(lambda values: reset(values, self.row())[0])

    def __deepcopy__(self, memo: Any) -> Programs:
        """The same: they hold nothing that changes."""
        return self

    def row(self) -> np.ndarray:
        """The array of a step: inputs, target, weight, number of classes."""
        return np.zeros(self.spec.inputs + EXTRA, np.float64 if self.precise else np.float32)

    def first(self, seed: int) -> Values:
        """Where an estimator starts: a new model's values, no traces, nothing learned."""
        random = brainstate.random.DEFAULT
        with brainstate.random.seed_context(seed):
            model = self.spec.model(self.spec.inputs, self.spec.outputs)
            brainstate.nn.init_all_states(model, batch_size=1)
            states: Any = model.states()
            drawn = {path: state.value for path, state in states.items()}
            key = random.value
        starts = zip(self._places, self._paths, self._start, strict=True)
        found = [key if s is random else drawn.get(path, start) for s, path, start in starts]
        return jax.tree.map(jnp.array, found)

    def grown(self, values: Values, before: Values, row: np.ndarray, old: Programs) -> Values:
        """``values``, fresh ones of more outputs, as ``before`` where it has an entry.

        Raises
        ------
        ValueError
            When the network does not predict what it did before.
        """
        new = jax.tree.map(_corner, values, before)
        count = old.spec.outputs
        row[-1] = count
        same = np.allclose(self.predict(new, row)[:count], old.predict(before, row), atol=1e-5)
        if not same:
            raise ValueError(
                f"a new class needs more than {count} outputs, and this network cannot be widened: "
                "its outputs are not the last axis of its readout alone; name all classes at the "
                "start, as in RecurrentClassifier(..., classes=('a', 'b', 'c'))"
            )
        return new

    def saved(self, values: Values) -> list[np.ndarray]:
        """What is kept of values in a pickle."""
        return [np.array(jax.random.key_data(leaf) if _is_key(leaf) else leaf)
                for leaf in jax.tree.leaves(values)]  # fmt: skip

    def taken(self, leaves: Sequence[np.ndarray]) -> Values:
        """Values of what was saved.

        Raises
        ------
        ValueError
            When they are those of other programs.
        """
        here, tree = jax.tree.flatten(self._start)
        ours, theirs = ([(leaf.shape, leaf.dtype) for leaf in found]
                        for found in (self.saved(self._start), leaves))  # fmt: skip
        if ours != theirs:
            k = next((k for k, pair in enumerate(zip(ours, theirs, strict=False))
                      if pair[0] != pair[1]), min(len(ours), len(theirs)))  # fmt: skip
            there, now = (str(found[k]) if k < len(found) else "none" for found in (theirs, ours))
            raise ValueError(
                "this estimator was saved with another network, version or precision than there "
                f"is now: array {k} of {len(theirs)} was {there} and is {now} of {len(ours)}"
            )
        found = [
            jax.random.wrap_key_data(jnp.array(leaf), impl=jax.random.key_impl(now))
            if _is_key(now)
            else leaf
            for leaf, now in zip(leaves, here, strict=True)
        ]
        return jax.tree.unflatten(tree, list(map(jnp.array, found)))

    def _call(self, function: Any, values: Values, row: Any) -> tuple[Values, Any]:
        """New values of all states, and the result, of a traced function of some of them."""
        places = [self._places[state] for state in function.get_states(self.row())]
        new, out = function.jaxpr_call([values[place] for place in places], row)
        result = list(values)
        for place, value in zip(places, new, strict=True):
            result[place] = value
        return result, out


_shared = lru_cache(maxsize=16)(Programs)


def _is_key(leaf: Any) -> bool:
    """Whether an array holds random keys."""
    return isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _corner(new: jax.Array, old: jax.Array) -> jax.Array:
    """A new array with the entries of a smaller one at its beginning."""
    if jnp.shape(new) == jnp.shape(old):
        return jnp.array(old)
    return new.at[tuple(map(slice, jnp.shape(old)))].set(old)


def _learner(spec: Spec) -> Any:
    """A learner of a new model, one example at a time."""
    model = spec.model(spec.inputs, spec.outputs)
    x = jnp.zeros((1, spec.inputs), brainstate.environ.dftype())
    with brainstate.environ.context(fit=True):
        return braintrace.compile(model, spec.algorithm, x, batch_size=1, **(spec.options or {}))


def _functions(spec: Spec, learner: Any) -> tuple[Callable[..., Any], ...]:
    """What the programs do, on brainstate's states."""
    optimizer = learner.optimizer(_transformation(spec.optimizer))
    every = spec.update_every
    sums = brainstate.ShortTermState(
        {path: jax.tree.map(jnp.zeros_like, state.value)
         for path, state in learner.param_states.items()} if every > 1 else {}
    )  # fmt: skip
    count = brainstate.ShortTermState(jnp.zeros((), jnp.int32))

    def inputs_of(row: jax.Array) -> jax.Array:
        return row[None, : spec.inputs].astype(brainstate.environ.dftype())

    def loss(row: jax.Array) -> jax.Array:
        outputs = _flat(learner(inputs_of(row)), spec)
        target, weight, classes = row[-EXTRA:].astype(outputs.dtype)
        return weight * spec.loss(outputs, target, classes)

    def learn(row: jax.Array) -> None:
        with brainstate.environ.context(fit=True):
            grads = brainstate.transform.grad(loss, learner.param_states)(row)
        if every == 1:
            optimizer.update(grads)
            return
        sums.value = jax.tree.map(jnp.add, sums.value, dict(grads))
        count.value = count.value + 1

        def update() -> None:
            optimizer.update(jax.tree.map(lambda total: total / every, sums.value))
            sums.value = jax.tree.map(jnp.zeros_like, sums.value)
            count.value = jnp.zeros_like(count.value)

        brainstate.transform.cond(count.value == every, update, lambda: None)

    def predict(row: jax.Array) -> jax.Array:
        with brainstate.environ.context(fit=False):
            outputs = _flat(learner.model(inputs_of(row)), spec)
        return spec.shown(outputs, row[-1].astype(outputs.dtype))

    def reset(row: jax.Array) -> None:
        with brainstate.environ.context(fit=True):
            learner.reset_state(batch_size=1, model_states=True)

    return learn, predict, reset


def _transformation(given: Any) -> Any:
    """An optax transformation, from one or from a function that makes it."""
    if given is None:
        return optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return given if hasattr(given, "update") else given()


def _flat(outputs: Any, spec: Spec) -> jax.Array:
    """The outputs of the one example.

    Raises
    ------
    ValueError
        When there is another number of them.
    """
    if jnp.shape(outputs) != (1, spec.outputs):
        raise ValueError(
            f"model({spec.inputs}, {spec.outputs}) must return a network that maps "
            f"[1, {spec.inputs}] to [1, {spec.outputs}], got {jnp.shape(outputs)}"
        )
    return outputs[0]
