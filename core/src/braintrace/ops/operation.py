# SPDX-License-Identifier: Apache-2.0
"""What an algorithm asks of an ETP operation, answered by its family's rules or derived.

Two kinds of parameter-dimension trace exist behind one interface (:class:`TraceRules`):

- a *structured* trace, from the hand-written rules ``yw_to_w`` and ``init_drtrl``;
- a *dense* trace over [position of ``y``, parameter], which is exact for any implementation and is
  what a primitive with only ``impl`` gets.

Shapes, in names used throughout: ``K`` steps; ``E`` the axes of the hidden group along which ``y``
is broadcast (usually none); ``Y`` the shape of ``y``, its batch axis ``B`` first when the primitive
is batched; ``S`` states.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.precision import pulled_in, wide_dtype, widened, widened_dtype
from ..base.versions import Jaxpr, JaxprEqn, jaxp
from .moving import ExamplesSpec, MovingSpec
from .primitive import find_primitive, is_etp_primitive
from .repeated import RepeatedSpec
from .spec import ETPPrimitiveSpec

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Operand:
    """The type of an operand, as rules receive it: ``.aval`` has ``shape`` and ``dtype``."""

    aval: Any


@dataclass(frozen=True, eq=False)
class Operation:
    """An ETP equation seen from its rules.

    ``traced`` are the keys of the trainable operands that lead to parameters; the values of all
    operands but ``x`` are constant over time and passed as ``operands`` (a full list, with
    ``None`` at ``x``). ``group`` is the hidden group that is traced, for rules that ask for it.
    ``least`` is a dtype that traces and sums are no narrower than.
    """

    spec: ETPPrimitiveSpec
    params: Mapping[str, Any]
    operand_avals: tuple[Any, ...]
    y_aval: Any
    traced: tuple[str, ...]
    group: Any = None
    least: Any = jnp.float32

    @cached_property
    def wide(self) -> Any:
        """The real dtype that traces, sums and what they are made from have at least."""
        weights = (self.operand_avals[self.positions[key]].dtype for key in self.traced)
        return wide_dtype(self.least, self.y_aval.dtype, *weights)

    def widened(self, tree: Any) -> Any:
        """Arrays of a pytree in dtypes that are no narrower than :attr:`wide`."""
        return widened(tree, self.wide)

    def cotangent_type(self, key: str) -> jax.ShapeDtypeStruct:
        """Type of the cotangent of a trainable operand, as a sum over steps."""
        aval = self.operand_avals[self.positions[key]]
        return jax.ShapeDtypeStruct(aval.shape, widened_dtype(aval.dtype, self.wide))

    @property
    def positions(self) -> dict[str, int]:
        """Operand positions of all trainable keys."""
        return self.spec.resolve_trainable_invars(self.params)

    @property
    def x_aval(self) -> Any | None:
        """Type of the input, if there is one."""
        i = self.spec.x_invar_index
        return None if i is None else self.operand_avals[i]

    @property
    def of_one(self) -> Operation | None:
        """That of one iteration, or of one step, if this one is repeated or its weights move."""
        avals, i, spec = [*self.operand_avals], self.spec.x_invar_index, self.spec
        if isinstance(spec, RepeatedSpec):
            avals[i], y_aval = _row(avals[i]), _row(self.y_aval)  # type: ignore[index]
        elif isinstance(spec, MovingSpec):
            y_aval = self.y_aval
            for k, made in spec.made.items():
                avals[k] = made.aval
            if spec.one.spec.x_invar_index is None:
                del avals[i]  # type: ignore[arg-type]
            else:
                avals[i] = spec.packed[0]  # type: ignore[index]
        else:
            return None
        return replace(self, spec=spec.one.spec, operand_avals=tuple(avals), y_aval=y_aval)

    def weights(self, operands: Sequence[Any]) -> Arrays:
        """The trainable operands by key."""
        return {key: operands[i] for key, i in self.positions.items()}

    def run(self, x: Any, weights: Arrays, operands: Sequence[Any]) -> jax.Array:
        """``impl`` as a function of input and trainable operands."""
        full = list(operands)
        if self.spec.x_invar_index is not None:
            full[self.spec.x_invar_index] = x
        for key, i in self.positions.items():
            full[i] = weights[key]
        return self.spec.impl(*full, **self.params)

    def written(self, rule: str, operands: Sequence[Any]) -> Callable[..., Any]:
        """A rule that the family wrote, with the parameters, and ``constants`` if it declares them.

        ``constants`` are the operands that are neither ``x`` nor trainable, in their order.
        """
        function = self._rule(rule)
        known = {self.spec.x_invar_index, *self.positions.values()}
        constants = tuple(value for i, value in enumerate(operands) if i not in known)
        return partial(function, **_declared(function, constants=constants), **self.params)

    def initial(self, rule: str, num_state: int) -> Any:
        """What an ``init_*`` rule gives, with ``eqn_params`` and ``group`` if it declares them."""
        function = self._rule(rule)
        weight_vars = {key: Operand(self.operand_avals[i]) for key, i in self.positions.items()}
        x_var = None if self.x_aval is None else Operand(self.x_aval)
        optional = _declared(function, eqn_params=dict(self.params), group=self.group)
        return function(x_var, Operand(self.y_aval), weight_vars, num_state, **optional)

    def initial_types(self, rule: str, num_state: int) -> Any:
        """The types of :meth:`initial`; operations that look the same to the rule share them."""
        params = tuple((name, type(value), value) for name, value in self.params.items())
        look = (*self.operand_avals, self.y_aval, *self.positions.items(), *params)
        if "group" in _keywords(self._rule(rule)) or not _is_hashable(look):
            return jax.eval_shape(lambda: self.initial(rule, num_state))
        return _Look(replace(self, group=None), (self.spec, rule, look)).types(
            num_state, jnp.result_type(float)
        )

    def _rule(self, rule: str) -> Callable[..., Any]:
        if (function := getattr(self.spec, rule)) is None:
            raise TypeError(f"the rule {rule!r} of {self.spec.name!r} is derived, not written")
        return function

    def xy_to_dw(self, x: Any, dy: jax.Array, operands: Sequence[Any]) -> Arrays:
        """The VJP of ``impl`` in its trainable operands: the family's rule, or derived."""
        weights = self.weights(operands)
        if self.spec.xy_to_dw is not None:
            return self.written("xy_to_dw", operands)(x, dy, weights)
        y, pull = jax.vjp(lambda w: self.run(x, w, operands), weights)
        return pulled_in(y.dtype, lambda dy: pull(dy)[0], dy)

    def contract(self, x: Any, dy: jax.Array, operands: Sequence[Any], parts: int = 1) -> Arrays:
        """``sum_k xy_to_dw(x^k, dy^k)`` over ``K`` steps, as one product, for the traced operands.

        ``x`` is [K, *X], or ``None`` for an operation without input, and ``dy`` is [K, *Y]. The sum
        is taken, and given, in a dtype no narrower than :attr:`wide`. With ``parts``, those of
        so many parts of the examples [parts, *W], where they can be told apart.
        """
        if isinstance(self.spec, MovingSpec):
            return self._moved(self.spec, x, dy, operands, parts)
        apart = self.in_parts(parts) and x is not None
        one = self.of_one
        if apart and one is not None:
            run, axis = partial(one.contract, operands=operands), 1 + (self.examples or 0)
            of_parts = (split(v, axis, parts) for v in (x, dy))
            return jax.vmap(lambda x, dy: run(folded(x), folded(dy)))(*of_parts)
        if one is not None:
            return one.contract(folded(x), folded(dy), operands)
        x, dy, operands = self.widened((x, dy, [*operands]))
        if apart:
            of_parts = (v.swapaxes(0, 1).reshape(parts, -1, *v.shape[2:]) for v in (x, dy))
            found = jax.vmap(lambda x, dy: self.xy_to_dw(x, dy, operands))(*of_parts)
            return {key: found[key] for key in self.traced}
        if x is None:
            found = self.xy_to_dw(None, dy.sum(0), operands)
        elif self.spec.batched:
            found = self.xy_to_dw(folded(x), folded(dy), operands)
        elif (batched := find_primitive(self.spec.batched_counterpart)) is not None:
            found = replace(self, spec=batched.spec).xy_to_dw(x, dy, operands)
        elif self.spec.xy_to_dw is None:
            many = jax.vmap(lambda one, w: self.run(one, w, operands), (0, None))
            y, pull = jax.vjp(partial(many, x), self.weights(operands))
            found = pulled_in(y.dtype, lambda dy: pull(dy)[0], dy)
        else:
            each = jax.vmap(lambda a, b: self.xy_to_dw(a, b, operands))(x, dy)
            found = {key: value.sum(0) for key, value in each.items()}
        return {key: found[key] for key in self.traced}

    def in_parts(self, parts: int) -> bool:
        """Whether sums over examples can be held in so many parts."""
        axis = self.examples
        fits = axis is not None and fits_parts(self.y_aval.shape[axis:], parts)
        return fits and not self.convolves

    @cached_property
    def convolves(self) -> bool:
        """Whether the derived gradient of a weight is that of a convolution.

        XLA gives wrong numbers, or none, for those of single examples that lie on several devices
        (jax 0.10.2 and 0.12.0.1).
        """
        one = self.of_one or self
        if one.spec.xy_to_dw is not None:
            return False
        run = partial(one.spec.impl, **one.params)
        return holds_convolutions(versions.make_jaxpr(run, *one.operand_avals))

    @property
    def examples(self) -> int | None:
        """The axis of examples of the result, behind that of iterations if there are any."""
        if isinstance(self.spec, ExamplesSpec):
            return 0
        one = self.of_one or self
        return int(isinstance(self.spec, RepeatedSpec)) if one.spec.batched else None

    def _moved(
        self, spec: MovingSpec, x: Any, dy: jax.Array, operands: Sequence[Any], parts: int
    ) -> Arrays:
        """:meth:`contract` with weights of its own at each step."""
        one: Any = self.of_one
        in_parts = self.in_parts(parts) and one.x_aval is not None
        operands = self.widened([*operands])

        def step(total: Arrays, now: Any) -> tuple[Arrays, None]:
            own, values = spec.unpacked(now[0])
            own = None if own is None else own[None]
            found = one.contract(own, now[1][None], spec.operands(operands, values), parts)
            pulls = spec.pulled(operands, values)
            if in_parts:
                pulls = {k: jax.vmap(pull) for k, pull in pulls.items()}
            traced = ((key, self.positions[key]) for key in self.traced)
            found |= {key: pulls[k](found[key]) for key, k in traced if k in pulls}
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, found), None

        types = {key: self.cotangent_type(key) for key in self.traced}
        lead = (parts,) if in_parts else ()
        zeros = {key: jnp.zeros((*lead, *v.shape), v.dtype) for key, v in types.items()}
        return jax.lax.scan(step, zeros, (x, dy))[0]


