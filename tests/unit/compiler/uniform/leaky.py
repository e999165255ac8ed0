# SPDX-License-Identifier: Apache-2.0
"""A state with a step of one's own, analysed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax.numpy as jnp

import braintrace as bt
from braintrace.compiler.uniform.find import find_uniform


class Leaky(brainstate.nn.Module):
    """``step(model, x, v) -> new v`` of states [2, 3] for inputs [2, 4]."""

    def __init__(self, step: Callable[[Any, Any, Any], Any]) -> None:
        super().__init__()
        self.step, self.w = step, bt.nn.Linear(4, 3)
        self.v = brainstate.HiddenState(jnp.zeros((2, 3)))

    def update(self, x: Any) -> Any:
        self.v.value = self.step(self, x, self.v.value)
        return self.v.value


def analysed(step: Callable[[Any, Any, Any], Any]) -> tuple[Any, dict[Any, Any], dict[Any, str]]:
    minfo = bt.extract_module_info(Leaky(step), jnp.ones((2, 4)))
    _, groups = bt.find_hidden_groups_from_minfo(minfo)
    return minfo, *find_uniform(minfo, groups)
