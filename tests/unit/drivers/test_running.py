# SPDX-License-Identifier: Apache-2.0
"""Nothing is compiled twice: at another call, for other data, after a reset, in another process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import optax
import pytest

import braintrace as bt
from braintrace.drivers.running import MOST, Drivers, read_states, write_states

T, B, IN, HIDDEN = 5, 2, 2, 3


class Net(brainstate.nn.Module):
    """A GRU with a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = bt.nn.GRUCell(IN, HIDDEN, key=1)
        self.readout = bt.nn.Linear(HIDDEN, IN, key=2)

    def update(self, x: Any) -> Any:
        return self.readout(self.cell(x))


def made(algorithm: Any, **options: Any) -> Any:
    return bt.compile(Net(), algorithm, jnp.zeros((B, IN), float), batch_size=B, **options)


@pytest.fixture
def compiling(caplog: Any) -> Callable[[], Any]:
    """A context that gives what XLA compiles in it."""

    @contextmanager
    def context() -> Iterator[list[str]]:
        found: list[str] = []
        caplog.clear()
        with jax.log_compiles():
            yield found
        found += [r.getMessage() for r in caplog.records if "XLA compilation" in r.getMessage()]

    return context


def actions_of(learner: Any) -> dict[str, Callable[[Any, Any], Any]]:
    """What a learner does with a sequence."""

    def loss(x: Any, y: Any) -> Any:
        return ((learner(x) - y) ** 2).mean()

    def online(x: Any, y: Any) -> Any:
        return brainstate.transform.grad(lambda: loss(x, y), learner.param_states)()

    optimizer = optax.sgd(0.01)
    jitted = brainstate.transform.jit(online)
    whole = brainstate.transform.jit(lambda xs, ys: learner.etrace_grad(xs, ys, step_fn=loss))
    return {
        "a call": lambda xs, ys: learner(xs[0]),
        "an online gradient": lambda xs, ys: online(xs[0], ys[0]),
        "an online gradient under jit": lambda xs, ys: jitted(xs[0], ys[0]),
        "etrace_grad": lambda xs, ys: learner.etrace_grad(xs, ys, step_fn=loss),
        "etrace_grad under jit": whole,
        "etrace_update": lambda xs, ys: learner.etrace_update(
            xs, ys, step_fn=loss, optimizer=optimizer
        ),
        "etrace_evolve": lambda xs, ys: learner.etrace_evolve(xs, return_outputs=True),
    }


def check_once(learner: Any, chosen: Any, compiling: Any) -> None:
    """Only the first call compiles, and only the first reset."""
    xs = jax.random.normal(jax.random.key(0), (T, B, IN), float)
    data, others = (xs, 0.5 * xs), (xs + 1.0, xs)
    learner.reset_state(B, model_states=True)
    for name, action in actions_of(learner).items():
        if chosen is not None and name not in chosen:
            continue
        with compiling() as at_first:
            action(*data)
        assert at_first, name
        with compiling() as later:
            action(*data)
            action(*others)
            learner.reset_state(B, model_states=True)
            action(*data)
        assert later == [], name


@pytest.mark.parametrize("algorithm", ["d_rtrl", "pp_prop"])
def test_every_driver_is_compiled_once(algorithm: str, compiling: Any) -> None:
    options = {"decay_or_rank": 0.9} if algorithm == "pp_prop" else {}
    check_once(made(algorithm, **options), None, compiling)


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        *((kind, {}) for kind in (bt.RTRL, bt.SnAp, bt.UORO, bt.DNI)),
        *((kind, {}) for kind in (bt.OSTLRecurrent, bt.OSTLFeedforward)),
        (bt.ThreeFactor, {"modulator": 0.5}),
    ],
)
def test_calls_of_every_rule_are_compiled_once(
    algorithm: Any, options: dict[str, Any], compiling: Any
) -> None:
    check_once(made(algorithm, **options), ("a call", "an online gradient"), compiling)


# --- in another process --------------------------------------------------------------------------

