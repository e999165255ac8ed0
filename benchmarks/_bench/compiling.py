# SPDX-License-Identifier: Apache-2.0
"""What compiling takes: analysis of a deep model, the gradient's program, and compiling again."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import brainstate
import jax

from .cases import example, loss, network, sequences, weights_of
from .processes import Process, process, run_json, serve, variables
from .programs import Program, program_of
from .settings import BPTT, DEFAULT, PP, UPDATE, Contender, Sizes
from .works import Descent, build, make_learner

DEPTH = 12
CELLS = ("gru", "lstm", "lif")
CELL_SIZES = Sizes(1, 1, 64, 64)
GRADIENTS = {
    "gru": Sizes(100, 64, 64, 256),
    "lstm": Sizes(100, 64, 64, 256),
    "lif": Sizes(1000, 16, 64, 256),
    "stack": Sizes(1000, 16, 64, 128),
}
SHORT = Sizes(4, 2, 3, 4)
COMPILED = "/jax/core/compile/backend_compile_duration"
MISSED = "/jax/compilation_cache/cache_misses"


def measure(pythons: Mapping[bool, Path], rounds: int, short: bool = False) -> dict[str, Any]:
    """All about compiling.

    Returns
    -------
    dict
        ``analysis``: by cell, ``ours`` and ``peer``, seconds of the graph analysis of twelve
        stacked cells; ``gradient``: by model, ``trace_s`` and ``compile_s`` of contenders;
        ``again``: programs compiled by calls after the first two; ``cached``: programs that a
        second process compiles in spite of JAX's persistent cache.
    """
    found: dict[str, Any] = {"analysis": {}, "gradient": {}}
    with ExitStack() as stack:
        workers = {
            "peer" if peer else "ours": stack.enter_context(process(python, "_bench.compiling"))
            for peer, python in pythons.items()
        }
        for cell in CELLS[:1] if short else CELLS:
            found["analysis"][cell] = analysis(cell, workers, rounds, 2 if short else DEPTH)
        for name in ("gru",) if short else GRADIENTS:
            sizes = SHORT if short else GRADIENTS[name]
            found["gradient"][name] = gradient(workers["ours"], name, sizes, min(rounds, 3))
        found["again"] = workers["ours"].ask("again", "gru", SHORT, short)
    with tempfile.TemporaryDirectory() as folder:
        cache = variables(
            pythons[False],
            JAX_COMPILATION_CACHE_DIR=folder,
            JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
            JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
        )
        arguments = (pythons[False], "_bench.compiling", "gru", SHORT)
        first, second = (run_json(*arguments, env=cache) for _ in range(2))
    return {**found, "cached": {"first": first, "second": second}}


def analysis(cell: str, workers: Mapping[str, Process], rounds: int, depth: int) -> dict[str, Any]:
    """Seconds of the graph analysis of stacked cells, in turn; of several, without the first."""
    seconds: dict[str, list[float]] = {who: [] for who in workers}
    for _ in range(rounds):
        for who, worker in workers.items():
            seconds[who].append(worker.ask("analyse", cell, CELL_SIZES, depth))
    return {who: found[1:] or found for who, found in seconds.items()}


def gradient(worker: Process, name: str, sizes: Sizes, rounds: int) -> dict[str, Any]:
    """Seconds to trace and to compile the program of a gradient, contenders in turn."""
    found: dict[str, Any] = {c.name: {"trace_s": [], "compile_s": []} for c in (BPTT, DEFAULT)}
    for _ in range(rounds):
        for one in (BPTT, DEFAULT):
            for key, seconds in worker.ask("compile", one, name, sizes).items():
                found[one.name][key].append(seconds)
    return found


# --- in the process that compiles ----------------------------------------------------------------


class Counter:
    """How often an event of JAX's has happened."""

    def __init__(self) -> None:
        self.compiled = self.missed = 0
        jax.monitoring.register_event_duration_secs_listener(self._count)
        jax.monitoring.register_event_listener(self._count)

    def _count(self, event: str, *_: Any, **__: Any) -> None:
        self.compiled += event == COMPILED
        self.missed += event == MISSED


