# SPDX-License-Identifier: Apache-2.0
"""How many products a step of a model takes, counted in the program that JAX writes for it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import brainstate
import jax

import braintrace

from .cases import MODELS, example, loss, network, sequences
from .layers import PLAIN, TRACED
from .settings import Sizes


@dataclass(frozen=True)
class Product:
    """A matrix product [rows, inner] by [inner, columns], ``count`` times."""

    rows: int
    inner: int
    columns: int
    count: int = 1

    @property
    def flop(self) -> int:
        """Multiplications and additions."""
        return 2 * self.rows * self.inner * self.columns * self.count


@dataclass(frozen=True)
class Counts:
    """Floating-point operations of the products of one step.

    Attributes
    ----------
    forward
        The model and its loss.
    weights
        The weight gradients: once more the products with a weight. They can wait for the end of
        the sequence and be one product then.
    signals
        What else the gradient of this step's loss needs: from the readout, and from layer to layer.
    history
        What reverse mode through time needs besides: back through the recurrent products.
    largest
        The largest product of the model; the machine is measured with its sizes.
    """

    forward: int
    weights: int
    signals: int
    history: int
    largest: Product


def count(name: str, sizes: Sizes) -> Counts:
    """Count the products of a step.

    At one step every learning rule is reverse mode, so that the gradient of one step's loss for
    the weights has exactly the products that D-RTRL and pp_prop need, apart from their traces;
    reverse mode through time also takes a cotangent of the new states to one of the old ones.
    Element-wise work is not counted, nor are products with a sparse matrix other than as
    multiply-adds of its entries: the limit is one from below.
    """
    model = network(name, sizes, PLAIN if MODELS[name].plain else TRACED)
    x, y = (part[0] for part in sequences(name, sizes._replace(steps=1)))
    step = brainstate.transform.StatefulFunction(
        lambda x, y: loss(model(x), y), return_only_write=False
    )
    step.make_jaxpr(x, y)
    states = step.get_states(x, y)
    split = [isinstance(state, brainstate.ParamState) for state in states]
    params = [s.value for s, is_param in zip(states, split, strict=True) if is_param]
    hidden = [s.value for s, is_param in zip(states, split, strict=True) if not is_param]

    def run(params: list[Any], hidden: list[Any]) -> Any:
        of, others = iter(params), iter(hidden)
        values = tuple(next(of) if is_param else next(others) for is_param in split)
        new, found = step.jaxpr_call(values, x, y)
        return found, [v for v, is_param in zip(new, split, strict=True) if not is_param]

    def through_time(params: list[Any], hidden: list[Any]) -> Any:
        out, pull = jax.vjp(run, params, hidden)
        return pull(out)

    forward = [*products_of(run, params, hidden)]
    one_step = flop(products_of(jax.grad(run, has_aux=True), params, hidden))
    reverse = flop(products_of(through_time, params, hidden))
    once = flop(forward)
    largest = max(forward, key=lambda p: p.flop)
    return Counts(once, once, one_step - 2 * once, reverse - one_step, largest)


def flop(products: Iterator[Product] | list[Product]) -> int:
    """All operations of several products."""
    return sum(product.flop for product in products)


def products_of(function: Any, *arguments: Any) -> Iterator[Product]:
    """The products that a function takes, without those whose result nothing reads."""
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, live = set(jaxpr.outvars), []
    for eqn in reversed(jaxpr.eqns):
        if needed.intersection(eqn.outvars):
            live.append(eqn)
            needed.update(v for v in eqn.invars if not hasattr(v, "val"))
    for eqn in reversed(live):
        yield from _products(eqn)


def _products(eqn: Any) -> Iterator[Product]:
    """The products of an equation and of the programs in it (none of a benchmark is a loop)."""
    name = eqn.primitive.name
    if name == "dot_general":
        yield _dot(eqn)
    elif name == "conv_general_dilated":
        yield _convolution(eqn)
    elif name in ("bcoo_dot_general", "bcoo_dot_general_sampled"):
        yield _sparse(eqn)
    elif braintrace.is_etp_primitive(eqn.primitive):
        implementation = partial(eqn.primitive.spec.impl, **eqn.params)
        yield from products_of(implementation, *(v.aval for v in eqn.invars))
    else:
        for inner in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program):
            for one in getattr(getattr(inner, "jaxpr", inner), "eqns", ()):
                yield from _products(one)


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")


def _dot(eqn: Any) -> Product:
    (contracted, _), (batched, _) = eqn.params["dimension_numbers"]
    left, right = (v.aval.shape for v in eqn.invars)
    inner = math.prod(left[i] for i in contracted)
    batch = math.prod(left[i] for i in batched)
    rows = math.prod(left) // (inner * batch)
    return Product(rows, inner, math.prod(right) // (inner * batch), batch)


def _sparse(eqn: Any) -> Product:
    """A product with a sparse matrix; or the entries, where there are some, of a product of two."""
    (left, right), _ = eqn.params["dimension_numbers"]
    if eqn.primitive.name == "bcoo_dot_general":
        entries, dense = eqn.invars[0].aval.size, eqn.invars[2].aval
        return Product(dense.size // math.prod(dense.shape[i] for i in right), entries, 1)
    inner = math.prod(eqn.invars[0].aval.shape[i] for i in left)
    return Product(1, inner, eqn.outvars[0].aval.size)


def _convolution(eqn: Any) -> Product:
    kernel, out = eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
    columns = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
    return Product(math.prod(out) // columns, math.prod(kernel) // columns, columns)


def traces_of(name: str, sizes: Sizes) -> list[int]:
    """Bytes of every array of the D-RTRL traces of a model."""
    model = network(name, sizes)
    learner = braintrace.D_RTRL(model)
    learner.compile_graph(example(name, sizes))
    held = [trace.value for trace in learner.traces]
    return [leaf.nbytes for leaf in jax.tree.leaves(held)]
