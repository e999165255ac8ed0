# SPDX-License-Identifier: Apache-2.0
"""What is asked about a step."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.compiler.uniform.step import Step
from tests.unit.compiler.uniform.leaky import Leaky


def test_what_a_step_answers() -> None:
    def update(s: Any, x: Any, v: Any) -> Any:
        return 0.9 * v + s.w(jnp.concatenate([x[:, :1], jnp.tanh(v)], -1))

    minfo = bt.extract_module_info(Leaky(update), jnp.ones((2, 4)))
    step = Step(minfo, bt.find_hidden_groups_from_minfo(minfo)[1], cuts=True)
    (path,) = minfo.hidden_path_to_outvar
    old, new = minfo.hidden_path_to_invar[path], minfo.hidden_path_to_outvar[path]
    x = minfo.jaxpr.invars[0]
    assert step.state_of == {old: path, new: path}
    assert step.varying(x) == {0, 1} and step.moves(x) and not step.credit(x)
    assert step.credit(new) and step.near(new) == {path} and step.recurs(new, path)
    assert not step.near(x) and not step.has_further_credit(x, path)
    (product,) = [eqn for eqn in minfo.eqns if eqn.primitive.name.startswith("etp")]
    assert step.affine(product) and step.has_further_credit(product.outvars[0], path)
    (decay,) = [
        a
        for e in minfo.eqns
        if old in e.invars and e.primitive.name == "mul"
        for a in e.invars
        if a is not old
    ]
    assert step.constant(decay) == pytest.approx(0.9)
