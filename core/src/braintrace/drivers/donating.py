# SPDX-License-Identifier: Apache-2.0
"""Compiled drivers that write traces over themselves, where nobody else holds their arrays.

A program that donates an argument may write a result in its place, and the array of before is gone.
A trace is the largest array of a learner, so that one in place of two is what counts; but a program
may hold the traces of before, to put them back. Python counts who holds an object, so they are
donated when only their state does, and are kept otherwise. (Arrays that share their memory with a
trace, as ``jax.device_put`` makes them, are not seen; to read them afterwards is an error of JAX.)
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import brainstate
import jax

from ..base import versions
from ..base.types import State


class Donating:
    """A function with states, jitted; ``traces()`` are those states that it may write over.

    The states must be written by it, or they are kept.
    """

    def __init__(self, function: Callable[..., Any], traces: Callable[[], Iterable[State]]) -> None:
        self.kept = brainstate.transform.jit(function)
        self.stateful_fun, self.traces = self.kept.stateful_fun, traces
        self.donated = jax.jit(self._run, donate_argnums=0)

    def _run(self, given: dict[int, Any], others: dict[int, Any], *args: Any) -> Any:
        values = {**given, **others}
        return self.stateful_fun.jaxpr_call([values[i] for i in sorted(values)], *args)

    def __call__(self, *args: Any) -> Any:
        trace = self.stateful_fun.get_state_trace(*args, compile_if_miss=True)
        given = [] if _is_traced(args, trace) else self._given(trace)
        if not given:
            return self.kept(*args)
        read, values = trace.get_read_state_values(True), dict(enumerate(trace.get_state_values()))
        new, result = self.donated({i: values.pop(i) for i in given}, values, *args)
        trace.assign_state_vals_v2(read, new)
        return result

    def _given(self, trace: Any) -> list[int]:
        """The places of the traces among the states, if all may be given away."""
        traces = {*self.traces()}
        own = [i for i, state in enumerate(trace.states) if state in traces]
        states = [trace.states[i] for i in own]
        plain = jax.config.jax_disable_jit or versions.several_devices()  # type: ignore[attr-defined]
        written = all(trace.been_writen[i] for i in own)
        return own if written and not plain and all(map(is_held_alone, states)) else []


def is_lost(values: Any) -> bool:
    """Whether a call that stopped on its way gave away an array of these, and left no other."""
    return any(_is_array(one) and one.is_deleted() for one in jax.tree.leaves(values))


def is_held_alone(state: Any) -> bool:
    """Whether nobody but ``state`` holds its value, a dict of arrays, or one of these.

    In place of an array there may be a tuple of several.
    """
    if not isinstance(state.value, dict) or not all(map(_is_array, _arrays(state.value))):
        return False
    found = references(state.value)
    return found[0] <= ALONE[0] and max(found[1:], default=0) <= ALONE[1]


def _is_traced(args: tuple[Any, ...], trace: Any) -> bool:
    """Whether arguments or states are those of a program that is being traced, or mapped."""
    return any(map(versions.is_traced, jax.tree.leaves((args, trace.get_state_values()))))


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array) and not versions.is_traced(value)


def _arrays(value: dict[str, Any]) -> Iterator[Any]:
    for one in value.values():
        yield from one if isinstance(one, tuple) else (one,)


def references(value: dict[str, Any]) -> Sequence[int]:
    """How many references there are to a dict, and to each of its values."""
    found = [sys.getrefcount(value), *(sys.getrefcount(one) for one in value.values())]
    several = (one for one in value.values() if isinstance(one, tuple))
    return [*found, *(sys.getrefcount(one) for own in several for one in own)]


#: References to a dict that one object holds, and to its only value, counted in the same way.
HOLDER = SimpleNamespace(value={"one": object()})
ALONE = references(HOLDER.value)
