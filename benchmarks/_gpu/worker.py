# SPDX-License-Identifier: Apache-2.0
"""A process that compiles and runs the contenders of one case after another.

The same program serves this library and the peer on the GPU and, with ``JAX_ENABLE_X64``, the
reference in float64 on the CPU.
"""

from __future__ import annotations

import gc
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _bench import works
from _bench.cases import sequences
from _bench.processes import serve
from _bench.programs import Data, Program, program_of
from _bench.roofline import fastest
from _bench.settings import Contender, Sizes, model_of

from .kernels import launches

DOUBLE = bool(jax.config.jax_enable_x64)
COPIES = 30  # passes over the array that the bandwidth is measured with
Answer = dict[str, Any]
SCALE = {True: "float64", False: "float32"}


class Worker:
    """Answers requests, each a method and its arguments."""

    def __init__(self) -> None:
        brainstate.environ.set(precision=64 if DOUBLE else 32)
        self.programs: dict[str, tuple[str, Program]] = {}
        self.data: dict[str, Data] = {}

    def facts(self) -> Answer:
        """Versions, and the device."""
        names = ("jax", "jaxlib", "brainstate", "numpy")
        device = jax.devices()[0]
        return {
            **{name: version(name) for name in names},
            "backend": jax.default_backend(),
            "device": device.device_kind,
            "platform": " ".join(device.client.platform_version.split()),
            "memory": memory("bytes_limit"),
        }

    def bandwidth(self, size: int) -> dict[str, float]:
        """Bytes per second of reading and writing an array of so many."""
        held = jnp.ones(size // 4, "float32")
        passes = jax.jit(lambda a: jax.lax.fori_loop(0, COPIES, lambda _, a: 0.999 * a, a))
        return {"bytes_per_s": 2 * size * COPIES / fastest(lambda: passes(held))}

    def start(
        self, case: str, sizes: list[int], online_steps: int, precision: str, rate: float
    ) -> Answer:
        """Forget the case before, and begin another."""
        works.RATE = rate
        self.programs.clear()
        self.data.clear()
        jax.clear_caches()
        gc.collect()
        chosen = None if precision == "default" else precision
        jax.config.update("jax_default_matmul_precision", chosen)
        self.model, whole = model_of(case), Sizes(*sizes)
        online = whole._replace(steps=min(online_steps, whole.steps))
        self.sizes = {"gradient": whole, "online": online}
        return {}

    def prepare(self, contender: list[Any], path: str) -> Answer:
        """Compile a contender, run it once and write its results (online: how far the weights
        moved) to a file, and XLA's program to one beside it."""
        chosen = Contender(*contender)
        try:
            return self._prepared(chosen, path)
        except Exception as error:
            return failure(error)

    def run(self, name: str) -> Answer:
        """The seconds of one more run."""
        try:
            work, program = self.programs[name]
            return program.run(self.data[work])[1]
        except Exception as error:
            return failure(error)

    def profile(self, name: str) -> Answer:
        """What the profiler sees of one more run."""
        try:
            work, program = self.programs[name]
            return profiled(program, self.data[work])
        except Exception as error:
            return failure(error)

    def _prepared(self, chosen: Contender, path: str) -> Answer:
        work, sizes = chosen.work, self.sizes[chosen.work]
        data = self.data.setdefault(work, self._sequences(sizes))
        held, peak = memory("bytes_in_use"), memory("peak_bytes_in_use")
        program = program_of(chosen, self.model, sizes)
        if DOUBLE:
            program.weights = jax.tree.map(_rounded, program.weights)
        compiled = program.compile(data)
        found, seconds = program.run(data)
        if work == "online":
            found = jax.tree.map(lambda new, old: new - old, dict(found), program.weights)
        save(found, path)
        self.programs[chosen.name] = work, program
        grown = memory("peak_bytes_in_use")
        text = program.compiled.as_text()
        Path(path).with_suffix(".txt").write_text(text)
        counts = launches(text)
        return {
            **compiled,
            "bytes": compiled["bytes"] - sum(part.nbytes for part in data),
            "build_s": program.build_seconds,
            "first_s": seconds["wall"],
            "steps": sizes.steps,
            "peak": grown - held if grown > peak else None,  # of this process, where it grew
            "trace_bytes": None if chosen.peer else trace_bytes(program.built.learner),
            "launches": counts,
            "kernels_per_step": sum(counts.values()) / sizes.steps,
        }

    def _sequences(self, sizes: Sizes) -> Data:
        found = sequences(self.model, sizes)
        return tuple(part.astype(SCALE[DOUBLE]) for part in found)  # type: ignore[return-value]


def _rounded(weight: jax.Array) -> jax.Array:
    """The weight that float32 has, in float64."""
    return weight.astype("float32").astype(weight.dtype)


def failure(error: Exception) -> Answer:
    """An error as an answer."""
    return {"error": f"{type(error).__name__}: {str(error).partition('. ')[0]}"[:200]}


def memory(key: str) -> int:
    """A figure of the device's allocator; 0 where there is none, as on a CPU."""
    return int((jax.devices()[0].memory_stats() or {}).get(key, 0))


def trace_bytes(learner: Any) -> int:
    """Bytes of all traces of a learner."""
    held = [] if learner is None else [trace.value for trace in learner.traces]
    return sum(leaf.nbytes for leaf in jax.tree.leaves(held))


def save(tree: Any, path: str) -> None:
    """Write the arrays of a tree under their paths in it."""
    leaves = jax.tree_util.tree_leaves_with_path(dict(tree))
    np.savez(path, **{jax.tree_util.keystr(where): leaf for where, leaf in leaves})


def profiled(program: Program, data: Data) -> Answer:
    """Kernels and copies on the GPU's streams, and the seconds that they take together."""
    program.reset()
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            program.execute(data)
        (file,) = Path(folder).rglob("*.xplane.pb")
        planes = list(jax.profiler.ProfileData.from_file(str(file)).planes)
    lines = [line for plane in planes if "/device:GPU" in plane.name for line in plane.lines]
    events = [event for line in lines if line.name.startswith("Stream") for event in line.events]
    copies = sum(event.name.startswith("Mem") for event in events)
    busy = sum(event.duration_ns for event in events) / 1e9
    return {"kernels": len(events) - copies, "copies": copies, "busy_s": busy}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(Worker())
