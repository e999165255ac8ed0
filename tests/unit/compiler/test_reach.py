# SPDX-License-Identifier: Apache-2.0
"""What operations reach, and the cones of groups."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.compiler.reach import check_scope, coupled_transition, find_cones, find_reach
from tests import zoo
from tests.zoo import HIDDEN, IN, weight


class Two(zoo.Model):
    """A product in front of another, which drives a; b reads a; a readout."""

    names = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.front, self.w, self.up = weight(IN, IN), weight(IN, HIDDEN), weight(HIDDEN, HIDDEN)
        self.out = weight(HIDDEN, 2)

    def update(self, x: Any) -> Any:
        self.a.value = 0.5 * self.a.value + bt.matmul(bt.matmul(x, self.front.value), self.w.value)
        self.b.value = jnp.tanh(bt.matmul(self.a.value, self.up.value))
        return bt.matmul(self.b.value, self.out.value)


class Recurrent(zoo.Leaky):
    """h <- tanh(x W + h R), with R an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.r = weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        self.h.value = jnp.tanh(bt.matmul(x, self.w.value) + bt.matmul(self.h.value, self.r.value))
        return self.h.value


def analysed(model: Any) -> tuple[Any, Any]:
    brainstate.nn.init_all_states(model, batch_size=2)
    minfo = bt.extract_module_info(model, jnp.ones((2, IN)))
    return minfo, bt.find_hidden_groups_from_minfo(minfo)[0]


def test_which_groups_an_operation_reaches() -> None:
    minfo, groups = analysed(Two())
    reach = find_reach(minfo, groups)
    assert [(sorted(r.near), sorted(r.far)) for r in reach] == [
        ([], [0, 1]),  # through another operation
        ([0], [0, 1]),
        ([1], [1]),
        ([], []),
    ]
    assert [r.traced for r in reach] == [False, True, True, False]
    assert [r.paths for r in reach] == [(("front",),), (("w",),), (("up",),), (("out",),)]
    news = [group.hidden_outvars[0] for group in groups]
    assert [r.crossing & {*news} for r in reach] == [{*news}, {news[1]}, set(), set()]


def test_operands_and_the_parameters_behind_them() -> None:
    class Chained(zoo.Leaky):
        def update(self, x: Any) -> Any:
            w = jnp.tanh(self.w.value) * 2.0
            self.h.value = 0.5 * self.h.value + bt.matmul(x, w)
            return self.h.value

    minfo, groups = analysed(Chained())
    (reach,) = find_reach(minfo, groups)
    (operand,) = reach.operands
    assert (operand.key, operand.position, operand.leaves) == ("weight", 1, ((("w",), 0),))
    assert [minfo.eqns[i].primitive.name for i in operand.chain] == ["tanh", "mul"]
    assert operand.held == ()


def test_the_cone_of_a_group() -> None:
    minfo, groups = analysed(Recurrent())
    reach = find_reach(minfo, groups)
    (cone,) = find_cones(groups, reach, "diagonal")
    assert [minfo.eqns[i].primitive.name for i in cone.eqns] == ["add", "tanh"]
    assert not cone.old_reaches and cone.transition is None  # the only way is an operation
    assert cone.passing == ((False,),)
    assert [*cone.driving.values()] == [(True,), (True,)]
    (coupled,) = find_cones(groups, reach, "coupled")
    assert coupled.transition is not None and coupled.passing == ((True,),)
    assert coupled.transition.mixed == (1,)


def test_a_coupled_transition_is_the_step_of_the_group() -> None:
    minfo, groups = analysed(Recurrent())
    transition = coupled_transition(groups, groups[0])
    assert transition is not None and transition.program is not None
    states = {slot.path: slot.state.value for slot in minfo.slots}
    x, h = np.linspace(-1, 1, 2 * IN).reshape(2, IN), np.full((2, HIDDEN), 0.3)
    values = versions.start_env(
        minfo.jaxpr, [x, *(h if p == ("h",) else jax.tree.leaves(v)[0] for p, v in states.items())]
    )
    for eqn in minfo.eqns:
        results = versions.bind_equation(
            eqn, [values[a] if versions.is_var(a) else a.val for a in eqn.invars]
        )
        values.update(zip(eqn.outvars, results, strict=True))
    free = [values[var] for var in transition.free]
    run = versions.jaxpr_as_fun(transition.program)
    (new,) = run(*free, h)
    np.testing.assert_allclose(new, values[groups[0].hidden_outvars[0]], rtol=1e-10)
    slope = jax.jacobian(lambda h: run(*free, h)[0])(h)[0, :, 0]
    expected = (1 - np.asarray(new)[0] ** 2)[:, None] * np.asarray(states["r",]).T
    np.testing.assert_allclose(slope, expected, rtol=1e-10)


def test_scopes() -> None:
    assert check_scope("coupled") == "coupled"
    with pytest.raises(ValueError, match=r"must be one of \('diagonal', 'coupled'\), got 'full'"):
        check_scope("full")


class Twice(zoo.Model):
    """b reads the new a plainly, and through an operation."""

    names = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.w, self.r = weight(IN, HIDDEN), weight(HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        self.a.value = 0.5 * self.a.value + bt.matmul(x, self.w.value)
        self.b.value = 0.25 * self.b.value + self.a.value + bt.matmul(self.a.value, self.r.value)
        return self.b.value


def test_a_coupled_path_crosses_no_operation_behind_a_new_value() -> None:
    _, groups = analysed(Twice())
    (group,) = groups
    transition = coupled_transition(groups, group)
    assert transition is not None and transition.program is not None and transition.mixed == ()
    avals = [var.aval for var in transition.program.invars]
    zeros = [jnp.zeros(aval.shape, aval.dtype) for aval in avals]
    run = versions.jaxpr_as_fun(transition.program)
    slope = jax.jacobian(lambda a: run(*zeros[:-2], a, zeros[-1])[1])(zeros[-2])
    np.testing.assert_allclose(slope[0, :, 0], 0.5 * np.eye(HIDDEN))
