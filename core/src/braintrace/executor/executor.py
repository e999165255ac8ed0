# SPDX-License-Identifier: Apache-2.0
"""The executor: one step of a compiled model, with its Jacobians."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import takewhile
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.precision import widened
from ..base.types import Path, State
from ..base.versions import Atom, Var
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import ModuleInfo, StateKind
from ..compiler.patterns import has_lines
from ..compiler.reach import Pattern
from ..jaxprs.credit import run_uncredited
from ..jaxprs.pull import pulled_in_parts
from ..jaxprs.run import read, run_equations
from ..ops.traces.bands import Band, Bands, bands_of
from ..ops.traces.base import UNROLL_STATES, added, together
from .above import Above
from .cascade import Cascade, follows
from .jacobians import (
    StepJacobians,
    has_forward_mode,
    jacobians_of_group,
    shift_dtype,
    takes_forward_mode,
)
from .layout import Link, Positions
from .sweeps import sweeps_for


class WeightAddress(NamedTuple):
    """Where a parameter is met: its path, the variables of its leaves, and its links by number."""

    path: Path
    inputs: tuple[Var, ...]
    links: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Executor:
    """Runs and differentiates the steps of a compiled model.

    With ``jacobians='whole'``, ``D`` is [S M, S M, *kept], ``f`` is [S M, *E, *Y] and signals are
    [S M, *kept]; see :class:`Positions`. A pull-back is then made for every position of a layer at
    every step.

    Attributes
    ----------
    graph
        The compiled model.
    jacobians
        What ``D`` and ``f`` hold: ``'near'``, the entries between equal positions; ``'whole'``,
        every entry within a hidden group.
    banded
        Whether ``D`` of a group with many states, most of which do not depend on one another, is
        given by its bands, as :class:`Bands`. Those of a delay line do not.
    cascaded
        Whether ``D`` of a group with filters that follow its other states is a :class:`Cascade`.
    divided
        How arrays are known to be divided among devices: see :meth:`divide`; ``None``: they are
        not, or it is not known.
    """

    graph: ETraceGraph
    jacobians: str = "near"
    banded: bool = False
    cascaded: bool = False
    divided: tuple[int, Any] | None = None

    def divide(self, divided: tuple[int, Any] | None) -> None:
        """From now on, examples are known to lie on so many devices.

        The second entry is where inputs of operations are recorded, of whose units a device has
        some: where the product has gathered them, so that they need not travel once more.
        """
        object.__setattr__(self, "divided", divided)

    @property
    def division(self) -> tuple[int, Any]:
        """:attr:`parts`, and where inputs of operations are recorded."""
        return self.divided or (versions.devices_of_mesh(), None)

    @property
    def parts(self) -> int:
        """In how many parts sums over examples are held until all their terms are there.

        As many as the devices that the examples are divided among; where that is not known, those
        of the mesh that is set, any axis of which may be that of examples.
        """
        return self.division[0]

    @cached_property
    def groups(self) -> tuple[Positions, ...]:
        """The hidden groups as rules see them."""
        whole = self.jacobians == "whole"
        pairs = ((c.group, c.transition if whole else None) for c in self.graph.cones)
        return tuple(Positions(self.graph.hidden_groups[g], t.mixed if t else ()) for g, t in pairs)

    @cached_property
    def links(self) -> tuple[Link, ...]:
        """The relations in their groups."""
        relations = self.graph.hidden_param_op_relations
        pairs = [(r, *pair) for r in relations for pair in r.group_alignments.items()]
        return tuple(
            Link(r, self.groups[g], self.groups[g].alignment(alignment), i)
            for i, (r, g, alignment) in enumerate(pairs)
        )

    @cached_property
    def driven(self) -> tuple[Positions, ...]:
        """The groups that have links."""
        return tuple(dict.fromkeys(link.group for link in self.links))

    @cached_property
    def inputs_of_jacobians(self) -> tuple[Var, ...]:
        """Variables whose values determine the Jacobians of a step."""
        info, relations = self.graph.module_info, self.graph.hidden_param_op_relations
        wanted: list[Any] = []
        for group in self.driven:
            cone = self.graph.cones[group.index]
            held = () if cone.transition is None else cone.transition.free
            wanted += [*group.group.hidden_invars, *cone.free, *held]
            if own := self.cascades.get(group.index):
                above = self.above.get(group.index)
                wanted += above.atoms if above else group.group.hidden_outvars[: len(own[0])]
        wanted += [atom for relation in relations for atom in (relation.y_var, relation.x_var)]
        known = {*info.producers, *info.jaxpr.invars}
        return tuple(dict.fromkeys(v for v in wanted if versions.is_var(v) and v in known))

    @cached_property
    def weights(self) -> dict[State, WeightAddress]:
        """The parameters of the step."""
        info, links = self.graph.module_info, defaultdict[Path, list[int]](list)
        for link in self.links:
            for path in link.relation.parameter_paths:
                links[path].append(link.index)
        return {
            slot.state: WeightAddress(slot.path, info.invars_of(slot), (*links[slot.path],))
            for slot in info.slots_of(StateKind.PARAM)
        }

    @cached_property
    def shared(self) -> frozenset[int]:
        """The links with a parameter that has several."""
        several = (weight.links for weight in self.weights.values() if len(weight.links) > 1)
        return frozenset(i for links in several for i in links)

    @cached_property
    def sources(self) -> dict[int, int]:
        """For each relation with an input, by index, the first one with the same input."""
        found = [r for r in self.graph.hidden_param_op_relations if r.x_var is not None]
        return {r.index: next(one.index for one in found if one.x_var is r.x_var) for r in found}

    def passing(self, index: int) -> Pattern:
        """Which entries of a group's ``D`` are not structurally zero [S][S]."""
        states = self.groups[index].num_state
        every = ((True,) * states,) * states
        return every if self.jacobians == "whole" else self.graph.cones[index].passing

    def driving(self, index: int) -> tuple[bool, ...]:
        """Which states of its group a link drives: where ``f`` is not structurally zero [S]."""
        group, y = self.links[index].group, self.links[index].relation.y_var
        every = (True,) * group.num_state
        return every if self.jacobians == "whole" else self.graph.cones[group.index].driving[y]

    @cached_property
    def bands(self) -> dict[int, tuple[Band, ...]]:
        """By group, the bands of ``D`` where it is given by these."""
        found: dict[int, tuple[Band, ...]] = {}
        if not self.banded or self.jacobians != "near":
            return found
        for cone in self.graph.cones:
            group, moving = self.graph.hidden_groups[cone.group], cone.transition
            many = has_lines(group) and group.num_state > UNROLL_STATES
            if moving is None or moving.mixed or not many:
                continue
            eqns = [self.graph.module_info.eqns[i] for i in cone.eqns]
            own = bands_of(cone.passing, group.state_counts)
            if own is None or not sweeps_for(cone.passing, own):
                continue
            if has_forward_mode(moving.program.eqns if moving.program else eqns):
                found[cone.group] = own
        return found

    @cached_property
    def cascades(self) -> dict[int, Pattern]:
        """By group, which filters follow which other states, where ``D`` is a :class:`Cascade`."""
        found: dict[int, Pattern] = {}
        if not self.cascaded or self.jacobians != "near":
            return found
        if self.graph.exact is not None:
            return {g: above.follows for g, above in self.above.items()}
        filters = {s.path for s in self.graph.module_info.slots if s.is_filter}
        for group in self.driven:
            paths = group.group.hidden_paths
            last = len([*takewhile(filters.__contains__, reversed(paths))])
            cone, eqns = self.graph.cones[group.index], self.graph.module_info.eqns
            if group.index not in self.bands and (own := follows(group.group, cone, eqns, last)):
                found[group.index] = own
        return found

    @cached_property
    def above(self) -> dict[int, Above]:
        """By group, the values of small groups above it that are its last states."""
        exact, found = self.graph.exact, dict[int, Above]()
        if exact is None or not self.cascaded:
            return found
        for group in self.driven:
            own = Above.of(exact, group.group, self.graph.cones[group.index])
            if group.index not in self.bands and own:
                found[group.index] = own
        return found

    def run(
        self, args: Sequence[Any], states: Mapping[Path, Any], perturb: Sequence[Any] | None = None
    ) -> tuple[Any, dict[Path, Any], tuple[Any, ...]]:
        """Run one perturbed step.

        From leaves of the arguments, the value of every state by path, and one array per hidden
        state in the order of ``graph.perturbed`` (zeros if omitted), it gives the result, the new
        values of the states, and the values of :attr:`inputs_of_jacobians`.
        """
        plan = self.graph.perturbed
        perturb = plan.init_perturb_data() if perturb is None else perturb
        inputs = self._inputs(args, states)
        outputs, extras = plan.run(inputs, perturb, self.inputs_of_jacobians)
        return *self.results(outputs), tuple(extras)

    def run_plain(
        self, args: Sequence[Any], states: Mapping[Path, Any]
    ) -> tuple[Any, dict[Path, Any], tuple[Any, ...]]:
        """:meth:`run`, as the step was traced: its derivative is the ordinary one of every path.

        Filters of credit have no part in it.
        """
        info, exact = self.graph.module_info, self.graph.exact
        written = info if exact is None else exact.minfo  # without the states of layers below
        env = versions.start_env(written.jaxpr, self._inputs(args, states, written))
        run_uncredited(written.eqns, env)
        out, new = self.results([read(env, atom) for atom in written.jaxpr.outvars], written)
        if written is info:
            return out, new, tuple(read(env, v) for v in self.inputs_of_jacobians)
        _, held, values = self.run(args, jax.tree.map(jax.lax.stop_gradient, states))
        return out, {**held, **new}, values

    def _inputs(
        self, args: Sequence[Any], states: Mapping[Path, Any], info: ModuleInfo | None = None
    ) -> list[Any]:
        """The inputs of the step's program."""
        slots = (info or self.graph.module_info).slots
        return [*args, *(leaf for slot in slots for leaf in jax.tree.leaves(states[slot.path]))]

    def results(
        self, outputs: Sequence[Any], info: ModuleInfo | None = None
    ) -> tuple[Any, dict[Path, Any]]:
        """The model's result and the new values of its states, from the outputs of a step."""
        info = info or self.graph.module_info
        new = outputs[info.num_out :]
        states = {
            slot.path: slot.treedef.unflatten([new[i] for i in slot.leaves]) for slot in info.slots
        }
        return info.out_treedef.unflatten(outputs[: info.num_out]), states

    def jacobians_at(self, values: Sequence[Any]) -> StepJacobians:
        """``x``, ``f`` and ``D`` of a step, from the values of :attr:`inputs_of_jacobians`."""
        info, env = self.graph.module_info, versions.constants(self.graph.module_info.jaxpr)
        env.update(zip(self.inputs_of_jacobians, values, strict=True))
        f: dict[int, jax.Array] = {}
        transitions: list[Any] = []
        for group, cone in zip(self.groups, self.graph.cones, strict=True):
            links = [link for link in self.links if link.group is group]
            above = self.above.get(group.index)
            how = self.bands.get(group.index, ()), above or self.cascades.get(group.index)
            transition, found = jacobians_of_group(info.eqns, cone, group, links, env, *how)
            transitions.append(transition)
            f |= found
        if self.divided and (place := self.divided[1]) is not None:
            plain = (k for k in self.links if k.operation.spec.batched and not k.operation.of_one)
            for var in {k.relation.x_var for k in plain} & {*env}:
                env[var] = jax.lax.with_sharding_constraint(env[var], place)
        return self._step(lambda x: read(env, x), lambda link: f[link.index], transitions)

    def _step(
        self, x: Callable[[Atom], Any], f: Callable[[Link], Any], transitions: Iterable[Any]
    ) -> StepJacobians:
        xs = (r.x_var for r in self.graph.hidden_param_op_relations)
        of_x = tuple(None if atom is None else x(atom) for atom in xs)
        return StepJacobians(of_x, tuple(map(f, self.links)), tuple(transitions))

    @cached_property
    def jacobian_types(self) -> StepJacobians:
        """Types of what :meth:`jacobians_at` gives, without tracing it."""
        eqns, cones = self.graph.module_info.eqns, self.graph.cones

        def array(shape: tuple[int, ...], *atoms: Atom) -> Any:
            return jax.ShapeDtypeStruct(shape, jnp.result_type(*(a.aval.dtype for a in atoms)))

        def factor(link: Link) -> Any:
            group, y = link.group, link.relation.y_var
            own = self.cascades.get(group.index)
            shape = (len(own[0]) if own else group.num_state, *link.extra, *y.aval.shape)
            if takes_forward_mode(eqns, cones[group.index], link, group.index in self.bands):
                return array(shape, *group.group.hidden_outvars)
            return jax.ShapeDtypeStruct(shape, shift_dtype(eqns, cones[group.index], link))

        def transition(group: Positions) -> Any:
            if group not in self.driven or cones[group.index].transition is None:
                return None
            states, olds = group.num_state, group.group.hidden_invars
            if bands := self.bands.get(group.index):
                types = (array((band.length, *group.varshape), *olds) for band in bands)
                return Bands(tuple(types), bands, states)
            if own := self.cascades.get(group.index):
                last, first, shape = len(own), len(own[0]), group.varshape
                above = self.above.get(group.index)
                examples = (above.examples,) if above else shape[:1]
                leak = (*examples, *(1 for _ in shape[1:]))
                sizes = (first, first, *shape), (last, last, *leak), (last, first, *shape)
                D, A, N = (array(size, *olds) for size in sizes)
                return Cascade(D, A, N, own, N if above and above.reads_old else None)
            return array((states, states, *group.varshape), *olds)

        return self._step(lambda x: array(x.aval.shape, x), factor, map(transition, self.groups))

    def signals(self, perturb: Sequence[Any]) -> tuple[Any, ...]:
        """Gradients of the perturbations, per group: ``l`` [S, *V]."""
        by_path = dict(zip(self.graph.perturbed.perturb_hidden_paths, perturb, strict=True))
        return self.old_signals(by_path, range(len(self.groups)))

    def old_signals(
        self, gradients: Mapping[Path, Any], groups: Container[int]
    ) -> tuple[jax.Array | None, ...]:
        """Gradients of old hidden values, per group: ``e`` [S, *V], ``None`` outside ``groups``."""
        return tuple(
            widened(g.stacked([gradients[p] for p in g.group.hidden_paths]), g.wide)
            if g.index in groups
            else None
            for g in self.groups
        )

    def operand_values(self, params: Mapping[Path, Any]) -> list[list[Any]]:
        """Per relation, the values of all operands but ``x`` (``None`` there), from parameters.

        The parameter-only equations in front of each operand are run here, so that the gradients
        of the operands are pulled back to the parameters by differentiating this function.
        """
        info = self.graph.module_info
        env = versions.constants(info.jaxpr)
        for weight in self.weights.values():
            env |= self._leaves(weight, params)
        relations = self.graph.hidden_param_op_relations
        operands = [(*r.trainables, *r.constants) for r in relations]
        chains = dict.fromkeys(i for own in operands for operand in own for i in operand.chain)
        run_equations([info.eqns[i] for i in chains], env)
        known = [{o.position: read(env, o.atom) for o in own} for own in operands]
        pairs = zip(relations, known, strict=True)
        return [[values.get(k) for k in range(len(r.operands))] for r, values in pairs]

    def param_gradients(
        self,
        params: Mapping[Path, Any],
        cotangents: Sequence[Mapping[str, Any]],
        direct: Mapping[Path, Sequence[Any]] | None = None,
    ) -> dict[Path, Any]:
        """Cotangents of the traced parameters from those of traced operands, per relation.

        These may be wider than the operands; the result has the dtypes of the parameters. With
        those of leaves in ``direct``, of parameters without a trace, too (or ``None``). What is in
        parts is added up once for each leaf.
        """
        found, given, result = self.pulled(params, cotangents), direct or {}, dict[Path, Any]()
        for weight in self.weights.values():
            if not weight.links and weight.path not in given:
                continue
            leaves, tree = jax.tree.flatten(params[weight.path])
            own = given.get(weight.path, [None] * len(leaves))
            bars = []
            for var, leaf, straight in zip(weight.inputs, leaves, own, strict=True):
                terms = [bar for bar in (found.get(var), straight) if bar is not None]
                if not terms:
                    bars.append(versions.zero_cotangent(leaf))
                    continue
                whole = together(reduce(added, terms), jnp.ndim(leaf))
                bars.append(whole.astype(leaf.dtype))
            result[weight.path] = jax.tree.unflatten(tree, bars)
        return result

    def pulled(
        self, params: Mapping[Path, Any], cotangents: Sequence[Mapping[str, Any]]
    ) -> dict[Var, Any]:
        """Cotangents of the leaves of traced parameters, as wide and in as many parts as given."""
        info, traced = self.graph.module_info, [w for w in self.weights.values() if w.links]
        leaves = {v: leaf for w in traced for v, leaf in self._leaves(w, params).items()}
        known = versions.constants(info.jaxpr)
        for weight in self.weights.values():
            known |= self._leaves(weight, params)
        relations = self.graph.hidden_param_op_relations
        operands = [(r, t) for r in relations for t in r.trainables]
        chain = [info.eqns[i] for i in sorted({i for _, t in operands for i in t.chain})]
        targets = [(t.atom, cotangents[r.index][t.key]) for r, t in operands]
        return pulled_in_parts(leaves, known, chain, targets)

    def _leaves(self, weight: WeightAddress, params: Mapping[Path, Any]) -> dict[Var, Any]:
        """The leaves of a parameter by their variables."""
        return dict(zip(weight.inputs, jax.tree.leaves(params[weight.path]), strict=True))

    @cached_property
    def cotangent_types(self) -> list[dict[str, Any]]:
        """Per relation, the types of sums of cotangents of its traced operands."""
        found: list[dict[str, Any]] = [{} for _ in self.graph.hidden_param_op_relations]
        for link in self.links:
            for key, own in link.cotangent_types.items():
                before = found[link.relation.index].get(key, own)
                dtype = jnp.promote_types(own.dtype, before.dtype)
                found[link.relation.index][key] = jax.ShapeDtypeStruct(own.shape, dtype)
        return found
