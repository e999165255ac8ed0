# SPDX-License-Identifier: Apache-2.0
"""Learners inside of ``jax.shard_map``: every device has some of the examples."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import braintrace as bt
from braintrace.base.errors import NotSupportedError
from braintrace.testing import assert_tree_close
from tests.truth import table
from tests.truth.table import Case

from . import meshes

P, DATA = jax.P, jax.P(None, "data")
CASES = [
    *(Case("dense", rule) for rule in ("d_rtrl", "pp_prop", "eprop", "snap-2", "rtrl")),
    *(Case("dense", rule) for rule in ("three-factor-standing", "d_rtrl-coupled", "uoro")),
    *(Case(model) for model in "lstm conv sparse lora groups tokens element-wise own lif".split()),
    *(Case("dense", "d_rtrl", d) for d in ("update", "update-1", "call", "carried", "block-1")),
    Case("dense", "pp_prop", "windows-2"),
    Case("dense", "rtrl", "call"),
    Case("dense", "uoro", "call"),
    Case("dense", "uoro", "update-1"),
    Case("dense", "pp_prop", "update-1"),
    Case("dense", "pp_prop", "call"),
]


def split(case: Case, batch: int) -> tuple[Any, Any, Any]:
    """A job of so many examples, its learner as a graph, and the values of all states."""
    before, table.BATCH = table.BATCH, batch
    try:
        job = table.prepared(case)
    finally:
        table.BATCH = before
    if case.driver.startswith("update"):
        job.learner.optimizer(table.SGD)  # cannot be made inside of a transformation
    return job, *brainstate.graph.treefy_split(job.learner)


def states_of(learner: Any) -> list[Any]:
    return jax.tree.leaves(brainstate.graph.treefy_split(learner)[1])


def both(case: Case, on: Any, jit: Any = jax.jit) -> tuple[Any, Any]:
    """Results of devices with learners of their own examples, and of one, with the same states."""
    job, graph, own = split(case, meshes.BATCH // on.size)
    full, _, whole = split(case, meshes.BATCH)

    def along(whole: Any, own: Any) -> Any:  # the axis of which a device has a part
        return P(*("data" if a != b else None for a, b in zip(whole.shape, own.shape, strict=True)))

    def of_device(values: Any, xs: Any, ys: Any) -> Any:
        learner = brainstate.graph.treefy_merge(graph, values)
        found = table.DRIVERS[case.driver](replace(job, learner=learner, xs=xs, ys=ys))()
        outputs = found.pop("outputs", None)

        def summed(path: Any, leaf: Any) -> Any:  # losses are those of the device
            return jax.lax.psum(leaf, "data") if "losses" in str(path) else leaf

        found = jax.tree_util.tree_map_with_path(summed, found)
        return found, outputs, states_of(learner)

    places = jax.tree.map(along, whole, own)
    ends = jax.tree.leaves(places, is_leaf=lambda v: isinstance(v, P))
    mapped = jax.shard_map(
        of_device, mesh=on, in_specs=(places, DATA, DATA), out_specs=(P(), DATA, ends)
    )
    given = (whole, places), (full.xs, DATA), (full.ys, DATA)
    placed = [
        jax.tree.map(lambda v, p: jax.device_put(v, jax.NamedSharding(on, p)), *pair)
        for pair in given
    ]
    found, outputs, states = jit(mapped)(*placed)
    expected = table.DRIVERS[case.driver](full)()
    for now, own in zip(states, states_of(full.learner), strict=True):
        np.testing.assert_allclose(now, own, rtol=0, atol=1e-12)
    return {**found, "outputs": outputs}, {"outputs": None, **expected}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_numbers_are_those_of_one_device(case: Case) -> None:
    found, expected = both(case, meshes.mesh("Auto", 2))
    assert_tree_close(found, expected, 1e-12)


def test_on_other_meshes_and_outside_of_jit() -> None:
    """Explicit axes are manual inside."""
    for kind, count, jit in (("Explicit", 8, jax.jit), ("Auto", 2, lambda f: f)):
        assert_tree_close(*both(Case("dense"), meshes.mesh(kind, count), jit), 1e-12)


# --- a learner that is compiled inside ----------------------------------------------------------

XS, YS = (jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, n))) for n in (3, 4))


def gradient(cell: Any, xs: Any, ys: Any, calls: bool = False, rule: str = "d_rtrl") -> Any:
    """Of the examples that are given, with a ``step_fn`` or a loss that has the targets inside."""
    learner = bt.compile(cell, rule, xs[0], batch_size=xs.shape[1])
    learner.etrace_evolve(xs[:1])
    if calls:
        loss = lambda: ((learner(bt.MultiStepData(xs[1:])) - ys[0]) ** 2).sum()  # noqa: E731
        return brainstate.transform.grad(loss, learner.param_states)()
    return learner.etrace_grad(
        xs[1:], step_fn=lambda x: ((learner(x) - ys[0]) ** 2).sum(), reduction="sum", block_size=2
    )


def cell() -> Any:
    brainstate.random.seed(0)
    return bt.nn.GRUCell(3, 4)


def inside(run: Any, on: Any = None, **options: Any) -> Any:
    on = meshes.mesh("Auto", 2) if on is None else on
    mapped = jax.shard_map(run, mesh=on, in_specs=(DATA, DATA), out_specs=P(), **options)
    return jax.jit(mapped)(XS, YS)


def test_compiled_inside() -> None:
    own = cell()
    expected = gradient(own, XS, YS)
    for calls in (False, True):
        assert_tree_close(inside(lambda *a, c=calls: gradient(own, *a, c)), expected, 1e-12)
    leaky = meshes.BelowALeak()  # of which filters are made inside, too
    assert_tree_close(inside(lambda *a: gradient(leaky, *a)), gradient(leaky, XS, YS), 1e-12)
    # along other axes nothing varies, and nothing is summed
    for options in ({}, {"axis_names": {"data"}}):
        found = inside(lambda *a: gradient(own, *a), meshes.mesh("Auto", 2, 2), **options)
        assert_tree_close(found, expected, 1e-12)


def test_users_sum_gradients_of_weights_that_vary_and_those_without_checks() -> None:
    own, expected = cell(), gradient(cell(), XS, YS)
    params = brainstate.graph.states(own, brainstate.ParamState)
    values = {key: state.value for key, state in params.items()}

    def run(xs: Any, ys: Any) -> Any:
        for key, state in params.items():
            varied = jax.tree.map(lambda v: jax.lax.pcast(v, "data", to="varying"), values[key])
            state.restore_value(varied)
        found = gradient(own, xs, ys)
        assert {jax.typeof(v).manual_axis_type.varying for v in jax.tree.leaves(found)} == {
            frozenset({"data"})
        }
        return jax.lax.psum(found, "data")

    assert_tree_close(inside(run), expected, 1e-12)
    own = cell()
    plain = inside(lambda *a: jax.lax.psum(gradient(own, *a), "data"), check_vma=False)
    assert_tree_close(plain, expected, 1e-12)


def test_what_is_refused() -> None:
    own, tx = bt.compile(cell(), "d_rtrl", XS[0], batch_size=8), optax.sgd(0.1)

    def step(x: Any) -> Any:
        return jax.lax.pmean((own(x) ** 2).sum(), "data")

    with pytest.raises(
        ValueError, match=r"\(4, 3\) .* \(8, 3\) .* along \['data'\], .* one device"
    ):
        inside(lambda xs, ys: own.etrace_grad(xs, step_fn=step))
    own = bt.compile(cell(), "d_rtrl", XS[0, :4], batch_size=4)
    with pytest.raises(NotSupportedError, match=r"psum at .*along \['data'\] in a step"):
        inside(lambda xs, ys: own.etrace_grad(xs, step_fn=step))
    with pytest.raises(NotSupportedError, match="an update on some devices and none on others"):
        inside(lambda xs, ys: own.etrace_update(xs, step_fn=step, optimizer=tx, check="skip"))


def test_a_branch_behind_the_call_of_the_learner() -> None:
    """What is said of step_fn is found out where types do not vary, as its gradient is."""

    def branching(xs: Any, ys: Any) -> Any:
        learner = bt.compile(own, "d_rtrl", xs[0], batch_size=xs.shape[1])

        def loss(x: Any) -> Any:
            out = learner(x)
            return jax.lax.cond(x.sum() > -1e9, lambda: (out**2).sum(), lambda: x.sum() + out.sum())

        return learner.etrace_grad(xs, step_fn=loss, reduction="sum", block_size=2)

    own = cell()
    assert_tree_close(inside(branching), branching(XS, YS), 1e-12)


@pytest.mark.parametrize("rule", ["d_rtrl", "rtrl"])
def test_what_is_sent(rule: str) -> None:
    """One sum of the parameters, after all blocks, also where traces go on."""
    own = cell()
    run = jax.shard_map(
        lambda xs, ys: gradient(own, xs, ys, rule=rule),
        mesh=meshes.mesh("Auto", 2),
        in_specs=(DATA, DATA),
        out_specs=P(),
    )
    found = meshes.collectives(jax.jit(run).lower(XS, YS).compile())
    assert {one.kind for one in found} == {"all-reduce"} and not any(one.loop for one in found)
    assert sum(size for one in found for size in one.sizes) == sum(
        leaf.nbytes
        for state in own.states(brainstate.ParamState).values()
        for leaf in jax.tree.leaves(state.value)
    )