@dataclass(frozen=True)
class _Look:
    """What an ``init_*`` rule sees of an operation: the ``key`` alone tells two of them apart."""

    operation: Operation = field(compare=False)
    key: tuple[Any, ...]

    @lru_cache(maxsize=64)  # noqa: B019  of equal ones
    def types(self, num_state: int, floats: Any) -> Any:
        return jax.eval_shape(lambda: self.operation.initial(self.key[1], num_state))


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _declared(function: Callable[..., Any], **values: Any) -> dict[str, Any]:
    """The values of those names that a function has as keyword-only arguments."""
    known = _keywords(function)
    return {name: value for name, value in values.items() if name in known}


@lru_cache(maxsize=256)
def _keywords(function: Callable[..., Any]) -> frozenset[str]:
    """The names of the keyword-only arguments of a function."""
    try:
        known = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # built in: it does not say
        return frozenset()
    return frozenset(one.name for one in known if one.kind is one.KEYWORD_ONLY)


def _row(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape[1:], aval.dtype)


def folded(array: jax.Array) -> jax.Array:
    """The first two axes, steps and examples, as one.

    Examples may lie on several devices: then they come first, so that each device keeps its own.
    """
    steps, batch, *rest = array.shape
    if versions.several_devices():
        array = array.swapaxes(0, 1)
    return array.reshape(steps * batch, *rest)  # -1 would be undefined for arrays without elements


def fits_parts(shape: Sequence[int], parts: int) -> bool:
    """Whether the first axis of a shape can be in several parts."""
    return parts > 1 and bool(shape) and shape[0] % parts == 0


def split(array: jax.Array, axis: int, parts: int) -> jax.Array:
    """An axis of examples in parts, which come first [parts, ..]."""
    shape = array.shape
    size = (parts, shape[axis] // parts)
    return jnp.moveaxis(array.reshape(*shape[:axis], *size, *shape[axis + 1 :]), axis, 0)


def holds_convolutions(program: Jaxpr) -> bool:
    """Whether a program convolves, by an operation with a trace, too."""

    def convolves(eqn: JaxprEqn) -> bool:
        if not is_etp_primitive(eqn.primitive):
            inner = versions.inner_jaxprs(eqn)
            return eqn.primitive is jaxp.conv_general_dilated_p or any(
                map(holds_convolutions, inner)
            )
        types = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
        run = partial(eqn.primitive.spec.impl, **eqn.params)
        return holds_convolutions(versions.make_jaxpr(run, *types))

    return any(map(convolves, program.eqns))
