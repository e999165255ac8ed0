# SPDX-License-Identifier: Apache-2.0
"""A step as a list of equations on numbered variables, and its dense local Jacobians.

``jit`` and ``remat`` are inlined; calls with custom derivative rules stay one equation. An *edge*
stands for the local Jacobian of one result of one equation in one operand. It exists where the
transposed equation reads the cotangent of the result, so ``stop_gradient``, ``sign``, integers
and booleans give no edge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import groupby
from operator import attrgetter
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Literal

from braintrace.ops.primitive import get_primitive_spec, is_etp_primitive

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
        """Number of entries of a variable."""
        return math.prod(self.avals[variable].shape)

    def linearise(self, inputs: Sequence[Any]) -> tuple[list[Any], list[jax.Array]]:
        """Values of all variables, and per edge the matrix ``[size(target), size(source)]``."""
        values = {**self.constants, **dict(zip(self.inputs, inputs, strict=True))}
        wanted = {k: tuple(edges) for k, edges in groupby(self.edges, attrgetter("equation"))}
        jacobians: list[jax.Array] = []
        for k, equation in enumerate(self.equations):
            pairs = tuple((edge.operand, edge.result) for edge in wanted.get(k, ()))
            results, local = evaluate(equation.run, pairs, [values[v] for v in equation.operands])
            values.update(zip(equation.results, results, strict=True))
            jacobians.extend(local)
        return [values[v] for v in range(len(self.avals))], jacobians


def flatten(jaxpr: Any, parameters: set[int], hidden: Sequence[int]) -> Program:
    """The program of a closed jaxpr.

    Parameters
    ----------
    parameters
        Positions of the inputs that are parameters.
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
    return Program(
        avals=tuple(builder.avals),
        constants=builder.constants,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        equations=tuple(builder.equations),
        edges=tuple(_find_edges(builder.equations, builder.avals, varying)),
    )


def is_float(aval: Any) -> bool:
    """Whether values of this type carry derivatives."""
    return bool(jnp.issubdtype(aval.dtype, jnp.inexact))


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
    """Results, and per pair of operand and result ``[size(result), size(operand)]``."""
    results = run(*operands)

    def dense(operand: int, result: int) -> jax.Array:
        function = _single(run, operands, operand, result)
        of = operands[operand]
        return jax.jacrev(function)(of).reshape(results[result].size, of.size)

    return results, [dense(*pair) for pair in pairs]


def _find_edges(
    equations: Sequence[Equation], avals: Sequence[jax.ShapeDtypeStruct], varying: set[int]
) -> list[Edge]:
    """Every edge, in the order of the equations; ``varying``: inputs that are no parameters."""
    varying = set(varying)
    edges = []
    for k, equation in enumerate(equations):
        for i, source in enumerate(equation.operands):
            trainable = i in equation.trainable and source not in varying
            etp = equation.primitive is not None
            passes = etp and get_primitive_spec(equation.primitive).gradient_enabled
            crosses = etp and (trainable or not passes)
            for j, target in enumerate(equation.results):
                if _carries_derivative(
                    equation.run, tuple(avals[v] for v in equation.operands), avals[target], i, j
                ):
                    edges.append(Edge(source, target, k, i, j, trainable, crosses))
        if varying.intersection(equation.operands):
            varying.update(equation.results)
    return edges


@lru_cache(maxsize=4096)
def _carries_derivative(
    run: Run,
    operands: tuple[jax.ShapeDtypeStruct, ...],
    target: jax.ShapeDtypeStruct,
    operand: int,
    result: int,
) -> bool:
    if not (is_float(operands[operand]) and is_float(target)):
        return False

    def transposed(values: list[Any], cotangent: Any) -> Any:
        return jax.vjp(_single(run, values, operand, result), values[operand])[1](cotangent)

    jaxpr = _open(jax.make_jaxpr(transposed)(list(operands), target))
    reached = {jaxpr.invars[-1]}
    for eqn in jaxpr.eqns:
        if any(v in reached for v in eqn.invars if not isinstance(v, Literal)):
            reached.update(eqn.outvars)
    return any(v in reached for v in jaxpr.outvars if not isinstance(v, Literal))


def _single(run: Run, operands: Sequence[Any], operand: int, result: int) -> Callable[[Any], Any]:
    """One result as a function of one operand."""
    return lambda value: run(*operands[:operand], value, *operands[operand + 1 :])[result]


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
