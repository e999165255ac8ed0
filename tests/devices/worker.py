# SPDX-License-Identifier: Apache-2.0
"""One of the processes on a mesh: ``python -m tests.devices.worker INDEX PORT PART FOLDER``.

The first one writes what all have computed together.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Any

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("NPROC", "64")

import jax

PROCESSES, EACH = 2, 4


def main(index: int, port: str, part: int, folder: Path) -> None:
    """Run every case of a part on all devices; save and restore a learner."""
    jax.config.update("jax_num_cpu_devices", EACH)
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_disable_most_optimizations", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", PROCESSES, index)

    import brainstate
    import numpy as np

    from tests.devices import everything, meshes
    from tests.devices.shared_cases import cases, divided, gradient, learner

    warnings.simplefilter("ignore")
    brainstate.environ.set(precision=64)
    found: dict[str, Any] = {}
    for rule, form, (kind, *shape) in cases(part):
        leaves = jax.tree.leaves(everything.run(rule, meshes.mesh(kind, *shape), (form,)))
        found |= {f"{rule}/{i}": leaf for i, leaf in enumerate(leaves)}
    own = learner()
    divided(own)
    gradient(own)
    own.save(folder / "learner.npz")
    after = [meshes.whole(leaf) for leaf in jax.tree.leaves(gradient(own))]
    own.restore(folder / "learner.npz")
    again = [meshes.whole(leaf) for leaf in jax.tree.leaves(gradient(own))]
    assert all(np.array_equal(a, b) for a, b in zip(after, again, strict=True))
    own.restore(folder / "of_one.npz")
    found |= {f"of_one/{i}": meshes.whole(v) for i, v in enumerate(jax.tree.leaves(gradient(own)))}
    if index == 0:
        np.savez(folder / "found.npz", **found)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
