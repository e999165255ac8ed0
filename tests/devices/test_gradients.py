# SPDX-License-Identifier: Apache-2.0
"""Every rule, family and driver gives the numbers of one device, on any mesh."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close
from tests.truth import table
from tests.truth.table import Case

from . import meshes

RULES = tuple(
    "d_rtrl pp_prop eprop snap-2 snap-2-step rtrl uoro three-factor d_rtrl-coupled".split()
)
DRIVERS = ("update", "update-1", "call", "windows-2", "carried", "block-1")
MIXED = (
    "uoro",
    "d_rtrl-coupled",
    "rtrl",
    "snap-2",
    "snap-2-step",
)  # whose traces cannot be divided by units
#: Threads that wait for other devices in several loops at once are more than XLA has on a CPU.
MANY_LOOPS = ("own",)
CASES = [
    *(Case("dense", rule) for rule in RULES),
    *(
        Case(model)
        for model in (
            "lstm",
            "conv",
            "sparse",
            "lora",
            "groups",
            "tokens",
            "element-wise",
            "own",
            "lif",
        )
    ),
    *(Case("dense", "pp_prop" if "window" in d else "d_rtrl", d) for d in DRIVERS),
    Case("dense", batch="vmap"),
    Case("dense", "dni", "windows-2"),
]
UPDATED = [  # the numbers of "own" grow beyond all bounds
    case._replace(driver="update-1")
    for case in CASES
    if case.driver == "block-3" and case.model != "own"
]
OTHER_MESHES = [("Auto", 2), ("Auto", 2, 2), ("Explicit", 8), ("Explicit", 1, 4)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_numbers_are_those_of_one_device(case: Case) -> None:
    expected = meshes.run(case)
    units = case.rule not in MIXED and case.model not in MANY_LOOPS
    for kind, *shape in (("Auto", 8), ("Explicit", 2, 2)):
        found = meshes.run(case, meshes.mesh(kind, *shape), units)
        assert_tree_close(found, expected, 1e-12)


@pytest.mark.parametrize("case", UPDATED, ids=str)
def test_with_an_update_at_every_step(case: Case) -> None:
    found = meshes.run(case, meshes.mesh("Auto", 2))
    assert_tree_close(found, meshes.run(case), 1e-12)


@pytest.mark.parametrize("kind, shape", [(k, s) for k, *s in OTHER_MESHES], ids=str)
def test_on_other_meshes(kind: str, shape: list[int]) -> None:
    case = Case("gru", "d_rtrl")
    assert_tree_close(meshes.run(case, meshes.mesh(kind, *shape)), meshes.run(case), 1e-12)


def test_a_mask_by_examples() -> None:
    lengths = np.arange(1, 1 + meshes.BATCH) % table.STEPS + 1
    mask = np.arange(table.STEPS)[:, None] < lengths
    found = []
    for on in (None, meshes.mesh("Auto", 8), meshes.mesh("Explicit", 2, 2)):
        with meshes.prepared(Case("dense"), on) as job:
            found.append(table.grad(job, "of_examples", mask=mask, block_size=2)())
    for one in found[1:]:
        assert_tree_close(one, found[0], 1e-12)


class Leaky(brainstate.nn.Module):
    """A leak that an operation drives."""

    def __init__(self, run: Any, shape: tuple[int, ...], *weights: int) -> None:
        super().__init__()
        self.run, self.shape = run, shape
        self.w = brainstate.ParamState(0.5 * brainstate.random.randn(*weights))

    def init_state(self, batch_size: int) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, *self.shape)))

    def update(self, x: Any) -> Any:
        self.h.value = 0.5 * self.h.value + jnp.tanh(self.run(x, self.w.value))
        return self.h.value


@pytest.mark.parametrize("family", ["einsum", "embedding", "readout", "shown", "shown by rtrl"])
def test_contractions_tables_and_filters(family: str) -> None:
    """Compiled on the mesh, too."""
    rng = np.random.default_rng(0)
    model: Any = meshes.BelowALeak
    rule = "rtrl" if family.endswith("rtrl") else "d_rtrl"
    if "shown" in family:
        model = partial(meshes.Shown, 3, 4)
    if family == "readout" or "shown" in family:
        xs = jnp.asarray(rng.normal(size=(4, 8, 3)))
    elif family == "einsum":
        xs = jnp.asarray(rng.normal(size=(4, 8, 2, 3)))
        model = partial(Leaky, partial(bt.einsum, "bgi,gio->bgo"), (2, 4), 2, 3, 4)
    else:
        xs = jnp.asarray(rng.integers(0, 9, size=(4, 8)))
        model = partial(Leaky, bt.embedding, (4,), 9, 4)
    found = []
    for on in (None, meshes.mesh("Auto", 8), meshes.mesh("Explicit", 2, 2)):
        brainstate.random.seed(0)
        built = model()
        with nullcontext() if on is None else jax.set_mesh(on):
            learner = bt.compile(built, rule, xs[0], batch_size=8)
            given = xs
            if on is not None:
                units = "model" if "model" in on.axis_names and rule == "d_rtrl" else None
                learner.shard(on, batch="data", units=units)
                given = jax.device_put(xs, jax.NamedSharding(on, jax.P(None, "data")))
            grads = learner.etrace_grad(
                given, step_fn=lambda x, own=learner: (own(x) ** 2).sum(), block_size=2
            )
            found.append(jax.tree.map(np.asarray, grads))
    for one in found[1:]:
        assert_tree_close(one, found[0], 1e-12)
