# SPDX-License-Identifier: Apache-2.0
"""Layers below readouts that leak, run in a process: ``python -m _bench.leaks [CASE]``.

The program is the same for this build and for one before, which knows no ``downstream``. The
network can be had in three forms: as it is written, with the leak of its readout moved in front of
the product by hand, and for BPTT, with recurrent input held as D-RTRL holds it.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
from _shared.neurons import Layer, spike

import braintrace

from .processes import serve

OUTPUTS = 10
Form = str
#: The network as it is written, moved by hand, and with its recurrent input held.
FORMS = WRITTEN, MOVED, HELD = "written", "moved", "held"


class Case(NamedTuple):
    """A layer below a readout, and its sizes.

    Attributes
    ----------
    below
        ``'soft'`` or ``'hard'``: LIF neurons with a reset that is detached or not; ``'cuba'``:
        soft ones with a synaptic current; ``'gru'``.
    above
        ``'leak'``: a product and a leak; ``'product'``: a product alone.
    """

    below: str
    above: str
    inputs: int
    units: int
    batch: int
    steps: int


class Neurons(Layer):
    """A product and spiking neurons: [B, inputs] to [B, units]."""

    v: brainstate.HiddenState
    current: brainstate.HiddenState

    def __init__(self, case: Case) -> None:
        super().__init__((case.units,))
        self.product, self.case = braintrace.nn.Linear(case.inputs, case.units), case
        self.kept = ("v", "current") if case.below == "cuba" else ("v",)

    def update(self, x: jax.Array) -> jax.Array:
        v, driven = self.v.value, self.product(x)
        if self.case.below == "cuba":
            driven = self.current.value = 0.7 * self.current.value + driven
        fired = spike(v - 1)
        left = v * (1 - fired) if self.case.below == "hard" else v - jax.lax.stop_gradient(fired)
        self.v.value = 0.9 * left + driven
        return spike(self.v.value - 1)


class HeldGRU(brainstate.nn.Module):
    """The GRU of a cell, whose products take the old value without its derivative."""

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.cell = cell

    def update(self, x: jax.Array) -> jax.Array:
        cell, h = self.cell, self.cell.h.value
        held = jax.lax.stop_gradient(h)
        z = jax.nn.sigmoid(cell.Wz(jnp.concatenate([x, held], -1)))
        r = jax.nn.sigmoid(cell.Wr(jnp.concatenate([x, held], -1)))
        new = jnp.tanh(cell.Wh(jnp.concatenate([x, jax.lax.stop_gradient(r * h)], -1)))
        cell.h.value = (1 - z) * h + z * new
        return cell.h.value


class Network(Layer):
    """The layer and a readout of ten: [B, inputs] to [B, 10]."""

    out: brainstate.HiddenState

    def __init__(self, case: Case, form: Form) -> None:
        super().__init__((case.units if form == MOVED else OUTPUTS,))
        self.case, self.form = case, form
        self.kept = ("out",) if case.above == "leak" else ()
        gru = case.below == "gru"
        self.low = braintrace.nn.GRUCell(case.inputs, case.units) if gru else Neurons(case)
        self.readout = braintrace.nn.Linear(case.units, OUTPUTS, b_init=None)

    def update(self, x: jax.Array) -> jax.Array:
        held = self.form == HELD and self.case.below == "gru"
        z = HeldGRU(self.low).update(x) if held else self.low(x)
        if self.case.above == "product":
            return self.readout(z)
        value = z if self.form == MOVED else self.readout(z)
        self.out.value = 0.8 * self.out.value + 0.2 * value
        return self.readout(self.out.value) if self.form == MOVED else self.out.value


def network(case: Case, form: Form) -> Network:
    """A network with states and the same weights in every process."""
    made, rng = Network(case, form), np.random.default_rng(0)
    brainstate.nn.init_all_states(made, batch_size=case.batch)
    for _, state in sorted(weights(made).items(), key=str):
        state.value = jax.tree.map(
            lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape) * _spread(leaf), leaf.dtype),
            state.value,
        )
    return made


def weights(made: Network) -> dict[Any, Any]:
    return dict(made.states(brainstate.ParamState).items())  # type: ignore[union-attr]


def _spread(leaf: Any) -> float:
    return float(2 / np.sqrt(leaf.shape[0])) if leaf.ndim > 1 else 0.1


def sequences(case: Case) -> tuple[jax.Array, jax.Array]:
    """Inputs [T, B, inputs] and targets [T, B, 10]."""
    rng = np.random.default_rng(1)
    xs = rng.random((case.steps, case.batch, case.inputs))
    ys = rng.standard_normal((case.steps, case.batch, OUTPUTS))
    return jnp.asarray(xs), jnp.asarray(ys)


class Worker:
    """Answers requests, each a method and its arguments."""

    def __init__(self, *case: Any) -> None:
        self.case = Case(*case)
        self.data = sequences(self.case)
        self.runs: dict[str, tuple[Callable[[], None], Callable[[], Any]]] = {}

    def learner(self, form: Form) -> Any:
        made = network(self.case, form)
        return braintrace.compile(made, "d_rtrl", self.data[0][0], batch_size=self.case.batch)

    def gradients(self, form: Form) -> dict[str, list[float]]:
        """Flat gradients of the sequence by parameter: D-RTRL, or BPTT of the held network."""

        def loss(out: jax.Array, y: jax.Array) -> jax.Array:
            return jnp.mean((out - y) ** 2)

        xs, ys = self.data
        if form == HELD:
            made = network(self.case, form)

            def whole() -> Any:
                out = brainstate.transform.for_loop(made, xs)
                return jax.vmap(loss)(out, ys).mean()

            found = brainstate.transform.grad(whole, weights(made))()
        else:
            learner = self.learner(form)
            found = learner.etrace_grad(xs, ys, step_fn=lambda x, y: loss(learner(x), y))
        arrays = jax.tree_util.tree_leaves_with_path(found)
        return {jax.tree_util.keystr(at): [*map(float, leaf.ravel())] for at, leaf in arrays}

    def traces(self, form: Form) -> dict[str, int]:
        """Bytes of traces and of filters in the place of some, of weights by path and of all."""
        learner = self.learner(form)
        rule, graph = learner.rule, learner.graph
        held = jax.eval_shape(rule.init)
        found: dict[str, int] = {}
        for i, link in enumerate(rule.links):
            own = jax.eval_shape(lambda traces, i=i: rule.held_by(traces, i), held)
            for path in link.relation.parameter_paths:
                name = ".".join(map(str, path))
                found[name] = found.get(name, 0) + _bytes(own.get("weight", ()))
        slots = getattr(graph, "executed", graph).module_info.slots
        filters = [s.state.value for s in slots if getattr(s, "is_filter", False)]
        return {**found, "filters": _bytes(filters), "all": _bytes((held, filters))}

    def prepare(self, name: str, form: Form, driver: str) -> None:
        """Compile a driver: ``'update'`` at every step, or the gradient of the sequence.

        That is ``'gradient'``, or ``'fresh'`` where no trace is kept for the next call.
        """
        learner = self.learner(form)

        def step(x: Any, y: Any) -> Any:
            return jnp.mean((learner(x) - y) ** 2)

        if driver == "update":
            optimizer = optax.sgd(1e-3)

            def run() -> Any:
                return learner.etrace_update(*self.data, step_fn=step, optimizer=optimizer)
        else:

            def run() -> Any:
                kept = driver == "gradient"
                return learner.etrace_grad(*self.data, step_fn=step, carry_trace=kept)

        own = weights(learner.model)
        values = {path: state.value for path, state in own.items()}

        def reset() -> None:
            for path, state in own.items():
                state.value = jax.tree.map(jnp.copy, values[path])
            learner.reset_state(batch_size=self.case.batch, model_states=True)
            jax.block_until_ready(jax.live_arrays())  # to read a trace would put it together

        self.runs[name] = reset, run
        self.run(name)

    def run(self, name: str) -> float:
        """Seconds of the processor for one more run from a reset."""
        reset, run = self.runs[name]
        reset()
        start = time.process_time()
        jax.block_until_ready(run())
        return time.process_time() - start


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


if __name__ == "__main__":
    if os.environ.get("JAX_ENABLE_X64") == "1":
        brainstate.environ.set(precision=64)
    warnings.simplefilter("ignore")
    serve(Worker(*json.loads(sys.argv[1])))
