# SPDX-License-Identifier: Apache-2.0
"""Loops of unknown length, with the reverse mode that JAX does not give them.

A ``while`` runs forward as it is. Backward, its ``n`` iterations are undone one after the other,

    a_n = cotangents of the results,
    a_k, c_k = (derivative of the body at s_k)^T a_{k+1}        k = n-1 .. 0,

with ``s_k`` the carried values in front of iteration ``k``: the cotangents of the start are
``a_0``, those of what the body reads besides are ``sum_k c_k``. The condition has no derivative.
Since ``n`` is known only when the loop has run, there is no place for all ``s_k``: the iterations
run again, and at most :data:`KEPT` of them, at equal distances, are kept. Those between are
computed once more from the one before. The memory of a long loop does not grow.

The derivative is that of the iterations which ran, whatever the body is: position by position or
not, with integers, keys and loops inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ...base import versions
from ...base.versions import Jaxpr, JaxprEqn, jaxp
from ...jaxprs.run import with_replacements
from .loops import passed_loops

#: How many carried values of one loop a backward pass keeps.
KEPT = 64

Note = Callable[[JaxprEqn], None]


def with_reverse_mode(
    jaxpr: Jaxpr,
    note: Note = lambda eqn: None,
    inputs: Collection[int] | None = None,
    outputs: Collection[int] | None = None,
) -> Jaxpr:
    """A program in which every ``while`` that a derivative has to pass has a reverse mode.

    The derivative is from one of ``inputs`` to one of ``outputs`` (by position; default: all).
    ``note`` is called with each such loop. Without any, it is the same program.
    """
    replaced = {
        i: _replacement(jaxpr.eqns[i], note, *ends)
        for i, *ends in passed_loops(jaxpr, inputs, outputs)
    }
    return with_replacements(jaxpr, replaced) if replaced else jaxpr


def _replacement(
    eqn: JaxprEqn, note: Note, inputs: Collection[int], outputs: Collection[int]
) -> Callable[..., Sequence[Any]]:
    """What to run instead of an equation: a loop with a reverse mode, or what holds such loops."""
    if eqn.primitive is jaxp.while_p:
        note(eqn)
        return reversible(eqn)
    inner = versions.inner_jaxprs(eqn)
    programs = [with_reverse_mode(program, note, inputs, outputs) for program in inner]
    calls = [versions.jaxpr_as_fun(program) for program in programs]
    if eqn.primitive is jaxp.cond_p:
        return lambda index, *operands: jax.lax.switch(index, calls, *operands)
    return partial(_scanned, eqn, calls[0]) if eqn.primitive is jaxp.scan_p else calls[0]


def _scanned(eqn: JaxprEqn, body: Callable[..., Any], *operands: Any) -> list[Any]:
    """The results of a ``scan`` with another body."""
    consts, carried = versions.scan_counts(eqn)
    outside, start, xs = operands[:consts], operands[consts : consts + carried], operands[consts:]

    def step(carry: Any, now: Any) -> tuple[Any, Any]:
        results = body(*outside, *carry, *now)
        return results[:carried], results[carried:]

    how = {name: eqn.params[name] for name in ("length", "reverse")}
    last, rows = jax.lax.scan(step, [*start], xs[carried:], **how)
    return [*last, *rows]


def reversible(eqn: JaxprEqn) -> Callable[..., tuple[Any, ...]]:
    """A ``while`` equation as a function of its operands, with the derivative of its iterations."""

    @jax.custom_vjp
    def loop(*operands: Any) -> tuple[Any, ...]:
        return tuple(versions.bind_equation(eqn, operands))

    iterations = Iterations(eqn)
    loop.defvjp(iterations.forward, iterations.backward)
    return loop


class Iterations:
    """The two passes of a ``while`` equation: its iterations, and what undoes them."""

    def __init__(self, eqn: JaxprEqn) -> None:
        self.skipped, self.consts = eqn.params["cond_nconsts"], eqn.params["body_nconsts"]
        program = with_reverse_mode(versions.close(eqn.params["body_jaxpr"]))
        self.body = versions.jaxpr_as_fun(program)
        self.goes_on = versions.jaxpr_as_fun(versions.close(eqn.params["cond_jaxpr"]))
        inputs = enumerate(program.invars)
        #: Which inputs of the body carry a derivative.
        self.moving = [i for i, var in inputs if versions.is_float(var.aval)]

    def _parted(self, operands: Sequence[Any]) -> tuple[Any, ...]:
        """What the condition reads, what the body does, and the carried values."""
        first = self.skipped + self.consts
        return operands[: self.skipped], operands[self.skipped : first], [*operands[first:]]

    def forward(self, *operands: Any) -> tuple[tuple[Any, ...], Any]:
        """The results, and the number of iterations with the operands."""
        asked, held, start = self._parted(operands)
        count, last = jax.lax.while_loop(
            lambda state: self.goes_on(*asked, *state[1])[0],
            lambda state: (state[0] + 1, self.body(*held, *state[1])),
            (jnp.int32(0), start),
        )
        return tuple(last), (count, operands)

    def backward(self, residuals: Any, cotangents: Sequence[Any]) -> tuple[Any, ...]:
        """Cotangents of the operands."""
        count, operands = residuals
        _, held, start = self._parted(operands)
        every = jnp.maximum((count + KEPT - 1) // KEPT, 1)
        kept = self._kept(held, start, count, every)

        def undo(i: Any, state: Any) -> Any:
            signal, total = state
            k = count - 1 - i
            near = [v[k // every] for v in kept]
            carry = jax.lax.fori_loop(0, k % every, lambda _, v: self.body(*held, *v), near)
            of_held, signal = self._pulled(held, carry, signal)
            return signal, [a + b for a, b in zip(total, of_held, strict=True)]

        total = [jnp.zeros_like(held[m]) for m in self.moving if m < self.consts]
        signal = [cotangents[m - self.consts] for m in self.moving if m >= self.consts]
        signal, total = jax.lax.fori_loop(0, count, undo, (signal, total))
        found = dict(zip(self.moving, [*total, *signal], strict=True))
        rest = enumerate(operands, -self.skipped)
        return tuple(found[m] if m in found else versions.zero_cotangent(v) for m, v in rest)

    def _kept(self, held: Any, start: list[Any], count: Any, every: Any) -> list[Any]:
        """The carried values in front of each iteration whose number is a multiple of ``every``."""

        def keep(k: Any, state: Any) -> Any:
            carry, kept = state
            place = jnp.where(k % every == 0, k // every, KEPT)
            kept = [v.at[place].set(now, mode="drop") for v, now in zip(kept, carry, strict=True)]
            return self.body(*held, *carry), kept

        places = [jnp.broadcast_to(v[None], (KEPT, *v.shape)) for v in map(jnp.asarray, start)]
        return jax.lax.fori_loop(0, count, keep, (start, places))[1]

    def _pulled(self, held: Any, carry: list[Any], signal: list[Any]) -> tuple[Any, Any]:
        """Cotangents of what one iteration reads, and of what it starts from."""
        inputs = [*held, *carry]
        of_moving = versions.partial_at(self.body, inputs, self.moving)

        def floats(*values: Any) -> list[Any]:
            results = of_moving(*values)
            return [results[m - self.consts] for m in self.moving if m >= self.consts]

        found = [*jax.vjp(floats, *(inputs[m] for m in self.moving))[1](signal)]
        last = len(found) - len(signal)
        return found[:last], found[last:]
