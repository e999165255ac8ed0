# SPDX-License-Identifier: Apache-2.0
"""Programs that run once: compiled in less time where the installed XLA knows how."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jax

#: What XLA is asked for; the numbers differ by round-off.
OPTIONS = {"xla_cpu_use_fusion_emitters": False}


@cache
def options() -> dict[str, Any]:
    """:data:`OPTIONS`, or nothing where one of them is unknown."""
    try:
        jax.jit(lambda: 0.0, compiler_options=OPTIONS)()
    except jax.errors.JaxRuntimeError:
        return {}
    return OPTIONS


def jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """``jax.jit`` of a function that is not called within another one."""
    return jax.jit(function, compiler_options=options())
