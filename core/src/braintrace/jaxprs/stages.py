# SPDX-License-Identifier: Apache-2.0
"""The body of a loop in stages: only what is recurrent has to be run step by step.

An equation is recurrent if it is on a way from an old value that is carried to the new one, through
other carried values perhaps. All others can be run for all steps together. Products in front of a
recurrence that they lead to: of the inputs alone, or of what an earlier recurrence gave, so that
layers which feed one another are run one after the other. Everything that leads to no new value
(readouts, losses, derivatives of the step) comes behind them all.

*Waves* say when a value is known: ``2 w + 1`` in the loop of number ``w``, ``2 w`` together for all
steps before it. A product that is not recurrent goes to the next even wave; nothing else does, so
that element-wise equations between two recurrences do not make two loops of one.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from typing import NamedTuple

import jax

from ..base import versions
from ..base.types import bytes_of
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..ops.primitive import is_etp_primitive
from .depends import Along, depends, moving_with, slice_to
from .run import nested

#: Operations of JAX that are products of what changes from step to step with what does not.
PRODUCTS = (jax.lax.dot_general_p, jax.lax.conv_general_dilated_p)

#: What is run step by step wherever it is: mapped over steps, it would compute more, hold more, or
#: draw other numbers.
ALONE = frozenset(
    "cond custom_partitioning ffi_call pallas_call pure_callback random_bits random_gamma "
    "rng_bit_generator rng_uniform scan shard_map while".split()
)


class Together(NamedTuple):
    """Equations that are run for all steps together, and which of their ``results`` are read."""

    eqns: tuple[int, ...]
    reads: tuple[Var, ...]
    results: tuple[Var, ...]


class Loop(NamedTuple):
    """Equations that are run step by step, and the numbers of the values that they carry.

    Of every step they read, and hand out, some variables.
    """

    eqns: tuple[int, ...]
    carried: tuple[int, ...]
    reads: tuple[Var, ...]
    results: tuple[Var, ...]


class Stages(NamedTuple):
    """The stages of a loop's body in the order in which they are run.

    ``bytes_per_step`` is what they hold of a step besides its inputs and what is asked for.
    """

    parts: tuple[Together | Loop, ...]
    bytes_per_step: int


def stages_of(jaxpr: Jaxpr, carried: int, wanted: Sequence[Var]) -> Stages:
    """The stages of a body ``[*carried, *inputs] -> [*carried, ..]`` without effects.

    ``wanted`` are variables that are asked for at every step, each of which changes between steps.
    """
    body = _Body(jaxpr, carried, wanted)
    parts: list[Together | Loop | None] = []
    for number in range(1 + max(body.waves.values(), default=0) // 2):
        if (loop := body.loop(number)) is not None:
            parts += (body.together(loop.reads), loop)
            body.take(loop)
    parts.append(body.together(wanted))
    found = tuple(part for part in parts if part is not None)
    given = {*jaxpr.invars[carried:], *wanted}
    held = {v for part in found for v in (*part.reads, *part.results)} - given
    made = {v for p in found if isinstance(p, Together) for i in p.eqns for v in body.made_by(i)}
    largest = max((bytes_of(v.aval) for v in made - given), default=0)
    return Stages(found, max(largest, bytes_of([v.aval for v in held])))


class _Body:
    """What is known of a body, and which of its equations are not in a stage yet: ``left``."""

    def __init__(self, jaxpr: Jaxpr, carried: int, wanted: Sequence[Var]) -> None:
        self.eqns: Sequence[JaxprEqn] = jaxpr.eqns
        pairs = enumerate(zip(jaxpr.invars[:carried], jaxpr.outvars[:carried], strict=True))
        moved = {i: pair for i, pair in pairs if pair[0] is not pair[1]}
        self.old: dict[int, Var] = {i: old for i, (old, _) in moved.items()}
        self.new: dict[int, Atom] = {i: new for i, (_, new) in moved.items()}
        self.wanted, self.known = {*wanted}, {*jaxpr.invars[carried:]}
        self.moves = moving_with(self.eqns, (*self.old.values(), *self.known))
        self.alone = {i for i, eqn in enumerate(self.eqns) if _is_alone(eqn)}
        self.waves = _waves(self.eqns, self.old, self.new, self.known, self.alone)
        used = slice_to(self.eqns, (*wanted, *self.new.values()), along=Along.EQUATIONS)
        self.left = {i for i in used if self.made_by(i)}

    def made_by(self, i: int) -> list[Var]:
        """The results of an equation that change from step to step."""
        return [var for var in self.eqns[i].outvars if var in self.moves]

    def loop(self, number: int) -> Loop | None:
        """The loop of that number, if it has anything to do."""
        wave = 2 * number + 1
        own = [i for i, old in self.old.items() if self.waves[old] == wave]
        news = [self.new[i] for i in own]
        alone = [v for i in sorted(self.left & self.alone) for v in self.made_by(i)]

        def inside(atom: Atom) -> bool:  # or the same at every step
            return versions.is_var(atom) and self.waves.get(atom, wave) == wave

        targets = [atom for atom in (*news, *alone) if inside(atom)]
        if not (own or targets):
            return None
        eqns = self._slice_to(targets, inside)
        held = [self.old[i] for i in own]
        return Loop(tuple(eqns), tuple(own), *self._borders(eqns, news, held))

    def together(self, targets: Iterable[Var]) -> Together | None:
        """All that is left to be run before ``targets`` are known."""
        missing = [var for var in targets if var not in self.known]
        if not missing:
            return None
        eqns = self._slice_to(missing, lambda atom: atom not in self.known)
        part = Together(tuple(eqns), *self._borders(eqns, missing, ()))
        self.take(part)
        return part

    def take(self, part: Together | Loop) -> None:
        """What a stage runs is no longer left, and what it hands out is known."""
        self.left -= {*part.eqns}
        self.known |= {*part.results}

    def _slice_to(self, targets: Iterable[Atom], follows: Callable[[Atom], bool]) -> list[int]:
        def enters(i: int, eqn: JaxprEqn, operand: int) -> bool:
            return follows(eqn.invars[operand])

        return slice_to(self.eqns, targets, enters, Along.EQUATIONS)

    def _borders(
        self, eqns: Sequence[int], ends: Sequence[Atom], held: Sequence[Var]
    ) -> tuple[tuple[Var, ...], tuple[Var, ...]]:
        """What a stage reads of every step, and what of it is read by others or wanted.

        ``ends`` are the values that it is for, and ``held`` those that it carries.
        """
        made = dict.fromkeys((*held, *(v for i in eqns for v in self.made_by(i))))
        atoms = (*(atom for i in eqns for atom in self.eqns[i].invars), *ends)
        moving = dict.fromkeys(a for a in atoms if versions.is_var(a) and a in self.moves)
        others = (a for i in self.left.difference(eqns) for a in self.eqns[i].invars)
        read = {*filter(versions.is_var, others), *self.wanted}
        if not held:  # a loop carries its ends
            read.update(ends)
        return tuple(v for v in moving if v not in made), tuple(v for v in made if v in read)


def _waves(
    eqns: Sequence[JaxprEqn],
    old: Mapping[int, Var],
    new: Mapping[int, Atom],
    inputs: Iterable[Var],
    alone: Container[int],
) -> dict[Var, int]:
    """When each variable that changes from step to step is known."""
    products = {i for i, eqn in enumerate(eqns) if _is_product(eqn)} - _recurrent(eqns, old, new)
    first = dict.fromkeys(old, 0)
    while True:
        waves = dict.fromkeys(inputs, 0) | {var: 2 * first[i] + 1 for i, var in old.items()}
        for i, eqn in enumerate(eqns):
            found = [waves[atom] for atom in eqn.invars if versions.is_var(atom) and atom in waves]
            if found:
                wave = max(found)
                if i in alone:
                    wave |= 1
                elif i in products:
                    wave += wave % 2
                waves.update(dict.fromkeys(eqn.outvars, wave))
        known = {i: waves.get(a, 0) if versions.is_var(a) else 0 for i, a in new.items()}
        after = {i: wave // 2 for i, wave in known.items()}
        if after == first:
            return waves
        first = after


def _recurrent(
    eqns: Sequence[JaxprEqn], old: Mapping[int, Var], new: Mapping[int, Atom]
) -> set[int]:
    """The equations on a way from an old value to a new one that, in time, leads back to it."""
    seeds = {var: frozenset({i}) for i, var in old.items()}
    marks: Mapping[Atom, frozenset[int]] = depends(eqns, seeds, along=Along.EQUATIONS)
    news = {i: atom for i, atom in new.items() if versions.is_var(atom)}
    behind = {i: {*marks.get(atom, ())} for i, atom in news.items()}
    for k in behind:
        for found in behind.values():
            if k in found:
                found |= behind[k]
    leads: dict[Atom, set[int]] = {}
    for i, atom in news.items():
        leads.setdefault(atom, set()).add(i)
    chosen = set()
    for i in reversed(range(len(eqns))):
        own = set[int]().union(*(leads.get(var, ()) for var in eqns[i].outvars))
        for atom in filter(versions.is_var, eqns[i].invars if own else ()):
            leads.setdefault(atom, set()).update(own)
            if any(own & {c, *behind.get(c, ())} for c in marks.get(atom, ())):
                chosen.add(i)
    return chosen


def _is_product(eqn: JaxprEqn) -> bool:
    every = (eqn, *nested(eqn))
    return any(is_etp_primitive(e.primitive) or e.primitive in PRODUCTS for e in every)


def _is_alone(eqn: JaxprEqn) -> bool:
    return any(e.primitive.name in ALONE for e in (eqn, *nested(eqn)))
