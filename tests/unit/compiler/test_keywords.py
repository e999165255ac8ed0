# SPDX-License-Identifier: Apache-2.0
"""Arguments of a step by place and by name, as one tuple."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

from braintrace.compiler.keywords import (
    ByName,
    in_order,
    names_of,
    run_with,
    shown,
    signature_of,
)


class Net(brainstate.nn.Module):
    def update(self, x: Any, gain: Any = 1.0, *, shift: Any = 0.0) -> Any:
        return gain * x + shift


class Called(Net):
    def __call__(self, a: Any, b: Any = 2.0) -> Any:
        return a - b


@pytest.mark.parametrize(
    ("args", "named", "found", "result"),
    [
        ((3.0,), {}, (3.0,), 3.0),
        ((), {"x": 3.0}, (3.0,), 3.0),
        ((3.0,), {"gain": 2.0}, (3.0, 2.0), 6.0),
        ((), {"gain": 2.0, "x": 3.0}, (3.0, 2.0), 6.0),
        ((3.0,), {"shift": 1.0}, (3.0, {"shift": 1.0}), 4.0),
        ((), {"shift": 1.0, "gain": 2.0, "x": 3.0}, (3.0, 2.0, {"shift": 1.0}), 7.0),
    ],
)
def test_arguments_stand_where_the_signature_has_them(
    args: Any, named: Any, found: Any, result: Any
) -> None:
    ordered = in_order(Net(), args, named)
    assert ordered == found and run_with(Net(), ordered) == result
    assert jax.jit(lambda args: run_with(Net(), args))(ordered) == result


def test_arguments_behind_one_that_is_left_out_keep_their_name() -> None:
    class Two(brainstate.nn.Module):
        def update(self, x: Any, a: Any = 1.0, b: Any = 2.0) -> Any:
            return x + 10 * a + 100 * b

    ordered = in_order(Two(), (3.0,), {"b": 0.0})
    assert ordered == (3.0, {"b": 0.0}) and run_with(Two(), ordered) == 13.0


def test_names_and_places_of_leaves() -> None:
    tree = (jnp.ones(2), ByName(b=jnp.zeros(3), a=1.0))
    places = [jax.tree_util.keystr(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    assert places == ["[0]", "[1]['a']", "[1]['b']"]
    assert type(jax.tree.map(lambda v: v, tree)[1]) is ByName
    assert jax.tree.structure(ByName(a=1, b=2)) == jax.tree.structure(ByName(b=2, a=1))


def test_structures_are_shown_as_calls() -> None:
    for args, text in (
        ((1.0, [2.0, {"a": 3.0}]), "(*, [*, {'a': *}])"),
        ((1.0, ByName(b=1.0, a=2.0)), "(*, a=*, b=*)"),
        ((), "()"),
    ):
        assert shown(jax.tree.structure(args)) == text
    assert shown(jax.tree.structure(1.0)) == "PyTreeDef(*)"  # no arguments


def test_a_model_may_be_called_in_its_own_way() -> None:
    assert names_of(Net()) == {"x", "gain", "shift"}
    assert names_of(Called()) == {"a", "b"}
    assert run_with(Called(), in_order(Called(), (5.0,), {"b": 1.0})) == 4.0
    assert names_of(brainstate.nn.Module()) == frozenset()  # takes anything
    assert str(signature_of(Called())) == "(a: 'Any', b: 'Any' = 2.0) -> 'Any'"


@pytest.mark.parametrize(
    ("args", "named", "text"),
    [
        ((1.0,), {"z": 1.0}, r"Net\(x.*unexpected keyword argument 'z'"),
        ((1.0,), {"x": 1.0}, "multiple values for argument 'x'"),
        ((), {"gain": 1.0}, "missing a required argument: 'x'"),
    ],
)
def test_what_the_model_does_not_take(args: Any, named: Any, text: str) -> None:
    with pytest.raises(TypeError, match=text):
        in_order(Net(), args, named)
