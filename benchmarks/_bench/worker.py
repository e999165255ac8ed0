# SPDX-License-Identifier: Apache-2.0
"""A process that runs the contenders of a case: ``python -m _bench.worker [CASE, SIZES, STEPS]``.

It is the same program for this library and for the peer, which is used through its public
interface only.
"""

from __future__ import annotations

import json
import sys
import warnings
from functools import lru_cache
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

import braintrace

from .cases import sequences
from .processes import serve
from .programs import Data, Program, program_of
from .settings import Contender, Sizes, model_of


class Worker:
    """Answers requests, each a method and its arguments."""

    def __init__(self, case: str, sizes: list[int], online_steps: int) -> None:
        whole = Sizes(*sizes)
        self.case = case
        self.sizes = {"gradient": whole, "online": whole._replace(steps=online_steps)}
        self.programs: dict[str, tuple[str, Program]] = {}

    @lru_cache  # noqa: B019  one worker per process
    def data(self, work: str) -> Data:
        return sequences(model_of(self.case), self.sizes[work])

    def facts(self) -> dict[str, Any]:
        names = ("jax", "jaxlib", "brainstate", "numpy")
        found = {name: version(name) for name in names}
        return {**found, "braintrace": braintrace.__version__, "backend": jax.default_backend()}

    def prepare(self, contender: list[Any], path: str) -> dict[str, Any]:
        """Compile a contender, run it once and write what comes out to a file."""
        chosen = Contender(*contender)
        try:
            return self._prepared(chosen, path)
        except Exception as error:
            return {"error": f"{type(error).__name__}: {str(error).partition('. ')[0]}"[:200]}

    def _prepared(self, chosen: Contender, path: str) -> dict[str, Any]:
        program = program_of(chosen, self.case, self.sizes[chosen.work])
        data = self.data(chosen.work)
        compiled = program.compile(data)
        found, seconds = program.run(data)
        leaves = jax.tree_util.tree_leaves_with_path(dict(found))
        np.savez(path, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
        self.programs[chosen.name] = chosen.work, program
        return {"build_s": program.build_seconds, **compiled, "first": seconds}

    def run(self, name: str) -> dict[str, float]:
        """The seconds of one more run."""
        work, program = self.programs[name]
        return program.run(self.data(work))[1]

    def limits(self, contenders: list[list[Any]]) -> dict[str, Any]:
        """What the machine needs at least; see :mod:`_bench.roofline`."""
        from .roofline import limits  # reads what this library found in a model

        chosen = [Contender(*one) for one in contenders]
        return limits(model_of(self.case), self.sizes, chosen)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    serve(Worker(*json.loads(sys.argv[1])))
