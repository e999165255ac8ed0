# SPDX-License-Identifier: Apache-2.0
"""What two processes compute together, and one by itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import brainstate
import jax.numpy as jnp
import numpy as np

import braintrace as bt

from . import everything, meshes

#: Meshes of all devices that the cases take in turn.
MESHES = (("Auto", 4, 2), ("Explicit", 8), ("Auto", 8), ("Explicit", 4, 2), ("Auto", 8))
XS = jnp.asarray(np.random.default_rng(0).normal(size=(3, 8, 3)))
PARTS = 3  # of the rules, each in processes of its own


def cases(part: int) -> Iterator[tuple[everything.Rule, str, Any]]:
    """Each rule of a part of them, with every second one in blocks, on a mesh of these."""
    for k, rule in enumerate(everything.rules()):
        if k % PARTS == part:
            yield rule, everything.FORMS[k % 2], MESHES[k % 5]


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
