# SPDX-License-Identifier: Apache-2.0
"""The Jacobians of a step by name, for those who look at them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp

from ..base.types import Path
from ..compiler.program import StateKind
from ..compiler.requirements import check_states, checked_args
from .jacobians import StepJacobians
from .step import ETraceGraphExecutor


class HiddenToWeight(NamedTuple):
    """How a relation's weights act on one of its hidden groups at a step.

    Attributes
    ----------
    paths
        The parameters of the relation.
    group
        Number of the hidden group.
    x
        The input of the operation; ``None`` for one without.
    f
        ``d h_g / d y`` [*E, *Y, S], with ``E`` the axes of the group that ``y`` lacks. For a dense
        product, ``d h / d W`` is the product of ``x`` and ``f``.
    """

    paths: tuple[Path, ...]
    group: int
    x: Any
    f: jax.Array


class ETraceVjpGraphExecutor(ETraceGraphExecutor):
    """An executor that hands out the Jacobians of a step at the current values of the states.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    vjp_method
        ``'single-step'``.
    **options
        Options of :func:`braintrace.compile_etrace_graph`.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> executor = braintrace.ETraceVjpGraphExecutor(cell)
    >>> executor.compile_graph(jnp.ones((2, 3)))
    >>> out, hidden, other, h2w, h2h = executor.solve_h2w_h2h_jacobian(jnp.ones((2, 3)))
    >>> h2w[0].paths, h2w[0].f.shape, h2h[0].shape
    ((('Wz', 'weight'),), (2, 4, 1), (2, 4, 1, 1))
    """

    def __init__(
        self, model: brainstate.nn.Module, vjp_method: str = "single-step", **options: Any
    ) -> None:
        if vjp_method != "single-step":
            raise ValueError(
                f"vjp_method must be 'single-step', got {vjp_method!r}; the Jacobians of a window "
                "are those of its steps"
            )
        super().__init__(model, **options)

    def solve_h2w_h2h_jacobian(self, *args: Any) -> tuple[Any, ...]:
        """Run a step and its Jacobians; no state is written.

        Parameters
        ----------
        *args
            Arguments of the model.

        Returns
        -------
        out, hidden, other, h2w, h2h
            The model's result; new values of hidden and of other states, by path; one
            :class:`HiddenToWeight` per relation and group; ``D`` [*V, S, S] by number of the group
            (``None`` where it is structurally zero, or no relation leads).

        Raises
        ------
        CompilationError, TypeError, ValueError
            As for a call of a learner.
        """
        return self._solved(args)[0]

    def solve_h2w_h2h_l2h_jacobian(self, *args: Any) -> tuple[Any, ...]:
        """Like :meth:`solve_h2w_h2h_jacobian`, with the pull-back to the hidden states.

        Returns
        -------
        out, hidden, other, h2w, h2h, l2h
            ``l2h(out_bar)`` gives, for a cotangent like ``out``, the learning signals ``l`` [*V, S]
            by number of the group.
        """
        solved, pull = self._solved(args)

        def l2h(out_bar: Any) -> dict[int, jax.Array]:
            signals = self.signals(pull(out_bar)[0])
            return {g: jnp.moveaxis(signal, 0, -1) for g, signal in enumerate(signals)}

        return (*solved, l2h)

    def show_graph(self, verbose: bool = True, return_msg: bool = False) -> str | None:
        """Print (``verbose``) or return what the compiler found."""
        report = self.graph.report()
        if verbose:
            print(report)
        return report if return_msg else None

    def _solved(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], Callable[[Any], Any]]:
        info = self.graph.module_info
        check_states(self.model, info)
        leaves = checked_args(info, args)
        states = {slot.path: slot.state.value for slot in info.slots}

        def step(perturb: Any) -> tuple[Any, Any]:
            out, new, boundary = self.run(leaves, states, perturb)
            return out, (new, boundary)

        zeros = self.graph.perturbed.init_perturb_data()
        out, pull, (new, boundary) = jax.vjp(step, zeros, has_aux=True)
        jacobians = self.jacobians(boundary)
        by_kind = [
            {slot.path: new[slot.path] for slot in info.slots_of(kind)}
            for kind in (StateKind.HIDDEN, StateKind.OTHER)
        ]
        h2w, h2h = self._shown(jacobians)
        return (out, *by_kind, h2w, h2h), pull

    def _shown(
        self, jacobians: StepJacobians
    ) -> tuple[tuple[HiddenToWeight, ...], dict[int, jax.Array | None]]:
        h2w = tuple(
            HiddenToWeight(
                link.relation.parameter_paths,
                link.group.index,
                jacobians.x[link.relation.index],
                jnp.moveaxis(f, 0, -1),
            )
            for link, f in zip(self.links, jacobians.f, strict=True)
        )
        h2h = {
            g: None if d is None else jnp.moveaxis(d, (0, 1), (-2, -1))
            for g, d in enumerate(jacobians.transition)
        }
        return h2w, h2h
