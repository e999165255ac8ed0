# SPDX-License-Identifier: Apache-2.0
"""What is recorded of a hidden state with uniform linear dynamics.

A state is *uniform* when its new value is

    h' = lambda h + sum_r A_r(w) c_r z_r + b(w) c_0 + u,

with a factor ``lambda`` that is the same at every position (or one of a few constants), linear maps
``A_r`` that do not change in time, factors ``c`` in time, and ``u`` without a derivative. Such a
leak commutes with the maps, so that it may stand in front of them (see ``filters``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...base.types import Path
from ...base.versions import Atom, JaxprEqn, Var
from ..module_info import StateSlot
from ..reach import Leaf


@dataclass(frozen=True)
class UniformFactor:
    """A factor on the way to a value: another value, its inverse, or whether it has a value.

    Attributes
    ----------
    atom
        The value; ``None`` for the factor -1.
    how, case
        ``'times'``, ``'over'``, or ``'is'``: whether it is ``case``.

    Examples
    --------
    >>> import braintrace
    >>> braintrace.UniformFactor(None)
    UniformFactor(atom=None, how='times', case=0)
    """

    atom: Atom | None
    how: str = "times"
    case: int = 0


MINUS = UniformFactor(None)

Factors = tuple[UniformFactor, ...]


@dataclass(frozen=True, eq=False)
class UniformSource:
    """A value that drives a uniform state through a linear map.

    Attributes
    ----------
    atom
        ``z``.
    factors
        ``c``.
    cut
        Whether it carries no credit: it is the recurrent input of the layer itself.
    of
        Path of the uniform state, lower down, whose value it is; ``None`` for any other value.
    trained
        Whether a map with parameters lies behind it.
    loop
        Whether it is the value of a uniform state that this one drives in turn: it carries credit
        within the step, and none from step to step.

    Examples
    --------
    >>> import braintrace
    >>> braintrace.UniformSource("z", (), cut=True).cut
    True
    """

    atom: Atom
    factors: Factors
    cut: bool = False
    of: Path | None = None
    trained: bool = False
    loop: bool = False


@dataclass(frozen=True, eq=False)
class UniformConstant:
    """An operation or a sum in a linear map that adds what does not change in time: ``b``.

    Attributes
    ----------
    behind
        Positions of the operands behind that.
    factors
        ``c_0``.

    Examples
    --------
    >>> import braintrace
    >>> sorted(braintrace.UniformConstant(frozenset({2}), ()).behind)
    [2]
    """

    behind: frozenset[int]
    factors: Factors


@dataclass(frozen=True, eq=False)
class UniformState:
    """A hidden state with uniform dynamics.

    Attributes
    ----------
    slot, type
        The state, and the type of its value.
    leak
        ``lambda``: a sum of products.
    sources
        What drives it, by variable.
    region
        Every variable of the linear maps, with its equation and the operands that are followed.
    affine
        By result, the equations of the maps that add a constant.
    by_example
        Factors that differ from example to example, along the first axis.
    parts
        By leak, the positions that have it: a mask, and the place of one of them.
    trained
        The parameter leaves, each of one number, that the leak depends on.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> class Leaky(brainstate.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.product = braintrace.nn.Linear(3, 4)
    ...         self.v = brainstate.HiddenState(jnp.zeros((2, 4)))
    ...     def update(self, x):
    ...         self.v.value = 0.9 * self.v.value + self.product(x)
    ...         return self.v.value
    >>> x = jnp.ones((2, 3))
    >>> graph = braintrace.compile_etrace_graph(Leaky(), x, downstream="linear")
    >>> state = graph.uniform["v",]
    >>> [source.atom.aval.shape for source in state.sources.values()]
    [(2, 3)]
    """

    slot: StateSlot
    type: Any
    leak: tuple[Factors, ...]
    sources: Mapping[Atom, UniformSource]
    region: Mapping[Var, tuple[JaxprEqn, tuple[int, ...]]]
    affine: Mapping[Var, UniformConstant]
    by_example: frozenset[Atom]
    parts: tuple[tuple[np.ndarray, tuple[int, ...]], ...]
    trained: tuple[Leaf, ...]


class NotUniform(Exception):
    """Why a state is not uniform."""
