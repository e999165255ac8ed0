# SPDX-License-Identifier: Apache-2.0
"""Which operations of a step are tried, and what is said of those without a derivative."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace as bt
from braintrace.compiler.module_info import ModuleInfo
from braintrace.compiler.tracing.derivatives import operations_without_derivative
from braintrace.jaxprs.run import with_replacements


def on_the_host(v: Any) -> Any:
    return jax.pure_callback(np.sin, jax.ShapeDtypeStruct(v.shape, v.dtype), v)


class Net(brainstate.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones((3, 3)))
        self.h = brainstate.HiddenState(jnp.zeros((2, 3)))

    def update(self, x: Any) -> Any:
        self.h.value = jnp.sin(self.h.value) + bt.matmul(x, self.w.value)
        return self.h.value + jnp.cos(x)


def with_callback_for(info: ModuleInfo, name: str) -> ModuleInfo:
    """The same step, in which a call of the host stands for an operation of JAX."""
    at = next(i for i, eqn in enumerate(info.eqns) if eqn.primitive.name == name)
    jaxpr = with_replacements(info.jaxpr, {at: lambda *values: [on_the_host(values[0])]})
    return replace(info, jaxpr=jaxpr)


def test_what_a_derivative_passes_is_tried() -> None:
    info = bt.extract_module_info(Net(), jnp.ones((2, 3)))
    assert [*operations_without_derivative(info)] == []
    ((eqn, said),) = operations_without_derivative(with_callback_for(info, "sin"))
    assert eqn.primitive.name == "pure_callback" and said.startswith("Pure callbacks do not")
    assert [*operations_without_derivative(with_callback_for(info, "cos"))] == []
