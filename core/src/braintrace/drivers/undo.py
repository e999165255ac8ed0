# SPDX-License-Identifier: Apache-2.0
"""States as they were: when a call raises, and where a program finds what it cannot go on from.

Nothing is copied for it. A program that donates no argument leaves the arrays of before as they
are, and so does a select; both sets are in memory until the call ends.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from ..base.types import restore_values


def unless_it_raises(driver: Any, args: tuple[Any, ...], finish: Callable[[Any], Any]) -> Any:
    """``finish(driver(*args))`` of a jitted driver; whatever raises leaves all states as before."""
    states = driver.stateful_fun.get_state_trace(*args, compile_if_miss=True).states
    before = {state: state.value for state in states}
    try:
        return finish(driver(*args))
    except BaseException:
        restore_values(before)
        raise


def where_finite(bad: jax.Array, before: Any, after: Any) -> Any:
    """What is carried on: ``after``, or ``before`` if the steps in between are ``bad``."""
    return jax.tree.map(partial(jnp.where, bad), before, after)


def unless(run: Callable[[], Any], failed: Callable[[Any], jax.Array]) -> tuple[Any, jax.Array]:
    """What ``run()`` returns and whether it ``failed``, a boolean; if so, states are as before."""
    with brainstate.StateTraceStack() as trace:
        result = run()
    skip = failed(result)
    for state, old in zip(trace.states, trace.original_state_values, strict=True):
        if state.value is not old:
            state.value = jax.tree.map(partial(jnp.where, skip), old, state.value)
    return result, skip
