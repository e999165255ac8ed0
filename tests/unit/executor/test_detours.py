# SPDX-License-Identifier: Apache-2.0
"""Near paths and detours add up to all paths, and each is what it says."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace as bt
from braintrace.executor.detours import run_with_nodes, two_ways

N = 3


class Cell(brainstate.nn.Module):
    """A leak, a gate behind one operation and in front of another, and a state of a layer above."""

    def __init__(self) -> None:
        super().__init__()
        brainstate.random.seed(0)
        self.r, self.w = (brainstate.ParamState(brainstate.random.randn(N, N)) for _ in range(2))

    def init_state(self, batch_size: int) -> None:
        self.h = [brainstate.HiddenState(jnp.full((batch_size, N), 0.3)) for _ in range(2)]

    def update(self, x: Any) -> Any:
        a, b = self.h
        gate = jax.nn.sigmoid(bt.matmul(a.value, self.r.value))
        a.value = 0.5 * a.value + jnp.sin(a.value) + bt.matmul(gate * a.value + x, self.w.value)
        b.value = 0.5 * b.value + bt.matmul(a.value, self.r.value)
        return b.value


def test_detours_and_near_paths() -> None:
    model, x = Cell(), jnp.ones((2, N))
    brainstate.nn.init_all_states(model, batch_size=2)
    graph = bt.compile_etrace_graph(model, x)
    info, (group, above) = graph.module_info, graph.hidden_groups
    states = [leaf for s in info.slots for leaf in jax.tree.leaves(s.state.value)]
    old, others = model.h[0].value, frozenset(above.hidden_outvars)

    def both(old: Any) -> Any:
        return two_ways(info, group, others, [x, *states], [old])

    (far,), (near,) = both(old)
    np.testing.assert_allclose(far, near, rtol=1e-6)
    of_far, of_near = (jax.jacobian(lambda old, k=k: both(old)[k][0])(old) for k in range(2))
    leak = np.einsum("ij,ik,jl->ijkl", 0.5 + np.cos(old), np.eye(2), np.eye(N))
    np.testing.assert_allclose(of_near, leak, rtol=1e-5, atol=1e-6)

    def whole(a: Any) -> Any:
        gate = jax.nn.sigmoid(a @ model.r.value)
        return 0.5 * a + jnp.sin(a) + (gate * a + x) @ model.w.value

    np.testing.assert_allclose(of_far + of_near, jax.jacobian(whole)(old), rtol=1e-4, atol=1e-5)


def test_what_is_added_to_a_node_is_read_by_all() -> None:
    model, x = Cell(), jnp.ones((2, N))
    brainstate.nn.init_all_states(model, batch_size=2)
    info = bt.extract_module_info(model, x)
    states = [leaf for s in info.slots for leaf in jax.tree.leaves(s.state.value)]
    ends = [*info.hidden_path_to_outvar.values()]
    plain, moved = (
        run_with_nodes(info, ends, [x, *states], [jnp.full((2, N), v), jnp.zeros((2, N))])
        for v in (0.0, 0.5)
    )
    out, slots = info.num_out, {slot.path: slot.leaves[0] for slot in info.slots}
    first = out + slots["h", 0]
    np.testing.assert_allclose(moved[first] - plain[first], 0.5, rtol=1e-5)
    np.testing.assert_allclose(
        moved[0] - plain[0], 0.5 * jnp.ones((2, N)) @ model.r.value, rtol=1e-4, atol=1e-5
    )
