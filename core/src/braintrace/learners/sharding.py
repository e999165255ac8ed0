# SPDX-License-Identifier: Apache-2.0
"""Dividing a learner among devices: its method in front of what finds the places."""

from __future__ import annotations

from typing import Any


def shard(self: Any, mesh: Any, batch: Any = None, units: Any = None) -> None:
    """Put states, traces and parameters onto the devices of a mesh, by what they mean.

    With ``batch``, every device has some of the examples: of states, and of traces. With
    ``units``, it has some of the units: of states, of traces, and of the weights that lead to them.
    All else is on every device. What is called afterwards is divided in the same way by JAX, and
    gives the same numbers to round-off; arguments may lie anywhere, and are moved where needed.

    Traces do not travel, but for the influence that RTRL and SnAp hold, and that only with
    ``units``. With ``batch``, the gradients are summed over the devices once per block of
    steps (:meth:`etrace_grad`), or per update (:meth:`etrace_update`). With ``units``, the states
    travel at every step, into the products with all of them, and so do the learning signals.

    Parameters
    ----------
    mesh
        A ``jax.sharding.Mesh``, of this process or of several; see ``jax.make_mesh``.
    batch, units
        The axis of the mesh (or several, as a tuple) that the examples and the units are divided
        among; ``None``: they are not. Units are those along the last axis of the hidden states.

    Raises
    ------
    CompilationError
        Before :meth:`compile_graph`.
    TypeError, ValueError
        For something else than a mesh, an axis that it does not have, one that is given twice, a
        model without an axis of examples, or a number of examples or units that cannot be divided.

    Notes
    -----
    :meth:`reset_state` and :meth:`restore` put values where those before them lay, so that a file
    of any number of devices is restored on any other. States can also be placed one by one, by
    ``jax.device_put``; nothing but the places differs.

    Examples
    --------
    >>> import braintrace, jax, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, "d_rtrl", x, batch_size=2)
    >>> mesh = jax.make_mesh((1, 1), ("data", "model"))
    >>> learner.shard(mesh, batch="data", units="model")
    >>> tuple(cell.h.value.sharding.spec)
    ('data', 'model')
    """
    from .placing import place  # which nothing else needs
    from .restarts import follow_states

    follow_states(self)
    self.rule  # noqa: B018  raises before compile_graph
    with self._watch.paused():
        place(self, mesh, batch, units)
