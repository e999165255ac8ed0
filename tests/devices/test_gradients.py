# SPDX-License-Identifier: Apache-2.0
"""Every rule, family and driver gives the numbers of one device, on any mesh."""

from __future__ import annotations

import numpy as np
import pytest

from braintrace.testing import assert_tree_close
from tests.truth import table
from tests.truth.table import Case

from . import meshes

RULES = ("d_rtrl", "pp_prop", "eprop", "snap-2", "rtrl", "uoro", "three-factor", "d_rtrl-coupled")
DRIVERS = ("update", "update-1", "call", "windows-2", "carried", "block-1")
MIXED = ("uoro", "d_rtrl-coupled")  # whose traces have no axis of units
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
]
OTHER_MESHES = [("Auto", 2), ("Auto", 2, 2), ("Explicit", 8), ("Explicit", 1, 4)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_numbers_are_those_of_one_device(case: Case) -> None:
    expected = meshes.run(case)
    units = case.rule not in MIXED and case.model not in MANY_LOOPS
    for kind, *shape in (("Auto", 8), ("Explicit", 2, 2)):
        found = meshes.run(case, meshes.mesh(kind, *shape), units)
        assert_tree_close(found, expected, 1e-12)


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
