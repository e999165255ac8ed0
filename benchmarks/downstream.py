# SPDX-License-Identifier: Apache-2.0
"""Time of D-RTRL with ``downstream='linear'`` beside the published rule (docs/credit.md).

``.venv/bin/python benchmarks/downstream.py`` prints, for each network and driver, milliseconds of
the processor per step (medians of runs in turn) and how many times as fast the option is. The two
gradients are different ones; tests/truth/test_downstream.py compares them with BPTT. With
``exact`` behind it, it prints those of ``'linear'`` and ``'exact'`` below a GRU of a few units,
and of the gradient of a sequence by BPTT (tests/truth/test_exact.py).
"""

from __future__ import annotations

import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import optax

import braintrace

RUNS = 4


@jax.custom_jvp
def spike(v: Any) -> Any:
    return (v > 0).astype(v.dtype)


@spike.defjvp
def _spike_jvp(primals: Any, tangents: Any) -> Any:
    return spike(*primals), tangents[0] / (1 + 3 * jnp.abs(primals[0])) ** 2


class Layer(brainstate.nn.Module):
    """A product and a state: ``'hard'`` or ``'soft'`` (detached) reset, or a ``'leak'`` alone."""

    def __init__(self, inputs: int, units: int, kind: str) -> None:
        super().__init__()
        self.product, self.units, self.kind = braintrace.nn.Linear(inputs, units), units, kind

    def init_state(self, batch_size: int) -> None:
        self.v = brainstate.HiddenState(jnp.zeros((batch_size, self.units)))

    def update(self, x: Any) -> Any:
        v, y = self.v.value, self.product(x)
        if self.kind == "leak":
            self.v.value = 0.8 * v + 0.2 * y
            return self.v.value
        z = spike(v - 1)
        reset = 0.9 * v * (1 - z) if self.kind == "hard" else 0.9 * v - jax.lax.stop_gradient(z)
        self.v.value = reset + y
        return spike(self.v.value - 1)


def network(below: str, units: int, above: str) -> Callable[[], tuple[Any, int]]:
    def make() -> tuple[Any, int]:
        inputs = 64 if below == "GRU" else units
        low = braintrace.nn.GRUCell(inputs, units) if below == "GRU" else None
        top = braintrace.nn.Linear(units, 10) if above == "product" else Layer(units, 10, "leak")
        if above.startswith("GRU"):
            top = braintrace.nn.GRUCell(units, int(above[3:]))
        return brainstate.nn.Sequential(low or Layer(inputs, units, below), top), inputs

    return make


def by_bptt(model: Any, batch: int) -> Callable[[Any, Any], Any]:
    """The gradient of a sequence by backpropagation through time."""
    weights = model.states(brainstate.ParamState)

    def step(x: Any, y: Any) -> Any:
        return ((model(x) - y) ** 2).mean()

    @brainstate.transform.jit
    def run(xs: Any, ys: Any) -> Any:
        def loss() -> Any:
            brainstate.nn.reset_all_states(model, batch_size=batch)
            return brainstate.transform.for_loop(step, xs, ys).mean()

        return brainstate.transform.grad(loss, weights)()

    return run


def driven(
    make: Callable[[], tuple[Any, int]],
    batch: int,
    steps: int,
    driver: str,
    ways: tuple[str, ...] = ("step", "linear"),
    outputs: int = 10,
) -> Any:
    """Seconds of the processor per step, by ``downstream``; or with BPTT."""
    options: dict[str, Any] = {"optimizer": optax.sgd(1e-3)} if driver == "update" else {}
    runs: dict[str, Callable[[], Any]] = {}
    for downstream in ways:
        brainstate.random.seed(0)
        model, inputs = make()
        xs = brainstate.random.rand(steps, batch, inputs)
        ys = brainstate.random.rand(steps, batch, outputs)
        if downstream == "BPTT":
            brainstate.nn.init_all_states(model, batch_size=batch)
            whole = by_bptt(model, batch)

            def backward(whole: Any = whole, data: Any = (xs, ys)) -> Any:
                return jax.block_until_ready(whole(*data))

            backward()
            runs[downstream] = backward
            continue
        learner = braintrace.compile(
            model, "d_rtrl", xs[0], batch_size=batch, downstream=downstream
        )

        def step(x: Any, y: Any, learner: Any = learner) -> Any:
            return ((learner(x) - y) ** 2).mean()

        method = learner.etrace_update if driver == "update" else learner.etrace_grad

        def run(method: Any = method, data: Any = (xs, ys), step: Any = step) -> Any:
            return jax.block_until_ready(method(*data, step_fn=step, **options))

        run()
        runs[downstream] = run
    found: dict[str, list[float]] = {downstream: [] for downstream in runs}
    for _ in range(RUNS):
        for downstream, run in runs.items():
            start = time.process_time()
            run()
            found[downstream].append((time.process_time() - start) / steps)
    return {downstream: statistics.median(times) for downstream, times in found.items()}


CASES = (
    ("soft", 1024, "product", 16, 20, "update"),
    ("soft", 256, "product", 64, 50, "update"),
    ("soft", 256, "leak", 64, 50, "update"),
    ("hard", 256, "leak", 64, 50, "update"),
    ("hard", 256, "leak", 64, 50, "gradient"),
    ("GRU", 256, "leak", 64, 50, "update"),
    ("GRU", 256, "leak", 64, 50, "gradient"),
)


#: Units of the GRU above, then as above.
EXACT = (
    ("hard", 256, 5, 32, 50, "gradient"),
    ("hard", 256, 10, 32, 50, "gradient"),
    ("hard", 256, 20, 32, 50, "gradient"),
    ("hard", 256, 5, 32, 20, "update"),
    ("hard", 256, 10, 32, 20, "update"),
)


def main_exact() -> None:
    print("layer below, units, units above, batch, driver: ms a step, linear, exact, BPTT")
    for below, units, above, batch, steps, driver in EXACT:
        ways = ("linear", "exact", *(["BPTT"] if driver == "gradient" else []))
        make = network(below, units, f"GRU{above}")
        times = driven(make, batch, steps, driver, ways, above)
        shown = "".join(f"{1e3 * seconds:9.2f}" for seconds in times.values())
        print(f"{below:5} {units:5} {above:5} {batch:3} {driver:9}{shown}", flush=True)


def main() -> None:
    warnings.simplefilter("ignore", braintrace.CompilationWarning)
    if "exact" in sys.argv[1:]:
        main_exact()
        return
    print("layer below, units, above it, batch, driver: ms a step, published and linear; times")
    for below, units, above, batch, steps, driver in CASES:
        times = driven(network(below, units, above), batch, steps, driver)
        step, linear = (1e3 * times[downstream] for downstream in ("step", "linear"))
        print(
            f"{below:5} {units:5} {above:8} {batch:3} {driver:9}"
            f"{step:8.2f} {linear:8.2f} {step / linear:6.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
