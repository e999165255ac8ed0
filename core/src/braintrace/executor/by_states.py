# SPDX-License-Identifier: Apache-2.0
"""The influence of parameters on what several steps carry, with one row for each carried value.

    M^K = C^0 M^0 + sum_k C^k P^k,      C^K = 1,   C^{k-1} = C^k J^k

Forward mode needs a tangent for each entry of the parameters at every step. Here, ``J^k`` and the
derivatives of the carried values in the results ``y`` of all products with parameters are rows, one
for each carried value, of all steps at once. What is left to be done step by step is the product of
``C`` and ``J``, and the sum of all steps is one product for each parameter (see ``direct``).

Where examples do not meet, which the structure of the program says, one row is that of a value in
all examples. With ``n`` values and ``P`` entries that is ``n`` rows instead of ``P`` tangents.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.types import Path, bytes_of
from ..compiler.module_info import ModuleInfo, StateKind
from ..jaxprs.positions.elements import reached
from ..jaxprs.positions.places import axes_along, own_places
from ..jaxprs.run import nested
from ..jaxprs.stages import ALONE
from .direct import DirectProducts, direct_products
from .tangents import TOGETHER, Leaves, all_inputs, has_singular_derivatives

#: Bytes of rows of several steps that are computed together.
NEAR = 2**22


@dataclass(frozen=True, eq=False)
class ByStates:
    """The influence of ``parameters`` on ``carried``, for a step in which they act by products.

    The program of the step has the new values as its results. ``examples`` of these do not meet;
    1: no axis of examples is known.
    """

    info: ModuleInfo
    direct: DirectProducts
    parameters: Leaves
    carried: Leaves
    examples: int

    @property
    def count(self) -> int:
        """``n``: the carried values of one example."""
        return sum(leaf.size for leaf in self.carried) // self.examples

    @property
    def bytes_per_step(self) -> int:
        """What is recorded of a step: ``J``, the other rows, and what the products read."""
        results = bytes_of([p.eqn.outvars[0].aval for p in self.direct.products])
        rows = self.count * (bytes_of([leaf.aval for leaf in self.carried]) + results)
        return 2 * rows + self.direct.bytes_per_step

    def after(
        self, traces: Sequence[Any] | None, kept: Any, params: Mapping[Path, Any]
    ) -> list[jax.Array]:
        """Traces [P, \\*s] after ``K`` steps, from the inputs that were kept of them."""
        steps = jax.tree.leaves(kept)[0].shape[0]
        size = max(1, min(steps, NEAR // max(1, self.bytes_per_step)))

        def by_step(kept: Any) -> Any:
            return self._rows(kept, params)

        if self._alone:
            jacobians, dys, moving = jax.lax.map(by_step, kept)
        else:
            jacobians, dys, moving = versions.mapped(by_step, kept, size)

        def back(rows: jax.Array, jacobian: jax.Array) -> tuple[jax.Array, jax.Array]:
            return _product("eri,eij->erj", rows, jacobian), rows

        own = jnp.eye(self.count, dtype=jacobians.dtype)
        start = jnp.broadcast_to(own, (self.examples, *own.shape))
        whole, rows = jax.lax.scan(back, start, jacobians, reverse=True)
        found = self._of_parameters(rows, dys, moving, params)
        if traces is not None:
            before = jnp.concatenate([self._by_example(m, 1) for m in traces], -1)
            found = found + _product("eri,pei->pre", whole, before.astype(found.dtype))
        return self._split(found)

    @property
    def _alone(self) -> bool:
        """Whether mapping several steps together would draw other numbers, or compute more."""
        every = (sub for eqn in self.direct.jaxpr.eqns for sub in (eqn, *nested(eqn)))
        return any(eqn.primitive.name in ALONE for eqn in every)

    def _rows(self, kept: Any, params: Mapping[Path, Any]) -> Any:
        """Of a step: ``J`` [E, n, n], the rows of each ``y`` [n, \\*Y], and what is multiplied."""
        inputs, first = all_inputs(self.info, kept, params), self.info.num_args

        def new_values(olds: Sequence[Any], shifts: Any) -> Any:
            full = list(inputs)
            for leaf, value in zip(self.carried, olds, strict=True):
                full[first + leaf.place] = value
            return self.direct.run(full, shifts)

        own = [inputs[first + leaf.place] for leaf in self.carried]
        _, pull, moving = jax.vjp(new_values, own, self.direct.shifts(), has_aux=True)

        def row(number: jax.Array) -> Any:
            olds, dys = pull(self._unit(number))
            return jnp.concatenate([self._by_example(v, 0) for v in olds], -1), dys

        jacobian, dys = versions.mapped(row, jnp.arange(self.count), TOGETHER)
        return jacobian.swapaxes(0, 1), dys, moving

    def _of_parameters(
        self, rows: jax.Array, dys: Sequence[jax.Array], moving: Any, params: Mapping[Path, Any]
    ) -> jax.Array:
        """``sum_k C^k P^k`` [P, n, E] from ``C`` [K, E, n, n] and what is known of every step."""
        slots = self.info.slots_of(StateKind.PARAM)
        pairs = ((slot, jax.tree.leaves(params[slot.path])) for slot in slots)
        first = self.info.num_args
        given = {first + i: v for s, own in pairs for i, v in zip(s.leaves, own, strict=True)}

        def of_step(row: jax.Array, dy: jax.Array) -> jax.Array:
            """Rows of ``y`` of one step [n, \\*Y], from those of its own new values."""
            flat = dy.reshape(self.count, self.examples, -1)
            return _product("eri,iey->rey", row, flat).reshape(dy.shape)

        through = [jax.vmap(of_step, out_axes=1)(rows, dy) for dy in dys]

        def one(dys: Sequence[jax.Array]) -> jax.Array:
            found = self.direct.gradients(given, moving, dys, self.examples, each=True)
            places = (first + leaf.place for leaf in self.parameters)
            flat = [found[i].reshape(self.examples, -1) for i in places]
            return jnp.concatenate(flat, -1)

        found: jax.Array = versions.mapped(one, through, TOGETHER)
        return found.transpose(2, 0, 1)

    def _unit(self, number: jax.Array) -> list[jax.Array]:
        """Cotangents that pick one value in each example."""
        found, start = [], 0
        for leaf in self.carried:
            size = leaf.size // self.examples
            own = (jnp.arange(start, start + size) == number).astype(leaf.aval.dtype)
            every = jnp.broadcast_to(own, (self.examples, size))
            found.append(every.reshape(leaf.aval.shape))
            start += size
        return found

    def _by_example(self, array: jax.Array, lead: int) -> jax.Array:
        """Values of a leaf behind ``lead`` axes as [.., E, n of the leaf]."""
        return array.reshape(*array.shape[:lead], self.examples, -1)

    def _split(self, found: jax.Array) -> list[jax.Array]:
        """The traces of the leaves, from [P, n, E]."""
        sizes = [leaf.size // self.examples for leaf in self.carried]
        ends = [sum(sizes[:k]) for k in range(1, len(sizes))]
        parts = jnp.split(found.swapaxes(1, 2), ends, -1)
        return [
            part.reshape(-1, *leaf.aval.shape).astype(leaf.aval.dtype)
            for part, leaf in zip(parts, self.carried, strict=True)
        ]


def by_states(info: ModuleInfo, parameters: Leaves, carried: Leaves, wide: Any) -> ByStates | None:
    """The influence by rows, where the step allows it and it has fewer rows than tangents.

    It does not where a parameter reaches a carried value in another way than by products, where a
    derivative may be infinite, where numbers are complex or in half precision (``wide``: the dtype
    of sums), or where examples may lie on several devices.
    """
    leaves, first = (*parameters, *carried), info.num_args
    narrow = any(leaf.widened(wide).aval.dtype != leaf.aval.dtype for leaf in leaves)
    plain = not narrow and not any(leaf.is_complex for leaf in leaves)
    if not parameters or not carried or not plain or versions.several_devices():
        return None
    if has_singular_derivatives(info):
        return None
    ends = [info.jaxpr.outvars[info.num_out + leaf.place] for leaf in carried]
    held = [first + i for slot in info.slots_of(StateKind.PARAM) for i in slot.leaves]
    wanted = frozenset(first + leaf.place for leaf in parameters)
    program = versions.without_effects(versions.with_outvars(info.jaxpr, ends))
    direct = direct_products(program, frozenset(held), wanted, ends[1:], divided=True)
    if direct.elsewhere & wanted or not wanted <= {*direct.leaves}:
        return None
    found = ByStates(info, direct, parameters, carried, 1)
    examples = _examples(found)
    found = ByStates(info, direct, parameters, carried, examples)
    entries = sum(leaf.size for leaf in parameters)
    return found if found.count <= entries else None


def _examples(step: ByStates) -> int:
    """How many examples there are along the first axis of all, if these do not meet."""
    eqns, invars = step.direct.jaxpr.eqns, step.direct.jaxpr.invars
    olds = [invars[step.info.num_args + leaf.place] for leaf in step.carried]
    results = [product.eqn.outvars[0] for product in step.direct.products]
    sources = [*olds, *results]
    (size, *others) = {v.aval.shape[:1] for v in sources}
    if others or size in ((), (1,)):
        return 1
    ends = [(a, own_places(a.aval.shape, (0,))) for a in step.direct.jaxpr.outvars]
    for var, places in zip(sources, reached(eqns, sources, ends), strict=True):
        if places is not None and axes_along(places, size, var.aval.shape).get(0) != 0:
            return 1
    return math.prod(size)


def _product(form: str, *arrays: jax.Array) -> jax.Array:
    found: jax.Array = jnp.einsum(form, *arrays, precision="highest")
    return found
