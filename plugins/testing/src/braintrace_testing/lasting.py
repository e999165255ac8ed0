# SPDX-License-Identifier: Apache-2.0
"""Which paths of a step with uniform states last, and which count in the step alone.

A path has a mode: ``NEAR`` until it crosses an ETP equation, ``HELD`` where it did so inside of
the region of a uniform state, ``FAR`` behind that; and the regions that it has been in ever since
it passed an end of theirs. It lasts where it arrives at a uniform state by its region, or,
``NEAR``, at a state of its home.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .paths import FAR, NEAR
from .program import Edge
from .regions import Home, Layers

HELD, OPEN, START, PLAIN, STEADY, KEPT = "held", "open", "start", "plain", "steady", "kept"
OPEN_HELD = "open held"
Inside = frozenset[int]
Mode = tuple[Any, Inside]
NOWHERE: Inside = frozenset()
"""A path in no region."""
Enters = Callable[[Any, int, int], bool]
"""Whether a path of a mode enters the region of a uniform state at an end."""


@dataclass(frozen=True)
class Lasting:
    """The rules of paths in a step with uniform states.

    ``near``: as if a state had a trace of its own, of operations in its region that cross no other
    ETP equation. The region that a path has been in since it started has the number ``~k`` then,
    and what comes from elsewhere is ``HELD`` where it arrives.
    """

    layers: Layers
    near: bool = False

    def started(self, y: int) -> Inside:
        """The regions in which a path starts."""
        regions = self.layers.regions_of(y)
        return frozenset(~k for k in regions) if self.near else regions

    def moved(self, edge: Edge, mode: Mode, enters: Enters, steady: bool = False) -> Mode:
        """The mode behind an edge, before it is asked what the edge leads to."""
        base, inside = mode
        found: set[int] = set()
        for k, u in enumerate(self.layers.uniform):
            if edge not in u.edges:
                if steady and edge.source not in self.layers.varying and edge.target in u.inside:
                    found.add(k)
                continue
            if k in inside or self.entered(edge, base, k, enters):
                found.add(~k if self.near and edge.source == u.hidden.old else k)
            if ~k in inside and not edge.crosses:
                found.add(~k)
        if base in (NEAR, START):
            base = HELD if edge.crosses else NEAR
        if base in (HELD, STEADY) and not found:
            base = FAR
        return base, frozenset(found)

    def entered(self, edge: Edge, base: Any, k: int, enters: Enters) -> bool:
        return edge.source in self.layers.uniform[k].ends and enters(base, k, edge.source)

    def arrives(self, edge: Edge, inside: Inside) -> bool:
        """Whether an edge leads to a uniform state by its region."""
        k = self.layers.number_of.get(edge.target)
        return k is not None and not inside.isdisjoint({k, ~k})

    def follows(self, k: int | None, new: int) -> bool:
        """Whether a new value that lies near is in the traces of what starts at a uniform state."""
        return k is None or not self.near or new in self.layers.mates[k]

    def kept(self, home: Home | None, origin: int | None = None) -> Any:
        """What lasts: to the members of a home and uniform states; ``None``: to the latter alone.

        ``origin``: the number of the uniform state in which paths start.
        ``OPEN``: a path that may cross anything until it arrives. ``OPEN_HELD``: of a uniform state
        that is reached across an ETP equation, whose region it does not leave so.
        """
        layers = self.layers

        def enters(base: Any, k: int, z: int) -> bool:
            if (k, z) in layers.held | layers.loops:
                return False
            own = home is not None and (k, z) in home.filters
            return base != START if z in layers.number_of else base != HELD and own

        def rule(edge: Edge, mode: Mode) -> Mode | None:
            base, inside = self.moved(edge, mode, enters, steady=home is None)
            if base == FAR or edge.trainable:
                return None
            if base in (OPEN, OPEN_HELD) and inside:
                base = NEAR if base == OPEN and not edge.crosses else HELD
            if edge.target in layers.number_of:
                if self.near and layers.number_of[edge.target] in inside:
                    base = HELD
                return (base, NOWHERE) if self.arrives(edge, inside) else None
            if edge.target in layers.others:
                met = home is not None and edge.target in home.news
                met = met and self.follows(origin, edge.target)
                return (NEAR, NOWHERE) if met and base in (NEAR, OPEN, OPEN_HELD) else None
            if home is None and not inside and edge.target in layers.varying:
                return None
            return base, inside

        return rule

    def signal(self, home: Home) -> Any:
        """What is left, from new values of a home: direct within it, total otherwise."""
        layers = self.layers

        def enters(base: Any, k: int, z: int) -> bool:
            if base == FAR or (k, z) in layers.held | layers.loops:
                return (k, z) in layers.held
            return z in layers.number_of or (base == NEAR and (k, z) in home.filters)

        def rule(edge: Edge, mode: Mode) -> Mode | None:
            base, inside = self.moved(edge, mode, enters)
            if edge.target in layers.number_of:
                return None if self.arrives(edge, inside) else (FAR, NOWHERE)
            if edge.target in layers.others:
                return None if base == NEAR and edge.target in home.news else (FAR, NOWHERE)
            return base, inside

        return rule

    def around(self, home: Home) -> Any:
        """From old values of a home, through none of its new ones."""
        layers = self.layers

        def enters(base: Any, k: int, z: int) -> bool:
            if (k, z) in layers.held | layers.loops:
                return (k, z) in layers.held
            return (k, z) in home.filters or (
                z in layers.number_of and z == layers.uniform[layers.number_of[z]].hidden.old
            )

        def rule(edge: Edge, mode: Mode) -> Mode | None:
            _, inside = self.moved(edge, (FAR, mode[1]), enters)
            if self.arrives(edge, inside) or edge.target in home.news:
                return None
            return FAR, NOWHERE if edge.target in layers.number_of else inside

        return rule

    def outside(self, edge: Edge, mode: Mode) -> Mode | None:
        """The ordinary derivative in the parameters, less what lasts.

        A path that enters an ETP equation through a trainable operand starts anew, with the number
        of the equation in its mode. What arrives at a uniform state by its region is ``KEPT``.
        A path that starts at a uniform state of number ``k`` has the number ``~k``.
        """
        layers, base = self.layers, mode[0]
        if base == KEPT:
            return None
        if edge.trainable:
            return (NEAR, edge.equation), self.started(edge.target)
        if base == PLAIN and not edge.crosses and edge.target not in layers.varying:
            return PLAIN, NOWHERE

        def enters(base: Any, k: int, z: int) -> bool:
            if base == FAR or (k, z) in layers.held | layers.loops:
                return (k, z) in layers.held
            return z in layers.number_of or base == NEAR

        before = {PLAIN: STEADY}.get(base, NEAR if isinstance(base, tuple) else base)
        after, inside = self.moved(edge, (before, mode[1]), enters, steady=before != FAR)
        if edge.target in layers.number_of and self.arrives(edge, inside):
            return (KEPT, NOWHERE) if after == STEADY else None
        if edge.target in layers.number_of:
            return None if after == NEAR else (FAR, NOWHERE)
        if edge.target in layers.others:
            origin = ~base[1] if isinstance(base, tuple) and base[1] < 0 else None
            met = after == NEAR and self.follows(origin, edge.target)
            return None if met else (FAR, NOWHERE)
        return (base if after == NEAR else after), inside
