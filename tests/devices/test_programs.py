# SPDX-License-Identifier: Apache-2.0
"""What devices send one another, counted in the compiled programs, and the memory of each."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt

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
    **options: Any,
) -> tuple[Any, Any]:
    """A learner, and the compiled gradient of a sequence."""
    brainstate.random.seed(0)
    own = {"decay_or_rank": 0.9} if rule == "pp_prop" else {}
    xs = jnp.ones((STEPS, batch, IN), "float32")
    learner = bt.compile(model(IN, HIDDEN), rule, xs[0], batch_size=batch, **own)
    if on is not None:
        learner.shard(on, batch="data", units="model" if units else None)
        xs = jax.device_put(xs, jax.NamedSharding(on, jax.P(None, "data")))

    def gradient(xs: Any) -> Any:
        return learner.etrace_grad(xs, step_fn=lambda x: (learner(x) ** 2).mean(), **options)

    return learner, meshes.compiled(gradient, xs)


def sizes_of(learner: Any) -> list[int]:
    """Bytes of the parameters."""
    values = [state.value for state in learner.param_states.values()]
    return sorted(leaf.nbytes for leaf in jax.tree.leaves(values))


@pytest.mark.parametrize("rule", ["d_rtrl", "pp_prop", "eprop", "rtrl", "snap"])
def test_gradients_are_summed_once_after_the_steps(rule: str) -> None:
    """One sum for each parameter, of its size, traces that go on included."""
    learner, compiled = program(rule, meshes.mesh("Auto", 2), model=meshes.Shown, block_size=STEPS)
    found = meshes.collectives(compiled)
    assert {one.kind for one in found} == {"all-reduce"}
    in_steps = [size for one in found if one.loop for size in one.sizes]
    assert max(in_steps, default=0) <= SCALAR
    after = [size for one in found if not one.loop for size in one.sizes if size > SCALAR]
    assert sorted(after) == sizes_of(learner)


@pytest.mark.parametrize("rule, model", [("d_rtrl", bt.nn.LSTMCell), ("rtrl", bt.nn.GRUCell)])
def test_once_per_block(rule: str, model: Any) -> None:
    learner, compiled = program(rule, meshes.mesh("Auto", 2), model=model, block_size=4)
    found = meshes.collectives(compiled)
    assert {one.kind for one in found} == {"all-reduce"}
    blocks = {one.loop for one in found if max(one.sizes) > SCALAR}
    assert len(blocks) == 1 and "" not in blocks  # the loop over blocks, not that over steps
    sizes = [size for one in found for size in one.sizes if size > SCALAR]
    assert sorted(sizes) == sizes_of(learner)


@pytest.mark.parametrize("rule", ["d_rtrl", "pp_prop"])
def test_with_units_no_trace_travels(rule: str) -> None:
    _, compiled = program(rule, meshes.mesh("Auto", 1, 2), units=True, block_size=4)
    found = meshes.collectives(compiled)
    activity = BATCH * (IN + HIDDEN) * 4  # what enters the products, in a step
    assert max(size for one in found for size in one.sizes) <= activity
    assert len({one.loop for one in found}) == 1  # and nothing once more for a block
    assert {"all-gather", "all-reduce"} <= {one.kind for one in found}  # the product, and W^T l


@pytest.mark.parametrize("rule, size", [("d_rtrl", 1), ("d_rtrl", 8), ("pp_prop", 8)])
def test_memory_is_divided(rule: str, size: int) -> None:
    found = [
        program(rule, on, batch=64, block_size=size)[1].memory_analysis().temp_size_in_bytes
        for on in (None, meshes.mesh("Auto", 2))
    ]
    assert found[1] <= 0.55 * found[0]
