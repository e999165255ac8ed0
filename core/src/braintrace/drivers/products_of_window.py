# SPDX-License-Identifier: Apache-2.0
"""The steps of a window whose examples lie on several devices.

Reverse mode through a window adds up the gradient of a parameter step by step, and each of these
sums is one of all devices. In place of that, the products with parameters are recorded as those of
a block are; the gradients of all steps of the window are summed at once, and over devices once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.types import Path
from ..executor.direct import DirectProducts, direct_products
from ..executor.executor import Executor


@dataclass(frozen=True, eq=False)
class WindowProducts:
    """``step(params, states, now) -> (out, new), more`` whose products can be taken apart.

    ``direct`` are the products on the way to ``out`` and ``new``, and ``tree`` is that of results.
    """

    direct: DirectProducts
    tree: Any

    @classmethod
    def of(cls, step: Callable[..., Any], params: Any, states: Any, now: Any) -> WindowProducts:
        """Trace the step for arguments like these."""
        program, shapes = jax.make_jaxpr(step, return_shape=True)(params, states, now)
        count, ends = len(jax.tree.leaves(params)), program.outvars
        credited = ends[: len(jax.tree.leaves(shapes[0]))]
        wanted = (i for i, v in enumerate(program.invars[:count]) if versions.is_float(v.aval))
        parameters = frozenset(range(count))
        products = direct_products(
            program, parameters, frozenset(wanted), more=credited, divided=True
        )
        return cls(products, jax.tree.structure(shapes))

    def shifts(self, steps: int) -> list[Any]:
        """Zeros to add to the results of the products of some steps."""
        return [jnp.zeros((steps, *v.shape), v.dtype) for v in self.direct.shifts()]

    def run(self, params: Any, states: Any, now: Any, shifts: Any) -> tuple[Any, Any]:
        """What the step gives, and the moving operands of its products."""
        flat, moving = self.direct.run(jax.tree.leaves((params, states, now)), shifts)
        return jax.tree.unflatten(self.tree, flat), jax.lax.stop_gradient(moving)

    def gradients(
        self, params: Mapping[Path, Any], moving: Any, dys: Any, executor: Executor
    ) -> dict[Path, Sequence[Any]]:
        """Gradients of leaves of parameters by the products; in parts where there is a trace."""
        leaves, tree = jax.tree.flatten(params)
        places = jax.tree.unflatten(tree, range(len(leaves)))
        traced = (w.path for w in executor.weights.values() if w.links)
        others = {i for path in traced for i in jax.tree.leaves(places[path])}
        values = dict(enumerate(leaves))
        found = self.direct.gradients(values, moving, dys, executor.parts, others)
        own = {path: [found.get(i) for i in jax.tree.leaves(at)] for path, at in places.items()}
        return {path: bars for path, bars in own.items() if any(b is not None for b in bars)}
