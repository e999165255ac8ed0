# SPDX-License-Identifier: Apache-2.0
"""A process that runs contenders on request: ``python -m _bench.worker CASE SIZES``.

It reads one JSON request per line and answers with one JSON line. It is the same program for this
library and for the peer, which is used through its public interface only.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable
from functools import cached_property
from importlib.metadata import version
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace
from _bench.cases import CASES, Network, loss, model, sequences
from _bench.settings import Contender, Sizes

Gradient = Callable[[jax.Array, jax.Array], Any]


def bptt(network: Network, contender: Contender) -> tuple[Gradient, Any]:
    """Reverse mode through the whole sequence."""

    def total(xs: jax.Array, ys: jax.Array) -> jax.Array:
        each = brainstate.transform.for_loop(lambda x, y: loss(network(x), y), xs, ys)
        return each.mean()

    return brainstate.transform.grad(total, weights_of(network)), None


def sequence(network: Network, contender: Contender) -> tuple[Gradient, Any]:
    """D-RTRL of a sequence, block by block."""
    learner = braintrace.D_RTRL(network)
    learner.compile_graph(example(network))
    weights = weights_of(network)

    def gradient(xs: jax.Array, ys: jax.Array) -> Any:
        return learner.etrace_grad(
            xs,
            ys,
            step_fn=lambda x, y: loss(learner(x), y),
            weights=weights,
            block_size=contender.block_size,
            carry_trace=contender.carry_trace,
        )

    return gradient, learner


def steps(network: Network, contender: Contender) -> tuple[Gradient, Any]:
    """D-RTRL step by step, as for weights that are updated at every step."""
    learner = braintrace.D_RTRL(network)
    learner.compile_graph(example(network))
    weights = weights_of(network)

    def add(total: Any, inputs: Any) -> tuple[Any, None]:
        x, y = inputs
        found = brainstate.transform.grad(lambda: loss(learner(x), y), weights)()
        return jax.tree.map(jnp.add, total, dict(found)), None

    def gradient(xs: jax.Array, ys: jax.Array) -> Any:
        zeros = {path: jax.tree.map(jnp.zeros_like, s.value) for path, s in weights.items()}
        total, _ = brainstate.transform.scan(add, zeros, (xs, ys))
        return jax.tree.map(lambda v: v / len(xs), total)

    return gradient, learner


def weights_of(network: Network) -> dict[Any, brainstate.State[Any]]:
    """The parameters by path."""
    return dict(network.states(brainstate.ParamState).items())  # type: ignore[union-attr]


def example(network: Network) -> jax.Array:
    """An input of one step, for the compiler."""
    return jnp.zeros((network.sizes.batch, network.sizes.inputs))


KINDS = {"bptt": bptt, "sequence": sequence, "steps": steps}


class Entry:
    """A contender, ready to run."""

    def __init__(self, contender: Contender, case: str, sizes: Sizes) -> None:
        self.network, self.batch = model(CASES[case], sizes), sizes.batch
        start = time.perf_counter()
        gradient, self.learner = KINDS[contender.kind](self.network, contender)
        self.graph_seconds = time.perf_counter() - start
        self.jitted = brainstate.transform.jit(gradient)

    def prepare(self, data: Any) -> dict[str, float]:
        """Compile: seconds to analyse the model, to trace and compile; bytes while it runs."""
        start = time.perf_counter()
        stats = self.jitted.lower(*data).compile().memory_analysis()
        compiled = time.perf_counter() - start
        held = stats.argument_size_in_bytes + stats.output_size_in_bytes
        used = held + stats.temp_size_in_bytes - stats.alias_size_in_bytes
        return {"graph_s": self.graph_seconds, "compile_s": compiled, "bytes": used}

    def run(self, data: Any) -> tuple[Any, dict[str, float]]:
        """Gradients of the sequence from a reset, and the seconds they took."""
        brainstate.nn.reset_all_states(self.network, batch_size=self.batch)
        if self.learner is not None:
            self.learner.reset_state(batch_size=self.batch)
        owner = self.network if self.learner is None else self.learner
        jax.block_until_ready([state.value for state in jax.tree.leaves(owner.states())])
        wall, cpu = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(self.jitted(*data))
        return found, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


class Worker:
    """Answers requests, each a method and its arguments."""

    def __init__(self, case: str, sizes: Sizes) -> None:
        self.case, self.sizes = case, sizes
        self.entries: dict[str, Entry] = {}

    @cached_property
    def data(self) -> tuple[jax.Array, jax.Array]:
        return sequences(CASES[self.case], self.sizes)

    def facts(self) -> dict[str, Any]:
        names = ("jax", "jaxlib", "brainstate", "numpy")
        return {**{name: version(name) for name in names}, "backend": jax.default_backend()}

    def prepare(self, contender: list[Any], gradients: str) -> dict[str, float]:
        """Compile a contender, run it once and write its gradients to a file."""
        chosen = Contender(*contender)
        entry = self.entries[chosen.name] = Entry(chosen, self.case, self.sizes)
        compiled = entry.prepare(self.data)
        found, _ = entry.run(self.data)
        leaves = jax.tree_util.tree_leaves_with_path(dict(found))
        np.savez(gradients, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
        return compiled

    def run(self, name: str) -> dict[str, float]:
        return self.entries[name].run(self.data)[1]


def serve(worker: Worker) -> None:
    """Answer on the standard output, which nothing else writes to, until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        print(json.dumps(getattr(worker, method)(*arguments)), file=answers, flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(Worker(sys.argv[1], Sizes(*json.loads(sys.argv[2]))))
