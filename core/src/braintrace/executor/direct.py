# SPDX-License-Identifier: Apache-2.0
"""Products with parameters that act on the loss of their own step: a readout, a gate, a filter.

Their gradient needs no trace, but reverse mode of every single step would add up an array of the
size of the parameter per step. Instead, zero is added to the result of each product ``y``, whose
gradient is ``dL/dy``, and the parameters are constants in it; over a block of ``K`` steps the
gradient is then one product,

    dL/dw = sum_k (dy/dw)^T(x^k) dL^k/dy^k.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.precision import pulled_in, start_of_sum, wide_dtype, widened, widened_dtype
from ..base.types import bytes_of
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var
from ..jaxprs.depends import Along, depends, marks_of, moving_with, slice_to
from ..jaxprs.pull import pulled_in_parts
from ..jaxprs.run import read, run_equations
from ..jaxprs.stages import PRODUCTS
from ..ops.operation import Operation, fits_parts, split
from ..ops.primitive import is_etp_primitive

#: Those that are taken for products where examples are divided: a sum over them is one of devices.
ELEMENTWISE = (jax.lax.add_p, jax.lax.sub_p, jax.lax.mul_p, jax.lax.div_p)


@dataclass(frozen=True, eq=False)
class DirectProduct:
    """One product of a step: the equation ``eqn``, by number ``index``.

    ``moving`` are the positions of the operands that change from step to step, ``x``, and
    ``trained`` those of the operands that lead to wanted parameters, the inputs ``leaves``. Sums
    are no narrower than ``wide``.
    """

    index: int
    eqn: JaxprEqn
    moving: tuple[int, ...]
    trained: tuple[int, ...]
    wide: Any
    leaves: frozenset[int] = frozenset()

    def contract(
        self, moving: Sequence[Any], dy: jax.Array, operands: Sequence[Any], parts: int
    ) -> list[Any]:
        """Cotangents of the ``trained`` operands, summed over ``K`` steps.

        From the moving operands [K, ...], the cotangents of the result [K, *Y], and the others.
        Those of parts of the examples come first, where sums over these can be held in parts.
        """
        if not is_etp_primitive(self.eqn.primitive):
            axis = self._examples(parts)
            if axis is None:
                return self._pulled(moving, dy, operands)
            of_parts = split(moving[0], 1, parts), split(dy, 1 + axis, parts)
            return jax.vmap(lambda x, dy: self._pulled([x], dy, operands))(*of_parts)
        spec = self.eqn.primitive.spec
        positions = spec.resolve_trainable_invars(self.eqn.params)
        avals, y_aval = tuple(a.aval for a in self.eqn.invars), self.eqn.outvars[0].aval
        keys = {i: key for key, i in positions.items() if i in self.trained}
        chosen = tuple(keys.values())
        operation = Operation(spec, self.eqn.params, avals, y_aval, chosen, least=self.wide)
        found = operation.contract(moving[0] if moving else None, dy, operands, parts)
        types = {i: operation.cotangent_type(key) for i, key in keys.items()}
        return [found[keys[i]].astype(types[i].dtype) for i in self.trained]

    def _examples(self, parts: int) -> int | None:
        """Along which axis of a plain product there may be the examples: the first one moving."""
        (k,), shapes = self.moving, [atom.aval.shape for atom in self.eqn.invars]
        if not fits_parts(shapes[k], parts):
            return None
        if self.eqn.primitive in ELEMENTWISE:
            return 0 if all(shapes[i][:1] in ((), (1,)) for i in self.trained) else None
        if self.eqn.primitive is not jax.lax.dot_general_p:
            return None
        contracted, batch = self.eqn.params["dimension_numbers"]
        if 0 in (*contracted[k], *batch[k]):
            return None
        return len(shapes[0]) - len(contracted[0]) if k else len(batch[0])

    def of_each(
        self, moving: Sequence[Any], dy: jax.Array, operands: Sequence[Any], examples: int
    ) -> list[Any]:
        """Those of every example by itself [examples, ..], which is the first axis of the result.

        What is not held in parts is computed with zeros for all other examples.
        """
        plain = not is_etp_primitive(self.eqn.primitive)
        first = not plain or self._examples(examples) in (None, 0)  # of axes of the result
        found = self.contract(moving, dy, operands, examples if first else 1)
        avals = [self.eqn.invars[k].aval for k in self.trained]
        if all(bar.ndim > aval.ndim for bar, aval in zip(found, avals, strict=True)):
            return found
        if examples == 1:
            return [bar[None] for bar in found]
        number, shape = jnp.arange(examples), self.eqn.outvars[0].aval.shape
        if self.eqn.primitive in ELEMENTWISE and all(aval.shape == shape for aval in avals):
            return [_of_each(bar, number, 0) for bar in found]
        return jax.vmap(lambda dy: self.contract(moving, dy, operands, 1))(_of_each(dy, number, 1))

    def _pulled(self, moving: Sequence[Any], dy: jax.Array, operands: Sequence[Any]) -> list[Any]:
        moving, dy, operands = widened((list(moving), dy, [*operands]), self.wide)
        eqn = versions.with_results_of(self.eqn, partial(widened_dtype, wide=self.wide))

        def run(trained: Sequence[Any]) -> jax.Array:
            def one(*moving: Any) -> Any:
                changed = zip((*self.trained, *self.moving), (*trained, *moving), strict=True)
                full = {**dict(enumerate(operands)), **dict(changed)}
                return versions.bind_equation(eqn, [*full.values()])[0]

            return jax.vmap(one)(*moving)

        y, pull = jax.vjp(run, [operands[i] for i in self.trained])
        return pulled_in(y.dtype, lambda dy: pull(dy)[0], dy)


@dataclass(frozen=True, eq=False)
class DirectProducts:
    """The products of a step whose direct gradients are taken block by block.

    ``jaxpr`` is the step; its first result is the loss. ``chains`` are the equations that compute
    the operands of the products from parameters alone, and ``leaves`` the inputs behind them.
    ``ends`` are the results whose gradients are taken: the loss, and others that are asked for.
    """

    jaxpr: Jaxpr
    products: tuple[DirectProduct, ...]
    chains: tuple[int, ...]
    leaves: tuple[int, ...]
    ends: tuple[Atom, ...]

    @property
    def bytes_per_step(self) -> int:
        """Memory of what a step of a block records: moving operands, and gradients of results."""
        moving = (p.eqn.invars[k] for p in self.products for k in p.moving)
        recorded = {*filter(versions.is_var, moving), *(p.eqn.outvars[0] for p in self.products)}
        return bytes_of([var.aval for var in recorded])

    def start_of_sum(self, leaf: int, value: Any) -> jax.Array:
        """Zeros to add gradients of a leaf to, as wide as :meth:`gradients` gives them."""
        start = start_of_sum(value)
        wide = wide_dtype(*(product.wide for product in self.products))
        return widened(start, wide) if leaf in self.leaves else start

    def shifts(self) -> tuple[jax.Array, ...]:
        """Zeros to add to the results of the products."""
        results = (product.eqn.outvars[0].aval for product in self.products)
        return tuple(jnp.zeros(y.shape, y.dtype) for y in results)

    @cached_property
    def elsewhere(self) -> frozenset[int]:
        """Inputs with a differentiable path to an end that is not cut at a product."""
        cut = {p.index: p.trained for p in self.products}
        marks = depends(
            self.jaxpr.eqns,
            {v: frozenset({i}) for i, v in enumerate(self.jaxpr.invars)},
            lambda i, eqn, operand: operand not in cut.get(i, ()),
            along=Along.DERIVATIVES,
        )
        return marks_of(marks, self.ends)

    def run(
        self, values: Sequence[Any], shifts: Sequence[jax.Array]
    ) -> tuple[list[Any], tuple[tuple[Any, ...], ...]]:
        """Results of the step, and the moving operands of every product."""
        env = versions.start_env(self.jaxpr, values)
        by_index = {p.index: (p, s) for p, s in zip(self.products, shifts, strict=True)}
        recorded = []
        for i, eqn in enumerate(self.jaxpr.eqns):
            if i not in by_index:
                run_equations([eqn], env)
                continue
            product, shift = by_index[i]
            operands = [read(env, atom) for atom in eqn.invars]
            recorded.append(tuple(operands[k] for k in product.moving))
            for k in product.trained:
                operands[k] = jax.lax.stop_gradient(operands[k])
            (y,) = versions.bind_equation(eqn, operands)
            env[eqn.outvars[0]] = y + shift
        return [read(env, atom) for atom in self.jaxpr.outvars], tuple(recorded)

    def gradients(
        self,
        values: Mapping[int, Any],
        recorded: Sequence[Any],
        dys: Sequence[jax.Array],
        parts: int = 1,
        others: Container[int] | None = None,
        each: bool = False,
    ) -> dict[int, Any]:
        """Direct gradients of the parameters, by input, summed over ``K`` steps, as wide as sums.

        Of every product, ``recorded`` are the moving operands [K, ...], and ``dys`` the gradients
        of the shifts [K, *Y]. With ``parts``, those that have several terms are those of parts of
        the examples [parts, ..]; ``others`` are inputs with a further term elsewhere, if not all.
        ``each``: parts are examples, and all gradients are [parts, ..].
        """

        env = versions.constants(self.jaxpr)
        env.update((self.jaxpr.invars[i], v) for i, v in values.items())
        given, chain = dict(env), [self.jaxpr.eqns[i] for i in self.chains]
        run_equations(chain, env)
        made = {var: eqn for eqn in chain for var in eqn.outvars}
        terms = Counter(i for product in self.products for i in product.leaves)
        targets: list[tuple[Any, Any]] = []
        for p, moving, dy in zip(self.products, recorded, dys, strict=True):
            atoms = p.eqn.invars
            held = [None if k in p.moving else read(env, a) for k, a in enumerate(atoms)]
            several = any(terms[i] > 1 or others is None or i in others for i in p.leaves)
            contract = p.of_each if each else p.contract
            bars = contract(moving, dy, held, own := parts if several or each else 1)
            pairs = zip((atoms[k] for k in p.trained), bars, strict=True)
            targets += (_in_front_of_broadcast(*pair, made, own) for pair in pairs)
        leaves = {self.jaxpr.invars[i]: values[i] for i in self.leaves}
        found = pulled_in_parts(leaves, given, chain, targets)
        inputs = {self.jaxpr.invars[i]: i for i in self.leaves}
        return {inputs[var]: value for var, value in found.items()}


def _in_front_of_broadcast(
    atom: Atom, bar: Any, made: Mapping[Var, JaxprEqn], parts: int
) -> tuple[Atom, Any]:
    """The cotangent in parts of what is the same for all examples, from that of all of them."""
    eqn = made.get(atom) if versions.is_var(atom) else None
    if eqn is None or eqn.primitive is not jax.lax.broadcast_in_dim_p or not versions.is_var(atom):
        return atom, bar
    (operand,), axes = eqn.invars[:1], eqn.params["broadcast_dimensions"]
    shape, same = operand.aval.shape, 0 not in axes or operand.aval.shape[axes.index(0)] == 1
    if not same or bar.ndim > len(atom.aval.shape) or not fits_parts(bar.shape, parts):
        return atom, bar
    cut = (bar.shape[0] // parts, *bar.shape[1:])
    _, pull = jax.vjp(
        lambda one: jax.lax.broadcast_in_dim(one, cut, axes), jnp.zeros(shape, bar.dtype)
    )
    return operand, jax.vmap(pull)(split(bar, 0, parts))[0]


def _of_each(array: jax.Array, number: jax.Array, axis: int) -> jax.Array:
    """An array of all examples for every one of them, with zeros for the others."""
    own = jnp.expand_dims(number, (*range(1, array.ndim - axis),))
    return jnp.where(jnp.expand_dims(number, (*range(1, array.ndim + 1),)) == own, array, 0)


def direct_products(
    jaxpr: Jaxpr,
    parameters: frozenset[int],
    wanted: frozenset[int],
    more: Sequence[Atom] = (),
    divided: bool = False,
) -> DirectProducts:
    """Find the products of a step, whose first result is the loss, with wanted parameters.

    These are some of ``parameters``, the inputs that do not change during the step. ``more`` are
    results whose gradients are taken, too. ``divided``: examples lie on several devices.
    """
    known = (*PRODUCTS, *(ELEMENTWISE if divided else ()))
    ends = (*jaxpr.outvars[:1], *more)
    eqns, invars = jaxpr.eqns, jaxpr.invars
    moves = moving_with(eqns, (v for i, v in enumerate(invars) if i not in parameters))
    led = depends(eqns, {invars[i]: frozenset({i}) for i in wanted}, along=Along.DERIVATIVES)
    useful = slice_to(eqns, ends, along=Along.DERIVATIVES)
    chosen = (
        i for i in useful if is_etp_primitive(eqns[i].primitive) or eqns[i].primitive in known
    )
    if divided:  # what is made of parameters alone meets the examples later
        chosen = (
            i for i in chosen if not moves.isdisjoint(filter(versions.is_var, eqns[i].invars))
        )
    candidates = (_product(i, eqns[i], moves, led, invars) for i in chosen)
    found = tuple(product for product in candidates if product is not None)
    behind = [a for p in found for k, a in enumerate(p.eqn.invars) if k not in p.moving]
    leaves = {i for p in found for k in p.trained for i in led[p.eqn.invars[k]]}
    chains = slice_to(eqns, behind, along=Along.EQUATIONS)
    return DirectProducts(jaxpr, found, tuple(chains), tuple(sorted(leaves)), ends)


def _product(
    index: int, eqn: JaxprEqn, moves: Container[Var], led: Mapping[Var, Any], inputs: Sequence[Var]
) -> DirectProduct | None:
    """The product that an equation is: some operands change, and the others lead to parameters."""
    variables = {k: a for k, a in enumerate(eqn.invars) if versions.is_var(a)}
    moving = tuple(k for k, a in variables.items() if a in moves)
    trained = tuple(k for k, a in variables.items() if led.get(a) and k not in moving)
    if not trained:
        return None
    behind = frozenset(i for k in trained for i in led[variables[k]])
    atoms = (*(inputs[i] for i in behind), *eqn.outvars)
    wide = wide_dtype(*(atom.aval.dtype for atom in atoms))
    if is_etp_primitive(eqn.primitive):
        spec = eqn.primitive.spec
        trainable = spec.resolve_trainable_invars(eqn.params).values()
        x = () if spec.x_invar_index is None else (spec.x_invar_index,)
        fits = {*trained} <= {*trainable} and {*moving} <= {*x}
        return DirectProduct(index, eqn, x, trained, wide, behind) if fits else None
    return DirectProduct(index, eqn, moving, trained, wide, behind) if len(moving) == 1 else None
