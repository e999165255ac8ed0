# SPDX-License-Identifier: Apache-2.0
"""Compiled programs: what compiling them takes, what a run takes, and what comes out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import brainstate
import jax

from .cases import set_weights, weights
from .settings import Contender, Sizes, model_of
from .works import Built, build

Data = tuple[jax.Array, jax.Array]


class Program:
    """A contender whose work is one compiled program for the whole sequence."""

    def __init__(self, contender: Contender, case: str, sizes: Sizes) -> None:
        start = time.perf_counter()
        self.built: Built = build(contender, model_of(case), sizes)
        self.build_seconds = time.perf_counter() - start
        self.stages = contender.stages
        self.batch, self.weights = sizes.batch, weights(self.built.network)
        self.owner = self.built.learner or self.built.network

    def compile(self, data: Data) -> dict[str, float]:
        """Trace and compile.

        Returns
        -------
        dict
            ``trace_s`` and ``compile_s``, the ``bytes`` that the program takes (arguments, results
            and temporary arrays), and those of its ``temporary`` arrays alone.
        """
        start = time.perf_counter()
        with nullcontext() if self.stages else step_by_step():
            lowered = self.lower(data)
        traced = time.perf_counter()
        self.compiled = lowered.compile()
        stats = self.compiled.memory_analysis()
        return {
            "trace_s": traced - start,
            "compile_s": time.perf_counter() - traced,
            "bytes": program_bytes(stats),
            "temporary": stats.temp_size_in_bytes,
        }

    def lower(self, data: Data) -> Any:
        self.program = brainstate.transform.jit(self.built.work)
        return self.program.lower(*data)

    def execute(self, data: Data) -> Any:
        return jax.block_until_ready(self.program(*data))

    def reset(self) -> None:
        """Go back to the start: states, traces and weights."""
        brainstate.nn.reset_all_states(self.built.network, batch_size=self.batch)
        if self.built.learner is not None:
            self.built.learner.reset_state(batch_size=self.batch)
        set_weights(self.built.network, jax.tree.map(jax.numpy.copy, self.weights))
        jax.block_until_ready([state.value for state in jax.tree.leaves(self.owner.states())])

    def run(self, data: Data) -> tuple[Any, dict[str, float]]:
        """The results of the sequence from a reset, and the seconds they took."""
        self.reset()
        wall, cpu = time.perf_counter(), time.process_time()
        found = self.execute(data)
        return found, {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


class Donated(Program):
    """A program to which the old states are given away, as a learner's own drivers do.

    A jitted call cannot write its result over its arguments unless they are donated, and
    ``brainstate.transform.jit`` donates no states, so the states are passed by hand here.
    """

    def lower(self, data: Data) -> Any:
        function = brainstate.transform.StatefulFunction(self.built.work, return_only_write=False)
        function.make_jaxpr(*data)
        self.states = function.get_states(*data)
        self.program = jax.jit(function.jaxpr_call, donate_argnums=0)
        self.reset()
        return self.program.lower(self._values(), *data)

    def _values(self) -> tuple[Any, ...]:
        return tuple(state.value for state in self.states)

    def execute(self, data: Data) -> Any:
        values, found = jax.block_until_ready(self.program(self._values(), *data))
        self._write(values)
        return found

    def _write(self, values: Any) -> None:
        for state, value in zip(self.states, values, strict=True):
            state.value = value


class Calls(Donated):
    """A contender that is called step by step from Python."""

    def lower(self, data: Data) -> Any:
        self.steps = [[part[t] for part in data] for t in range(len(data[0]))]
        return super().lower(tuple(self.steps[0]))

    def execute(self, data: Data) -> Any:
        values = self._values()
        for step in self.steps:
            values, _ = self.program(values, *step)
        self._write(jax.block_until_ready(values))
        return weights(self.built.network)


@contextmanager
def step_by_step() -> Iterator[None]:
    """Inside, blocks are traced step by step and not in stages."""
    from braintrace.drivers import loops  # which the peer's process has not

    chosen = loops.steps_together
    loops.steps_together = lambda stages, steps: 0
    try:
        yield
    finally:
        loops.steps_together = chosen


def program_bytes(stats: Any) -> int:
    """Arguments, results and temporary arrays of a compiled program, from XLA's analysis."""
    held = stats.argument_size_in_bytes + stats.output_size_in_bytes
    return held + stats.temp_size_in_bytes - stats.alias_size_in_bytes


def program_of(contender: Contender, case: str, sizes: Sizes, donated: bool = False) -> Program:
    """The program of a contender; ``donated``: it may write over the states of before."""
    alone = Donated if donated else Program
    return (Calls if contender.kind == "calls" else alone)(contender, case, sizes)
