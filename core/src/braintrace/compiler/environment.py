# SPDX-License-Identifier: Apache-2.0
"""What a step takes from ``brainstate.environ``.

The index and the time of the running step change from call to call: they become arguments of the
traced program. Every other setting that the step reads is a constant of the program, so it is
remembered, and a learner refuses to run under another one.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from ..base import versions
from ..base.errors import MissingSettingError

#: What ``brainstate.environ`` says of the running step, an input of the step and not a constant,
#: with what gives its dtype: a time may come as an integer.
MOVING = {"i": brainstate.environ.ditype, "t": brainstate.environ.dftype}

#: Settings that decide about dtypes and devices, which states and arguments have already.
ELSEWHERE = ("precision", "platform", "host_device_count")


#: How settings that models of ``brainstate`` read are given, where a model finds none.
GIVEN = {
    "fit": "brainstate.environ.set(fit=True) trains (a dropout drops, say), fit=False evaluates",
    "dt": "brainstate.environ.set(dt=...) is the length of a step",
    "t": "with brainstate.environ.context(t=...) around compiling, and around the call in step_fn",
    "i": "with brainstate.environ.context(i=...) around compiling, and around the call in step_fn",
}


class Unset:
    """In place of the value of a setting that is not there."""

    def __repr__(self) -> str:
        return "not set"


UNSET = Unset()
_RECORDING = threading.RLock()


@contextmanager
def recorded_settings(given: Mapping[str, Any] | None = None) -> Iterator[dict[str, Any]]:
    """Which settings are read inside, with the values that they have, or ``UNSET``.

    What the model puts into the environment itself for a part of its step, such as a time among its
    inputs, is no setting from outside; what the tracer puts there, ``given``, is one. One that is
    not there is a ``MissingSettingError`` unless the model has a default for it.
    """
    found: dict[str, Any] = {}
    with _RECORDING:
        original, outside = brainstate.environ.get, brainstate.environ.all()

        def get(key: str, *args: Any, **kwargs: Any) -> Any:
            if key not in ELSEWHERE and kwargs.get("env") is None:
                value = original(key, UNSET)
                if value is outside.get(key, UNSET) or value is (given or {}).get(key, UNSET):
                    found.setdefault(key, value)
            try:
                return original(key, *args, **kwargs)
            except KeyError:
                remedy = GIVEN.get(key, f"brainstate.environ.set({key}=...) sets it")
                raise MissingSettingError(
                    f"{key!r} is read from brainstate.environ, where it is not set: {remedy}"
                ) from None

        brainstate.environ.get = get
        try:
            yield found
        finally:
            brainstate.environ.get = original


def changed_setting(settings: Mapping[str, Any]) -> str | None:
    """What the model reads of the first setting that has another value now, for an error."""
    for key, then in settings.items():
        now = brainstate.environ.get(key, UNSET)
        if not _same(then, now):
            return (
                f"{key!r} from brainstate.environ, which was {then} when the learner was compiled "
                f"and is {now} now"
            )
    return None


def _same(a: Any, b: Any) -> bool:
    if a is b:
        return True
    flat: Any = jax.tree.flatten(a), jax.tree.flatten(b)
    (leaves, tree), (others, other) = flat
    return bool(tree == other) and all(map(_same_leaf, leaves, others))


def _same_leaf(a: Any, b: Any) -> bool:
    if versions.is_traced(a) or versions.is_traced(b):
        return a is b
    try:
        return bool(np.array_equal(a, b))
    except (TypeError, ValueError):
        return bool(a == b)


def moving_values(names: Iterable[str] = MOVING) -> dict[str, Any]:
    """Current values of those that are set, in the dtypes of the environment."""
    values = {name: brainstate.environ.get(name, None) for name in names}
    return {
        name: jax.tree.map(partial(jnp.asarray, dtype=MOVING[name]()), value)
        for name, value in values.items()
        if value is not None
    }
