# SPDX-License-Identifier: Apache-2.0
"""What a check looks at: a case of a primitive, and the equation that its operation binds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace.base import versions
from braintrace.base.versions import is_float
from braintrace.jaxprs.run import read
from braintrace.ops.operation import Operation
from braintrace.ops.primitive import is_etp_primitive
from braintrace.ops.spec import RULES, ETPPrimitiveSpec
from braintrace.plugin_api import bind


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

    @cached_property
    def kept(self) -> dict[Any, Any]:
        """What was computed for the case: see :func:`once`."""
        return {}

    def arguments(self, seed: int = 0, dtype: Any = "float64", digits: Any = "float64") -> Any:
        """Arguments of ``op`` as arrays: those in double precision, rounded to two dtypes."""
        return tuple(
            jax.device_put(v.astype(digits).astype(dtype) if is_float(v) else v)
            for v in _drawn(self, seed)
        )

    def inputs(self, steps: int, dtype: Any = "float64", digits: Any = "float64") -> Any:
        """``x`` of several steps, stacked; ``None`` without input."""
        if not self.has_x:
            return None
        return np.stack([self.arguments(seed, dtype, digits)[0] for seed in range(steps)])

    def weights(self, dtype: Any = "float64", digits: Any = "float64") -> tuple[Any, ...]:
        """The weights of seed 0."""
        return self.arguments(0, dtype, digits)[self.has_x :]


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: a function of a case and hashable arguments, computed once for each of them.

    What compiles is shared by the checks of a case in this way.
    """

    @wraps(function)
    def found(case: ConformanceCase, *others: Any) -> Any:
        key = function.__qualname__, *others
        if key not in case.kept:
            case.kept[key] = function(case, *others)
        return case.kept[key]

    return found


@once
def _drawn(case: ConformanceCase, seed: int) -> tuple[Any, ...]:
    with jax.enable_x64(True):
        drawn = case.operands(seed, jnp.dtype("float64"))
        return tuple(np.asarray(v) for v in drawn)


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
        return replace(self.operation, spec=without_rules(self.operation.spec))

    def like_y(self, seed: int, *lead: int, dtype: Any = None) -> jax.Array:
        """Random numbers [*lead, *Y]."""
        y = self.operation.y_aval
        return jax.device_put(normal(seed, (*lead, *y.shape), dtype or y.dtype))


def normal(seed: int, shape: Sequence[int], dtype: Any = "float64") -> np.ndarray:
    """Standard normal numbers: of numpy, so that nothing is compiled for them."""
    values = np.random.default_rng([seed, 11, *shape]).normal(size=tuple(shape))
    return np.asarray(values.astype(dtype))


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


def etp_equations(fun: Callable[..., Any], *arguments: Any) -> list[Any]:
    """The equations of ETP primitives in a function, wherever in its program."""

    def inside(jaxpr: Any) -> list[Any]:
        found = []
        for eqn in jaxpr.eqns:
            found += [eqn] if is_etp_primitive(eqn.primitive) else []
            for sub in versions.inner_jaxprs(eqn):
                found += inside(sub)
        return found

    return inside(versions.make_jaxpr(fun, *arguments))


def derived(case: ConformanceCase) -> ConformanceCase:
    """The case with an operation of which no rule is written."""
    spec = replace(without_rules(case.spec), name=f"{case.spec.name}_derived")

    def bound(eqn: Any, operands: list[Any]) -> Any:
        if eqn.primitive.name == case.spec.name:
            return bind(spec, *operands, **eqn.params)
        return versions.bind_equation(eqn, operands)[0]

    return replace(case, spec=spec, op=lambda *given: run_with(case, given, bound))


def without_rules(spec: ETPPrimitiveSpec) -> ETPPrimitiveSpec:
    """The specification with its implementation alone."""
    bare: dict[str, Any] = dict.fromkeys((*RULES, "batched_counterpart"))
    return replace(spec, **bare)


class _Met(Exception):
    """The equation, and the values of its operands."""


def operation_of(case: ConformanceCase, dtype: Any = "float64") -> Operation:
    """The operation that ``op`` binds: from types alone."""
    return _operation(_bound_equation(case, dtype))


@once
def equation_of(case: ConformanceCase, seed: int = 0) -> Equation:
    """The equation that ``op`` binds, with values in double precision.

    Raises
    ------
    AssertionError
        When it does not bind the case's primitive exactly once.
    """
    _bound_equation(case, "float64")

    def stop(eqn: Any, operands: list[Any]) -> Any:
        if eqn.primitive.name == case.spec.name:
            raise _Met(eqn, operands)
        return implementation(eqn, operands)

    try:
        run_with(case, case.arguments(seed), stop)
    except _Met as met:
        eqn, operands = met.args
        return Equation(_operation(eqn), tuple(map(jax.device_put, operands)))
    raise AssertionError(f"op binds {case.spec.name!r} inside control flow")


@once
def steps_of(case: ConformanceCase, steps: int) -> Any:
    """The input of the equation at several seeds, stacked; ``None`` without input."""
    xs = [equation_of(case, seed).x for seed in range(steps)]
    return None if xs[0] is None else np.stack(xs)


@once
def _bound_equation(case: ConformanceCase, dtype: Any) -> Any:
    every = etp_equations(case.op, *case.arguments(0, dtype))
    found = [eqn for eqn in every if eqn.primitive.name == case.spec.name]
    if len(found) != 1:
        raise AssertionError(f"op binds {case.spec.name!r} {len(found)} times, expected once")
    return found[0]


def _operation(eqn: Any) -> Operation:
    spec, avals = eqn.primitive.spec, tuple(atom.aval for atom in eqn.invars)
    positions = spec.resolve_trainable_invars(eqn.params)
    traced = tuple(key for key, i in positions.items() if is_float(avals[i]))
    return Operation(spec, dict(eqn.params), avals, eqn.outvars[0].aval, traced)
