# SPDX-License-Identifier: Apache-2.0
"""Traces of many states, example by example, beside the whole transition at once."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms.by_example import goes_by_example, moved_by_example
from braintrace.executor.cascade import Cascade, composed

B, IN, OUT, Q = 3, 2, 4, 5


def drawn(*shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(sum(shape)).normal(size=shape))


@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("examples", [1, B])
def test_it_is_the_whole_transition(first: int, examples: int) -> None:
    cell = bt.nn.GRUCell(IN, OUT)
    rule = bt.compile(cell, "d_rtrl", jnp.ones((B, IN)), batch_size=B).rule
    rules = rule.rules[0].of_states(first + Q)
    trace = {key: drawn(*v.shape) for key, v in rules.types.items()}
    operands = [None, drawn(IN + OUT, OUT), drawn(OUT)]
    follows = ((True,) * first,) * Q
    between, old = drawn(Q, first, B, OUT), drawn(Q, first, OUT, B).swapaxes(2, 3)
    D = Cascade(drawn(first, first, B, OUT), drawn(Q, Q, examples, 1), between, follows, old)
    x, f, signal = drawn(1, B, IN + OUT), drawn(1, first, B, OUT), drawn(first + Q, B, OUT)
    assert goes_by_example(rules, D) and not goes_by_example(rules, D.composed())
    kept = rules.propagate(D.composed(), trace, operands)
    assert not moved_by_example(rules, D, trace, operands)[1]
    for driven in (None, (x, f)):
        added = (
            None if driven is None else rules.increments(x, composed(f[0], between)[None], operands)
        )
        expected = rules.joined(added, kept)
        new, found = moved_by_example(rules, D, trace, operands, driven, signal)
        for a, b in ((new, expected), (found, rules.solve(signal, expected, operands))):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), a, b)
