# SPDX-License-Identifier: Apache-2.0
"""Prints and callbacks of a step happen once per step and in order; other effects are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import io_callback

import braintrace as bt
from braintrace.testing import assert_tree_close

T, B, IN, HIDDEN = 4, 2, 3, 4
XS = jax.random.normal(jax.random.key(0), (T, B, IN), float)


class Told(brainstate.nn.Module):
    """A leaky layer and a readout that leaks; in between, something is told."""

    def __init__(self, tell: Callable[[Any], Any] = lambda h: None, batched: bool = True) -> None:
        super().__init__()
        self.tell, self.batched = tell, batched
        self.layer, self.readout = bt.nn.Linear(IN, HIDDEN, key=1), bt.nn.Linear(HIDDEN, 1, key=2)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        lead = (batch_size,) if self.batched and batch_size else ()
        self.h = brainstate.HiddenState(jnp.zeros((*lead, HIDDEN)))
        self.y = brainstate.HiddenState(jnp.zeros((*lead, 1)))

    def update(self, x: Any) -> Any:
        self.h.value = 0.9 * self.h.value + self.layer(x)
        told = self.tell(self.h.value)
        h = self.h.value if told is None else told
        self.y.value = 0.8 * self.y.value + self.readout(jnp.tanh(h))
        return self.y.value


def made(model: Any, algorithm: Any = "d_rtrl", **options: Any) -> Any:
    return bt.compile(model, algorithm, XS[0], batch_size=B, **options)


def of_step(learner: Any) -> Callable[[Any], Any]:
    return lambda x: (learner(x) ** 2).mean()


def calls(learner: Any) -> None:
    for x in XS:
        learner(x)


def online(learner: Any) -> None:
    for x in XS:
        loss = lambda x=x: of_step(learner)(x)  # noqa: E731
        brainstate.transform.grad(loss, learner.param_states)()


ACTIONS: dict[str, Callable[[Any], Any]] = {
    "calls": calls,
    "online": online,
    "evolve": lambda learner: learner.etrace_evolve(XS),
    "grad": lambda learner: learner.etrace_grad(XS, step_fn=of_step(learner), block_size=3),
    "update": lambda learner: learner.etrace_update(
        XS, step_fn=of_step(learner), optimizer=optax.sgd(0.0), update_every=2
    ),
}


def listening(told: list[Any], ordered: bool = True) -> Callable[[Any], None]:
    return lambda h: jax.debug.callback(lambda v: told.append(np.array(v)), h, ordered=ordered)


def hidden_values() -> list[Any]:
    model = brainstate.nn.init_all_states(Told(), batch_size=B)
    return [np.array(model.h.value) for x in XS if model(x) is not None]


def check(told: list[Any]) -> None:
    jax.effects_barrier()
    np.testing.assert_allclose(np.stack(told), np.stack(hidden_values()), rtol=1e-5)


@pytest.mark.parametrize("action", ACTIONS)
def test_a_callback_is_called_once_per_step_and_in_order(action: str) -> None:
    told: list[Any] = []
    learner = made(Told(listening(told)))
    jax.effects_barrier()
    told.clear()
    ACTIONS[action](learner)
    check(told)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("pp_prop", {"decay_or_rank": 0.9}),
        ("eprop", {"kappa_filter_decay": 0.5}),
        ("uoro", {}),
        ("rtrl", {}),
        ("snap", {"n": 1}),
        ("d_rtrl", {"downstream": "linear"}),
    ],
)
def test_under_every_rule(algorithm: str, options: dict[str, Any]) -> None:
    told: list[Any] = []
    learner = made(Told(listening(told)), algorithm, **options)
    told.clear()
    ACTIONS["grad"](learner)
    check(told)


@pytest.mark.parametrize("algorithm", ["d_rtrl", "dni"])
def test_in_windows(algorithm: str) -> None:
    told: list[Any] = []
    learner = made(Told(listening(told)), algorithm, vjp_method="multi-step")
    told.clear()
    learner.etrace_grad(
        XS, step_fn=lambda x: (learner(bt.MultiStepData(x)) ** 2).mean((1, 2)), chunk_size=2
    )
    check(told)


def test_with_vmap_for_each_example() -> None:
    told: list[Any] = []
    learner = made(Told(listening(told, ordered=False), batched=False), vmap=True)
    told.clear()
    ACTIONS["grad"](learner)
    jax.effects_barrier()
    assert len(told) == T * B


def test_what_is_printed_changes_no_number(capfd: Any) -> None:
    printing = Told(lambda h: jax.debug.print("h is {h}", h=h[0, 0]))
    pairs = [made(model) for model in (printing, Told())]
    capfd.readouterr()
    a, b = (one.etrace_grad(XS, step_fn=of_step(one)) for one in pairs)
    jax.effects_barrier()
    assert capfd.readouterr().out.count("h is ") == T
    assert_tree_close(a, b, rtol=1e-12)  # XLA may fuse another way


def test_a_branch_without_results_may_print() -> None:
    told: list[Any] = []

    def tell(h: Any) -> None:
        jax.lax.cond(h[0, 0] > 1e9, lambda: None, lambda: listening(told)(h))

    learner = made(Told(tell))
    told.clear()
    ACTIONS["grad"](learner)
    check(told)


def by_reference(h: Any) -> Any:
    ref = jax.new_ref(h)
    ref[...] = jnp.tanh(ref[...])
    return ref[...]


@cache
def kept_outside(dtype: Any) -> Any:
    return jax.new_ref(jnp.zeros((B, HIDDEN), dtype))


def outside(h: Any) -> None:
    with jax.ensure_compile_time_eval():
        ref = kept_outside(h.dtype)
    ref[...] = h


def in_a_loop(h: Any) -> Any:
    def body(h: Any, _: Any) -> Any:
        jax.debug.print("{h}", h=h)
        return jnp.sin(h), None

    return jax.lax.scan(body, h, length=40)[0]


EFFECTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "reference": (by_reference, "'new_ref'"),
    "reference outside": (outside, "'swap'"),
    "ordered": (lambda h: io_callback(lambda v: None, None, h, ordered=True), "'io_callback'"),
    "unordered": (lambda h: io_callback(lambda v: None, None, h), "'io_callback'"),
    "in a loop": (in_a_loop, "'debug_print'"),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_what_cannot_be_kept_is_refused_with_its_line(name: str) -> None:
    tell, primitive = EFFECTS[name]
    with pytest.raises(bt.NotSupportedError, match=rf"{primitive} at .*test_effects\.py:\d+"):
        made(Told(tell))
