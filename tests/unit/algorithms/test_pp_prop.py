# SPDX-License-Identifier: Apache-2.0
"""pp_prop by blocks is what its definition says, step by step."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms import Block, IODimRule, ParamDimRule
from braintrace.plugin_api import bind
from braintrace.testing import assert_tree_close
from tests import zoo
from tests.unit.algorithms.blocks import BATCH, IN, block_of, part, ready


def by_definition(block: Block, a_x: float, a_f: float) -> tuple[Any, Any, Any]:
    """The gradient of the only relation, and its filters after the block."""
    (x,), (f,), (D,) = block.jacobians
    (signal,), (old,) = block.signal, block.old_signal
    ex, ef, total = np.zeros(x.shape[1:]), np.zeros(f.shape[1:]), np.zeros((IN, zoo.HIDDEN))

    def met(signal: Any, count: int) -> Any:
        u = (signal * ef).sum(0) / (1 - a_f**count)
        return np.einsum("bi,bo->io", ex, u)

    for t in range(len(x)):
        if t and old is not None:
            total += met(old[t], t)
        ex = a_x * ex + x[t]
        ef = a_f * np.einsum("rsbo,sbo->rbo", D[t], ef) + (1 - a_f) * f[t]
        total += met(signal[t], t + 1)
    return total, ex, ef


@pytest.mark.parametrize(
    ("cut", "decays", "old"),
    [(0, (0.5, 0.8), True), (1, (0.5, 0.8), True), (3, (0.5, 0.8), False), (1, (0.0, 0.8), True),
     (3, (0.9, 0.0), True)],
)  # fmt: skip
def test_blocks_of_any_length_are_loops(cut: int, decays: tuple[float, float], old: bool) -> None:
    executor, operands = ready()
    rule, block = IODimRule(executor, *decays), block_of(executor, old=old)
    first, traces = [{"weight": 0.0}], rule.init()
    if cut:
        first, traces = rule.advance(traces, part(block, 0, cut), operands)
    second, traces = rule.advance(traces, part(block, cut, None), operands)
    expected, ex, ef = by_definition(block, *decays)
    np.testing.assert_allclose(first[0]["weight"] + second[0]["weight"], expected, rtol=1e-10)
    held = rule.of_link(traces, 0)
    np.testing.assert_allclose(held["x"], ex, rtol=1e-10)
    np.testing.assert_allclose(held["f"], np.moveaxis(ef, 0, -1), rtol=1e-10)
    assert int(traces[0]) == 4


def test_the_first_step_is_exact_whatever_the_decay() -> None:
    executor, operands = ready()
    one = block_of(executor, 1, old=False)
    rules = IODimRule(executor, 0.9, 0.999), ParamDimRule(executor)
    assert_tree_close(*(rule.solve(None, one, operands) for rule in rules), 1e-10)


class Two(zoo.Leaky):
    """h <- tanh(0.8 h + x w + x^2 v): both products are terms of one sum."""

    def __init__(self) -> None:
        super().__init__()
        self.v = zoo.weight(IN, zoo.HIDDEN)

    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.w.value) + bt.matmul(x**2, self.v.value)
        self.h.value = jnp.tanh(0.8 * self.h.value + drive)
        return self.h.value


def test_terms_of_one_sum_share_a_filter() -> None:
    executor, operands = ready(Two())
    block, rule = block_of(executor), IODimRule(executor, 0.5, 0.8)
    x, f, D = block.jacobians
    block = block._replace(jacobians=block.jacobians._replace(f=(f[0], f[0])))
    found, traces = rule.advance(None, block, operands)
    held = rule.hold(traces).f
    assert held[0] is not None and held[1] is None
    assert rule.bytes_per_step == BATCH * (2 * IN + zoo.HIDDEN) * 8
    for i in (0, 1):
        own = block._replace(jacobians=type(block.jacobians)((x[i],), (f[0],), D))
        expected, ex, ef = by_definition(own, 0.5, 0.8)
        np.testing.assert_allclose(found[i]["weight"], expected, rtol=1e-10)
        kept = rule.of_link(traces, i)
        np.testing.assert_allclose(kept["x"], ex, rtol=1e-10)
        np.testing.assert_allclose(kept["f"], np.moveaxis(ef, 0, -1), rtol=1e-10)


def test_a_signal_at_the_start_of_a_window_meets_the_filters() -> None:
    executor, operands = ready()
    rule = IODimRule(executor, 0.5, 0.8)
    signal = np.ones((1, BATCH, zoo.HIDDEN))
    (none,) = rule.solve_at_start(rule.init(), (signal,), operands)
    assert not none["weight"].any()
    traces = rule.update(None, block_of(executor), operands)
    (found,) = rule.solve_at_start(traces, (signal,), operands)
    _, ex, ef = by_definition(block_of(executor), 0.5, 0.8)
    expected = np.einsum("bi,bo->io", ex, ef.sum(0)) / (1 - 0.8**4)
    np.testing.assert_allclose(found["weight"], expected, rtol=1e-10)


def test_traces_are_kept_in_more_than_half_precision() -> None:
    executor, _ = ready()
    assert IODimRule(executor, 0.5, 0.5, "bfloat16").init()[1][0].dtype == "bfloat16"
    rule = IODimRule(executor, 0.5, 0.5)
    assert [v.dtype for v in (rule.init()[1][0], rule.init()[2][0])] == ["float64"] * 2
    assert rule.bytes_per_step == (BATCH * IN + BATCH * zoo.HIDDEN) * 8
    assert rule.name == "pp_prop, decays 0.5 and 0.5"


def test_a_class_that_looks_at_blocks_gets_blocks() -> None:
    class Doubled(IODimRule):
        def advance(self, traces: Any, block: Block, operands: Any) -> Any:
            return super().advance(traces, block, operands)

    class Named(IODimRule):
        name = "named"

    assert (IODimRule.takes_steps, Named.takes_steps, Doubled.takes_steps) == (True, True, False)


COUNTED = bt.ETPPrimitiveSpec("unit_counted", lambda x, w: x.astype(w.dtype) @ w)


class Indexed(zoo.Leaky):
    """The input of the operation is of integers."""

    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + bind(COUNTED, (x > 0).astype(int), self.w.value)
        return self.h.value


def test_an_input_that_cannot_be_filtered_is_refused() -> None:
    executor, _ = ready(Indexed())
    text = r"that of unit_counted at .*test_pp_prop.py:\d+.* has dtype int64; convert it"
    with pytest.raises(bt.NotSupportedError, match=text):
        IODimRule(executor, 0.5, 0.5)
    assert jnp.shape(IODimRule(executor, 0.0, 0.5).init()[0]) == ()


class InTwoGroups(zoo.Model):
    """A product that two states hear, which do not hear each other."""

    names = ("a", "b")

    def __init__(self) -> None:
        super().__init__()
        self.w = zoo.weight(IN, zoo.HIDDEN)

    def update(self, x: Any) -> Any:
        y = bt.matmul(x, self.w.value)
        self.a.value, self.b.value = 0.8 * self.a.value + y, jnp.tanh(0.7 * self.b.value + y)
        return self.a.value + self.b.value


def test_what_is_in_parts_is_counted_once_beside_what_is_whole() -> None:
    executor, operands = ready(InTwoGroups())
    rule, block = IODimRule(executor, 0.5, 0.8), block_of(executor, old=True)
    traces = rule.advance(rule.init(), block, operands)[1]
    assert len(executor.groups) == 2
    block = block._replace(old_signal=(None, block.old_signal[1]))
    (whole,), _ = rule.advance(traces, block, operands)
    executor.divide((2, None))
    (found,), _ = rule.advance(traces, block, operands)
    found = found["weight"]
    np.testing.assert_allclose(
        found if found.ndim == 2 else found.sum(0), whole["weight"], rtol=1e-10
    )
