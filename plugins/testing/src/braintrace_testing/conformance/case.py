# SPDX-License-Identifier: Apache-2.0
"""What a check looks at: a case of a primitive, and the equation that its operation binds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace.base import versions
from braintrace.jaxprs.run import read
from braintrace.ops.operation import Operation
from braintrace.ops.primitive import is_etp_primitive
from braintrace.ops.spec import RULES, ETPPrimitiveSpec


@dataclass(frozen=True)
class ConformanceCase:
    """One way to use a primitive, for :func:`braintrace.testing.check_plugin`.

    Parameters
    ----------
    spec
        The primitive's specification. ``spec.batched`` says whether the case has a batch.
    operands
        ``operands(seed, dtype)`` returns the arguments of ``op``: ``(x, *weights)``, or the weights
        alone when ``spec.x_invar_index`` is ``None``. Small arrays, the same for the same seed,
        floating-point ones in ``dtype``; ``x`` differs from seed to seed.
    op
        The public operation, ``op(x, *weights) -> y`` or ``op(*weights) -> y``.
    name
        How the case is called in names of tests; the primitive's name when not given.

    Raises
    ------
    TypeError
        When a field has the wrong type.

    Examples
    --------
    >>> import jax, jax.numpy as jnp
    >>> from braintrace.plugin_api import ETPPrimitiveSpec, bind
    >>> from braintrace.testing import ConformanceCase
    >>> spec = ETPPrimitiveSpec("doc_case_scale", lambda x, w: x * w)
    >>> def operands(seed, dtype):
    ...     x, w = jax.random.normal(jax.random.key(seed), (2, 3), dtype)
    ...     return x, w
    >>> case = ConformanceCase(spec, operands, lambda x, w: bind(spec, x, w))
    >>> case.name
    'doc_case_scale'
    """

    spec: ETPPrimitiveSpec
    operands: Callable[[int, Any], Sequence[Any]]
    op: Callable[..., Any]
    name: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.spec, ETPPrimitiveSpec):
            raise TypeError(f"spec must be an ETPPrimitiveSpec, got {type(self.spec).__name__}")
        for field in ("operands", "op"):
            if not callable(getattr(self, field)):
                raise TypeError(f"{field} of the case {self.name!r} must be callable")
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {self.name!r}")
        object.__setattr__(self, "name", self.name or self.spec.name)

    @property
    def batched(self) -> bool:
        """Whether ``x`` and ``y`` have a leading axis of independent examples."""
        return self.spec.batched

    @property
    def has_x(self) -> bool:
        """Whether the operation has an input besides its weights."""
        return self.spec.x_invar_index is not None

    def arguments(self, seed: int = 0, dtype: Any = "float64") -> tuple[Any, ...]:
        """Arguments of ``op`` as arrays."""
        with jax.enable_x64(True):
            return tuple(jnp.asarray(v) for v in self.operands(seed, jnp.dtype(dtype)))

    def inputs(self, steps: int, dtype: Any = "float64") -> Any:
        """``x`` of several steps, stacked; ``None`` without input."""
        if not self.has_x:
            return None
        return jnp.stack([self.arguments(seed, dtype)[0] for seed in range(steps)])

    def weights(self, dtype: Any = "float64") -> tuple[Any, ...]:
        """The weights of seed 0."""
        return self.arguments(0, dtype)[self.has_x :]


@dataclass(frozen=True, eq=False)
class Equation:
    """The one equation of a case's primitive, with the values of its operands."""

    operation: Operation
    operands: tuple[Any, ...]

    @property
    def x(self) -> Any:
        """The input, ``None`` when there is none."""
        i = self.operation.spec.x_invar_index
        return None if i is None else self.operands[i]

    @property
    def weights(self) -> dict[str, Any]:
        """The trainable operands by key."""
        return self.operation.weights(self.operands)

    @property
    def derived(self) -> Operation:
        """The operation without hand-written rules."""
        bare: dict[str, Any] = dict.fromkeys((*RULES, "batched_counterpart"))
        return replace(self.operation, spec=replace(self.operation.spec, **bare))

    def like_y(self, seed: int, *lead: int, dtype: Any = None) -> jax.Array:
        """Random numbers [*lead, *Y]."""
        y = self.operation.y_aval
        return normal(seed, (*lead, *y.shape), dtype or y.dtype)


def normal(seed: int, shape: Sequence[int], dtype: Any = "float64") -> jax.Array:
    """Standard normal numbers."""
    values = np.random.default_rng([seed, 11, *shape]).normal(size=tuple(shape))
    return jnp.asarray(values, dtype)


Handler = Callable[[Any, list[Any]], Any]


def run_with(case: ConformanceCase, arguments: Sequence[Any], handler: Handler) -> Any:
    """``op(*arguments)`` with ``handler(equation, operands)`` in place of each ETP primitive."""
    return _run(versions.make_jaxpr(case.op, *arguments), list(arguments), handler)[0]


def _run(jaxpr: Any, inputs: list[Any], handler: Handler) -> list[Any]:
    env: dict[Any, Any] = dict(versions.constants(jaxpr))
    env.update(zip(jaxpr.invars, inputs, strict=True))
    for eqn in jaxpr.eqns:
        values = [read(env, atom) for atom in eqn.invars]
        if is_etp_primitive(eqn.primitive):
            out = [handler(eqn, values)]
        elif eqn.primitive in versions.CALL_PRIMITIVES:
            out = _run(versions.sub_jaxpr(eqn), values, handler)
        else:
            out = versions.bind_equation(eqn, values)
        env.update(zip(eqn.outvars, out, strict=True))
    return [read(env, atom) for atom in jaxpr.outvars]


def implementation(eqn: Any, operands: Sequence[Any]) -> Any:
    """A handler: the plain implementation."""
    return eqn.primitive.spec.impl(*operands, **eqn.params)


def primitives_in(fun: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The ETP primitives that a function binds, wherever in its program."""

    def inside(jaxpr: Any) -> list[Any]:
        found = []
        for eqn in jaxpr.eqns:
            found += [eqn.primitive] if is_etp_primitive(eqn.primitive) else []
            for sub in versions.inner_jaxprs(eqn):
                found += inside(sub)
        return found

    return inside(versions.make_jaxpr(fun, *arguments))


def equation_of(case: ConformanceCase, dtype: Any = "float64", seed: int = 0) -> Equation:
    """The equation that ``op`` binds.

    Raises
    ------
    AssertionError
        When it does not bind the case's primitive exactly once.
    """
    found: list[Equation] = []

    def note(eqn: Any, operands: list[Any]) -> Any:
        if eqn.primitive.name == case.spec.name:
            found.append(_equation(eqn, operands))
        return implementation(eqn, operands)

    run_with(case, case.arguments(seed, dtype), note)
    if len(found) != 1:
        raise AssertionError(f"op binds {case.spec.name!r} {len(found)} times, expected once")
    return found[0]


def _equation(eqn: Any, operands: list[Any]) -> Equation:
    spec, avals = eqn.primitive.spec, tuple(atom.aval for atom in eqn.invars)
    positions = spec.resolve_trainable_invars(eqn.params)
    traced = tuple(key for key, i in positions.items() if versions.is_float(avals[i]))
    operation = Operation(spec, dict(eqn.params), avals, eqn.outvars[0].aval, traced)
    return Equation(operation, tuple(map(jnp.asarray, operands)))
