# SPDX-License-Identifier: Apache-2.0
"""A loop run in stages: what is recurrent step by step, and all else for many steps together.

It computes what ``jax.lax.scan`` of the body does. Each equation is run once per step in both, but
where a loop takes a few microseconds to start one on small arrays, a stage starts it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..jaxprs.run import read, run_equations, scan
from ..jaxprs.stages import Loop, Stages, Together
from ..ops.primitive import is_etp_primitive
from .block_size import MIB, OFF_CPU

#: Fewer steps than these are not worth a loop of their own.
LEAST = 16
#: Bytes that stages may hold besides what is asked for. More of them leave the caches of a CPU, and
#: moving them takes longer than starting step by step does.
HELD = {"cpu": MIB}


class Way(NamedTuple):
    """How a block of ``steps`` is run, as it was decided when it was traced.

    In stages of ``size`` steps, ``in_loops`` equations step by step and ``together`` for all of
    these; ``size`` 0: all step by step, as each would hold ``bytes_per_step`` in stages, or, where
    that is 0, because there are few steps, or an ``effect`` (a callback) is among them.
    """

    steps: int
    size: int = 0
    in_loops: int = 0
    together: int = 0
    bytes_per_step: int = 0
    effect: str = ""


def way_of(stages: Stages, steps: int, size: int) -> Way:
    """The way of steps that could be run in these stages, ``size`` together."""
    every = sum(len(part.eqns) for part in stages.parts)
    in_loops = sum(len(part.eqns) for part in stages.parts if isinstance(part, Loop))
    return Way(steps, size, in_loops, every - in_loops, stages.bytes_per_step)


def longest_stage(bytes_per_step: int) -> int:
    """How many steps stages run together at most, by what they hold of each."""
    return HELD.get(jax.default_backend(), OFF_CPU) // max(1, bytes_per_step)


def steps_together(stages: Stages, steps: int) -> int:
    """How many of the steps stages run together, a divisor; 0 where the steps are too large."""
    longest = longest_stage(stages.bytes_per_step)
    if steps > longest:
        steps = max((n for n in range(1, longest + 1) if steps % n == 0), default=0)
    return steps if steps >= LEAST else 0


def in_stages(
    body: Jaxpr,
    stages: Stages,
    start: Sequence[Any],
    inputs: Sequence[Any],
    wanted: Sequence[Var],
    size: int,
) -> tuple[list[Any], list[Any]]:
    """Carried values after a loop of ``body``, and ``wanted`` of all steps, ``size`` together."""
    steps, carried = len(inputs[0]), len(start)
    env = versions.constants(body) | dict(zip(body.invars[:carried], start, strict=True))
    moved = [i for part in stages.parts if isinstance(part, Loop) for i in part.carried]

    def run(carry: list[Any], rows: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        known = dict(zip(body.invars[carried:], rows, strict=True))
        values = dict(zip(moved, carry, strict=True))
        for part in stages.parts:
            given = [known[var] for var in part.reads]
            if isinstance(part, Together):
                found = _together(body, part, env, given)
            else:
                own = [values[i] for i in part.carried]
                ends, found = _one_by_one(body, part, env, own, given, len(rows[0]))
                values.update(zip(part.carried, ends, strict=True))
            known.update(zip(part.results, found, strict=True))
        return [values[i] for i in moved], [known[var] for var in wanted]

    first = [start[i] for i in moved]
    if size == steps:
        moved_on, found = run(first, inputs)
    else:
        rows = [v.reshape(steps // size, size, *v.shape[1:]) for v in inputs]
        moved_on, found = jax.lax.scan(run, first, rows)
        found = [v.reshape(steps, *v.shape[2:]) for v in found]
    end = dict(enumerate(start)) | dict(zip(moved, moved_on, strict=True))
    return [*end.values()], found


def _one_by_one(
    body: Jaxpr, part: Loop, env: dict[Var, Any], start: list[Any], given: list[Any], steps: int
) -> tuple[list[Any], list[Any]]:
    olds = [body.invars[i] for i in part.carried]
    eqns = [body.eqns[i] for i in part.eqns]

    def step(carry: list[Any], now: list[Any]) -> tuple[list[Any], list[Any]]:
        own = {**env, **dict(zip((*olds, *part.reads), (*carry, *now), strict=True))}
        run_equations(eqns, own)
        news = [_read(own, body.outvars[i]) for i in part.carried]
        return news, [own[var] for var in part.results]

    return scan(step, start, given, length=steps)


def _together(body: Jaxpr, part: Together, env: dict[Var, Any], given: list[Any]) -> list[Any]:
    def step(now: list[Any]) -> list[Any]:
        own = {**env, **dict(zip(part.reads, now, strict=True))}
        for i in part.eqns:
            _run(body.eqns[i], own)
        return [own[var] for var in part.results]

    found: list[Any] = jax.vmap(step)(given)
    return found


def _read(env: dict[Var, Any], atom: Atom) -> Any:
    """A new value that is carried: of a literal, an array of its type."""
    return env[atom] if versions.is_var(atom) else jnp.asarray(atom.val, atom.aval.dtype)


def _run(eqn: JaxprEqn, env: dict[Var, Any]) -> None:
    """An ETP operation is run as what it computes, so that steps stay an axis beside examples."""
    if not is_etp_primitive(eqn.primitive):
        return run_equations([eqn], env)
    with versions.at_source(eqn):
        operands = [read(env, atom) for atom in eqn.invars]
        env[eqn.outvars[0]] = eqn.primitive.spec.impl(*operands, **eqn.params)
