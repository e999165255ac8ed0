# SPDX-License-Identifier: Apache-2.0
"""Whether equations keep the examples of a batch apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from braintrace.compiler.uniform.examples import keeps_examples, reads_line

X = jnp.ones((2, 3))


def equation(function: Callable[[Any], Any], of: Any) -> Any:
    return jax.make_jaxpr(function)(of).eqns[-1]


@pytest.mark.parametrize(
    ("function", "kept"),
    [
        (lambda x: x * 2.0, True),
        (lambda x: x.T, False),
        (lambda x: x.sum(1), True),
        (lambda x: x.sum(0), False),
        (lambda x: jax.lax.rev(x, (0,)), False),
        (lambda x: jnp.concatenate([x, x], 1), True),
        (lambda x: jnp.concatenate([x, x], 0), False),
        (lambda x: jax.lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), (1, 0, 0))), True),
        (lambda x: jax.lax.dot(x, jnp.ones((3, 4))), True),
        (lambda x: jax.lax.dot(jnp.ones((2, 2)), x), False),
    ],
)
def test_which_keep_them(function: Any, kept: bool) -> None:
    jaxpr = jax.make_jaxpr(function)(X)
    eqn = jaxpr.eqns[-1]
    (traced,) = jaxpr.jaxpr.invars
    followed = tuple(k for k, a in enumerate(eqn.invars) if a is traced)
    assert keeps_examples(eqn, followed) == kept


def test_reads_of_a_line() -> None:
    line = jnp.ones((5, 2, 3))
    assert reads_line(equation(lambda x: jax.lax.slice(x, (1, 0, 0), (3, 2, 3)), line))
    assert reads_line(equation(lambda x: x.sum(0), line))
    assert not reads_line(equation(lambda x: x.sum(1), line))
    assert not reads_line(equation(lambda x: x * 2.0, line))
