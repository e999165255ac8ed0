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
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import product
from typing import Any, Self

import jax
import jax.numpy as jnp

from ._errors import CompilationError
from ._primitive import ETPPrimitiveSpec, find_primitive

Arrays = dict[str, Any]

#: Up to how many states loops over them are written out.
UNROLL_STATES = 4

#: How many examples are added up in one pass over a gradient, on processors.
EXAMPLES_AT_ONCE = 4

#: From how many numbers for an example on that pays.
LARGE_EXAMPLE = 4096


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
    """

    spec: ETPPrimitiveSpec
    params: Mapping[str, Any]
    operand_avals: tuple[Any, ...]
    y_aval: Any
    traced: tuple[str, ...]
    group: Any = None

    @property
    def positions(self) -> dict[str, int]:
        """Operand positions of all trainable keys."""
        return self.spec.resolve_trainable_invars(self.params)

    @property
    def x_aval(self) -> Any | None:
        """Type of the input, if there is one."""
        i = self.spec.x_invar_index
        return None if i is None else self.operand_avals[i]

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
        function = getattr(self.spec, rule)
        if function is None:
            raise TypeError(f"the rule {rule!r} of {self.spec.name!r} is derived, not written")
        if not _declares(function, "constants"):
            return partial(function, **self.params)
        known = {self.spec.x_invar_index, *self.positions.values()}
        constants = tuple(value for i, value in enumerate(operands) if i not in known)
        return partial(function, constants=constants, **self.params)

    def initial(self, rule: Callable[..., Any] | None, num_state: int) -> Any:
        """What an ``init_*`` rule of the family gives for this operation."""
        weight_vars = {key: Operand(self.operand_avals[i]) for key, i in self.positions.items()}
        x_var = None if self.x_aval is None else Operand(self.x_aval)
        y_var = Operand(self.y_aval)
        return call_init(rule, x_var, y_var, weight_vars, num_state, self.params, self.group)

    def xy_to_dw(self, x: Any, dy: jax.Array, operands: Sequence[Any]) -> Arrays:
        """The VJP of ``impl`` in its trainable operands: the family's rule, or derived."""
        weights = self.weights(operands)
        if self.spec.xy_to_dw is not None:
            return self.written("xy_to_dw", operands)(x, dy, weights)
        _, pull = jax.vjp(lambda w: self.run(x, w, operands), weights)
        return pull(dy)[0]

    def contract(self, x: Any, dy: jax.Array, operands: Sequence[Any]) -> Arrays:
        """``sum_k xy_to_dw(x^k, dy^k)`` over ``K`` steps, as one product.

        Parameters
        ----------
        x
            [K, *X], or ``None`` for an operation without input.
        dy
            [K, *Y].
        operands
            Values of the operands.

        Returns
        -------
        dict
            Cotangents of the traced operands.
        """
        if x is None:
            found = self.xy_to_dw(None, dy.sum(0), operands)
        elif self.spec.batched:
            found = self.xy_to_dw(_fold(x), _fold(dy), operands)
        elif (batched := self._batched()) is not None:
            found = batched.xy_to_dw(x, dy, operands)
        elif self.spec.xy_to_dw is None:
            weights = self.weights(operands)
            _, pull = jax.vjp(
                lambda w: jax.vmap(lambda one: self.run(one, w, operands))(x), weights
            )
            found = pull(dy)[0]
        else:
            each = jax.vmap(lambda a, b: self.xy_to_dw(a, b, operands))(x, dy)
            found = {key: value.sum(0) for key, value in each.items()}
        return {key: found[key] for key in self.traced}

    def _batched(self) -> Operation | None:
        """The same operation through its declared batched counterpart."""
        name = self.spec.batched_counterpart
        primitive = None if name is None else find_primitive(name)
        if primitive is None:
            return None
        return replace(self, spec=primitive.spec)


def _declares(function: Callable[..., Any], name: str) -> bool:
    """Whether a function has a keyword-only argument of that name."""
    try:
        declared = inspect.signature(function).parameters.get(name)
    except (TypeError, ValueError):  # built in: it does not say
        return False
    return declared is not None and declared.kind is declared.KEYWORD_ONLY


def _fold(array: jax.Array) -> jax.Array:
    steps, batch, *rest = array.shape
    return array.reshape(steps * batch, *rest)  # -1 would be undefined for arrays without elements


