# SPDX-License-Identifier: Apache-2.0
"""A sparse network forecasts a chaotic series while it runs (braintrace-sparse).

The Mackey-Glass equation, which is chaotic with a delay of 17; the network sees one value at a time
and says what comes six steps later. Every unit has eight recurrent inputs. Weights change every
ten steps, and nothing is ever reset.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import saiunit
from _shared import learning
from _shared.arguments import parse
from _shared.figure import BLUE, GREY, ORANGE, drawing
from _shared.neurons import Layer

import braintrace

UNITS, INPUTS, AHEAD, EVERY, PART = 256, 8, 6, 10, 1000


class SparseNetwork(Layer):
    """Leaky tanh units whose recurrent weights are few: x [1] -> forecast [1]."""

    kept = ("h",)
    h: Any

    def __init__(self, matrix: Any) -> None:
        super().__init__((UNITS,))
        self.seen = braintrace.nn.Linear(1, UNITS)
        self.recurrent = braintrace.nn.SparseLinear(matrix)
        self.readout = braintrace.nn.Linear(UNITS, 1)

    def update(self, x: jax.Array) -> jax.Array:
        new = jnp.tanh(self.seen(x) + self.recurrent(self.h.value))
        self.h.value = 0.7 * self.h.value + 0.3 * new
        return self.readout(self.h.value)


def connections(rng: np.random.Generator) -> Any:
    """A random matrix [256, 256] with eight entries in every column."""
    rows = np.stack([rng.choice(UNITS, INPUTS, replace=False) for _ in range(UNITS)])
    dense = np.zeros((UNITS, UNITS), np.float32)
    dense[rows.T, np.arange(UNITS)] = rng.normal(0.0, INPUTS**-0.5, (INPUTS, UNITS))
    return saiunit.sparse.CSR.fromdense(jnp.asarray(dense))


def mackey_glass(steps: int, delay: int = 17, parts: int = 10) -> np.ndarray:
    """``x' = 0.2 x(t - delay) / (1 + x(t - delay)^10) - 0.1 x``, one value per unit of time.

    M. C. Mackey and L. Glass, "Oscillation and chaos in physiological control systems", Science
    197 (1977) 287-289.
    """
    past = delay * parts
    x = np.full((steps + 200) * parts + past, 1.2)
    for t in range(past, len(x)):
        back = x[t - past]
        x[t] = x[t - 1] + (0.2 * back / (1.0 + back**10) - 0.1 * x[t - 1]) / parts
    return x[past + 200 * parts :: parts].astype(np.float32)


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn as the command line says; the exit status is 0."""
    options = parse(arguments, __doc__, "sparse_forecast")
    brainstate.random.seed(options.seed)
    rounds, part = (2, 100) if options.quick else (100, PART)
    series = mackey_glass(rounds * part + AHEAD)
    series = (series - series.mean()) / series.std()
    xs, ys = jnp.asarray(series[:-AHEAD, None]), jnp.asarray(series[AHEAD:, None])
    model = SparseNetwork(connections(np.random.default_rng(options.seed)))
    learner = braintrace.compile(model, "d_rtrl", xs[0])
    adam = learning.adam(learning.falling(4e-3, rounds * part // EVERY))

    def step(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        forecast = learner(x)
        return ((forecast - y) ** 2).mean(), forecast

    starts = iter(range(0, rounds * part, part))
    forecasts: list[np.ndarray] = []

    def learn(key: jax.Array) -> jax.Array:
        now = slice(first := next(starts), first + part)
        losses, forecast = learner.etrace_update(
            xs[now], ys[now], step_fn=step, optimizer=adam, update_every=EVERY, has_aux=True
        )
        forecasts.append(np.asarray(forecast[:, 0]))
        return jnp.sqrt(losses.mean())

    errors = learning.rounds("sparse forecast", learn, rounds, "error")
    still = float(np.sqrt(np.mean((ys - xs) ** 2)))
    weights = model.recurrent.weight.value["weight"].size
    print(f"{weights} recurrent weights instead of {UNITS**2}")
    print(f"error in the last {part} steps: {errors[-1]:.3f} of the series' standard deviation")
    print(f"(that nothing will change: {still:.3f}; {linear(series, part):.3f} with 32 past values "
          "and least squares)")  # fmt: skip

    with drawing(options.figure, 1, 1.8) as (learnt, line):
        learnt.plot(np.arange(1, rounds + 1) * part / 1000, errors, color=BLUE)
        learnt.set(xlabel="thousand steps", ylabel="error (standard deviations)")
        learnt.set_ylim(bottom=0.0)
        last = slice(-min(250, part), None)
        line.plot(np.asarray(ys[last, 0]), color=GREY, linewidth=3, label="series")
        line.plot(forecasts[-1][last], color=ORANGE, linewidth=1.2, label="forecast")
        line.set(xlabel="the last steps", title=f"what was expected {AHEAD} steps before")
        line.margins(y=0.2)
        line.legend(ncols=2, loc="upper center")
    return 0


def linear(series: np.ndarray, part: int, lags: int = 32) -> float:
    """The error of the best linear forecast from past values, on the last part."""
    count = len(series) - AHEAD - lags + 1
    past = np.stack([series[k : k + count] for k in range(lags)] + [np.ones(count)], 1)
    wanted = series[lags - 1 + AHEAD :]
    fitted = np.linalg.lstsq(past[:-part], wanted[:-part], rcond=None)[0]
    return float(np.sqrt(np.mean((past[-part:] @ fitted - wanted[-part:]) ** 2)))


if __name__ == "__main__":
    raise SystemExit(main())
