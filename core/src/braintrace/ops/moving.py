# SPDX-License-Identifier: Apache-2.0
"""Operations whose weights change from step to step: ``y^t = op(x^t, g(w, m^t))``.

``m^t`` is made of inputs and states: the index of one weight of several, a mask. It goes with the
input, ``x' = [x, m]``, and the trainable operand is ``w``, which is constant over time. As long as
every entry of ``g(w, m)`` is made from entries of ``w`` at its own place, along leading axes of
``w`` that it may have more, the trace of ``w`` is that of the operation with these axes,

    eps^t = D^t eps^{t-1} + (dg/dw at m^t)^T (f^t (x) x^t)

Where entries change their places, or the operation keeps no trace of each entry (low rank), the
trace has an entry for each position of ``y`` and each entry of ``w``, which holds for every ``g``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.errors import NotSupportedError
from .primitive import ETPPrimitive
from .repeated import RepeatedSpec, rows_of
from .spec import ETPPrimitiveSpec


@dataclass(frozen=True, eq=False)
class Made:
    """How one operand is made: ``function(w, *values)`` of type ``aval``.

    ``values`` are numbers of the values that move, ``extra`` the leading axes that ``w`` has more.
    ``axes`` says which axes of the operation's own trace run along those of what is made that have
    more than one entry, both counted from the end; ``None``: the last ones, in their order.
    """

    function: Callable[..., Any]
    values: tuple[int, ...]
    aval: Any
    extra: tuple[int, ...] = ()
    axes: Mapping[int, int] | None = None

    @property
    def along(self) -> dict[int, int]:
        """:attr:`axes`, or what is meant by ``None``."""
        own = range(-len(self.aval.shape), 0)
        return dict(zip(own, own, strict=True)) if self.axes is None else dict(self.axes)


@dataclass(frozen=True, eq=False)
class MovingSpec(ETPPrimitiveSpec):
    """The specification of an operation with moving weights.

    ``one`` is the primitive of the operation, ``made`` says by position how its operands are made,
    and ``packed`` are the types of what ``x'`` holds: ``x``, if there is one, and what moves.
    ``dense``: the trace is over positions of ``y`` and entries of ``w``.
    """

    one: Any = None
    made: Mapping[int, Made] = field(default_factory=dict)
    packed: tuple[Any, ...] = ()
    dense: bool = False

    def unpacked(self, x: jax.Array) -> tuple[Any, list[Any]]:
        """``x`` (``None`` for an operation without) and the values that move."""
        found, start = [], 0
        for aval in self.packed:
            size = math.prod(aval.shape)
            value = x[start : start + size].reshape(aval.shape)
            whole = not jnp.issubdtype(aval.dtype, jnp.floating)
            found.append((jnp.round(value) if whole else value).astype(aval.dtype))
            start += size
        return (None, found) if self.one.spec.x_invar_index is None else (found[0], found[1:])

    def operands(self, operands: Sequence[Any], values: Sequence[Any]) -> list[Any]:
        """The operands of ``one`` but ``x``."""
        full = [*operands[: len(operands) - (self.one.spec.x_invar_index is None)]]
        for k, made in self.made.items():
            full[k] = made.function(full[k], *(values[i] for i in made.values))
        return full

    def pulled(
        self, operands: Sequence[Any], values: Sequence[Any]
    ) -> dict[int, Callable[[Any], Any]]:
        """By position, ``(dg/dw)^T``: from cotangents of what is made to those of ``w``."""

        def back(k: int, made: Made) -> Callable[[Any], Any]:
            own = [values[i] for i in made.values]
            new, pull = jax.vjp(lambda w: made.function(w, *own), operands[k])
            return lambda cotangent: pull(cotangent.astype(new.dtype))[0]

        return {k: back(k, made) for k, made in self.made.items()}


def pack(values: Sequence[Any]) -> jax.Array:
    """``x'``: values behind one another."""
    dtype = jnp.result_type(jnp.float32, *(v for v in values if versions.is_float(v)))
    return jnp.concatenate([jnp.ravel(v).astype(dtype) for v in values])


class MovingPrimitive(ETPPrimitive):
    """The primitive of one operation with moving weights. It is not registered."""

    spec: MovingSpec

    def _mapped(self, args: Any, x: jax.Array, params: Any) -> tuple[jax.Array, int]:
        """What moves, moves for each example by itself."""
        of_examples = ExamplesPrimitive(rows_of(self, ExamplesSpec, "examples"), self.owner)
        return of_examples.bind(*self._with(args, x), **params), 0


def moving(
    one: ETPPrimitive, made: Mapping[int, Made], packed: Sequence[Any], dense: bool = False
) -> MovingPrimitive:
    """The primitive of ``one`` with some operands made anew at every step.

    Its operands are those of ``one``, with ``w`` in the place of what is made, and ``x'`` in that
    of ``x``, or behind them if there is none.
    """
    spec, x_index = one.spec, one.spec.x_invar_index

    def impl(*operands: Any, **params: Any) -> Any:
        at = -1 if x_index is None else x_index
        x, values = made_spec.unpacked(operands[at])
        full = made_spec.operands(operands, values)
        if x_index is not None:
            full[x_index] = x
        return spec.impl(*full, **params)

    made_spec = MovingSpec(
        name=f"{one.name}_moving",
        impl=impl,
        trainable_invars_fn=spec.resolve_trainable_invars,
        x_invar_index=_places(one, made) if x_index is None else x_index,
        gradient_enabled=spec.gradient_enabled,
        one=one,
        made=dict(made),
        packed=tuple(packed),
        dense=dense,
    )
    return MovingPrimitive(made_spec, one.owner)


def _places(one: ETPPrimitive, made: Mapping[int, Made]) -> int:
    """Where ``x'`` of an operation without input stands: behind its only operand."""
    if {*made} != {0}:
        raise NotSupportedError(f"{one.name!r} has several operands and no x")
    return 1


@dataclass(frozen=True, eq=False)
class ExamplesSpec(RepeatedSpec):
    """That of ``one`` for a batch of examples, each with weights of its own."""


class ExamplesPrimitive(ETPPrimitive):
    """The primitive of an operation with moving weights for a batch of examples."""

    spec: ExamplesSpec

    def _mapped(self, args: Any, x: jax.Array, params: Any) -> tuple[jax.Array, int]:
        return self._folded(args, x, params), 0
