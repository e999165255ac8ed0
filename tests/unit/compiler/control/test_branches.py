# SPDX-License-Identifier: Apache-2.0
"""Branches cut at their operations."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.compiler.control.branches import cut, run_branches, varying_variables
from braintrace.testing import assert_tree_close

X, W = np.linspace(-1, 1, 6).reshape(2, 3), np.linspace(0.1, 1, 9).reshape(3, 3)


def jaxpr_of(branch: Any) -> Any:
    return versions.make_jaxpr(lambda w, x: [branch(w, x)], W, X)


def two(w: Any, x: Any) -> Any:
    return bt.matmul(jnp.sin(bt.matmul(jnp.cos(x), jnp.abs(w))), w) + x


def one(w: Any, x: Any) -> Any:
    return 2.0 * bt.matmul(x, w)


def none(w: Any, x: Any) -> Any:
    return jnp.sqrt(x) + w[0]


def test_a_branch_is_cut_at_each_operation() -> None:
    branch = cut(jaxpr_of(two), [True, False])
    assert len(branch.segments) == 3
    names = [[eqn.primitive.name for eqn in segment.eqns] for segment in branch.segments]
    assert names == [["cos"], ["sin"], ["add"]]
    assert [eqn.primitive.name for eqn in branch.outside] == ["abs"]  # of a parameter alone
    assert [s.operation is None for s in branch.segments] == [False, False, True]
    assert [s.masked for s in branch.segments[:2]] == [(True, False)] * 2
    (zeros,) = branch.segments[0].skip()
    assert zeros.shape == (2, 3) and not zeros.any()


@pytest.mark.parametrize("index", [0, 1, 2])
def test_the_taken_branch_gives_the_results(index: int) -> None:
    branches = [cut(jaxpr_of(f), [True, False]) for f in (two, one, none)]

    def run(w: Any, x: Any) -> Any:
        return run_branches(branches, jnp.asarray(index), w, x)[0]

    taken = (two, one, none)[index]
    np.testing.assert_allclose(run(W, X), taken(W, X), rtol=1e-10)
    x = np.abs(X)  # where the last one has a derivative
    found, expected = (
        jax.grad(lambda w, x, f=f: (f(w, x) ** 2).sum(), (0, 1))(W, x) for f in (run, taken)
    )
    assert_tree_close(found, expected, 1e-10)


def test_a_singular_branch_that_is_not_taken_leaves_gradients_finite() -> None:
    branches = [cut(jaxpr_of(f), [True, False]) for f in (one, none)]
    grads = jax.grad(lambda x: run_branches(branches, jnp.asarray(0), W, x)[0].sum())(X)
    assert jnp.isfinite(grads).all()  # X is negative in places, where sqrt has none


def test_what_depends_on_inputs_varies() -> None:
    jaxpr = versions.make_jaxpr(lambda w, x: [w * 2.0, w * x], 1.0, 2.0)
    fixed, moving = (eqn.outvars[0] for eqn in jaxpr.eqns)
    varying = varying_variables(jaxpr, [True, False])
    assert moving in varying and fixed not in varying


def test_effects_of_a_branch_are_kept() -> None:
    def saying(w: Any, x: Any) -> Any:
        jax.debug.callback(lambda v: None, x)
        return one(w, x)

    last = cut(jaxpr_of(saying), [True, False]).segments[-1]
    assert any(eqn.effects for eqn in last.eqns)
