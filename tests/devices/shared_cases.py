# SPDX-License-Identifier: Apache-2.0
"""What two processes compute together, and one by itself."""

from __future__ import annotations

from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np

import braintrace as bt
from tests.truth.table import Case

from . import meshes

#: Name -> what is computed, the kind of axes, and the shape of the mesh.
CASES: dict[str, tuple[Case, str, tuple[int, ...]]] = {
    "blocks": (Case("dense", "d_rtrl"), "Auto", (8,)),
    "updates": (Case("dense", "d_rtrl", "update-1"), "Auto", (8,)),
    "units": (Case("dense", "pp_prop"), "Auto", (4, 2)),
    "explicit": (Case("dense", "d_rtrl"), "Explicit", (8,)),
    "rtrl": (Case("dense", "rtrl"), "Auto", (8,)),
    "convolution": (Case("conv", "pp_prop", "update-1"), "Explicit", (8,)),
    "e-prop": (Case("lstm", "eprop"), "Explicit", (4, 2)),
    "table": (Case("tokens"), "Auto", (8,)),
}
XS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 3)))


def learner() -> Any:
    """A learner on one device."""
    brainstate.random.seed(0)
    return bt.compile(bt.nn.GRUCell(3, 4), "d_rtrl", np.asarray(XS[0]), batch_size=8)


def divided(own: Any) -> None:
    """Divide its examples among eight devices."""
    own.shard(meshes.mesh("Auto", 8), batch="data")


def gradient(own: Any) -> Any:
    """The gradients of a sequence."""
    return own.etrace_grad(np.asarray(XS), step_fn=lambda x: (own(x) ** 2).sum(), block_size=2)
