# SPDX-License-Identifier: Apache-2.0
"""Five cells of braintrace-dense remember four bits through noise, online by D-RTRL.

Four bits are shown once, 30 steps of noise follow, then the network says what they were. The gates
of the others start so that a state is kept for long; the LRU does without. A plain tanh cell keeps
what it knows in its recurrent product alone, which D-RTRL leaves out: the compiler warns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from _shared import learning
from _shared.arguments import parse
from _shared.figure import COLOURS, drawing

import braintrace
from braintrace.nn import GRUCell, Linear, LRUCell, LSTMCell, MiniGRU, ValinaRNNCell

BITS, NOISE, UNITS, BATCH = 4, 30, 32, 32
STEPS = 1 + NOISE
LAST = jnp.arange(STEPS) == STEPS - 1


def linear_unit(num_in: int, num_units: int) -> brainstate.nn.Module:
    """Slow modes between two maps; the output of an LRU has the size of its input."""
    slow = LRUCell(num_units, num_units, r_min=0.9, r_max=0.999, max_phase=0.3)
    return brainstate.nn.Sequential(Linear(num_in, num_units), slow)


def patient(
    kind: Callable[..., Any], gate: str, bias: float, **options: Any
) -> Callable[[int, int], brainstate.nn.Module]:
    """A cell one of whose gates starts so that the state is kept for long."""

    def cell(num_in: int, num_units: int) -> brainstate.nn.Module:
        made = kind(num_in, num_units, **options)
        weight = getattr(made, gate).weight
        weight.value = {**weight.value, "bias": jnp.full(num_units, bias)}
        return made

    return cell


CELLS: dict[str, Callable[[int, int], brainstate.nn.Module]] = {
    "minGRU": patient(MiniGRU, "W_z", -3.0, recurrent_gates=False),
    "LRU": linear_unit,
    "GRU": patient(GRUCell, "Wz", -3.0),
    "LSTM": patient(LSTMCell, "Wf", 3.0),
    "tanh": ValinaRNNCell,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the command line says; the exit status is 0."""
    options = parse(arguments, __doc__, "dense_cells")
    names = ("minGRU",) if options.quick else tuple(CELLS)
    curves = {name: train(name, options.seed, options.quick) for name in names}
    for name, right in curves.items():
        print(f"{name:<8}{right[-1]:.3f} of the bits are right (guessing: 0.5)")
    with drawing(options.figure, 1, height=3.0) as (axes,):
        for (name, right), colour in zip(curves.items(), COLOURS, strict=False):
            axes.plot(range(1, len(right) + 1), right, color=colour, label=name)
        axes.set(xlabel="round of 50 batches", ylabel="bits right", ylim=(0.4, 1.02))
        axes.set_title(f"{BITS} bits through {NOISE} steps of noise, {UNITS} units")
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return 0


def train(name: str, seed: int, quick: bool) -> list[float]:
    """The fraction of bits that a cell gets right, by round."""
    brainstate.random.seed(seed)
    model = brainstate.nn.Sequential(CELLS[name](BITS, UNITS), Linear(UNITS, BITS))
    learner = braintrace.compile(model, "d_rtrl", jnp.zeros((BATCH, BITS)), batch_size=BATCH)
    adam = learner.optimizer(learning.adam(5e-3))

    def learn(key: jax.Array) -> jax.Array:
        xs = jax.random.normal(key, (STEPS, BATCH, BITS))
        bits = (xs[0] > 0).astype(xs.dtype)
        xs = (0.3 * xs).at[0].set(2 * bits - 1)

        def step(x: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = learner(x)
            return (jax.nn.softplus(logits) - bits * logits).mean(), logits

        learner.reset_state(BATCH, model_states=True)
        grads, logits = learner.etrace_grad(
            xs, step_fn=step, mask=LAST, carry_trace=False, has_aux=True
        )
        adam.update(grads)
        return ((logits[-1] > 0) == bits).mean()

    @brainstate.transform.jit
    def learn_more(key: jax.Array) -> jax.Array:
        return brainstate.transform.for_loop(learn, jax.random.split(key, 50)).mean()

    return learning.rounds(f"{name:<7}", learn_more, 2 if quick else 20, "right")


if __name__ == "__main__":
    raise SystemExit(main())
