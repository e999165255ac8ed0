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

from . import everything, meshes

#: Drivers and options that :mod:`everything` does not have, and models whose layers lie otherwise.
CASES = [
    *(Case(model) for model in "lstm conv sparse groups tokens own lif".split()),
    *(Case("dense", driver=driver) for driver in ("update", "call", "carried", "block-1")),
    Case("dense", "snap-1"),
    Case("dense", batch="vmap"),
    Case("conv1d", batch="vmap"),
    Case("dense", "dni", "windows-2"),
]
#: Meshes that rules take in turn: for one form, and for the other.
MESHES = (
    (("Auto", 8), ("Explicit", 4, 2)),
    (("Explicit", 2), ("Auto", 4, 2)),
)


@pytest.mark.parametrize("number, rule", [*enumerate(everything.rules())], ids=str)
def test_every_rule_and_family(number: int, rule: everything.Rule) -> None:
    """One model has all families; in blocks of steps, and with an update at every step."""
    expected = everything.alone(rule)
    assert all(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(expected))
    forms = everything.FORMS[:: 1 if number % 2 else -1]
    for form, (kind, *shape) in zip(forms, MESHES[number // 2 % 2], strict=True):
        found = everything.run(rule, meshes.mesh(kind, *shape), (form,))
        assert_tree_close(found[form], expected[form], 1e-12)


def test_no_family_is_left_out() -> None:
    assert not everything.left_out()  # a new one: add an operation to everything.Everything


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_numbers_are_those_of_one_device(case: Case) -> None:
    expected = meshes.run(case)
    for kind, *shape in (("Auto", 8), ("Explicit", 2, 2)):
        found = meshes.run(case, meshes.mesh(kind, *shape))
        assert_tree_close(found, expected, 1e-12)


def test_a_mask_by_examples() -> None:
    lengths = np.arange(1, 1 + meshes.BATCH) % table.STEPS + 1
    mask = np.arange(table.STEPS)[:, None] < lengths
    found = []
    for on in (None, meshes.mesh("Auto", 8), meshes.mesh("Explicit", 2, 2)):
        with meshes.prepared(Case("dense"), on) as job:
            found.append(table.grad(job, "of_examples", mask=mask, block_size=2)())
    for one in found[1:]:
        assert_tree_close(one, found[0], 1e-12)


@pytest.mark.parametrize("family", ["readout", "shown", "shown by rtrl"])
def test_filters_and_parameters_of_no_product(family: str) -> None:
    """Compiled on the mesh, too."""
    xs = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 3)))
    rule = "rtrl" if family.endswith("rtrl") else "d_rtrl"
    model: Any = meshes.BelowALeak if family == "readout" else partial(meshes.Shown, 3, 4)
    found = []
    for on in (None, meshes.mesh("Auto", 8), meshes.mesh("Explicit", 2, 2)):
        brainstate.random.seed(0)
        built = model()
        with nullcontext() if on is None else jax.set_mesh(on):
            learner = bt.compile(built, rule, xs[0], batch_size=8)
            given = xs
            if on is not None:
                units = "model" if "model" in on.axis_names else None
                learner.shard(on, batch="data", units=units)
                given = jax.device_put(xs, jax.NamedSharding(on, jax.P(None, "data")))
            grads = learner.etrace_grad(
                given, step_fn=lambda x, own=learner: (own(x) ** 2).sum(), block_size=2
            )
            found.append(jax.tree.map(np.asarray, grads))
    for one in found[1:]:
        assert_tree_close(one, found[0], 1e-12)


class OfSomebody(brainstate.nn.Module):
    """A layer below a convolution that is an operation of a third party, without rules."""

    def __init__(self, width: int) -> None:
        super().__init__()
        kernel = jax.random.normal(jax.random.key(3), (width, 2, 3)) / 2
        self.kernel = brainstate.ParamState(kernel)

    def init_state(self, batch_size: int, **_: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, 4, 3)))

    def update(self, x: Any) -> Any:
        y = bt.register_primitive("conv_of_somebody", convolved, batched=True).bind(
            x, self.kernel.value
        )
        self.h.value = 0.8 * self.h.value + jnp.tanh(y + 0.1 * self.h.value)
        return self.h.value


def convolved(x: Any, kernel: Any) -> Any:
    axes = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x, kernel, (1,), "SAME", dimension_numbers=axes)


@pytest.mark.parametrize("rule", ["rtrl", "uoro"])
def test_a_convolution_without_rules_with_one_example_a_device(rule: str) -> None:
    """In parts of one example, XLA makes its derivative wrong (3 taps) or no program (1 tap)."""
    xs = jax.random.normal(jax.random.key(0), (3, 8, 4, 2))
    for width in (1, 3):
        found = []
        for devices in (None, 8):
            learner = bt.compile(OfSomebody(width), rule, xs[0], batch_size=8)
            if devices:
                learner.shard(meshes.mesh("Auto", devices), batch="data")
            loss = lambda x, learner=learner: (learner(x) ** 2).sum()  # noqa: E731
            found.append(learner.etrace_grad(xs, step_fn=loss, block_size=1))
        assert_tree_close(*map(jax.device_get, found), 1e-12)