PROGRAM = """
import json, sys
import jax
jax.config.update("jax_compilation_cache_dir", sys.argv[1])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
import braintrace as bt
from braintrace.drivers.running import MOST, Drivers, read_states, write_states
import jax.numpy as jnp
from tests.unit.drivers.test_running import actions_of, made
learners = made("d_rtrl"), made(bt.UORO, projection_key=3)
events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
xs = jnp.ones((5, 2, 2))
for learner in learners:
    actions_of(learner)["etrace_grad"](xs, 0.5 * xs)
print(json.dumps([sum(name.endswith(end) for name in events) for end in ("hits", "misses")]))
"""


def test_a_persistent_cache_serves_another_process(tmp_path: Path) -> None:
    """Programs do not depend on hashes, names or addresses of the process."""

    def counts(seed: str) -> list[int]:
        root = Path(__file__).resolve().parents[3]
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path)],
            env={**kept, "PYTHONHASHSEED": seed, "PYTHONPATH": str(root)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]

    hits, misses = counts("1")
    assert misses > 0
    again, missed = counts("2")
    assert missed == 0 and again == hits + misses


# --- drivers that are kept ------------------------------------------------------------------------


def test_a_driver_is_kept_for_its_key() -> None:
    drivers, runs = Drivers(), []

    def run(x: Any) -> Any:
        runs.append(None)
        return 2 * x

    found = drivers.get((abs, "grad"), run)
    assert float(found(1.0)) == float(found(3.0)) - 4.0 == 2.0
    assert len(runs) == 1 and drivers.get((abs, "grad"), run) is found
    assert drivers.get((abs, "update"), run) is not found
    drivers.clear()
    assert drivers.get((abs, "grad"), run) is not found


def test_a_setting_that_a_driver_read_is_part_of_its_key() -> None:
    drivers = Drivers()
    with brainstate.environ.context(dt=0.1):
        found = drivers.get((abs,), lambda x: x * brainstate.environ.get("dt"))
        assert float(found(1.0)) == pytest.approx(0.1)
        assert drivers.get((abs,), max) is found
    with brainstate.environ.context(dt=0.2):
        assert drivers.get((abs,), max) is not found


def test_the_drivers_used_last_are_kept() -> None:
    drivers = Drivers()
    first = drivers.get((abs, 0), abs)
    for k in range(1, MOST):
        drivers.get((abs, k), abs)
    assert drivers.get((abs, 0), abs) is first  # and now it is the last that was used
    drivers.get((abs, MOST), abs)
    assert drivers.get((abs, 0), abs) is first
    assert len(drivers._kept) == MOST


def test_a_new_function_at_each_call_is_a_warning_once() -> None:
    drivers = Drivers()

    def new() -> Any:
        return lambda x: x

    for _ in range(3):
        drivers.get((new(), "grad"), abs)
    with pytest.warns(UserWarning, match=r"step_fn \(.*test_running.py:\d+\) is a new function"):
        drivers.get((new(), "grad"), abs)
    drivers.get((new(), "grad"), abs)


def test_states_are_read_by_kind_and_taken_back() -> None:
    learner = made("d_rtrl")
    params, states = read_states(learner)
    assert {*params} == {*learner.param_states} and ("cell", "h") in states
    write_states(learner, states, {path: value + 1.0 for path, value in states.items()})
    assert jnp.array_equal(learner.hidden_states["cell", "h"].value, states["cell", "h"] + 1.0)
    assert all(learner.param_states[path].value is value for path, value in params.items())


def test_a_gradient_of_a_call_without_jit_says_what_it_needs() -> None:
    def gradient() -> Any:
        learner, x = made("d_rtrl"), jnp.ones((B, IN))
        return brainstate.transform.grad(lambda: learner(x).sum(), learner.param_states)

    with pytest.raises(brainstate.TraceContextError) as raised, jax.disable_jit():
        gradient()()
    assert "etrace_grad, or put `with jax.disable_jit(False):`" in raised.value.__notes__[0]
    with jax.disable_jit(), jax.disable_jit(False):
        assert gradient()()
