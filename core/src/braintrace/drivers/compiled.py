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


class Driver:
    """A compiled driver, and the settings of ``brainstate.environ`` that it was compiled with.

    A setting that anything in it reads is a constant of the program.
    """

    def __init__(self, key: tuple[Any, ...], run: Callable[..., Any]) -> None:
        self.key = key
        self.settings: dict[str, Any] = {}

        def recorded(*args: Any) -> Any:
            with recorded_settings() as found:
                result = run(*args)
            self.settings.update(found)
            return result

        self.run = brainstate.transform.jit(recorded)

    def serves(self, key: tuple[Any, ...]) -> bool:
        """Whether this is the driver for ``key`` under the settings of now."""
        return self.key == key and changed_setting(self.settings) is None


class Drivers:
    """The drivers that were used last."""

    def __init__(self) -> None:
        self._kept: list[Driver] = []

    def clear(self) -> None:
        """Forget all."""
        self._kept.clear()

    def get(self, key: tuple[Any, ...], run: Callable[..., Any]) -> Callable[..., Any]:
        """The driver for a function and options, which is ``run`` if there is none yet."""
        driver = next((one for one in self._kept if one.serves(key)), None)
        if driver is None:
            self._warn_of_new_functions(*key)
            driver = Driver(key, run)
        else:
            self._kept.remove(driver)
        self._kept = [*self._kept, driver][-MOST:]
        return driver.run

    def _warn_of_new_functions(self, step_fn: Any, *options: Any) -> None:
        """A function written inside a loop is a new one each time, and compiled each time."""
        code = getattr(step_fn, "__code__", None)
        same = {one.key[0] for one in self._kept if one.key[1:] == options}
        if code is not None and sum(getattr(fn, "__code__", None) is code for fn in same) == 3:
            versions.warn(
                f"step_fn ({code.co_filename}:{code.co_firstlineno}) is a new function at each "
                "call and is compiled anew each time; define it once, outside of the loop"
            )
