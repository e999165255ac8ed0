# SPDX-License-Identifier: Apache-2.0
"""Loops along a sequence: in parts, with a record of what changes, with a bar that shows it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.versions import Jaxpr, Var
from ..jaxprs.depends import Along, moving_with, slice_to
from ..jaxprs.run import read, run_equations
from ..jaxprs.stages import stages_of
from .in_stages import LEAST, Way, in_stages, steps_together, way_of

WIDTH = 40
UPDATES = 100


def in_parts(
    one: Callable[[Any, Any], tuple[Any, Any]],
    start: Any,
    inputs: Any,
    size: int,
    scan: Callable[..., Any] = brainstate.transform.scan,
    least: int = 1,
) -> tuple[Any, Any]:
    """Run ``one(carry, (number, part)) -> carry, (per_step, per_step, per_part)`` along parts.

    Parts are blocks, windows, or the steps between two updates: ``size`` steps, the last one
    perhaps fewer. What is per step is joined, what is per part stacked. From ``least`` parts of
    one size on, ``scan`` runs them as a loop; others get an ``int`` as their number. It raises
    ``ValueError`` when the last part leaves something of another shape.
    """
    steps = jax.tree.leaves(inputs)[0].shape[0]
    full = steps // size if steps >= least * size else 0
    found = []
    if full:
        parts = jax.tree.map(lambda v: v[: full * size].reshape(full, size, *v.shape[1:]), inputs)
        start, (a, b, seen) = scan(one, start, (np.arange(full), parts))
        found.append((*jax.tree.map(lambda v: v.reshape(-1, *v.shape[2:]), (a, b)), seen))
    for number in range(full, -(-steps // size)):
        where = slice(number * size, (number + 1) * size)
        part = jax.tree.map(lambda v, where=where: v[where], inputs)
        start, (a, b, seen) = one(start, (number, part))
        found.append((a, b, jax.tree.map(lambda v: jnp.asarray(v)[None], seen)))
    return start, jax.tree.map(_joined, *found)


def _joined(*values: Any) -> Any:
    """Values of parts, one after the other."""
    shapes = [value.shape[1:] for value in values]
    if len({*shapes}) > 1:
        raise ValueError(
            f"the last window has fewer steps, and its aux has shape {shapes[-1]} where that of "
            f"others has {shapes[0]}, so they cannot be stacked: let chunk_size divide the number "
            "of steps (and update_every), or return what has one shape, a sum over the window, say"
        )
    return jnp.concatenate(values)


def marked_scan(
    body: Callable[[Any, Any], tuple[Any, Any]], start: Any, inputs: Any
) -> tuple[Any, Any, Any, Way]:
    """``jax.lax.scan(body, start, inputs)`` that stacks every array once, and no constant ones.

    A step hands out some arrays several times (the input of four gates), and some that are the
    same at every step (``f`` of a current that is added to a membrane is one). Stacked as they are,
    they would take most of the memory of a block, and writing fresh memory costs more than
    computing. Behind what a scan gives come marks of the arrays that are not the same at every
    step, and how it ran.
    """
    length = jax.tree.leaves(inputs)[0].shape[0]
    first = jax.tree.map(lambda v: jax.ShapeDtypeStruct(v.shape[1:], v.dtype), inputs)
    jaxpr, shapes = jax.make_jaxpr(body, return_shape=True)(start, first)
    carried, tree = len(jax.tree.leaves(start)), jax.tree.structure(start)
    outputs = jaxpr.outvars[carried:]
    kept = {v for v, new in zip(jaxpr.invars, jaxpr.outvars[:carried], strict=False) if v is new}
    moves = moving_with(jaxpr.eqns, (v for v in jaxpr.invars if v not in kept))
    moving = {a: carried + i for i, a in enumerate(outputs) if versions.is_var(a) and a in moves}
    fixed = [a for a in outputs if not versions.is_var(a) or a not in moves]
    env = versions.constants(jaxpr)
    env.update(zip(jaxpr.invars, jax.tree.leaves(start), strict=False))
    run_equations([jaxpr.eqns[i] for i in slice_to(jaxpr.eqns, fixed, along=Along.EQUATIONS)], env)
    flat = jax.tree.leaves(start), jax.tree.leaves(inputs)
    end, found, way = _scanned(jaxpr, carried, moving, *flat)
    end = jax.tree.unflatten(tree, end)
    stacked = dict(zip(moving, found, strict=True))

    def whole(atom: Any) -> Any:
        if versions.is_var(atom) and atom in stacked:
            return stacked[atom]
        value = read(env, atom)
        return jnp.broadcast_to(value, (length, *jnp.shape(value)))

    marks = [versions.is_var(atom) and atom in stacked for atom in outputs]
    tree = jax.tree.structure(shapes[1])
    return end, *(jax.tree.unflatten(tree, found) for found in (map(whole, outputs), marks)), way


def _scanned(
    body: Jaxpr, carried: int, moving: Mapping[Var, int], start: list[Any], inputs: list[Any]
) -> tuple[list[Any], list[Any], Way]:
    """A loop of ``body``: carried values after it, some of its results, by number, and its way.

    It is run in stages where its steps are small, and step by step where they have effects.
    """
    steps, wanted = len(inputs[0]), (*moving,)
    effect = next((eqn.primitive.name for eqn in body.eqns if eqn.effects), "")
    way = Way(steps, effect=effect)
    if steps >= LEAST and not effect:
        stages = stages_of(body, carried, wanted)
        size = steps_together(stages, steps)
        way = way_of(stages, steps, size)
        if size:
            return *in_stages(body, stages, start, inputs, wanted, size), way
    call = versions.jaxpr_as_fun(body)

    def step(carry: list[Any], now: list[Any]) -> tuple[list[Any], list[Any]]:
        flat = call(*carry, *now)
        return flat[:carried], [flat[i] for i in moving.values()]

    return *jax.lax.scan(step, start, inputs), way


@dataclass(frozen=True)
class Progress:
    """Shows how many of ``total`` parts of a loop are done, on standard error; of zero, nothing.

    The bar is that of ``tqdm`` where it is installed, which a notebook shows as its own.

    The loop calls :meth:`advance` with the number of the part and with something that the part
    computed, so that it is shown when the part is done. Under ``jit`` and ``scan`` that leaves a
    call to the host in the program, about a hundred in all.
    """

    total: int
    bars: list[Any] = field(default_factory=list, compare=False)

    def advance(self, number: Any, result: Any) -> None:
        """Part ``number`` (from 0) is done."""
        if self.total:
            shown = (number % max(1, self.total // UPDATES) == 0) | (number == self.total - 1)
            call = partial(jax.debug.callback, self.show)
            leaves = jax.tree.leaves(result)[:1]
            jax.lax.cond(shown, call, lambda number, leaves: None, number, leaves)

    def show(self, number: Any, leaves: Any = None) -> None:
        """Draw the bar."""
        done = int(number) + 1
        try:
            from tqdm.auto import tqdm
        except ImportError:
            filled = WIDTH * done // self.total
            end = "\n" if done == self.total else ""
            bar = "#" * filled + "." * (WIDTH - filled)
            print(f"\r[{bar}] {done}/{self.total}", end=end, file=sys.stderr, flush=True)
            return
        if not self.bars or self.bars[0].n >= done:  # another call of the same program
            self.bars[:] = [tqdm(total=self.total)]
        self.bars[0].update(done - self.bars[0].n)
        if done == self.total:
            self.bars.pop().close()
