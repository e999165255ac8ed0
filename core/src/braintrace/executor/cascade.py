# SPDX-License-Identifier: Apache-2.0
"""Groups whose last states follow the new values of the first ones, as filters of a leak do.

A leak that moved in front of a product is one more state ``q`` of the layer below,

    h^t = D h^{t-1} + f y^t,    q^t = A q^{t-1} + N h^t,

as the derivatives are. Its trace is a filter of that of ``h``,

    eps_q^t = A eps_q^{t-1} + N eps_h^t,

so that ``f`` and ``D`` of ``q``, which are ``N f`` and ``[N D, A]``, need neither be computed nor
recorded, and no increment is made for it. What does not know of it has them from :func:`composed`.
A value of a small layer above is such a state, too (``downstream='exact'``), and may read old
values of the layer besides, ``M h^{t-1}``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from ..compiler.groups import HiddenGroup
from ..compiler.reach import Cone, Pattern
from ..jaxprs.depends import Along, depends
from ..ops.traces.base import UNROLL_STATES


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Cascade:
    """The transition of a group with ``H`` states and ``Q`` filters that follow them.

    Attributes
    ----------
    first
        ``D`` [H, H, *V].
    last
        ``A`` [Q, Q, *V]; a leak is the same along all axes of positions but the first one (of
        examples), which are of size 1.
    between
        ``N`` [Q, H, *V].
    follows
        Which filter follows which state [Q][H].
    old
        ``M`` [Q, H, *V]; ``None`` for zero.
    """

    first: Any
    last: Any
    between: Any
    follows: Pattern = field(metadata={"static": True})
    old: Any = None

    @property
    def num_first(self) -> int:
        """``H``."""
        return len(self.follows[0])

    def parted(self, array: Any, axis: int = 0) -> Any:
        """What is of the first states, and of the filters."""
        return None if array is None else tuple(jnp.split(array, [self.num_first], axis))

    @property
    def is_large(self) -> bool:
        """Whether it has more states than loops over them are written out for."""
        return len(self.follows) + self.num_first > UNROLL_STATES

    def patterns(self, passing: Pattern | None) -> tuple[Pattern | None, Pattern | None]:
        """Of the entries [S][S] of all states, those between the first, and between filters."""
        first, count = self.num_first, len(self.follows[0]) + len(self.follows)
        if passing is None:
            return None, None
        parts = (range(first), range(first, count))
        one, other = (tuple(tuple(passing[i][j] for j in own) for i in own) for own in parts)
        return one, other

    def laid(self, to_y: Callable[[jax.Array, int], jax.Array]) -> Cascade:
        """With all but the leaks laid out by ``to_y``."""
        old = None if self.old is None else to_y(self.old, 2)
        first, between = to_y(self.first, 2), to_y(self.between, 2)
        return replace(self, first=first, between=between, old=old)

    def composed(self) -> jax.Array:
        """``D`` of all states [S, S, *V]."""
        below = jnp.einsum("qj...,jh...->qh...", self.between, self.first)
        below = below if self.old is None else below + self.old
        return joined(self.first, below, self.last)


def joined(first: jax.Array, below: jax.Array, last: jax.Array) -> jax.Array:
    """The matrix [S, S, *V] of these blocks, with zeros where filters lead to first states."""
    shape = (*last.shape[:2], *first.shape[2:])
    above = jnp.zeros((len(first), *shape[1:]), last.dtype)
    rows = [first, above], [below, jnp.broadcast_to(last, shape)]
    return jnp.concatenate([jnp.concatenate(row, 1) for row in rows])


def composed(f: jax.Array, between: jax.Array) -> jax.Array:
    """``f`` of all states [S, ..] from that of the first ones, with ``N`` laid out as it is."""
    return jnp.concatenate([f, jnp.einsum("qh...,h...->q...", between, f)])


def follows(group: HiddenGroup, cone: Cone, eqns: Sequence[Any], filters: int) -> Pattern | None:
    """Which of the last ``filters`` states follow which of the others [Q][H].

    ``None`` where they do not follow the new values of these alone, or these depend on them.
    """
    first, moving = len(group.hidden_invars) - filters, cone.transition
    plain = set(group.state_counts) == {1} and group.num_state <= UNROLL_STATES
    if not (first and filters and plain) or moving is None or moving.mixed or moving.program:
        return None
    if any(any(row[first:]) for row in cone.passing[:first]):
        return None
    within, news = [eqns[i] for i in cone.eqns], group.hidden_outvars[:first]
    if not {*news} <= {var for eqn in within for var in eqn.outvars}:
        return None
    begin = {var: frozenset({-1}) for var in (*group.hidden_invars[:first], *cone.driving)}
    number = {var: frozenset({k}) for k, var in enumerate(news)}
    marks = depends(
        within, begin, through=lambda var, own: number.get(var, own), along=Along.DERIVATIVES
    )
    behind = [marks.get(var, frozenset()) for var in group.hidden_outvars[first:]]
    if any(-1 in own for own in behind):
        return None
    return tuple(tuple(k in own for k in range(first)) for own in behind)
