# SPDX-License-Identifier: Apache-2.0
"""Compiled drivers of sequences, kept for the next call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate

from ..base import versions
from ..compiler.environment import changed_setting, recorded_settings

#: How many are kept.
MOST = 16


class Drivers:
    """The drivers that were used last, each with its key and settings of ``brainstate.environ``.

    A setting that anything in a driver reads is a constant of the compiled program.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[tuple[Any, ...], dict[str, Any], Callable[..., Any]]] = []

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def get(self, key: tuple[Any, ...], run: Callable[..., Any]) -> Callable[..., Any]:
        """The driver for a function and options, which is ``run`` if there is none yet."""
        found = next((d for d in self._kept if d[0] == key and changed_setting(d[1]) is None), None)
        if found is None:
            self._warn_of_new_functions(*key)
            settings: dict[str, Any] = {}

            def recorded(*args: Any) -> Any:
                with recorded_settings() as read:
                    result = run(*args)
                settings.update(read)
                return result

            found = key, settings, brainstate.transform.jit(recorded)
        self._kept = [*(d for d in self._kept if d is not found), found][-MOST:]
        return found[2]

    def _warn_of_new_functions(self, step_fn: Any, *options: Any) -> None:
        """A function written inside a loop is a new one each time, and compiled each time."""
        code = getattr(step_fn, "__code__", None)
        same = {fn for (fn, *others), _, _ in self._kept if others == [*options]}
        if code is not None and sum(getattr(fn, "__code__", None) is code for fn in same) == 3:
            versions.warn(
                f"step_fn ({code.co_filename}:{code.co_firstlineno}) is a new function at each "
                "call and is compiled anew each time; define it once, outside of the loop"
            )