class Compiler:
    """Answers requests about compiling."""

    def analyse(self, cell: str, sizes: list[int], depth: int) -> float:
        """Seconds to make a learner for a stack of cells."""
        chosen = Sizes(*sizes)
        stack = network(cell, chosen, depth=depth)
        x = example(cell, chosen)
        start = time.perf_counter()
        make_learner(stack, DEFAULT, x)
        return time.perf_counter() - start

    def compile(self, contender: list[Any], name: str, sizes: list[int]) -> dict[str, float]:
        """Seconds to trace and to compile a program that is new."""
        program = program_of(Contender(*contender), name, Sizes(*sizes))
        found = program.compile(sequences(name, Sizes(*sizes)))
        return {key: found[key] for key in ("trace_s", "compile_s")}

    def again(self, name: str, sizes: list[int], short: bool) -> dict[str, int]:
        """Programs that are compiled when a call is repeated, by kind of call.

        Each call is made twice; then it is made once more, with another sequence, and after a reset
        of model and learner.
        """
        chosen, counter, found = Sizes(*sizes), Counter(), {}
        data = sequences(name, chosen)
        other = [jax.block_until_ready(part[::-1]) for part in data]
        for label, make in CALLS.items():
            if short and label not in FEW_CALLS:
                continue
            program, call = make(name, chosen)
            start = counter.compiled
            for _ in range(2):
                program.reset()
                jax.block_until_ready(call(*data))
            before = counter.compiled
            if before == start:
                raise RuntimeError(f"{label} compiled nothing at all: the count is of no use")
            jax.block_until_ready(call(*data))
            jax.block_until_ready(call(*other))
            program.reset()
            jax.block_until_ready(call(*data))
            found[label] = counter.compiled - before
        return found


Call = tuple[Program, Callable[[jax.Array, jax.Array], Any]]


def driver(one: Contender, name: str, sizes: Sizes) -> Call:
    """The learner's driver for a sequence, called as it is."""
    program = program_of(one, name, sizes)
    learner, optimizer = program.built.learner, Descent(program.built.network)

    def step(x: jax.Array, y: jax.Array) -> jax.Array:
        return loss(learner(x), y)

    if one is UPDATE:
        return program, partial(learner.etrace_update, step_fn=step, optimizer=optimizer)
    return program, partial(learner.etrace_grad, step_fn=step)


def jitted(one: Contender, name: str, sizes: Sizes) -> Call:
    """The same inside the user's ``jit``."""
    program = program_of(one, name, sizes)
    return program, brainstate.transform.jit(program.built.work)


def evolving(name: str, sizes: Sizes) -> Call:
    """States and traces that move on."""
    program = program_of(DEFAULT, name, sizes)
    return program, lambda xs, ys: program.built.learner.etrace_evolve(xs)


def alone(compiled: bool, name: str, sizes: Sizes) -> Call:
    """A single step."""
    program = program_of(DEFAULT, name, sizes)
    run = program.built.learner
    run = brainstate.transform.jit(run) if compiled else run
    return program, lambda xs, ys: run(xs[0])


def differentiated(name: str, sizes: Sizes) -> Call:
    """A single step under ``grad``."""
    program = program_of(DEFAULT, name, sizes)
    learner, states = program.built.learner, weights_of(program.built.network)

    def call(xs: jax.Array, ys: jax.Array) -> Any:
        return dict(brainstate.transform.grad(lambda: loss(learner(xs[0]), ys[0]), states)())

    return program, call


CALLS: Mapping[str, Callable[[str, Sizes], Call]] = {
    "etrace_grad": partial(driver, DEFAULT),
    "etrace_grad, pp_prop": partial(driver, PP),
    "etrace_update": partial(driver, UPDATE),
    "etrace_evolve": evolving,
    "etrace_grad in jit": partial(jitted, DEFAULT),
    "etrace_update in jit": partial(jitted, UPDATE),
    "learner(x)": partial(alone, False),
    "learner(x) under grad": differentiated,
    "learner(x) in jit": partial(alone, True),
}
FEW_CALLS = ("etrace_grad", "learner(x)")


def compiled_with_cache(name: str, sizes: list[int]) -> int:
    """Programs of a gradient that JAX's persistent cache does not have."""
    counter, chosen = Counter(), Sizes(*sizes)
    built = build(DEFAULT, name, chosen)
    jax.block_until_ready(brainstate.transform.jit(built.work)(*sequences(name, chosen)))
    return counter.missed


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    arguments = json.loads(sys.argv[1])
    if arguments:
        print(compiled_with_cache(*arguments))
    else:
        serve(Compiler())
