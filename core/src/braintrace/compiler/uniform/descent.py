# SPDX-License-Identifier: Apache-2.0
"""From a state's new value back to its old one: its leak, and what drives it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ...base import versions
from ...base.types import Path
from ...base.versions import Atom, JaxprEqn, Var
from ...jaxprs.linear import ITSELF, PRODUCTS, is_elementwise, is_sum
from ...ops.moving import ExamplesSpec, MovingSpec
from ...ops.primitive import is_etp_primitive
from ..module_info import StateKind, is_barrier
from ..reach import Leaf
from .examples import keeps_examples, reads_line
from .state import (
    MINUS,
    Factors,
    NotUniform,
    UniformConstant,
    UniformFactor,
    UniformSource,
    UniformState,
)
from .step import Step

#: How many leaks the positions of a uniform state may have.
MOST_LEAKS = 4
#: Of how many products a leak may be the sum.
MOST_TERMS = 32


class Descent:
    """The way from the new value of one state back to its old value and to what drives it."""

    def __init__(self, step: Step, path: Path, decide: Callable[[Path], bool]) -> None:
        self.step, self.path, self.decide, info = step, path, decide, step.minfo
        self.slot = next(s for s in info.slots_of(StateKind.HIDDEN) if s.path == path)
        self.old, self.new = info.invars_of(self.slot)[0], info.outvars_of(self.slot)[0]
        self.type = self.old.aval
        self.leak: list[Factors] = []
        self.sources: dict[Atom, UniformSource] = {}
        self.region: dict[Var, tuple[JaxprEqn, tuple[int, ...]]] = {}
        self.affine: dict[Var, UniformConstant] = {}
        self.factors_of: dict[Atom, Factors] = {}
        self.seen: set[tuple[Any, ...]] = set()
        self.remember: set[Atom] = set()
        self.by_example: set[Atom] = set()
        self.ends: set[Var] = set()
        self.by_position: list[np.ndarray] = []
        self.trained: dict[Leaf, None] = {}

    def result(self) -> UniformState:
        """The state, if it is uniform and its leak gains by standing elsewhere."""
        self.follow(self.new, (), inside=True, barrier=False, trained=False)
        if self.by_example and not self.ends:
            mixed = {v: e for v, (e, way) in self.region.items() if not keeps_examples(e, way)}
            if mixed:
                return self.ending(mixed)
        if not self.leak:
            raise NotUniform("it does not depend on its old value")
        group, groups = self.step.path_to_group[self.path], self.step.path_to_group
        lower = {p for atom in self.sources for p in self.step.near(atom)}
        moved = any(source.of for source in self.sources.values())
        apart = moved or not all(is_elementwise(eqn) for eqn, _ in self.region.values())
        if not apart and all(groups[p] is group for p in lower):
            raise NotUniform(self.why_not_apart())
        return UniformState(
            self.slot,
            self.type,
            tuple(self.leak),
            self.sources,
            self.region,
            self.affine,
            frozenset(self.by_example),
            self.parts(),
            tuple(self.trained),
        )

    def why_not_apart(self) -> str:
        """Why there is nothing that the leak could pass."""
        made = filter(None, map(self.step.minfo.producer, self.sources))
        eqn = next((eqn for eqn in made if is_etp_primitive(eqn.primitive)), None)
        if eqn is None:
            return "nothing but factors lies between it and what drives it"
        what = f"{eqn.primitive.name} at {versions.source_of(eqn)}"
        if isinstance(eqn.primitive.spec, MovingSpec | ExamplesSpec):
            return f"the weight of {what} is chosen or masked by inputs or states"
        return f"{what} is no linear map of one operand that moves"

    def ending(self, mixed: Mapping[Var, JaxprEqn]) -> UniformState:
        """The state, driven by what is read from delay lines: their first axis holds steps."""
        other = next((e for e in mixed.values() if not reads_line(e)), None)
        if other is not None:
            raise NotUniform(
                "a factor differs from example to example, and "
                f"{versions.place_of(other)} may mix examples"
            )
        again = Descent(self.step, self.path, self.decide)
        again.ends = set(mixed)
        return again.result()

    def parts(self) -> tuple[tuple[np.ndarray, tuple[int, ...]], ...]:
        """The positions with each leak."""
        shape = self.type.shape
        if not self.by_position:
            return ((np.ones(shape, bool), (0,) * len(shape)),)
        values = np.stack([np.broadcast_to(v, shape).ravel() for v in self.by_position])
        distinct, number = np.unique(values, axis=1, return_inverse=True)
        if distinct.shape[1] > MOST_LEAKS:
            raise NotUniform(
                f"its positions have {distinct.shape[1]} different leaks, more than {MOST_LEAKS}"
            )
        masks = [number.reshape(shape) == k for k in range(distinct.shape[1])]
        return tuple((mask, tuple(int(i[0]) for i in np.nonzero(mask))) for mask in masks)

    def follow(
        self, atom: Atom, factors: Factors, inside: bool, barrier: bool, trained: bool
    ) -> bool:
        """Follow an operand, and say whether a source or the old value lies behind it.

        Between it and the new value lie ``factors``; ``inside``: nothing but element-wise
        equations; ``barrier``: an ETP operation; ``trained``: a map with parameters.
        """
        step = self.step
        if atom is self.old:
            self.take_leak(factors, inside)
            return True
        if not step.moves(atom) or not (step.credit(atom) or trained):
            return False
        in_time = self.in_time(factors)
        if self.factors_of.setdefault(atom, in_time) != in_time:
            raise NotUniform("a value drives it by two different factors in time")
        if (atom, inside, barrier, trained) in self.seen and atom not in self.remember:
            return True
        self.seen.add((atom, inside, barrier, trained))
        eqn, ways_of_old = step.minfo.producer(atom), len(self.leak)
        leaf = atom in self.ends or (atom in step.state_of and atom is not self.new)
        leaf = leaf or self.is_read(eqn)
        ways = None if leaf or eqn is None or not step.credit(atom) else self.ways(eqn)
        if eqn is None or ways is None:
            self.take(self.source(atom, in_time, barrier, trained))
            return True
        others = {k: a for k, a in enumerate(eqn.invars) if k not in ways}
        further = (
            inside and is_elementwise(eqn),
            barrier or is_barrier(eqn),
            trained or any(map(step.credit, others.values())),
        )
        known = self.region.get(atom, (eqn, ()))[1]
        found = [
            k
            for k, factor in ways.items()
            if self.follow(eqn.invars[k], (*factors, *filter(None, [factor])), *further)
        ]
        self.region[atom] = eqn, tuple(sorted({*known, *found}))
        if behind := self.constants(eqn, trained):
            self.affine[atom] = UniformConstant(behind, in_time)
        if len(self.leak) > ways_of_old:
            self.remember.add(atom)
        return True

    def is_read(self, eqn: JaxprEqn | None) -> bool:
        """Whether it gives what is read from an array at an index that moves, without its axis."""
        if eqn is None or eqn.primitive.name != "squeeze":
            return False
        read = self.step.minfo.producer(eqn.invars[0])
        if read is None or read.primitive.name != "dynamic_slice":
            return False
        return any(map(self.step.moves, read.invars[1:]))

    def constants(self, eqn: JaxprEqn, trained: bool) -> frozenset[int]:
        """Operands behind what an equation adds to its moving operands."""
        step = self.step
        if is_etp_primitive(eqn.primitive):
            behind = step.affine(eqn) or frozenset()
            return behind if trained or behind - {ITSELF} else frozenset()
        if not is_sum(eqn):
            return frozenset()
        steady = (k for k, a in enumerate(eqn.invars) if versions.is_float(a.aval))
        behind = frozenset(k for k in steady if self.is_added(eqn.invars[k], trained))
        if behind and eqn.primitive.name == "select_n" and step.moves(eqn.invars[0]):
            raise NotUniform(f"a constant is selected by {versions.place_of(eqn)}")
        return behind

    def is_added(self, atom: Atom, trained: bool) -> bool:
        """Whether an operand of a sum is a constant that has, or is part of, a derivative."""
        step = self.step
        if step.moves(atom) or step.credit(atom) or not trained:
            return not step.moves(atom) and step.credit(atom)
        return bool(step.minfo.behind(atom)) or bool(np.any(step.constant(atom)))

    def ways(self, eqn: JaxprEqn) -> dict[int, UniformFactor | None] | None:
        """Operands to follow, each with a factor; ``None`` where the equation is no linear map."""
        step, name = self.step, eqn.primitive.name
        smooth = [
            k for k, a in enumerate(eqn.invars) if versions.is_var(a) and versions.is_float(a.aval)
        ]
        if name == "select_n":
            which = eqn.invars[0]
            if step.moves(which) and not self.is_uniform(which):
                return None
            return {k: UniformFactor(which, "is", k - 1) for k in smooth}
        if is_sum(eqn):
            turned = {"sub": (1,), "neg": (0,)}.get(name, ())
            return {k: MINUS if k in turned else None for k in smooth}
        moving = [k for k, a in enumerate(eqn.invars) if step.moves(a)]
        ways = [k for k in moving if step.credit(eqn.invars[k])] or moving
        if len(ways) != 1 or ways[0] not in smooth:
            return None
        (way,) = ways
        if is_etp_primitive(eqn.primitive):
            x = eqn.primitive.spec.x_invar_index
            return {way: None} if moving == [x] and step.affine(eqn) is not None else None
        if way not in PRODUCTS.get(name, ()):
            return None
        if name not in ("mul", "div"):
            return {way: None} if moving == [way] else None
        other = eqn.invars[1 - way]
        if step.moves(other) and (step.credit(other) or not self.is_uniform(other)):
            return None
        return {way: UniformFactor(other, "times" if name == "mul" else "over")}

    def is_uniform(self, atom: Atom) -> bool:
        """Whether a value is the same at all positions, of an example at least."""
        varying = self.step.varying(atom)
        if varying == {0} and len(self.type.shape) > 1:
            self.by_example.add(atom)
            return True
        return not varying

    def in_time(self, factors: Factors) -> Factors:
        """The factors that change in time; the others belong to the linear map."""
        return tuple(f for f in factors if f.atom is not None and self.step.moves(f.atom))

    def take_leak(self, factors: Factors, inside: bool) -> None:
        if not inside and self.type.ndim != len(self.slot.varshape):
            raise NotUniform(
                "it holds several states in one array, which are taken apart; give each of them a "
                "HiddenState of its own"
            )
        if not inside:
            raise NotUniform("its old value is moved to other positions")
        if len(self.leak) == MOST_TERMS:
            raise NotUniform(f"its old value leads to it in more than {MOST_TERMS} ways")
        for atom in (f.atom for f in factors if f.atom is not None):
            leaves = self.step.minfo.trained_by(atom)
            sizes = {self.step.minfo.parameter_leaves[leaf].aval.size for leaf in leaves}
            if self.step.credit(atom) and (self.step.moves(atom) or sizes - {1}):
                raise NotUniform("its leak depends on a hidden state or on many parameters")
            self.trained |= dict.fromkeys(sorted(leaves, key=str))
            if self.is_uniform(atom):
                continue
            if self.step.minfo.behind(atom):
                raise NotUniform("its leak is not the same at all positions")
            self.by_position.append(self.step.constant(atom))
        self.leak.append(factors)

    def source(self, atom: Atom, factors: Factors, barrier: bool, trained: bool) -> UniformSource:
        """What drives the state by a value that is followed no further."""
        recurs = self.step.recurs(atom, self.path)
        if recurs and not barrier:
            raise NotUniform(
                f"its old value passes {self.where(atom)}, which is no leak that is the same "
                "everywhere and carries no credit"
            )
        if recurs and not self.step.cuts:
            raise NotUniform(f"its recurrent input by {self.where(atom)} is kept")
        if recurs and self.step.has_further_credit(atom, self.path):
            raise NotUniform(f"its recurrent input by {self.where(atom)} has another one's credit")
        path = self.step.state_of.get(atom)
        lower = path is not None and not recurs and self.decide(path)
        return UniformSource(atom, factors, recurs, path if lower else None, trained)

    def where(self, atom: Atom) -> str:
        """The equation of a value, with its line."""
        eqn = self.step.minfo.producer(atom)
        return "another state" if eqn is None else versions.place_of(eqn)

    def take(self, source: UniformSource) -> None:
        known = self.sources.get(source.atom, source)
        self.sources[source.atom] = replace(source, trained=known.trained or source.trained)
