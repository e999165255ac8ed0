# SPDX-License-Identifier: Apache-2.0
"""A trace in the structure of the rules: the family's own rules, held weights, large examples."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.algorithms.in_place import put_together
from braintrace.base import versions
from braintrace.base.types import bytes_of
from braintrace.ops.operation import Operation
from braintrace.ops.traces import by_rules, trace_rules
from braintrace.testing import assert_tree_close

RNG = np.random.default_rng(0)


def scale(dy: Any, trace: Any) -> Any:
    return {"w": trace["w"] * dy[..., None, :], "b": trace["b"] * dy}


def initial(x: Any, y: Any, weights: Any, n: int) -> Any:
    head, dtype = y.aval.shape[:-1], y.aval.dtype
    return {k: jnp.zeros((*head, *v.aval.shape, n), dtype) for k, v in weights.items()}


def increments(x: Any, f: Any, weights: Any) -> Any:
    return {"w": jnp.einsum("kbi,kbo->bio", x, f), "b": f.sum(0)}


def rules(traced: tuple[str, ...] = ("w", "b"), **written: Any) -> Any:
    spec = bt.ETPPrimitiveSpec(
        "unit_structured",
        lambda x, w, b: x @ w + b,
        batched=True,
        trainable_invars_fn=lambda params: {"w": 1, "b": 2},
        **{"yw_to_w": scale, "init_drtrl": initial, **written},
    )
    shapes = ((5, 3), (3, 2), (2,), (5, 2))
    *operands, y = (jax.ShapeDtypeStruct(shape, "float64") for shape in shapes)
    return trace_rules(Operation(spec, {}, tuple(operands), y, traced), (), 2)


def data() -> tuple[Any, ...]:
    x, f, signal = (jnp.asarray(RNG.normal(size=s)) for s in ((4, 5, 3), (4, 2, 5, 2), (2, 5, 2)))
    return x, f, signal, (None, jnp.ones((3, 2)), jnp.ones(2))


@pytest.mark.parametrize("several", [False, True])
def test_the_own_rule_for_steps_equals_the_derived_increments(
    several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "several_devices", lambda: several)
    x, f, _, operands = data()
    own = rules(increments_drtrl=increments).increments(x, f, operands)
    assert_tree_close(own, rules().increments(x, f, operands), 1e-12)


@pytest.mark.parametrize("several", [False, True])
def test_a_block_moves_a_trace_example_by_example(
    several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, f, _, operands = data()
    form, plain = rules(increments_drtrl=increments), rules()
    assert form.by_example and not plain.by_example
    trace = form.increments(x[:1], f[:1], operands)
    whole = jnp.asarray(RNG.normal(size=(2, 2, 5, 2)))
    expected = plain.moved(whole, trace, x, f, operands)
    by_hand = jnp.einsum("stbo,tbio->sbio", whole, trace["w"]) + jnp.einsum("kbi,ksbo->sbio", x, f)
    assert_tree_close(expected["w"], by_hand, 1e-12)
    monkeypatch.setattr(versions, "several_devices", lambda: several)

    assert_tree_close(form.moved(whole, trace, x, f, operands), expected, 1e-12)
    parted = form.moved(whole, form.parted(trace), x, f, operands)
    assert_tree_close(put_together(parted), expected, 1e-12)
    narrow = jax.tree.map(lambda v: v.astype("float32"), trace)
    assert form.moved(whole, narrow, x, f, operands)["w"].dtype == "float64"
    monkeypatch.setattr(by_rules, "UNROLL_PRODUCTS", 1)  # many states: D is not taken by columns
    assert_tree_close(form.moved(whole, trace, x, f, operands), expected, 1e-12)


@pytest.mark.parametrize("examples", [5, 4])
def test_a_large_trace_is_written_over_itself_by_derived_increments(
    examples: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, f, _, operands = data()
    plain = rules()
    trace = plain.increments(x[:1], f[:1], operands)
    whole = jnp.asarray(RNG.normal(size=(2, 2, 5, 2)))
    some = jax.tree.map(lambda v: v[:, :examples], trace)
    given = whole[:, :, :examples], some, x[:, :examples], f[:, :, :examples]
    expected = jax.tree.map(lambda v: v[:, :examples], plain.moved(whole, trace, x, f, operands))
    for name in ("LARGE_EXAMPLE", "FRESH"):
        monkeypatch.setattr(by_rules, name, 1)
    form = rules()
    assert form.by_example

    def run(*given: Any) -> Any:
        return form.moved(*given, operands)

    assert_tree_close(jax.jit(run)(*given), expected, 1e-12)
    for backend, platform in (("cpu", "cpu"), ("gpu", "cpu"), ("gpu", "cuda")):
        monkeypatch.setattr(jax, "default_backend", lambda backend=backend: backend)
        program = jax.jit(lambda *given: run(*given)).trace(*given)
        text = program.lower(lowering_platforms=(platform,)).as_text()
        assert ("while" in text) == (platform == "cpu")
    one = form.moved(whole[:, :, :examples], some, x[:1, :examples], f[:1, :, :examples], operands)
    kept = plain.propagate(whole, trace, operands)
    added = plain.joined(kept, plain.increments(x[:1], f[:1], operands))
    assert_tree_close(one, jax.tree.map(lambda v: v[:, :examples], added), 1e-12)


def test_off_a_cpu_a_turn_of_a_loop_over_examples_takes_several(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, f, _, operands = data()
    x, f = (jnp.concatenate([v, 2 * v], axis) for v, axis in ((x, 1), (f, 2)))  # ten examples
    form = rules(increments_drtrl=increments)
    trace = form.increments(x[:1], f[:1], operands)
    whole = jnp.asarray(RNG.normal(size=(2, 2, 10, 2)))
    expected = form.increments(x, f, operands), form.moved(whole, trace, x, f, operands)
    assert form._in_a_turn(10) == 1
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert form._in_a_turn(10) == 10
    monkeypatch.setattr(by_rules, "TURN", bytes_of([*form.types.values()]) * 7 // 10)
    assert (form._in_a_turn(10), form._in_a_turn(7)) == (5, 1)
    found = form.increments(x, f, operands), form.moved(whole, trace, x, f, operands)
    assert_tree_close(found, expected, 1e-12)


def test_a_weight_that_is_held_has_no_trace() -> None:
    x, f, signal, operands = data()
    whole, part = rules(), rules(("b",))
    trace = part.increments(x, f, operands)
    assert set(part.types) == set(trace) == {"b"}
    expected = whole.solve(signal, whole.increments(x, f, operands), operands)["b"]
    assert_tree_close(part.solve(signal, trace, operands), {"b": expected}, 1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_large_examples_are_added_up_one_by_one(
    dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, f, signal, operands = data()
    form = rules()
    trace = jax.tree.map(lambda v: v.astype(dtype), form.increments(x, f, operands))
    whole = form.solve(signal.astype(dtype), trace, operands)
    monkeypatch.setattr(by_rules, "LARGE_EXAMPLE", 4)
    apart = form.solve(signal.astype(dtype), trace, operands)
    assert_tree_close(apart, whole, 1e-12 if dtype == "float64" else 1e-2)
    assert apart["w"].dtype == whole["w"].dtype == "float64"  # as wide as what they are for
    few = signal[:, :2], jax.tree.map(lambda v: v[:, :2], trace)
    with jax.disable_jit():
        plainly = form.solve(*few, operands)
    assert_tree_close(form.solve(*few, operands), plainly, 1e-12)
    monkeypatch.setattr(versions, "several_devices", lambda: True)
    program = jax.make_jaxpr(form.solve)(signal.astype(dtype), trace, operands)
    assert not any(e.primitive.name in ("cond", "scan", "platform_index") for e in program.eqns)
    together = form.solve(signal.astype(dtype), trace, operands)
    assert_tree_close(together, whole, 1e-12 if dtype == "float64" else 1e-2)


@pytest.mark.parametrize("traced", [("w", "b"), ("b",)])
def test_what_parts_of_the_examples_find_in_a_trace(traced: tuple[str, ...]) -> None:
    x, f, signal, operands = data()
    form = rules(traced)
    trace = form.increments(x, f, operands)
    found = form.solve_in_parts(signal, trace, operands, 5)
    for b in range(5):
        alone = jax.tree.map(
            lambda v, b=b: v * (jnp.arange(5) == b).reshape(-1, *(1,) * (v.ndim - 2)), trace
        )
        expected = form.solve(signal, alone, operands)
        assert_tree_close(jax.tree.map(lambda v, b=b: v[b], found), expected, 1e-12)
    whole = form.solve(signal, trace, operands)
    assert_tree_close(form.solve_in_parts(signal, trace, operands, 2), whole, 1e-12)


def test_a_rule_that_adds_up_examples_itself_does_so_in_parts() -> None:
    x, f, signal, operands = data()

    def summed(dy: Any, trace: Any, weights: Any) -> Any:
        return {key: leaf.sum(0) for key, leaf in scale(dy, trace).items()}

    own = rules(solve_drtrl=summed)
    trace = own.increments(x, f, operands)
    found = own.solve_in_parts(signal, trace, operands, 5)
    assert_tree_close(found, rules().solve_in_parts(signal, trace, operands, 5), 1e-12)
