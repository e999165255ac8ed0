# SPDX-License-Identifier: Apache-2.0
"""Which hidden groups every ETP operation reaches, and the cone of each: what leads to a group.

Which paths from old to new values count, those that ``D`` is the diagonal of, is the *recurrence
scope*:

- ``'diagonal'``: those that cross no ETP operation;
- ``'coupled'``: a path may cross any of them until it meets its first new value of the group. From
  there on it may not: credit that leaves a new value through an ETP operation is in the learning
  signal of the same step already.

Either way a path ends at the new values of other groups.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..base import versions
from ..base.errors import CompilationError
from ..base.types import Path
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..jaxprs.depends import Along, depends, program_influences, slice_to
from ..jaxprs.run import etp_equations
from .contexts import Read, plan_backward, run_in_contexts
from .groups import Groups, HiddenGroup, member_of, mixing
from .module_info import DYNAMIC, Marks, ModuleInfo, is_barrier
from .patterns import driven_by_step, has_lines, passing_by_step

SCOPES = ("diagonal", "coupled")
Pattern = tuple[tuple[bool, ...], ...]
Contexts = frozenset[bool]
NEITHER, BOTH = Contexts(), Contexts({False, True})
Leaf = tuple[Path, int]  # a parameter's path and the index of one of its leaves


@dataclass(frozen=True, eq=False)
class TrainableOperand:
    """An operand of an ETP equation but ``x``, and the parameter leaves it is made from.

    Attributes
    ----------
    key, position, atom
        Its trainable key (empty if it has none), its place among the operands, and its variable.
    leaves, held
        The parameter leaves ``(path, index)`` that it has a derivative of, and the other ones,
        which are behind ``stop_gradient`` or of integers.
    chain
        Indices of the parameter-only equations that lead from all of them to it.

    Examples
    --------
    >>> import braintrace as bt, jax.numpy as jnp
    >>> graph = bt.compile(bt.nn.GRUCell(3, 4), "d_rtrl", jnp.ones((2, 3)), batch_size=2).graph
    >>> [operand.leaves for operand in graph.hidden_param_op_relations[0].trainables]
    [((('Wz', 'weight'), 1),), ((('Wz', 'weight'), 0),)]
    """

    key: str
    position: int
    atom: Atom
    leaves: tuple[Leaf, ...]
    chain: tuple[int, ...]
    held: tuple[Leaf, ...] = ()


@dataclass(frozen=True, eq=False)
class Reach:
    """An ETP equation whose output is read, and where that leads.

    Attributes
    ----------
    eqn_index, eqn
        The equation and its place in the program.
    operands
        Its operands but ``x``.
    near, far
        Groups that it reaches without crossing another ETP operation, and by any differentiable
        path. A path that passes a hidden state of one group is near to no other: the rest of it
        belongs to that state's learning signal.
    crossing
        New values of hidden states that it reaches through a further ETP operation.

    Examples
    --------
    >>> import braintrace as bt, jax.numpy as jnp
    >>> graph = bt.compile(bt.nn.GRUCell(3, 4), "d_rtrl", jnp.ones((2, 3)), batch_size=2).graph
    >>> [reach.traced for reach in graph.reach], graph.reach[1].near, graph.reach[1].far
    ([True, False, True], frozenset(), frozenset({0}))
    """

    eqn_index: int
    eqn: JaxprEqn
    operands: tuple[TrainableOperand, ...]
    near: frozenset[int]
    far: frozenset[int]
    crossing: frozenset[Var]

    @property
    def paths(self) -> tuple[Path, ...]:
        """The parameters that it has a derivative of, each once."""
        return tuple(dict.fromkeys(p for operand in self.operands for p, _ in operand.leaves))

    @cached_property
    def traced(self) -> bool:
        """Whether the operation becomes a relation."""
        return bool(self.near) and any(operand.leaves for operand in self.operands)


@dataclass(frozen=True, eq=False)
class Transition:
    """The transition of a group within the recurrence scope.

    Attributes
    ----------
    mixed
        Axes of the positions along which positions are mixed: ``D`` is the block diagonal of the
        Jacobian, computed position by position along them. Empty: one sweep gives all of it.
    program, free
        In the ``'coupled'`` scope, the transition as a closed jaxpr of the variables ``free`` and
        then the old values; ``None`` otherwise (the equations of the cone are it).

    Examples
    --------
    >>> import braintrace as bt, jax.numpy as jnp
    >>> graph = bt.compile(bt.nn.GRUCell(3, 4), "d_rtrl", jnp.ones((2, 3)), batch_size=2).graph
    >>> graph.cones[0].transition
    Transition(mixed=(), program=None, free=())
    """

    mixed: tuple[int, ...]
    program: Jaxpr | None = None
    free: tuple[Var, ...] = ()


@dataclass(frozen=True, eq=False)
class Cone:
    """The part of a step that leads to a hidden group without crossing an ETP operation.

    Attributes
    ----------
    group, eqns
        Number of the group, and indices of the equations.
    free
        Its inputs but the group's old values and the outputs ``y`` of its relations: variables that
        are held constant.
    old_reaches
        Whether an old value leads to a new one.
    transition
        That of the group; ``None`` when it is structurally zero.
    offence
        The first equation that mixes positions on the way from old to new values. (What mixes in
        an ETP operation is left out by the choice of the recurrence scope.)
    passing
        Which entries of ``D`` are not structurally zero, by new and old state [S][S].
    driving
        Which new states each ``y`` drives [S].

    Examples
    --------
    >>> import braintrace as bt, jax.numpy as jnp
    >>> graph = bt.compile(bt.nn.GRUCell(3, 4), "d_rtrl", jnp.ones((2, 3)), batch_size=2).graph
    >>> graph.cones[0].passing, [*graph.cones[0].driving.values()]
    (((True,),), [(True,), (True,)])
    """

    group: int
    eqns: tuple[int, ...]
    free: tuple[Var, ...]
    old_reaches: bool
    offence: JaxprEqn | None
    transition: Transition | None
    passing: Pattern
    driving: Mapping[Var, tuple[bool, ...]]


def find_reach(minfo: ModuleInfo, groups: Groups) -> tuple[Reach, ...]:
    """What the ETP equations of a step reach, but for those whose output nothing reads.

    ``vmap`` over functions with states leaves such copies of equations behind.
    """
    eqns, member = minfo.eqns, member_of(groups)
    etp = etp_equations(eqns)
    barriers = {var: i for i in etp if is_barrier(eqns[i]) for var in eqns[i].outvars}
    starts = {var: frozenset({(i, None)}) for i in etp for var in eqns[i].outvars}

    def ends(var: Var, marks: Marks) -> Marks:
        g = member.get(var)
        return marks if g is None else frozenset((i, g) for i, via in marks if via in (None, g))

    def crosses(var: Var, marks: Marks) -> Marks:
        at = barriers.get(var)
        return marks if at is None else marks | {(i, True) for i, _ in marks if i != at}

    every = minfo.credit({}, emits=starts, through=crosses)
    near, far = _turned(member, minfo.credit({}, minfo.near, starts, ends)), _turned(member, every)
    found = []
    for i in sorted({*etp} & {*slice_to(eqns, minfo.jaxpr.outvars)}):
        crossing = frozenset(var for var in far[i] if (i, True) in every[var])
        to, beyond = (frozenset(member[var] for var in news[i]) for news in (near, far))
        found.append(Reach(i, eqns[i], weight_operands(minfo, i), to, beyond, crossing))
    return tuple(found)


def _turned(news: Iterable[Var], marks: Mapping[Var, Marks]) -> dict[int, set[Var]]:
    """The new values that each equation reaches, from the marks of the equations behind each."""
    found: dict[int, set[Var]] = defaultdict(set)
    for var in news:
        for i, _ in marks.get(var, ()):
            found[i].add(var)
    return found


def weight_operands(minfo: ModuleInfo, eqn_index: int) -> tuple[TrainableOperand, ...]:
    """Every operand but ``x``, with the parameter leaves behind the trainable ones."""
    eqn = minfo.eqns[eqn_index]
    spec = eqn.primitive.spec
    keys = {position: key for key, position in spec.resolve_trainable_invars(eqn.params).items()}
    missing = [position for position in keys if position >= len(eqn.invars)]
    if missing:
        raise CompilationError(
            f"the primitive {spec.name!r} names operand {missing[0]} ({keys[missing[0]]!r}) as "
            f"trainable, but at {versions.source_of(eqn)} it is bound with {len(eqn.invars)} "
            "operands; give it a trainable_invars_fn that says where its trainable operands stand"
        )
    operands = []
    for position, atom in enumerate(eqn.invars):
        if position != spec.x_invar_index:
            behind, trained = minfo.behind(atom), minfo.trained_by(atom)
            known: Iterable[Leaf] = behind - {DYNAMIC} if position in keys else ()
            if len(behind) > 1:
                known = [leaf for leaf in minfo.parameter_leaves if leaf in known]
            leaves = tuple(leaf for leaf in known if leaf in trained)
            held = tuple(leaf for leaf in known if leaf not in trained)
            chain: Iterable[int] = ()
            if minfo.producer(atom) is not None and DYNAMIC not in behind:
                made = minfo.producers
                chain = slice_to(minfo.eqns, [atom], along=Along.EQUATIONS, made=made)
            key = keys.get(position, "")
            operands.append(TrainableOperand(key, position, atom, leaves, tuple(chain), held))
    return tuple(operands)


def find_cones(groups: Groups, reach: Sequence[Reach], scope: str) -> tuple[Cone, ...]:
    """The cones of all groups, within a recurrence scope."""
    driven: dict[int, list[Var]] = defaultdict(list)
    for r in reach:
        for g in r.near if r.traced else ():
            driven[g].append(r.eqn.outvars[0])
    member = member_of(groups)
    return tuple(_cone(groups, group, driven[group.index], member, scope) for group in groups)


def _cone(
    groups: Groups, group: HiddenGroup, ys: Sequence[Var], member: Mapping[Var, int], scope: str
) -> Cone:
    """The cone of a group and of what drives it; without that, no transition is needed."""
    program, made = group.module_info.eqns, group.module_info.producers

    def enters(i: int, eqn: JaxprEqn, operand: int) -> bool:
        atom = eqn.invars[operand]
        g = member.get(atom, group.index) if versions.is_var(atom) else group.index
        return g == group.index and group.module_info.near(i, eqn, operand)

    behind = slice_to(program, group.hidden_outvars, enters, Along.DERIVATIVES, made)
    olds = {var: frozenset({var}) for var in group.hidden_invars}
    within, starts = [program[i] for i in behind], {y: frozenset({y}) for y in ys}
    marks = depends(within, olds, enters, starts, along=Along.DERIVATIVES)
    moving = (i for i in behind if any(marks.get(var) for var in program[i].outvars))
    eqns = tuple(i for i in moving if not is_barrier(program[i]))
    inner = {*group.hidden_invars, *ys, *(var for i in eqns for var in program[i].outvars)}
    read = [atom for i in eqns for atom in program[i].invars if versions.is_var(atom)]
    free = dict.fromkeys(var for var in (*read, *group.hidden_outvars) if var not in inner)
    behind_new: list[Marks] = [marks.get(new, frozenset()) for new in group.hidden_outvars]
    old_reaches = any(old in behind for behind in behind_new for old in group.hidden_invars)
    transition, offence = None, None
    if ys and old_reaches:
        between = [program[i] for i in eqns]
        mixed, offence = mixing(group, between, group.hidden_invars, group.hidden_outvars)
        transition = Transition(mixed)
    if ys and scope == "coupled":
        transition = coupled_transition(groups, group)
    driving = {y: _by_state(group, [y in behind for behind in behind_new]) for y in ys}
    old_ones: Sequence[Any] = group.hidden_invars
    if transition is not None and transition.program is not None:
        old_ones = range(len(transition.free), len(transition.program.invars))
        behind_new = list(program_influences(transition.program, Along.DERIVATIVES))
    rows = [_by_state(group, [old in behind for old in old_ones]) for behind in behind_new]
    passing = _by_state(group, rows)
    if has_lines(group):
        between = [program[i] for i in eqns]
        driving = driven_by_step(group, between, ys)
        passing = _passing_by_step(group, between, transition)
    return Cone(group.index, eqns, tuple(free), old_reaches, offence, transition, passing, driving)


def _passing_by_step(
    group: HiddenGroup, between: Sequence[JaxprEqn], transition: Transition | None
) -> Pattern:
    if transition is None or transition.program is None:
        return passing_by_step(group, between, group.hidden_invars, group.hidden_outvars)
    program, free = transition.program, len(transition.free)
    return passing_by_step(group, program.eqns, program.invars[free:], program.outvars)


def _by_state(group: HiddenGroup, members: Sequence[Any]) -> tuple[Any, ...]:
    """An entry per state, from one per member of the group."""
    pairs = zip(members, group.state_counts, strict=True)
    return tuple(entry for entry, count in pairs for _ in range(count))


def check_scope(scope: str) -> str:
    """``scope``, if there is such a recurrence scope."""
    if scope not in SCOPES:
        raise ValueError(f"recurrence_scope must be one of {SCOPES}, got {scope!r}")
    return scope


def coupled_transition(groups: Groups, group: HiddenGroup) -> Transition | None:
    """The transition of a group with its ETP operations; ``None`` when it is structurally zero.

    An equation runs in the context ``False``, or ``True`` on paths that have an ETP operation
    still to cross, on which new values of the group are constants. The old values move only some
    variables, in one of the contexts or in both; all others are constants, too.
    """
    eqns, member = group.module_info.eqns, member_of(groups)
    crossing = {var for eqn in eqns if is_barrier(eqn) for var in eqn.outvars}

    def through(var: Var, contexts: Contexts) -> Contexts:
        if var in crossing:
            contexts = BOTH if True in contexts else NEITHER
        if var in member:
            return contexts - {True} if member[var] == group.index else NEITHER
        return contexts

    olds = dict.fromkeys(group.hidden_invars, BOTH)
    moving = group.module_info.credit(olds, through=through)

    def read(atom: Atom, crossed: bool) -> Read:
        moves = versions.is_var(atom) and crossed in moving.get(atom, NEITHER)
        return Read(atom, crossed or atom in crossing) if moves and atom not in olds else Read(atom)

    def operands(i: int, crossed: bool) -> tuple[Read, ...]:
        return tuple(read(atom, crossed) for atom in eqns[i].invars)

    news = tuple(read(var, False) for var in group.hidden_outvars)
    steps = tuple(plan_backward(eqns, news, operands))[::-1]
    if not steps:
        return None
    reads = [*(ref for step in steps for ref in step.operands), *news]
    given = [ref.atom for ref in reads if ref.context is None and versions.is_var(ref.atom)]
    free = tuple(dict.fromkeys(var for var in given if var not in olds))

    def run(*values: Any) -> list[Any]:
        return run_in_contexts(eqns, steps, dict(zip((*free, *olds), values, strict=True)), news)

    program = versions.make_jaxpr(run, *(var.aval for var in (*free, *olds)))
    mixed, _ = mixing(group, program.eqns, program.invars[len(free) :], program.outvars)
    return Transition(mixed, program, free)
