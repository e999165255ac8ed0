# SPDX-License-Identifier: Apache-2.0
"""Optimizers of other libraries as one call: ``update(grads)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base import versions
from ..base.types import State
from ..drivers.options import checked_weights
from ..drivers.running import Running


class OptaxOptimizer(brainstate.nn.Module):
    """An optax transformation that changes weights in place, with its state in ``moments``.

    Parameters
    ----------
    transformation
        An ``optax.GradientTransformation``, or an object with its ``init`` and ``update``, such as
        ``optax.MultiSteps``.
    weights
        Parameter states by any key.
    frozen
        Keys of gradients to pass over, which belong to no weight.

    Raises
    ------
    ValueError
        Inside ``jit`` or another transformation, where no state can be made.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp, optax
    >>> x = jnp.ones((2, 3))
    >>> learner = braintrace.compile(braintrace.nn.GRUCell(3, 4), "d_rtrl", x, batch_size=2)
    >>> optimizer = learner.optimizer(optax.sgd(0.1))
    >>> isinstance(optimizer, braintrace.OptaxOptimizer)
    True
    """

    def __init__(
        self, transformation: Any, weights: Mapping[Any, State], frozen: Iterable[Any] = ()
    ) -> None:
        super().__init__()
        self.transformation = transformation
        self.weights, self.frozen = dict(weights), frozenset(frozen)
        values = self._values()
        self.moments = brainstate.ShortTermState(transformation.init(values))
        level = self.moments.stack_level
        if any(
            versions.is_traced(leaf)
            for state in self.weights.values()
            if state.stack_level != level  # those made inside end where the moments do
            for leaf in jax.tree.leaves(state.value)
        ):
            raise ValueError(
                "the state of an optimizer cannot be made inside jit or another transformation "
                "if the weights are from outside; call learner.optimizer(transformation) once "
                "before"
            )

    def _values(self) -> dict[Any, Any]:
        return {key: state.value for key, state in self.weights.items()}

    def fits(self, transformation: Any, weights: Mapping[Any, State]) -> bool:
        """Whether this is the optimizer of a transformation for these weights."""
        same = transformation is self.transformation and weights.keys() == self.weights.keys()
        return same and all(state is self.weights[key] for key, state in weights.items())

    def update(self, grads: Mapping[Any, Any]) -> None:
        """Change the weights by gradients with their keys."""
        values = self._values()
        grads = {key: grad for key, grad in grads.items() if key not in self.frozen}
        try:
            found = self.transformation.update(grads, self.moments.value, values)
        except (AttributeError, TypeError) as error:
            raise TypeError(
                f"the optax transformation cannot be run with gradients, its state and the weights "
                f"alone: {error}. If it needs something else, such as values of the loss, take "
                "gradients with etrace_grad and apply it yourself"
            ) from error
        changes, self.moments.value = found
        new = jax.tree.map(lambda w, change: (w + change).astype(w.dtype), values, changes)
        for key, state in self.weights.items():
            state.value = new[key]


def is_transformation(optimizer: Any) -> bool:
    """Whether this is an ``optax.GradientTransformation``, or an object with its two methods.

    These are ``init(weights)`` and ``update(gradients, state, ...)``, as ``optax.MultiSteps`` has;
    an optimizer that holds its weights needs gradients alone.
    """
    init, update = (getattr(optimizer, name, None) for name in ("init", "update"))
    if isinstance(optimizer, type) or not (callable(init) and callable(update)):
        return False
    if isinstance(optimizer, tuple):
        return True
    with suppress(TypeError, ValueError):
        inspect.signature(update).bind(None)
        return False
    return True


def optimizer(
    self: Running, transformation: Any, weights: Mapping[Any, State] | None = None
) -> OptaxOptimizer:
    """The optimizer with which an optax transformation changes the learner's weights.

    It is made at the first call, which must not be inside ``jit``, and holds the state of the
    transformation in a brainstate state.

    Parameters
    ----------
    transformation
        An ``optax.GradientTransformation``, or an object with its ``init`` and ``update``, such as
        ``optax.MultiSteps``.
    weights
        The weights, by any key; default: all of the learner. Frozen ones stay as they are.

    Raises
    ------
    TypeError
        For something else, and for weights that are no parameter states.
    ValueError
        When it is made inside of ``jit`` or another transformation.
    """
    if not (callable(getattr(transformation, "init", None)) and hasattr(transformation, "update")):
        raise TypeError(f"expected an optax.GradientTransformation, got {transformation!r:.80}")
    chosen, held = trained_and_frozen(self, weights)
    for known in self._optimizers:
        if known.fits(transformation, chosen):
            return known
    if sum(known.weights.keys() == chosen.keys() for known in self._optimizers) == 3:
        versions.warn(
            "optimizer is a new optax transformation at each call, whose state starts anew; "
            "make it once, outside of the loop"
        )
    self._optimizers.append(OptaxOptimizer(transformation, chosen, {*held, *frozen_states(self)}))
    return self._optimizers[-1]


def trained_and_frozen(
    learner: Running, weights: Mapping[Any, State] | None
) -> tuple[dict[Any, State], dict[Any, State]]:
    """Weights, all of the learner for ``None``, that are trained, and those that are frozen."""
    chosen = dict(learner.param_states) if weights is None else checked_weights(weights)
    frozen = {*frozen_states(learner).values()}
    held = {key: state for key, state in chosen.items() if state in frozen}
    return {key: state for key, state in chosen.items() if key not in held}, held


def frozen_states(learner: Running) -> dict[Any, State]:
    """All frozen parameters of a learner."""
    trained = learner.trained_states
    return {path: s for path, s in learner.param_states.items() if path not in trained}


def zeros_of(states: Mapping[Any, State]) -> dict[Any, Any]:
    """The gradients of frozen parameters."""
    return {key: jax.tree.map(jnp.zeros_like, state.value) for key, state in states.items()}


@dataclass(frozen=True)
class HoldingFrozen:
    """``update`` of an optimizer, after which ``frozen`` states are what they were before.

    Gradients of those that are among the weights, which are ``zero``, are there by their keys.
    """

    update: Callable[[Any], Any]
    zero: tuple[tuple[Any, State], ...]
    frozen: tuple[State, ...]

    def __call__(self, grads: Mapping[Any, Any]) -> None:
        before = [(state, state.value) for state in self.frozen]
        self.update({**grads, **zeros_of(dict(self.zero))})
        for state, value in before:
            if state.value is not value:
                state.value = value


def with_states(learner: Running, given: Any) -> Any:
    """An optimizer that holds its states: the learner's own, for an optax transformation."""
    if not is_transformation(given):
        return given
    known = [one for one in learner._optimizers if one.transformation is given]
    return known if len(known) > 1 else (known or [optimizer(learner, given)])[0]


def as_optimizer(
    learner: Running, given: Any, weights: Mapping[Any, State] | None
) -> Callable[[Any], Any]:
    """The call that changes the weights, for an optax transformation that of the learner's own.

    It changes no frozen parameter. Raises ``TypeError`` for something that is no optimizer.
    """
    found = optimizer(learner, given, weights) if is_transformation(given) else given
    update = getattr(found, "update", None)
    if isinstance(found, type) or not callable(update):
        raise TypeError(
            "optimizer must be an optax.GradientTransformation or an object with a method "
            f"update(grads), got {given!r:.80}"
            + (", which makes one: call it first" if callable(given) else "")
        )
    frozen = tuple(frozen_states(learner).values())
    if not frozen or found is not given:
        return update
    return HoldingFrozen(update, tuple(trained_and_frozen(learner, weights)[1].items()), frozen)
