# SPDX-License-Identifier: Apache-2.0
"""The step in which the leaks of uniform states stand in front of what drives them.

For each source ``z`` of a uniform state ``h`` there is a *filter*, one state more,

    q' = lambda q + c z,

and ``h`` is ``sum_r A_r(w) q_r`` and what has no derivative, with the parameters as they are. In
this step ``h`` keeps its value, as the model computes it, and takes its derivative from that sum;
from step to step, credit passes through the filters alone. A filter whose source has a derivative
is a hidden state of the layer below; one whose source has none is the whole trace of the weights
behind it. Where positions have a few different leaks, there is a filter for each of them.

A parameter ``p`` of one number that the leak depends on has a trace of its own,
``eta' = lambda eta + (d lambda / d p) h``, at every position.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax

from ..base import versions
from ..base.types import Path
from ..jaxprs.run import run_equations
from .module_info import ONE_STEP, ModuleInfo, StateKind, filter_slot
from .uniform.moving import Moving
from .uniform.run import Run

#: What ``downstream`` may be.
DOWNSTREAM = ("step", "linear", "exact")
FILTER = "<filter>"


def check_downstream(downstream: str) -> None:
    """Raise ``ValueError`` unless there is such a ``downstream``."""
    if downstream not in DOWNSTREAM:
        raise ValueError(f"downstream must be one of {DOWNSTREAM}, got {downstream!r}")


def move_leaks(moving: Moving) -> ModuleInfo:
    """The step with filters in front of the uniform states.

    These are no hidden states of it, unless they keep traces.
    """
    minfo, uniform = moving.minfo, {} if moving.keeps_traces else moving.uniform
    filters = moving.filters
    inputs = minfo.jaxpr.in_avals

    def run(*values: Any) -> list[Any]:
        old = dict(zip(filters, values[len(inputs) :], strict=True))
        return Run(moving, values[: len(inputs)], old).outputs()

    avals = [*inputs, *(f.type for f in filters.values())]
    with versions.types_of(avals):
        jaxpr = versions.make_jaxpr(run, *avals)
    slots = [replace(s, kind=StateKind.OTHER) if s.path in uniform else s for s in minfo.slots]
    first = sum(len(slot.leaves) for slot in slots)
    lines = [
        slot for slot in slots if slot.steps_along not in (None, ONE_STEP)
    ]  # what is of one is one
    for i, one in enumerate(filters.values()):
        kind = StateKind.HIDDEN if one.credit else StateKind.OTHER
        axis = next((s.steps_along for s in lines if s.shape == one.type.shape), None)
        slots.append(filter_slot(_path(i), one.of, one.type, first + i, kind, axis))
    return replace(minfo, jaxpr=jaxpr, slots=tuple(slots))


def _path(number: int) -> Path:
    return FILTER, str(number)


def is_filter(path: Path) -> bool:
    return path[0] == FILTER


def emitted_paths(moving: Moving) -> frozenset[Path]:
    """The paths of the filters of what layers emit, which stand for leaks of no state."""
    own = {(path, (var,)) for var, path in moving.layers.items()}
    return frozenset(_path(i) for i, name in enumerate(moving.filters) if name in own)


def credit_of(moving: Moving, values: Mapping[Path, Any]) -> dict[Path, Any]:
    """What the values of uniform states have the derivative of, where no step is run.

    Those that keep traces have their own besides. ``values`` are those of the states of the step
    that :func:`move_leaks` gave, by path.
    """
    minfo = moving.minfo
    old = {name: values[_path(i)] for i, name in enumerate(moving.filters)}
    states = [leaf for slot in minfo.slots for leaf in jax.tree.leaves(values[slot.path])]
    run = Run(moving, [None] * minfo.num_args + states, old)
    run_equations(run.steady(), run.env)
    return {path: run.mapped(u, run.values_of(path, old)) for path, u in moving.uniform.items()}
