# SPDX-License-Identifier: Apache-2.0
"""What devices send one another, counted in the compiled programs, and the memory of each."""

from __future__ import annotations

from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from tests.truth.table import Case

from . import meshes

STEPS, BATCH, IN, HIDDEN = 16, 16, 24, 32
SCALAR = 8  # bytes


@pytest.fixture(autouse=True)
def single_precision() -> Any:
    with brainstate.environ.context(precision=32):
        yield


def program(
    rule: str,
    on: Any,
    units: bool = False,
    batch: int = BATCH,
    model: Any = bt.nn.GRUCell,
    by_hand: bool = False,
    of_rule: Any = None,
    **options: Any,
) -> tuple[Any, Any]:
    """A learner, and the compiled gradient of a sequence."""
    brainstate.random.seed(0)
    own: dict[str, Any] = {"decay_or_rank": 0.9} if rule == "pp_prop" else {}
    own |= of_rule or {}
    size = options.get("chunk_size")
    if size and rule != "uoro":
        own["vjp_method"] = "multi-step"
    xs = jnp.ones((STEPS, batch, IN), "float32")
    learner = bt.compile(model(IN, HIDDEN), rule, xs[0], batch_size=batch, **own)
    if on is not None and by_hand:
        for state in learner.hidden_states.values():
            state.value = jax.device_put(state.value, jax.NamedSharding(on, jax.P("data")))
    elif on is not None:
        learner.shard(on, batch="data", units="model" if units else None)
    if on is not None:
        xs = jax.device_put(xs, jax.NamedSharding(on, jax.P(None, "data")))

    def loss(x: Any) -> Any:
        if size:
            return (learner(bt.MultiStepData(x)) ** 2).mean((1, 2))
        return (learner(x) ** 2).mean()

    return learner, meshes.compiled(lambda xs: learner.etrace_grad(xs, step_fn=loss, **options), xs)


def sizes_of(learner: Any) -> list[int]:
    """Bytes of the parameters."""
    values = [state.value for state in learner.param_states.values()]
    return sorted(leaf.nbytes for leaf in jax.tree.leaves(values))


@pytest.mark.parametrize("by_hand", [False, True])
@pytest.mark.parametrize("rule", ["d_rtrl", "pp_prop", "eprop", "rtrl", "snap"])
def test_gradients_are_summed_once_after_the_steps(rule: str, by_hand: bool) -> None:
    """One sum for each parameter, of its size, traces that go on included."""
    how: Any = {"model": meshes.Shown, "by_hand": by_hand, "block_size": STEPS}
    learner, compiled = program(rule, meshes.mesh("Auto", 2), **how)
    found = meshes.collectives(compiled)
    assert {one.kind for one in found} == {"all-reduce"}
    in_steps = [size for one in found if one.loop for size in one.sizes]
    assert max(in_steps, default=0) <= SCALAR
    after = [size for one in found if not one.loop for size in one.sizes if size > SCALAR]
    assert sorted(after) == sizes_of(learner)


@pytest.mark.parametrize(
    "rule, model, how",
    [
        ("d_rtrl", bt.nn.LSTMCell, {"block_size": 4}),
        ("rtrl", bt.nn.GRUCell, {"block_size": 4}),
        ("d_rtrl", meshes.Twice, {"block_size": 4}),
        ("uoro", meshes.Shown, {"chunk_size": 4}),
        ("d_rtrl", meshes.Twice, {"chunk_size": 4}),
        ("pp_prop", bt.nn.GRUCell, {"chunk_size": 4}),
    ],
)
def test_once_per_block(rule: str, model: Any, how: dict[str, Any]) -> None:
    """Weights that are used repeatedly, and windows, included."""
    learner, compiled = program(rule, meshes.mesh("Auto", 2), model=model, **how)
    found = meshes.collectives(compiled)
    assert {one.kind for one in found} == {"all-reduce"}
    blocks = {one.loop for one in found if max(one.sizes) > SCALAR}
    assert len(blocks) == 1 and "" not in blocks  # the loop over blocks, not that over steps
    sizes = [size for one in found for size in one.sizes if size > SCALAR]
    assert sorted(sizes) == sizes_of(learner)


