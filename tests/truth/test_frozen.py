# SPDX-License-Identifier: Apache-2.0
"""What ``frozen`` names stays as it is, to the last bit, whatever changes the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import brainstate
import braintools
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintrace as bt

XS = jax.random.normal(jax.random.key(1), (6, 2, 3))
FROZEN = {("Wz", "weight"), ("Wr", "weight")}  # with a trace, and with a direct gradient only
PARAMETERS = {*FROZEN, ("Wh", "weight")}


class ByHand:
    """Decays all that it holds, with or without a gradient."""

    def __init__(self, weights: Mapping[Any, brainstate.State[Any]]) -> None:
        self.weights = weights

    def update(self, grads: Mapping[Any, Any]) -> None:
        for key, state in self.weights.items():
            state.value = jax.tree.map(lambda w, g: 0.9 * w - 0.1 * g, state.value, grads[key])


def registered(optimizer: Any, weights: Mapping[Any, Any]) -> Any:
    optimizer.register_trainable_weights(weights)
    return optimizer


OPTIMIZERS: dict[str, Callable[[Any], Any]] = {
    "sgd": lambda learner: optax.sgd(0.1),
    "adamw": lambda learner: optax.adamw(0.1, weight_decay=0.5),
    "noise": lambda learner: optax.chain(optax.add_noise(0.1, 0.5, 0), optax.sgd(0.1)),
    "its own": lambda learner: learner.optimizer(optax.adamw(0.1, weight_decay=0.5)),
    "by hand, all": lambda learner: ByHand(learner.param_states),
    "by hand, trained": lambda learner: ByHand(learner.trained_states),
    "braintools, all": lambda learner: registered(
        braintools.optim.AdamW(0.1, weight_decay=0.5), learner.param_states
    ),
    "braintools, trained": lambda learner: registered(
        braintools.optim.AdamW(0.1, weight_decay=0.5), learner.trained_states
    ),
}


def learner_of(algorithm: Any = "d_rtrl", frozen: Any = ("Wz", "Wr"), **options: Any) -> Any:
    brainstate.random.seed(0)
    cell = bt.nn.GRUCell(3, 4)
    return bt.compile(cell, algorithm, XS[0], batch_size=2, frozen=frozen, **options)


def loss_of(learner: Any) -> Callable[[Any], Any]:
    return lambda x: jnp.mean((learner(x) - 1) ** 2)


def moved(learner: Any, before: Mapping[Any, Any]) -> set[Any]:
    """The parameters that are no longer what they were, in any bit."""
    now = values_of(learner)

    def bits(value: Any) -> list[bytes]:
        return [leaf.tobytes() for leaf in jax.tree.leaves(value)]

    return {path for path in now if bits(now[path]) != bits(before[path])}


def values_of(learner: Any) -> dict[Any, Any]:
    return {p: jax.tree.map(np.array, s.value) for p, s in learner.param_states.items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_of_etrace_update_moves_it(name: str) -> None:
    learner = learner_of()
    before, optimizer = values_of(learner), OPTIMIZERS[name](learner)
    for _ in range(2):
        learner.etrace_update(XS, step_fn=loss_of(learner), optimizer=optimizer, update_every=2)
    assert moved(learner, before) == PARAMETERS - FROZEN


def test_windows_do_not_move_it_either() -> None:
    learner = learner_of(vjp_method="multi-step")
    before = values_of(learner)

    def losses(x: Any) -> Any:
        return jnp.mean((learner(bt.MultiStepData(x)) - 1) ** 2, (1, 2))

    how = {"step_fn": losses, "chunk_size": 3, "update_every": 3}
    learner.etrace_update(XS, optimizer=ByHand(learner.param_states), **how)
    assert moved(learner, before) == PARAMETERS - FROZEN
    grads = learner.etrace_grad(XS, step_fn=losses, chunk_size=3)
    assert {path for path, g in grads.items() if g["weight"].any()} == PARAMETERS - FROZEN


def test_its_gradient_is_zero_and_all_others_are_as_without_frozen() -> None:
    learner, free = learner_of(), learner_of(frozen=())
    found, reference = (f.etrace_grad(XS, step_fn=loss_of(f)) for f in (learner, free))
    assert found.keys() == reference.keys() == PARAMETERS
    named = learner.etrace_grad(
        XS, step_fn=loss_of(learner), weights={"z": learner.param_states["Wz", "weight"]}
    )
    for zero in (*(found[path] for path in FROZEN), named["z"]):
        assert not any(leaf.any() for leaf in jax.tree.leaves(zero))
    for a, b in zip(*(jax.tree.leaves(g["Wh", "weight"]) for g in (found, reference)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("of", ["param_states", "trained_states"])
def test_a_loop_by_hand_moves_it_neither(of: str) -> None:
    learner = learner_of()
    before, optimizer = values_of(learner), learner.optimizer(optax.adamw(0.1, weight_decay=0.5))
    states = getattr(learner, of)
    for x in XS:
        loss = lambda x=x: loss_of(learner)(x)  # noqa: E731
        optimizer.update(brainstate.transform.grad(loss, states)())
    assert moved(learner, before) == PARAMETERS - FROZEN
    assert learner.trained_states.keys() == PARAMETERS - FROZEN
    assert learner.param_states.keys() == PARAMETERS


@pytest.mark.parametrize("by", ["state", "iterator", "predicate", "path"])
def test_it_is_frozen_in_copies_and_for_another_batch_however_it_is_named(by: str) -> None:
    brainstate.random.seed(0)
    cell = bt.nn.GRUCell(3, 4)
    named: Any = {
        "state": [cell.Wz.weight],
        "iterator": iter(["Wz"]),
        "predicate": lambda path: path[0] == "Wz",
        "path": [("Wz", "weight")],
    }[by]
    learner = bt.compile(cell, "d_rtrl", XS[0], batch_size=2, frozen=named)
    copied = copy.deepcopy(learner)
    learner.reset_state(5, model_states=True)
    for one, xs in ((learner, jnp.ones((3, 5, 3), XS.dtype)), (copied, XS)):
        before = values_of(one)
        one.etrace_update(xs, step_fn=loss_of(one), optimizer=ByHand(one.param_states))
        assert moved(one, before) == PARAMETERS - {("Wz", "weight")}


def test_predictions_are_trained_beside_it() -> None:
    learner = learner_of(bt.DNI)
    assert ("synthesizer", "h") in learner.trained_states
    assert FROZEN.isdisjoint(learner.trained_states)


def test_an_optimizer_that_held_its_moments_is_restored(tmp_path: Any) -> None:
    transformation = optax.adam(0.1)
    before, after = learner_of(frozen=()), learner_of(frozen=())
    before.optimizer(transformation)
    before.save(tmp_path / "learner.npz")
    for learner in (before, after):  # as one that was made before moments were left out
        learner.executor.options["frozen"] = ["Wz"]
        object.__setattr__(learner.graph, "frozen", frozenset({("Wz", "weight")}))
    before.save(tmp_path / "learner.npz")
    after.optimizer(transformation)
    after.restore(tmp_path / "learner.npz")
