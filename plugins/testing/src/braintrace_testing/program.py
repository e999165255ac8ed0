# SPDX-License-Identifier: Apache-2.0
"""A step as a list of equations on numbered variables, and its dense local Jacobians.

``jit`` and ``remat`` are inlined; calls with custom derivative rules stay one equation. An *edge*
stands for the local Jacobian of one result of one equation in one operand. It exists where the
operand depends on a parameter or a hidden value and the transposed equation reads the cotangent of
the result, so constants, ``stop_gradient``, ``sign``, integers and booleans give no edge. An
equation is differentiated in all such operands at once, as a program around it would do.

A Jacobian is real: the entries of a complex variable are its real parts, then its imaginary parts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import groupby
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Literal

from braintrace.ops.primitive import get_primitive_spec, is_etp_primitive

from .quick import jit

_INLINED = frozenset({"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"})

Run = Callable[..., list[Any]]


@dataclass(frozen=True)
class Equation:
    """``results = run(*operands)``; ``primitive`` and ``trainable`` positions for ETP ones.

    Equations that compute the same have equal ``run``, so that it is compiled once for them all.
    """

    run: Run
    operands: tuple[int, ...]
    results: tuple[int, ...]
    primitive: Any = None
    trainable: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Edge:
    """The dependence of variable ``target`` on variable ``source`` through one equation.

    ``trainable``: it enters an ETP equation through a trainable operand that depends on nothing
    but parameters. ``crosses``: a path along it leaves behind what an ETP equation cuts off. That
    is every edge of an ETP equation, except through ``x`` of a gradient-enabled one.
    """

    source: int
    target: int
    equation: int
    operand: int
    result: int
    trainable: bool
    crosses: bool


@dataclass(frozen=True)
class Program:
    """Variables are numbers; ``avals`` are their shapes and dtypes."""

    avals: tuple[jax.ShapeDtypeStruct, ...]
    constants: dict[int, Any]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    equations: tuple[Equation, ...]
    edges: tuple[Edge, ...]

    def size(self, variable: int) -> int:
        """Number of real entries of a variable."""
        aval = self.avals[variable]
        return math.prod(aval.shape) * parts_of(aval)

    def linearise(self, inputs: Sequence[Any]) -> tuple[list[Any], list[np.ndarray]]:
        """Values of all variables, and per edge the matrix ``[size(target), size(source)]``."""
        values, jacobians = self._compiled(self.constants, list(inputs))
        return values, list(map(matrix_of, jacobians))

    @cached_property
    def _compiled(self) -> Callable[..., tuple[list[Any], list[jax.Array]]]:
        edges = {k: list(of_k) for k, of_k in groupby(self.edges, attrgetter("equation"))}

        def run(constants: dict[int, Any], inputs: list[Any]) -> tuple[list[Any], list[jax.Array]]:
            values = {**constants, **dict(zip(self.inputs, inputs, strict=True))}
            jacobians: list[jax.Array] = []
            for k, equation in enumerate(self.equations):
                pairs = tuple((edge.operand, edge.result) for edge in edges.get(k, ()))
                results, local = evaluate(
                    equation.run, pairs, [values[v] for v in equation.operands]
                )
                values.update(zip(equation.results, results, strict=True))
                jacobians.extend(local)
            return [values[v] for v in range(len(self.avals))], jacobians

        return jit(run)


def flatten(
    jaxpr: Any, parameters: set[int], olds: Sequence[int], hidden: Sequence[int]
) -> Program:
    """The program of a closed jaxpr.

    Parameters
    ----------
    parameters, olds
        Positions of the inputs that are parameters, and of those that are old hidden values.
    hidden
        Positions of the outputs that are new values of hidden states. Each gets a variable of its
        own: where two share one, it is that of the first, and the other gets a copy, as does one
        that is an input or a constant. Readers keep reading the original.
    """
    builder = _Builder()
    inputs = [builder.variable(v.aval) for v in _open(jaxpr).invars]
    outputs = builder.inline(jaxpr, inputs)
    taken = {*inputs, *builder.constants}
    for position in hidden:
        if outputs[position] in taken:
            outputs[position] = builder.identity(outputs[position])
        taken.add(outputs[position])
    varying = {v for position, v in enumerate(inputs) if position not in parameters}
    live = {inputs[position] for position in (*parameters, *olds)}
    live |= {outputs[position] for position in hidden}
    return Program(
        avals=tuple(builder.avals),
        constants=builder.constants,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        equations=tuple(builder.equations),
        edges=tuple(_find_edges(builder.equations, builder.avals, varying, live)),
    )


def is_float(aval: Any) -> bool:
    """Whether values of this type carry derivatives."""
    return bool(jnp.issubdtype(aval.dtype, jnp.inexact))


def parts_of(aval: Any) -> int:
    """As how many real entries a number counts: a complex one as two."""
    return 2 if jnp.issubdtype(aval.dtype, jnp.complexfloating) else 1


def real_entries(value: Any) -> jax.Array:
    """The entries as one real axis: of complex numbers, all real and then all imaginary parts."""
    flat = jnp.ravel(value)
    return flat if parts_of(flat) == 1 else jnp.concatenate([flat.real, flat.imag])


class _Builder:
    """The program while it grows."""

    def __init__(self) -> None:
        self.avals: list[jax.ShapeDtypeStruct] = []
        self.constants: dict[int, Any] = {}
        self.equations: list[Equation] = []

    def variable(self, aval: Any) -> int:
        self.avals.append(jax.ShapeDtypeStruct(aval.shape, aval.dtype))
        return len(self.avals) - 1

    def constant(self, value: Any, aval: Any) -> int:
        variable = self.variable(aval)
        self.constants[variable] = value
        return variable

    def identity(self, variable: int) -> int:
        copy = self.variable(self.avals[variable])
        self.equations.append(Equation(_same, (variable,), (copy,)))
        return copy

    def inline(self, jaxpr: Any, operands: Sequence[int]) -> list[int]:
        env = dict(zip(_open(jaxpr).invars, operands, strict=True))
        constants = zip(_open(jaxpr).constvars, getattr(jaxpr, "consts", ()), strict=True)
        env.update((v, self.constant(value, v.aval)) for v, value in constants)

        def read(atom: Any) -> int:
            return self.constant(atom.val, atom.aval) if isinstance(atom, Literal) else env[atom]

        for eqn in _open(jaxpr).eqns:
            inputs = [read(atom) for atom in eqn.invars]
            inlined = eqn.primitive.name in _INLINED
            results = self.inline(_bodies(eqn)[0], inputs) if inlined else self.emit(eqn, inputs)
            env.update(zip(eqn.outvars, results, strict=True))
        return [read(atom) for atom in _open(jaxpr).outvars]

    def emit(self, eqn: Any, operands: Sequence[int]) -> list[int]:
        if any(map(_holds_etp, _bodies(eqn))):
            raise ValueError(
                f"an ETP operation stands inside {eqn.primitive.name!r}, which the oracle takes as "
                "one equation; write the model without it (unroll the loop, use `where`)"
            )
        run = _bound(eqn)
        results = [self.variable(v.aval) for v in eqn.outvars]
        if not is_etp_primitive(eqn.primitive):
            self.equations.append(Equation(run, tuple(operands), tuple(results)))
            return results
        positions = get_primitive_spec(eqn.primitive).resolve_trainable_invars(eqn.params)
        trainable = frozenset(positions.values())
        self.equations.append(
            Equation(run, tuple(operands), tuple(results), eqn.primitive, trainable)
        )
        return [self.identity(v) for v in results]  # y is thereby never itself a hidden value


@dataclass(frozen=True)
class _Bind:
    """A primitive with its parameters, as a function."""

    primitive: Any
    params: tuple[tuple[str, Any], ...]

    def __call__(self, *values: Any) -> list[Any]:
        params = self.primitive.get_bind_params(dict(self.params))
        out = self.primitive.bind(*values, **params)
        return list(out) if self.primitive.multiple_results else [out]


def _bound(eqn: Any) -> Run:
    run = _Bind(eqn.primitive, tuple(sorted(eqn.params.items())))
    try:
        hash(run)
    except TypeError:  # a parameter that cannot be compared: equal to itself only
        return partial(run)
    return run


def _same(value: Any) -> list[Any]:
    return [value]


@partial(jax.jit, static_argnums=(0, 1))
def evaluate(
    run: Run, pairs: tuple[tuple[int, int], ...], operands: list[Any]
) -> tuple[list[Any], list[jax.Array]]:
    """Results, and per pair of operand and result ``[size(result) + 1, size(operand)]``: the rows
    of the Jacobian, and their sum."""
    chosen = sorted({operand for operand, _ in pairs})
    results = run(*operands)
    dense: dict[int, tuple[jax.Array, ...]] = {}
    given = [real_entries(operands[i]) for i in chosen]
    for result in {result for _, result in pairs}:
        value, pull = jax.vjp(_of_entries(run, operands, chosen, result), *given)
        rows = jnp.concatenate([jnp.eye(value.size), jnp.ones((1, value.size))])
        try:
            found = jax.vmap(pull)(rows.astype(value.dtype))
        except Exception:  # a primitive without a batching rule: one row after the other
            found = jax.lax.map(pull, rows.astype(value.dtype))
        dense[result] = found
    return results, [dense[result][chosen.index(operand)] for operand, result in pairs]


def matrix_of(rows: Any) -> np.ndarray:
    """The Jacobian in the rows of :func:`evaluate`: zero times infinity is zero.

    That is where it is no number, but the sum over its results, the last row, is one.
    """
    found = np.asarray(rows, dtype=float)
    matrix, total = found[:-1], found[-1]
    return np.where(np.isnan(matrix) & ~np.isnan(total), 0.0, matrix)


def _of_entries(
    run: Run, operands: Sequence[Any], chosen: Sequence[int], result: int
) -> Callable[..., jax.Array]:
    """The real entries of one result as a function of those of some operands."""

    def of_entries(*entries: jax.Array) -> jax.Array:
        full = list(operands)
        for i, flat in zip(chosen, entries, strict=True):
            whole = flat if parts_of(operands[i]) == 1 else jax.lax.complex(*jnp.split(flat, 2))
            full[i] = whole.reshape(jnp.shape(operands[i]))
        return real_entries(run(*full)[result])

    return of_entries


def _find_edges(
    equations: Sequence[Equation],
    avals: Sequence[jax.ShapeDtypeStruct],
    varying: set[int],
    live: set[int],
) -> list[Edge]:
    """Every edge, in the order of the equations.

    ``varying``: inputs that are no parameters; ``live``: where derivatives may start.
    """
    varying, live = set(varying), set(live)
    edges = []
    for k, equation in enumerate(equations):
        etp = equation.primitive is not None
        passes = etp and get_primitive_spec(equation.primitive).gradient_enabled
        types = tuple(avals[v] for v in equation.operands)
        chosen = tuple(
            i for i, v in enumerate(equation.operands) if v in live and is_float(avals[v])
        )
        for j, target in enumerate(equation.results):
            if not chosen or not is_float(avals[target]):
                continue
            for i in _carrying(equation.run, types, avals[target], chosen, j):
                source = equation.operands[i]
                trainable = i in equation.trainable and source not in varying
                crosses = etp and (trainable or not passes)
                edges.append(Edge(source, target, k, i, j, trainable, crosses))
                live.add(target)
        if varying.intersection(equation.operands):
            varying.update(equation.results)
    return edges


@lru_cache(maxsize=4096)
def _carrying(
    run: Run,
    operands: tuple[jax.ShapeDtypeStruct, ...],
    target: jax.ShapeDtypeStruct,
    chosen: tuple[int, ...],
    result: int,
) -> tuple[int, ...]:
    """Which of the chosen operands the cotangent of a result reaches."""

    def transposed(values: list[Any], cotangent: Any) -> Any:
        def of_chosen(*some: Any) -> Any:
            given = dict(zip(chosen, some, strict=True))
            return run(*(given.get(i, value) for i, value in enumerate(values)))[result]

        return jax.vjp(of_chosen, *(values[i] for i in chosen))[1](cotangent)

    jaxpr = _open(jax.make_jaxpr(transposed)(list(operands), target))
    reached = {jaxpr.invars[-1]}
    for eqn in jaxpr.eqns:
        if any(v in reached for v in eqn.invars if not isinstance(v, Literal)):
            reached.update(eqn.outvars)
    pairs = zip(chosen, jaxpr.outvars, strict=True)
    return tuple(i for i, v in pairs if not isinstance(v, Literal) and v in reached)


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _bodies(eqn: Any) -> list[Any]:
    """The jaxprs among the parameters of an equation."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if hasattr(_open(item), "eqns"):
                found.append(item)
    return found


def _holds_etp(jaxpr: Any) -> bool:
    return any(
        is_etp_primitive(eqn.primitive) or any(map(_holds_etp, _bodies(eqn)))
        for eqn in _open(jaxpr).eqns
    )