def test_where_only_the_mesh_is_known() -> None:
    """Arguments of a ``jit`` do not tell where they lie, and a mesh that is set tells how many."""
    xs = jnp.ones((STEPS, BATCH, IN), "float32")
    learner = bt.compile(meshes.Shown(IN, HIDDEN), "d_rtrl", xs[0], batch_size=BATCH)
    on = meshes.mesh("Auto", 2)

    def gradient(xs: Any) -> Any:
        return learner.etrace_grad(xs, step_fn=lambda x: (learner(x) ** 2).mean(), block_size=4)

    with jax.set_mesh(on):
        placed = jax.device_put(xs, jax.NamedSharding(on, jax.P(None, "data")))
        found = meshes.collectives(meshes.compiled(gradient, placed))
    sizes = [size for one in found for size in one.sizes if size > SCALAR]
    assert {one.kind for one in found} == {"all-reduce"} and sorted(sizes) == sizes_of(learner)


@pytest.mark.parametrize(
    "case, size",
    [
        (Case("conv"), "block_size"),
        (Case("lora"), "block_size"),
        (Case("tokens"), "block_size"),
        (Case("shared", "pp_prop"), "block_size"),
        (Case("conv2d", "d_rtrl", "windows-2"), "chunk_size"),
        (Case("element-wise", "uoro", "windows-2"), "chunk_size"),
    ],
    ids=str,
)
def test_once_for_every_kind_of_operation(case: Case, size: str) -> None:
    """Those that add up examples themselves, and those that all examples share."""
    with meshes.prepared(case, meshes.mesh("Auto", 2)) as job:
        step = job.of_window if size == "chunk_size" else job.step
        run = partial(job.learner.etrace_grad, step_fn=step, **{size: len(job.xs)})
        found = meshes.collectives(meshes.compiled(run, job.xs, job.ys))
    assert {one.kind for one in found} == {"all-reduce"}
    sizes = [size for one in found for size in one.sizes if size > SCALAR]
    assert sorted(sizes) == [size for size in sizes_of(job.learner) if size > SCALAR]


@pytest.mark.parametrize("rule", ["d_rtrl", "pp_prop"])
def test_with_units_no_trace_travels(rule: str) -> None:
    _, compiled = program(rule, meshes.mesh("Auto", 1, 2), units=True, block_size=4)
    found = meshes.collectives(compiled)
    activity = BATCH * (IN + HIDDEN) * 4  # what enters the products, in a step
    assert max(size for one in found for size in one.sizes) <= activity
    assert len({one.loop for one in found}) == 1  # and nothing once more for a block
    assert {"all-gather", "all-reduce"} <= {one.kind for one in found}  # the product, and W^T l


@pytest.mark.parametrize("rule", ["ostl_recurrent", "uoro", "rtrl"])
def test_derivatives_between_units_travel_and_no_trace(rule: str) -> None:
    """Of rules that mix units, in a layer by itself."""
    own = {"uoro": {"vjp_method": "single-step"}, "rtrl": {"downstream": "step"}}.get(rule, {})
    on = meshes.mesh("Auto", 1, 2)
    learner, compiled = program(rule, on, units=True, of_rule=own, block_size=4)
    sizes = [size for one in meshes.collectives(compiled) for size in one.sizes]
    traces = [leaf for trace in learner.traces for leaf in jax.tree.leaves(trace.value)]
    between = 4 * BATCH * HIDDEN**2 * 4  # of the steps of a block
    assert max(sizes) <= min(between, max(leaf.nbytes for leaf in traces) - 1)


@pytest.mark.parametrize("rule, size", [("d_rtrl", 1), ("d_rtrl", 8), ("pp_prop", 8)])
def test_memory_is_divided(rule: str, size: int) -> None:
    found = [
        program(rule, on, batch=64, block_size=size)[1].memory_analysis().temp_size_in_bytes
        for on in (None, meshes.mesh("Auto", 2))
    ]
    assert found[1] <= 0.55 * found[0]
