# SPDX-License-Identifier: Apache-2.0
"""Effects of a step happen once per step and in order, or are refused with their line."""

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


def in_a_branch(h: Any) -> None:
    jax.lax.cond(h[0, 0] > 0, lambda: io_callback(lambda v: None, None, h), lambda: None)


def with_a_result(h: Any) -> Any:
    kind = jax.ShapeDtypeStruct(h.shape, h.dtype)
    return h + io_callback(lambda v: np.asarray(v), kind, jax.lax.stop_gradient(h))


def reference_in_a_loop(h: Any) -> Any:
    ref = jax.new_ref(h)

    def body(k: Any, _: Any) -> Any:
        ref[...] = jnp.tanh(ref[...])
        return k, None

    jax.lax.scan(body, 0.0, length=2)
    return ref[...]


def gathered(h: Any) -> Any:
    return jax.new_ref(h)[:, jnp.array([0, 1, 1, 0])]


EFFECTS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "reference outside": (outside, "'swap'"),
    "reference in a loop": (reference_in_a_loop, "'(get|scan|swap|new_ref)'"),
    "reference at several indices": (gathered, "'(get|new_ref)'"),
    "callback with a result": (with_a_result, "'io_callback'"),
    "callback in a branch": (in_a_branch, "'io_callback'"),
    "in a loop": (in_a_loop, "'debug_print'"),
}


@pytest.mark.parametrize("name", EFFECTS)
def test_what_cannot_be_kept_is_refused_with_its_line(name: str) -> None:
    tell, primitive = EFFECTS[name]
    with pytest.raises(bt.NotSupportedError, match=rf"{primitive} at .*test_effects\.py:\d+"):
        made(Told(tell))


# --- callbacks of jax.experimental, and references -----------------------------------------------


def io_listening(told: list[Any], ordered: bool = True) -> Callable[[Any], None]:
    """It is told a part and a number, by position and by keyword."""

    def tell(row: Any, of_all: Any, *, number: Any) -> None:
        np.testing.assert_allclose(number, np.asarray(of_all).sum(), rtol=1e-5)
        told.append(np.array(of_all))

    return lambda h: io_callback(tell, None, h[0], h, number=h.sum(), ordered=ordered)


@pytest.mark.parametrize("action", ACTIONS)
def test_an_io_callback_happens_where_jax_would_drop_it(action: str) -> None:
    told: list[Any] = []
    learner = made(Told(io_listening(told)))
    told.clear()
    ACTIONS[action](learner)
    check(told)


@pytest.mark.parametrize("algorithm", ["d_rtrl", "rtrl", "snap", "uoro"])
def test_callbacks_of_the_step_function(algorithm: str) -> None:
    """They are the user's, beside the call of the learner."""
    told: list[Any] = []
    learner = made(Told(), algorithm)

    def step(x: Any) -> Any:
        y = learner(x)
        now = jax.lax.stop_gradient(y[0, 0])  # demanded by JAX, which has no JVP of the call
        io_callback(lambda v: told.append(float(v)), None, now, ordered=True)
        return (y**2).mean()

    learner.etrace_grad(XS, step_fn=step, block_size=2)
    jax.effects_barrier()
    model = brainstate.nn.init_all_states(Told(), batch_size=B)
    want = [float(model(x)[0, 0]) for x in XS]
    np.testing.assert_allclose(told, want, rtol=1e-5)


def by_reference(h: Any) -> Any:
    """Whole, sliced, indexed, added to, and at a place that depends on values."""
    ref, k = jax.new_ref(h), (h[0, 0] > 0).astype(int)
    ref[...] = jnp.tanh(ref[...])
    ref[:, 1:3] = ref[:, 1:3] * ref[:, :2]
    ref[0] = ref[1] + h[0]
    jax.ref.addupdate(ref, (k, 2), h[1, 1])
    last = ref[k, ::2].sum()
    return jax.freeze(ref) + last


def by_value(h: Any) -> Any:
    new, k = jnp.tanh(h), (h[0, 0] > 0).astype(int)
    new = new.at[:, 1:3].multiply(new[:, :2])
    new = new.at[0].set(new[1] + h[0])
    new = new.at[k, 2].add(h[1, 1])
    return new + new[k, ::2].sum()


@pytest.mark.parametrize("algorithm", ["d_rtrl", "rtrl"])
def test_a_reference_of_the_step_is_a_value(algorithm: str) -> None:
    learners = [made(Told(tell), algorithm) for tell in (by_reference, by_value)]
    found = [
        learner.etrace_grad(XS, step_fn=of_step(learner), return_value=True, block_size=2)
        for learner in learners
    ]
    assert_tree_close(*found, rtol=1e-12)