class TraceRules(ABC):
    """The parameter-dimension trace of one operation in one hidden group.

    Factors ``f`` and signals are laid out as [S, *E, *Y]; a transition as [S, S, *E, *Y]. The
    state axis leads in every trace leaf, too.
    """

    def __init__(self, operation: Operation, extra: tuple[int, ...], num_state: int) -> None:
        self.operation = operation
        self.extra = extra
        self.num_state = num_state

    @property
    @abstractmethod
    def types(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and dtypes of a trace."""

    def of_states(self, num_state: int) -> Self:
        """The same rules for another number of states."""
        return type(self)(self.operation, self.extra, num_state)

    def init(self) -> Arrays:
        """A trace of zeros."""
        return {key: jnp.zeros(leaf.shape, leaf.dtype) for key, leaf in self.types.items()}

    @abstractmethod
    def propagate(self, transition: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        """``D . eps``."""

    @abstractmethod
    def scaled(self, factor: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        """Every state of ``eps`` times its own factor by position: ``factor`` [S, *E, *Y]."""

    @abstractmethod
    def increments(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        """``sum_k f^k (x) x^k`` for ``f`` [K, S, *E, *Y], in the structure of the trace."""

    @abstractmethod
    def solve(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        """``< signal, eps >``: cotangents of the traced operands."""


def trace_rules(operation: Operation, extra: tuple[int, ...], num_state: int) -> TraceRules:
    """The structured trace where the family wrote its rules, else the dense one."""
    spec = operation.spec
    kind = DenseTrace if spec.yw_to_w is None or spec.init_drtrl is None else StructuredTrace
    return kind(operation, extra, num_state)


# --- structured -------------------------------------------------------------------------------


class StructuredTrace(TraceRules):
    """Leaves are [S, *E, *rule's own leaf]. Rules see one state and no axis ``E`` at a time."""

    @property
    def types(self) -> dict[str, jax.ShapeDtypeStruct]:
        def arrange(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            shape = (self.num_state, *self.extra, *leaf.shape[:-1])
            return jax.ShapeDtypeStruct(shape, leaf.dtype)

        return {key: arrange(self._own[key]) for key in self.operation.traced}

    def of_states(self, num_state: int) -> Self:
        rules = super().of_states(num_state)
        rules._own = self._own  # without the axis of states they are the same
        return rules

    def _each(self, rule: Callable[..., Arrays], axis: int = 0) -> Callable[..., Arrays]:
        """``rule`` for every index of the axes ``E``, which start at ``axis`` of the arguments."""
        for _ in self.extra:
            rule = jax.vmap(rule, in_axes=axis)
        return rule

    def _scale(self, operands: Sequence[Any]) -> Callable[[jax.Array, Arrays], Arrays]:
        """``yw_to_w`` for one state."""
        return self._each(self._on_whole(self.operation.written("yw_to_w", operands)))

    def _on_whole(self, rule: Callable[..., Arrays]) -> Callable[[jax.Array, Arrays], Arrays]:
        """``rule(factor, trace)``, which sees a trace with all trainable keys, for the traced ones.

        A weight that is held constant, or no parameter, has no trace: the rule gets zeros for it.
        """

        def run(factor: jax.Array, trace: Arrays) -> Arrays:
            untraced = {k: v for k, v in self._own.items() if k not in self.operation.traced}
            zeros = {k: jnp.zeros(v.shape[:-1], v.dtype) for k, v in untraced.items()}
            found = rule(factor, {**zeros, **trace})
            return {key: found[key] for key in trace}

        return run

    @cached_property
    def _own(self) -> Arrays:
        """Types of the family's own leaves, with the state axis last, traced or not."""
        op = self.operation
        return jax.eval_shape(lambda: op.initial(op.spec.init_drtrl, self.num_state))

    def propagate(self, transition: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        states, scale = range(self.num_state), self._scale(operands)
        if self.num_state > UNROLL_STATES:
            return jax.lax.map(lambda row: _sum(jax.vmap(scale)(row, trace)), transition)
        if self.num_state == 1:  # without a reshape the new trace can take the place of the old one
            return jax.vmap(scale)(transition[0], trace)
        rows = []
        for i in states:
            terms = [scale(transition[i, j], _state(trace, j)) for j in states]
            rows.append({key: sum(term[key] for term in terms) for key in trace})
        return _stack(rows, self.operation.traced)

    def scaled(self, factor: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        return jax.vmap(self._scale(operands))(factor, trace)

    def increments(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        if self.operation.spec.batched and self._takes_blocks(f.shape[0]):
            return self._over_examples(x, f, operands)
        return self._of_all(x, f, operands)

    def _takes_blocks(self, steps: int) -> bool:
        """Whether the family's own rule for several steps is used."""
        spec = self.operation.spec
        return spec.increments_drtrl is not None and (steps > 1 or spec.instant_drtrl is None)

    def _over_examples(self, x: jax.Array, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        """Increments, one example after the other.

        What the family's rule makes of its arguments then takes the memory of one example.
        """
        axis, examples = 1 + len(self.extra), x.shape[1]

        def one(b: Any) -> Arrays:
            x_b = jax.lax.dynamic_slice_in_dim(x, b, 1, 1)
            f_b = jax.lax.dynamic_slice_in_dim(f, b, 1, 1 + axis)
            return self._of_all(x_b, f_b, operands)

        def place(b: Any, whole: Arrays) -> Arrays:
            put = jax.lax.dynamic_update_slice_in_dim
            return jax.tree.map(lambda v, new: put(v, new, b, axis), whole, one(b))

        zeros = {
            key: jnp.zeros((*v.shape[:axis], examples, *v.shape[axis + 1 :]), v.dtype)
            for key, v in jax.eval_shape(one, 0).items()
        }
        return jax.lax.fori_loop(0, examples, place, zeros)

    def _of_all(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        one_state = self._increment_rule(x, f.shape[0], operands)
        if self.num_state > UNROLL_STATES:
            return jax.vmap(one_state, in_axes=1)(f)
        rows = [one_state(f[:, s]) for s in range(self.num_state)]
        return _stack(rows, self.operation.traced)

    def _increment_rule(
        self, x: Any, steps: int, operands: Sequence[Any]
    ) -> Callable[[jax.Array], Arrays]:
        """Increments of one state, from its factors [K, *E, *Y].

        By default a trace is shaped like the weights, once per example, so the increments of an
        example over ``K`` steps are what ``xy_to_dw`` gives when the steps are its batch.
        """
        op = self.operation
        if self._takes_blocks(steps):
            rule = partial(op.written("increments_drtrl", operands), weights=op.weights(operands))
            return self._each(lambda f: rule(x, f), axis=1)
        if op.spec.instant_drtrl is not None:
            return lambda f: self._instant(x, f, operands)
        if x is None:
            return lambda f: self._each(lambda g: op.xy_to_dw(None, g, operands))(f.sum(0))
        if not op.spec.batched:
            return self._each(lambda g: op.contract(x, g, operands), axis=1)

        def one_example(x_b: jax.Array, g: jax.Array) -> Arrays:
            return op.contract(x_b[:, None], g[:, None], operands)

        examples = jax.vmap(one_example, in_axes=(1, 1))
        return self._each(lambda g: examples(x, g), axis=1)

    def _instant(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        """The family's own increments, added up step by step."""
        op = self.operation
        rule = partial(op.written("instant_drtrl", operands), weights=op.weights(operands))
        return _sum_over_steps(lambda x_k, f_k: self._each(lambda g: rule(x_k, g))(f_k), x, f)

    @property
    def _apart(self) -> bool:
        """Whether the second axis of every leaf is that of the examples."""
        return self.operation.spec.batched and not self.extra

    def solve(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        op, extra = self.operation, len(self.extra)
        if op.spec.solve_drtrl is not None:
            own = partial(op.written("solve_drtrl", operands), weights=op.weights(operands))
            return self._summed(self._each(self._on_whole(own)), signal, trace, extra)
        rule, axes = self._scale(operands), extra + op.spec.batched
        large = _large(trace) if self._apart else ()
        if not large:
            return self._summed(rule, signal, trace, axes)

        def by_example(signal: jax.Array, trace: Arrays) -> Arrays:
            return self._summed(rule, signal, trace, axes) | self._summed_by_example(
                rule, signal, trace, large
            )

        whole = partial(self._summed, rule, axes=axes)
        return jax.lax.platform_dependent(signal, trace, cpu=by_example, default=whole)

    def _summed(
        self, rule: Callable[..., Arrays], signal: jax.Array, trace: Arrays, axes: int
    ) -> Arrays:
        """``rule`` summed over states and leading axes."""
        if self.num_state > UNROLL_STATES:
            total = _sum(jax.vmap(rule)(signal, trace))
        else:
            rows = [rule(signal[s], _state(trace, s)) for s in range(self.num_state)]
            total = {key: sum(row[key] for row in rows) for key in trace}
        return {key: _sum_leading(leaf, axes) for key, leaf in total.items()}

    def _summed_by_example(
        self, rule: Callable[..., Arrays], signal: jax.Array, trace: Arrays, keys: Sequence[str]
    ) -> Arrays:
        """``rule`` summed over states and examples, for some keys.

        XLA's CPU backend runs this at the speed of the memory, in contrast to a sum over a leading
        axis, as long as every term is cut out of the whole arrays by itself.
        """

        def term(state: int, example: Any) -> Arrays:
            at = partial(_one_example, state=state, example=example)
            one = rule(at(signal), {key: at(leaf) for key, leaf in trace.items()})
            return {key: one[key][0] for key in keys}

        def add(total: Arrays, example: Any) -> tuple[Arrays, None]:
            for s, b in product(range(self.num_state), range(EXAMPLES_AT_ONCE)):
                total = jax.tree.map(jnp.add, total, term(s, example + b))
            return total, None

        examples = signal.shape[1]
        rest = examples % EXAMPLES_AT_ONCE
        first = [term(s, b) for s, b in product(range(self.num_state), range(rest))]
        like = jax.eval_shape(term, 0, 0)
        zeros = jax.tree.map(_wide_zeros, like)
        total = jax.tree.map(lambda *terms: sum(terms), zeros, *first)
        total, _ = jax.lax.scan(add, total, jnp.arange(rest, examples, EXAMPLES_AT_ONCE))
        return jax.tree.map(lambda v, one: v.astype(one.dtype), total, like)


def _large(trace: Arrays) -> tuple[str, ...]:
    """Keys of the leaves that are added up example by example, where that is faster."""
    return tuple(key for key, leaf in trace.items() if leaf[0, 0].size >= LARGE_EXAMPLE)


def _wide_zeros(like: Any) -> jax.Array:
    """Zeros to add many terms to, one by one: in half precision the sum would stop growing."""
    return jnp.zeros(like.shape, jnp.promote_types(like.dtype, jnp.float32))


def _one_example(array: jax.Array, state: int, example: Any) -> jax.Array:
    """One state of one example of [S, B, ..]: [1, ..]."""
    start = (state, example, *(0,) * (array.ndim - 2))
    return jax.lax.dynamic_slice(array, start, (1, 1, *array.shape[2:]))[0]


def _sum_leading(array: Any, axes: int) -> jax.Array:
    """Sum over leading axes by halves.

    Each halving is an element-wise addition of large arrays, which compilers vectorise; XLA's CPU
    backend runs a plain sum over a leading axis as strided scalar loops, 200 times slower.
    """
    for _ in range(axes):
        rest = None
        while array.shape[0] > 1:
            half = array.shape[0] // 2
            if array.shape[0] % 2:
                rest = array[-1] if rest is None else rest + array[-1]
            array = array[:half] + array[half : 2 * half]
        array = array.sum(0) if rest is None else array.sum(0) + rest
    return array


def _sum(trace: Arrays) -> Arrays:
    """The sum over the leading axis of every leaf."""
    return {key: leaf.sum(0) for key, leaf in trace.items()}


def _state(trace: Arrays, s: int) -> Arrays:
    return {key: leaf[s] for key, leaf in trace.items()}


def _stack(rows: Sequence[Arrays], keys: Sequence[str]) -> Arrays:
    return {key: jnp.stack([row[key] for row in rows]) for key in keys}


def _sum_over_steps(rule: Callable[[Any, jax.Array], Arrays], x: Any, f: jax.Array) -> Arrays:
    """``sum_k rule(x[k], f[k])`` without holding more than one term."""
    shapes = jax.eval_shape(lambda a, b: rule(jax.tree.map(lambda v: v[0], a), b[0]), x, f)

    def add(total: Arrays, step: Any) -> tuple[Arrays, None]:
        return jax.tree.map(jnp.add, total, rule(*step)), None

    zeros = jax.tree.map(lambda v: jnp.zeros(v.shape, v.dtype), shapes)
    return jax.lax.scan(add, zeros, (x, f))[0]


def _written(rule: Callable[..., Any] | None) -> Callable[..., Any]:
    """A rule that is known to be there."""
    if rule is None:
        raise TypeError("this rule is derived, not written")
    return rule


def call_init(
    rule: Callable[..., Any] | None,
    x_var: Any,
    y_var: Any,
    weight_vars: Mapping[str, Any],
    num_state: int,
    params: Mapping[str, Any],
    group: Any,
) -> Any:
    """Call an ``init_*`` rule, with ``eqn_params`` and ``group`` if it declares them."""
    rule = _written(rule)
    known = {"eqn_params": dict(params), "group": group}
    optional = {name: value for name, value in known.items() if _declares(rule, name)}
    return rule(x_var, y_var, dict(weight_vars), num_state, **optional)


def output_trace(operation: Operation, num_state: int) -> jax.ShapeDtypeStruct:
    """The type of the output-dimension trace [*Y, S]: the family's ``init_pp``, or like ``y``.

    Raises
    ------
    CompilationError
        When ``init_pp`` gives something else than floating-point numbers of that shape.
    """
    spec, y = operation.spec, operation.y_aval
    expected = jax.ShapeDtypeStruct((*y.shape, num_state), y.dtype)
    if spec.init_pp is None:
        return expected
    found = jax.eval_shape(lambda: operation.initial(spec.init_pp, num_state))
    right = isinstance(found, jax.ShapeDtypeStruct) and found.shape == expected.shape
    if not right or not jnp.issubdtype(found.dtype, jnp.floating):
        raise CompilationError(
            f"init_pp of {spec.name!r} gives {found}; expected floating-point zeros of shape "
            f"{expected.shape}, the axes of y and then {num_state} states"
        )
    return found


# --- dense ------------------------------------------------------------------------------------


class DenseTrace(TraceRules):
    """Leaves are [S, *E, *Y, *W]: the derivative of every state of every position.

    ``eps[s, p, w] = d h[p, s] / d w``, with ``d y[p] / d w`` from the Jacobian of ``impl``. Exact
    for every operation; memory and time grow with positions times parameters.
    """

    @property
    def types(self) -> dict[str, jax.ShapeDtypeStruct]:
        op = self.operation
        head = (self.num_state, *self.extra, *op.y_aval.shape)
        weights = {key: op.operand_avals[op.positions[key]] for key in op.traced}
        return {
            key: jax.ShapeDtypeStruct((*head, *weight.shape), op.y_aval.dtype)
            for key, weight in weights.items()
        }

    def propagate(self, transition: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        states = range(self.num_state)

        def one(leaf: jax.Array) -> jax.Array:
            wide = transition.reshape(*transition.shape, *(1,) * (leaf.ndim - transition.ndim + 1))
            if self.num_state > UNROLL_STATES:
                return jax.lax.map(lambda row: (row * leaf).sum(0), wide)
            return jnp.stack([sum(wide[i, j] * leaf[j] for j in states) for i in states])

        return {key: one(leaf) for key, leaf in trace.items()}

    def scaled(self, factor: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        def one(leaf: jax.Array) -> jax.Array:
            return factor.reshape(*factor.shape, *(1,) * (leaf.ndim - factor.ndim)) * leaf

        return {key: one(leaf) for key, leaf in trace.items()}

    def _jacobian(self, x: Any, operands: Sequence[Any]) -> Arrays:
        """``d y / d w`` [*Y, *W] of one step, example by example when batched."""
        op = self.operation
        weights = op.weights(operands)

        def of_weights(x_one: Any) -> Arrays:
            return jax.jacrev(lambda w: op.run(x_one, w, operands))(weights)

        if not op.spec.batched:
            return of_weights(x)
        single = jax.vmap(lambda x_b: of_weights(x_b[None]))(x)
        return {key: value[:, 0] for key, value in single.items()}

    def increments(self, x: Any, f: jax.Array, operands: Sequence[Any]) -> Arrays:
        def one_step(x_k: Any, f_k: jax.Array) -> Arrays:
            jacobian = self._jacobian(x_k, operands)
            return {key: self._outer(f_k, jacobian[key]) for key in self.operation.traced}

        return one_step(None, f.sum(0)) if x is None else _sum_over_steps(one_step, x, f)

    def _outer(self, f: jax.Array, jacobian: jax.Array) -> jax.Array:
        """[S, *E, *Y] and [*Y, *W] -> [S, *E, *Y, *W]."""
        weight_ndim = jacobian.ndim - len(self.operation.y_aval.shape)
        return f.reshape(*f.shape, *(1,) * weight_ndim) * jacobian

    def solve(self, signal: jax.Array, trace: Arrays, operands: Sequence[Any]) -> Arrays:
        axes = tuple(range(signal.ndim))
        return {key: jnp.tensordot(signal, leaf, (axes, axes)) for key, leaf in trace.items()}
