# SPDX-License-Identifier: Apache-2.0
"""Parts of a program as programs of their own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.extend.core import check_jaxpr

from braintrace.jaxprs.slices import between


def step(x: Any, h: Any, w: Any) -> Any:
    drive = jnp.sin(x) * w
    return jnp.tanh(h * w + drive), drive


JAXPR = jax.make_jaxpr(step)(1.0, 2.0, 3.0)


def test_what_the_way_reads_is_free() -> None:
    _, h, w = JAXPR.invars
    part = between(JAXPR.eqns, [h], JAXPR.outvars[:1])
    assert part.ins == (h,) and set(part.free) == {w, JAXPR.outvars[1]}
    assert [eqn.primitive.name for eqn in part.eqns] == ["mul", "add", "tanh"]
    values = {w: 3.0, JAXPR.outvars[1]: 0.5}
    assert part.run(*(values[v] for v in part.free), 2.0) == [jnp.tanh(6.5)]
    program = part.jaxpr()
    check_jaxpr(getattr(program, "jaxpr", program))
    assert len(program.invars) == 3 and not program.consts


def test_a_way_ends_at_what_is_held() -> None:
    x, _, _ = JAXPR.invars
    new, drive = JAXPR.outvars
    part = between(JAXPR.eqns, [x], [new], held=[drive])
    assert part.eqns == () and part.free == (new,)


def test_a_way_may_be_refused_an_operand() -> None:
    _, h, w = JAXPR.invars
    part = between(
        JAXPR.eqns, [h, w], JAXPR.outvars[:1], follows=lambda i, eqn, k: eqn.invars[k] is not w
    )
    assert [eqn.primitive.name for eqn in part.eqns] == ["mul", "add", "tanh"]


def test_a_derivative_can_be_cut() -> None:
    _, h, _ = JAXPR.invars
    part = between(JAXPR.eqns, [h], JAXPR.outvars[:1])

    def slope(cut: Any) -> Any:
        return jax.grad(lambda h: part.run(0.1, 0.2, h, cut=cut)[0])(0.3)

    assert slope(lambda eqn: eqn.primitive.name == "mul") == 0.0
    assert slope(lambda eqn: False) != pytest.approx(0.0)
