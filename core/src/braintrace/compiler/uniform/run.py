# SPDX-License-Identifier: Apache-2.0
"""A run of the step with filters in front of its uniform states."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp

from ...base import versions
from ...base.precision import widened_dtype
from ...base.types import Path
from ...base.versions import Atom, JaxprEqn, Var
from ...jaxprs.credit import across, with_credit
from ...jaxprs.depends import slice_to
from ...jaxprs.linear import is_sum
from ...jaxprs.run import read, run_equations
from ...jaxprs.wide import bound_in
from ..module_info import DYNAMIC
from ..reach import Leaf
from .emitted import RESULT, Place
from .moving import Key, Moving
from .state import Factors, UniformFactor, UniformSource, UniformState

At = Callable[[Key], Any]
"""The values of filters, by key."""


class Run:
    """One run of the step with filters."""

    def __init__(
        self, moving: Moving, inputs: Sequence[Any], old: Mapping[tuple[Path, Key], Any]
    ) -> None:
        self.moving, self.info, self.uniform = moving, moving.minfo, moving.uniform
        self.old = old
        self.new: dict[tuple[Path, Key], Any] = {}
        self.env = versions.start_env(self.info.jaxpr, inputs)
        self.driven: dict[Any, Any] = {}  # what credit takes into filters whose leak is kappa
        self.own: dict[Atom, Any] = {}  # kept states with the credit of parameters alone

    def steady(self) -> list[JaxprEqn]:
        """The equations whose results do not change in time."""
        eqns = (eqn for eqn in self.info.eqns if not eqn.effects)
        return [eqn for eqn in eqns if not any(map(self.moves, eqn.outvars))]

    def outputs(self) -> list[Any]:
        """The outputs of the step, and the new values of the filters."""
        info, steady = self.info, self.steady()
        run_equations(steady, self.env)
        moved = {path: u for path, u in self.uniform.items() if self.moving.keys(u)}
        for path in moved:
            if self.moving.read_elsewhere(path):
                self.credit_old(path)
        news = {info.hidden_path_to_outvar[path]: u for path, u in moved.items()}
        known = {*steady}
        for i, eqn in ((i, e) for i, e in enumerate(info.eqns) if e not in known):
            operands = [self.taken((i, k), atom) for k, atom in enumerate(eqn.invars)]
            results = versions.bind_equation(eqn, operands)
            self.env.update(zip(eqn.outvars, results, strict=True))
            for var in news.keys() & {*eqn.outvars}:
                with versions.at_source(eqn):
                    self.move(var, news[var])
        outputs = [self.taken((RESULT, k), atom) for k, atom in enumerate(info.jaxpr.outvars)]
        return [*outputs, *(self.new[name] for name in self.moving.filters)]

    def credit_old(self, path: Path) -> None:
        """Give the old value of a state the credit of its filters."""
        uniform, var = self.uniform[path], self.info.hidden_path_to_invar[path]
        self.own[var] = self.env[var]
        self.credit(var, self.mapped(uniform, self.values_of(path, self.old)))

    def taken(self, place: Place, atom: Atom) -> Any:
        """An operand, or a result, with the credit of the filter that is in front of it."""
        value = read(self.env, atom)
        if place not in self.moving.emitted:
            return value
        name = self.moving.layers[atom], (atom,)
        if name not in self.new:
            self.take(*name, self.moving.kappa * self.old[name] + value)
        return with_credit(value, self.new[name].astype(value.dtype))

    def moves(self, atom: Atom) -> bool:
        """Whether a value changes from step to step."""
        return DYNAMIC in self.info.behind(atom)

    def move(self, var: Var, uniform: UniformState) -> None:
        """Take the sources of a state into its filters, and give it their credit."""
        path = uniform.slot.path
        leaks = [jax.lax.stop_gradient(self.leak(uniform, place)) for _, place in uniform.parts]
        for key in self.moving.keys(uniform):
            if key[0] in uniform.trained:
                self.take_leak(uniform, key[0], leaks)
                continue
            old, source = self.old[path, key], uniform.sources.get(key[0])
            factors = source.factors if source else uniform.affine[key[0]].factors
            kept = _along_first(leaks[key[-1]], old.ndim) * old
            taken = _along_first(self.product(uniform, factors), old.ndim)
            value = kept + taken * self.driving(source, key)
            if self.moving.kappa is not None and self.moving.filters[path, key].credit:
                lower = self.driven.get((source.of, key[1:-1])) if source else None
                own = self.driving(source, key) if lower is None else lower
                self.driven[path, key] = taken * own
                value = with_credit(value, self.moving.kappa * old + taken * own)
            self.take(path, key, value)
        if self.moving.keeps_traces:
            self.own[var] = self.of_parameters(uniform)
        self.credit(var, self.mapped(uniform, self.values_of(path, self.new)))

    def of_parameters(self, uniform: UniformState) -> Any:
        """The new value of a state, with no derivative of what drives it."""
        old = self.info.invars_of(uniform.slot)[0]
        known: dict[Atom, Any] = {old: self.own.get(old, self.env[old])}

        def value(atom: Atom) -> Any:
            if atom in uniform.sources:
                loop = uniform.sources[atom].loop
                return self.env[atom] if loop else jax.lax.stop_gradient(self.env[atom])
            if atom not in known:
                eqn, followed = uniform.region[atom]
                pairs = enumerate(eqn.invars)
                operands = [value(a) if k in followed else read(self.env, a) for k, a in pairs]
                known.update(zip(eqn.outvars, versions.bind_equation(eqn, operands), strict=True))
            return known[atom]

        return value(self.info.outvars_of(uniform.slot)[0])

    def values_of(self, path: Path, values: Mapping[tuple[Path, Key], Any]) -> At:
        """The values of the filters of a state, by key; ``None`` for those that there are not."""
        return lambda key: values.get((path, key))

    def leak(self, uniform: UniformState, place: tuple[int, ...]) -> Any:
        """``lambda`` at a place: a number, or one per example [B]."""
        return sum(self.product(uniform, factors, place) for factors in uniform.leak)

    def take_leak(self, uniform: UniformState, leaf: Leaf, leaks: Sequence[Any]) -> None:
        """Move on the trace of a parameter that the leak depends on."""
        path, info, given = uniform.slot.path, self.info, self.env
        var = info.parameter_leaves[leaf]
        hidden = jax.lax.stop_gradient(given[info.invars_of(uniform.slot)[0]])
        behind = [f.atom for factors in uniform.leak for f in factors if f.atom is not None]
        chain = [info.eqns[i] for i in slice_to(info.eqns, filter(info.trained_by, behind))]

        def at(place: tuple[int, ...]) -> Any:
            def leak(value: Any) -> Any:
                self.env = {**given, var: value}
                run_equations(chain, self.env)
                return jnp.asarray(self.leak(uniform, place), hidden.dtype)

            value = given[var]
            slope = jax.jvp(leak, (value,), (jnp.ones_like(value),))[1]
            return jax.lax.stop_gradient(slope)

        slopes = [at(place) for _, place in uniform.parts]
        self.env = given
        kept = self.by_part(uniform, leaks) * self.old[path, (leaf,)]
        self.take(path, (leaf,), kept + self.by_part(uniform, slopes) * hidden)

    def by_part(self, uniform: UniformState, values: Sequence[Any]) -> Any:
        """A value per leak, at the positions that have it."""
        return sum_of_parts([_along_first(value, uniform.type.ndim) for value in values], uniform)

    def take(self, path: Path, key: Key, value: Any) -> None:
        """The new value of a filter, as a variable of its own."""
        like = self.moving.filters[path, key].type
        self.new[path, key] = jnp.copy(jnp.broadcast_to(value, like.shape).astype(like.dtype))

    def held(self, atom: Atom) -> Any:
        """An operand of a map beside what is mapped; kept states have the credit of parameters."""
        value = read(self.env, atom)
        return jax.lax.stop_gradient(value) if self.moving.keeps_traces else value

    def credit(self, var: Var, of: Any) -> None:
        of = of.astype(var.aval.dtype)
        if self.moving.keeps_traces:
            of = self.own[var] + across(of)  # the filters remember it
        self.env[var] = with_credit(self.env[var], of)

    def driving(self, source: UniformSource | None, key: Key) -> Any:
        """What a filter takes in: ``z``, or 1 for a constant."""
        if source is None:
            return 1
        if source.of is not None and key[1:-1]:
            news = self.info.outvar_to_hidden_path
            return (self.new if key[0] in news else self.old)[source.of, key[1:-1]]
        value = self.env[key[0]]
        if source.of and self.moving.keeps_traces:
            return self.own.get(key[0], value)
        return jax.lax.stop_gradient(value) if source.cut or source.of else value

    def product(self, uniform: UniformState, factors: Factors, place: tuple[int, ...] = ()) -> Any:
        """A product of factors at a place: a number, or one per example [B]."""
        return reduce(lambda a, f: a * self.factor(uniform, f, place), factors, 1)

    def factor(self, uniform: UniformState, factor: UniformFactor, place: tuple[int, ...]) -> Any:
        if factor.atom is None:
            return -1
        value = jnp.asarray(read(self.env, factor.atom))
        kept = int(versions.is_var(factor.atom) and factor.atom in uniform.by_example)
        there = place if len(place) == value.ndim else (0,) * value.ndim
        value = value[(slice(None),) * kept + there[kept:]]
        if factor.how == "is":
            return value == factor.case
        return value if factor.how == "times" else 1 / value

    def mapped(self, uniform: UniformState, at: At) -> Any:
        """``sum_r A_r(w) q_r`` of the filters ``at`` the keys of a state."""
        new = self.info.outvars_of(uniform.slot)[0]
        parts = (MappedPart(self, uniform, at, r) for r in range(len(uniform.parts)))
        found = sum_of_parts([part.value(new) for part in parts], uniform)
        for leaf in uniform.trained:
            value = self.env[self.info.parameter_leaves[leaf]].reshape(())
            found = found + at((leaf,)) * (value - jax.lax.stop_gradient(value))
        return found


class MappedPart:
    """What :meth:`Run.mapped` finds from the filters with one of the leaks of a state."""

    least = jnp.dtype(jnp.float32)  # filters end far behind what half precision holds

    def __init__(self, run: Run, uniform: UniformState, values: At, part: int) -> None:
        self.run, self.uniform, self.values, self.part = run, uniform, values, part
        self.known: dict[Atom, Any] = {}

    def at(self, key: Key) -> Any:
        return self.values((*key, self.part))

    def kind(self, atom: Atom) -> Any:
        return widened_dtype(atom.aval.dtype, self.least)

    def value(self, atom: Atom) -> Any:
        """The value of a variable between the sources and the new value."""
        if atom not in self.known:
            found = self.leaf if atom in self.uniform.sources else self.of_equation
            self.known[atom] = found(atom)
        return self.known[atom]

    def leaf(self, atom: Atom) -> Any:
        source, own = self.uniform.sources[atom], self.at((atom,))
        own = (jnp.zeros(atom.aval.shape) if own is None else own).astype(self.kind(atom))
        if source.of is None:
            return own
        run, at = self.run, self.at
        found = run.mapped(run.uniform[source.of], lambda key: at((atom, *key)))
        found = found.astype(self.kind(atom))
        if run.moving.keeps_traces:
            return own + found
        return with_credit(own, found) if source.trained else found

    def of_equation(self, var: Var) -> Any:
        run, affine = self.run, self.uniform.affine
        if var not in self.uniform.region:  # the old value: it is in the filters
            return jnp.zeros(var.aval.shape, self.kind(var))
        eqn, followed = self.uniform.region[var]
        if is_sum(eqn):
            found = self.of_sum(eqn, {k: self.value(eqn.invars[k]) for k in followed}, var)
            if var not in affine:
                return found
            behind = {k: read(run.env, eqn.invars[k]) for k in affine[var].behind}
            once = self.of_sum(eqn, behind, var)
            return found + _along_first(self.at((var,)), once.ndim).astype(once.dtype) * once
        (k,) = followed
        moved = self.value(eqn.invars[k])
        if any(run.moves(a) for i, a in enumerate(eqn.invars) if i != k):  # it is in time
            return jnp.broadcast_to(moved, var.aval.shape)
        operands = [moved if i == k else run.held(a) for i, a in enumerate(eqn.invars)]
        (found,) = bound_in(self.least, eqn, operands)
        return found + self.of_constant(var, operands, k) if var in affine else found

    def of_sum(self, eqn: Any, given: Mapping[int, Any], var: Var) -> Any:
        """The sum of some operands."""
        if eqn.primitive.name == "select_n" and self.run.moves(eqn.invars[0]):
            return sum(given.values(), jnp.zeros(var.aval.shape, self.kind(var)))

        def other(atom: Atom) -> Any:
            if versions.is_float(atom.aval):
                return jnp.zeros(atom.aval.shape, self.kind(atom))
            return read(self.run.env, atom)

        operands = [given[k] if k in given else other(a) for k, a in enumerate(eqn.invars)]
        return bound_in(self.least, eqn, operands)[eqn.outvars.index(var)]

    def of_constant(self, var: Var, operands: Sequence[Any], k: int) -> Any:
        """``(q_1 - 1) op(0)``: of the constant ``op(0)``, so much is missing in ``op(q)``."""
        (eqn, _), behind = self.uniform.region[var], self.uniform.affine[var].behind
        held = jax.lax.stop_gradient
        operands = [v if i in behind else held(v) for i, v in enumerate(operands)]
        operands[k] = jnp.zeros_like(operands[k])
        (once,) = bound_in(self.least, eqn, operands)
        return _along_first(self.at((var,)) - 1, once.ndim).astype(once.dtype) * once


def sum_of_parts(values: Sequence[Any], uniform: UniformState) -> Any:
    """Of the values for each leak, those at the positions that have it."""
    if len(values) == 1:
        return values[0]
    return sum(jnp.where(mask, v, 0) for v, (mask, _) in zip(values, uniform.parts, strict=True))


def _along_first(factor: Any, ndim: int) -> Any:
    """A number, or one per example along the first of ``ndim`` axes."""
    factor = jnp.asarray(factor)
    return factor.reshape(*factor.shape, *(1,) * (ndim - 1)) if factor.ndim else factor
