# SPDX-License-Identifier: Apache-2.0
"""Hidden states with uniform linear dynamics: which there are, and what drives them.

A state is *uniform* when its new value is

    h' = lambda h + sum_r A_r(w) c_r z_r + b(w) c_0 + u,

with a factor ``lambda`` that is the same at every position (or one of a few constants), linear maps
``A_r`` that do not change in time, factors ``c`` in time, and ``u`` without a derivative. Such a
leak commutes with the maps, so that it may stand in front of them (see ``filters``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import numpy as np

from ..base import versions
from ..base.types import Path
from ..base.versions import Atom, JaxprEqn, Var
from ..jaxprs.depends import Along, depends, slice_to
from ..jaxprs.linear import ITSELF, PRODUCTS, affine_part, is_elementwise, is_sum, same_along
from ..jaxprs.run import read, run_equations
from ..ops.primitive import is_etp_primitive
from .groups import HiddenGroup
from .module_info import DYNAMIC, ModuleInfo, StateKind, StateSlot, is_barrier
from .reach import Leaf


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
#: How many leaks the positions of a uniform state may have.
MOST_LEAKS = 4
#: Of how many products a leak may be the sum.
MOST_TERMS = 32

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


def find_uniform(
    minfo: ModuleInfo, path_to_group: Mapping[Path, HiddenGroup], scope: str = "diagonal"
) -> tuple[dict[Path, UniformState], dict[Path, str]]:
    """The uniform hidden states of a step, lower ones first, and why each other one is not.

    Recurrent input of a state is held where the recurrence ``scope`` cuts it; where the scope keeps
    it, such a state is not uniform.
    """
    step = _Step(minfo, path_to_group, scope == "diagonal")
    for path in minfo.hidden_path_to_outvar:
        step.decide(path)
    return step.found, step.refused


class NotUniform(Exception):
    """Why a state is not uniform."""


@dataclass(eq=False)
class _Step:
    """The analysis of one step."""

    minfo: ModuleInfo
    path_to_group: Mapping[Path, HiddenGroup]
    cuts: bool
    found: dict[Path, UniformState] = field(default_factory=dict)
    refused: dict[Path, str] = field(default_factory=dict)
    undecided: set[Path] = field(default_factory=set)
    _same: dict[Var, frozenset[int]] = field(default_factory=dict)
    _affine: dict[Var, frozenset[int] | None] = field(default_factory=dict)

    def decide(self, path: Path) -> bool:
        """Whether the state at a path is uniform; ``False`` while that is being decided."""
        if path not in self.found and path not in self.refused and path not in self.undecided:
            self.undecided.add(path)
            try:
                self.found[path] = _Descent(self, path).result()
            except NotUniform as why:
                self.refused[path] = str(why)
            self.undecided.discard(path)
        return path in self.found

    @cached_property
    def state_of(self) -> dict[Var, Path]:
        """Which hidden state an old or new value belongs to."""
        info = self.minfo
        old = {var: path for path, var in info.hidden_path_to_invar.items()}
        return old | dict(info.outvar_to_hidden_path)

    @cached_property
    def _eqns(self) -> dict[Var, JaxprEqn]:
        return {var: self.minfo.eqns[i] for var, i in self.minfo.producers.items()}

    @cached_property
    def _constants(self) -> dict[Var, Any]:
        return versions.constants(self.minfo.jaxpr)

    def constant(self, atom: Atom) -> np.ndarray:
        """The value of an operand that depends on no input of the step."""
        eqns, env = self.minfo.eqns, dict(self._constants)
        with jax.ensure_compile_time_eval():
            run_equations([eqns[i] for i in slice_to(eqns, [atom])], env)
            return np.asarray(read(env, atom))

    def varying(self, atom: Atom) -> frozenset[int]:
        """Axes along which a value may differ."""
        same = same_along(atom, self._eqns, self._constants, self._same)
        return frozenset(range(len(atom.aval.shape))) - same

    def credit(self, atom: Atom) -> bool:
        """Whether an operand has a derivative of a hidden state or a parameter."""
        return versions.is_var(atom) and atom in self.minfo.with_derivative

    def moves(self, atom: Atom) -> bool:
        """Whether an operand changes from step to step."""
        return DYNAMIC in self.minfo.behind(atom)

    def affine(self, eqn: JaxprEqn) -> frozenset[int] | None:
        """:func:`affine_part` of an ETP equation in its input."""
        x, var = eqn.primitive.spec.x_invar_index, eqn.outvars[0]
        if var not in self._affine:
            self._affine[var] = None if x is None else affine_part(eqn, x)
        return self._affine[var]

    @cached_property
    def _near(self) -> dict[Var, frozenset[Path]]:
        """The hidden states whose old or new value leads to a variable across no barrier."""
        return self._behind(self.minfo.near)

    @cached_property
    def _far(self) -> dict[Var, frozenset[Path]]:
        """Those whose old or new value leads to it in any way."""
        return self._behind(lambda i, eqn, operand: True)

    def _behind(self, passes: Callable[[int, JaxprEqn, int], bool]) -> dict[Var, frozenset[Path]]:
        info, states = self.minfo, self.state_of
        return depends(
            info.eqns,
            {var: frozenset({path}) for path, var in info.hidden_path_to_invar.items()},
            passes,
            emits=lambda i, eqn: frozenset(states[v] for v in eqn.outvars if v in states),
            through=lambda v, marks: marks | {states[v]} if v in states else marks,
            along=Along.DERIVATIVES,
        )

    def near(self, atom: Atom) -> frozenset[Path]:
        """The hidden states whose values lead to an operand across no barrier."""
        return self._near.get(atom, frozenset()) if versions.is_var(atom) else frozenset()

    @cached_property
    def _ever_near(self) -> dict[Path, frozenset[Path]]:
        """The states that lead to each across no barrier, over any number of steps."""
        news = self.minfo.hidden_path_to_outvar
        found = {path: self.near(var) | {path} for path, var in news.items()}
        while True:
            wider = {p: s.union(*(found[q] for q in s)) for p, s in found.items()}
            if wider == found:
                return found
            found = wider

    def recurs(self, atom: Atom, path: Path) -> bool:
        """Whether a state leads to a value across no barrier, over any number of steps."""
        return any(path in self._ever_near[p] for p in self.near(atom))

    def has_further_credit(self, atom: Atom, path: Path) -> bool:
        """Whether a value depends on parameters, or on states that the one at a path is not in."""
        far = self._far.get(atom, frozenset())
        others = any(path not in self._ever_near[p] for p in far)
        return others or bool(self.minfo.trained_by(atom))


class _Descent:
    """The way from the new value of one state back to its old value and to what drives it."""

    def __init__(self, step: _Step, path: Path) -> None:
        self.step, self.path, info = step, path, step.minfo
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
        if self.type.ndim != len(self.slot.varshape):
            raise NotUniform("it holds several states in one array")
        self.follow(self.new, (), inside=True, barrier=False, trained=False)
        if self.by_example and not self.ends:
            mixed = {v: e for v, (e, way) in self.region.items() if not _keeps_examples(e, way)}
            if mixed:
                return self.ending(mixed)
        if not self.leak:
            raise NotUniform("it does not depend on its old value")
        group, groups = self.step.path_to_group[self.path], self.step.path_to_group
        lower = {p for atom in self.sources for p in self.step.near(atom)}
        moved = any(source.of for source in self.sources.values())
        apart = moved or not all(is_elementwise(eqn) for eqn, _ in self.region.values())
        if not apart and all(groups[p] is group for p in lower):
            raise NotUniform("nothing but factors lies between it and what drives it")
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

    def ending(self, mixed: Mapping[Var, JaxprEqn]) -> UniformState:
        """The state, driven by what is read from delay lines: their first axis holds steps."""
        other = next((e for e in mixed.values() if not _reads_line(e)), None)
        if other is not None:
            raise NotUniform(
                "a factor differs from example to example, and "
                f"{other.primitive.name} at {versions.source_of(other)} may mix examples"
            )
        again = _Descent(self.step, self.path)
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
            raise NotUniform(f"a constant is selected at {versions.source_of(eqn)}")
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
        if not inside:
            raise NotUniform("its old value is moved to other positions")
        if len(self.leak) == MOST_TERMS:
            raise NotUniform(f"its old value leads to it in more than {MOST_TERMS} ways")
        for atom in (f.atom for f in factors if f.atom is not None):
            leaves = self.step.minfo.trained_by(atom)
            if self.step.credit(atom) and (self.step.moves(atom) or not self.are_numbers(leaves)):
                raise NotUniform("its leak depends on a hidden state or on many parameters")
            self.trained |= dict.fromkeys(sorted(leaves, key=str))
            if self.is_uniform(atom):
                continue
            if self.step.minfo.behind(atom):
                raise NotUniform("its leak is not the same at all positions")
            self.by_position.append(self.step.constant(atom))
        self.leak.append(factors)

    def are_numbers(self, leaves: Iterable[Leaf]) -> bool:
        """Whether parameter leaves are single numbers."""
        return all(self.step.minfo.parameter_leaves[leaf].aval.size == 1 for leaf in leaves)

    def source(self, atom: Atom, factors: Factors, barrier: bool, trained: bool) -> UniformSource:
        """What drives the state by a value that is followed no further."""
        recurs = self.step.recurs(atom, self.path)
        if recurs and not barrier:
            raise NotUniform(f"its old value passes {self.where(atom)}, which is no factor")
        if recurs and not self.step.cuts:
            raise NotUniform(f"its recurrent input by {self.where(atom)} is kept")
        if recurs and self.step.has_further_credit(atom, self.path):
            raise NotUniform(f"its recurrent input by {self.where(atom)} has another one's credit")
        path = self.step.state_of.get(atom)
        lower = path is not None and not recurs and self.step.decide(path)
        return UniformSource(atom, factors, recurs, path if lower else None, trained)

    def where(self, atom: Atom) -> str:
        """The equation of a value, with its line."""
        eqn = self.step.minfo.producer(atom)
        name = "another state" if eqn is None else eqn.primitive.name
        return f"{name} at {versions.source_of(eqn)}" if eqn is not None else name

    def take(self, source: UniformSource) -> None:
        known = self.sources.get(source.atom, source)
        self.sources[source.atom] = replace(source, trained=known.trained or source.trained)


def _reads_line(eqn: JaxprEqn) -> bool:
    """Whether it reads steps of a line ``[n, *V]``, or adds them up, for each of ``V`` its own."""
    old, new, axes = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, (0,)
    match eqn.primitive.name:
        case "slice" | "dynamic_slice":
            return bool(new[1:] == old[1:])
        case "squeeze":
            return bool(eqn.params["dimensions"] == axes)
        case "reduce_sum":
            return bool(eqn.params["axes"] == axes)
        case "gather":
            return bool(new == old[1:])
    return False


def _keeps_examples(eqn: JaxprEqn, followed: tuple[int, ...]) -> bool:
    """Whether an index of the first axis of the result depends on that of the operands alone."""
    params, first = eqn.params, eqn.outvars[0].aval.shape[:1]
    if any(eqn.invars[k].aval.shape[:1] != first for k in followed):
        return False
    match eqn.primitive.name:
        case "reshape":
            return True
        case "broadcast_in_dim":
            return bool(params["broadcast_dimensions"][:1] == (0,))
        case "transpose":
            return bool(params["permutation"][0] == 0)
        case "reduce_sum":
            return 0 not in params["axes"]
        case "slice" | "dynamic_slice":
            return True  # the first axis is whole
        case "concatenate":
            return bool(params["dimension"] != 0)
        case "squeeze" | "rev":
            return 0 not in params["dimensions"]
        case "pad":
            return bool(params["padding_config"][0] == (0, 0, 0))
        case "dot_general":
            contracted, batch = params["dimension_numbers"]
            return followed == (0,) and 0 not in contracted[0] and not batch[0]
    if is_etp_primitive(eqn.primitive):
        return bool(eqn.primitive.spec.batched)
    return is_elementwise(eqn)
