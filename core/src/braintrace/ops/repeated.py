# SPDX-License-Identifier: Apache-2.0
"""One operation in the place of all iterations of one: ``y[k] = op(x[k], w)``.

An operation in a loop of ``n`` iterations, with the same weights in each, has ``n`` inputs and
``n`` results. Where all results reach the same positions of a hidden group, their traces are
propagated by the same ``D``, so that their sum is one trace of the size of one:

    eps^t = D^t eps^{t-1} + sum_k f_k^t (x) x_k^t
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import jax

from .primitive import ETPPrimitive, batched_form
from .spec import ETPPrimitiveSpec


@dataclass(frozen=True, eq=False)
class RepeatedSpec(ETPPrimitiveSpec):
    """The specification of a repeated operation; ``one`` is the primitive that it repeats.

    ``x`` and ``y`` are those of ``one`` behind a leading axis of iterations.
    """

    one: Any = None


class RepeatedPrimitive(ETPPrimitive):
    """The primitive of a repeated operation. It is not registered: it follows from another one."""

    spec: RepeatedSpec

    def _mapped(self, args: Any, x: jax.Array, params: Any) -> tuple[jax.Array, int]:
        """Every iteration is that of the batched form of the operation."""
        one, x = self.spec.one, x.swapaxes(0, 1)  # [n, examples, *X]
        if not one.spec.batched:
            return repeated(batched_form(one)).bind(*self._with(args, x), **params), 1
        y = self.bind(*self._with(args, x.reshape(x.shape[0], -1, *x.shape[3:])), **params)
        return y.reshape(*x.shape[:3], *y.shape[2:]), 1

    def __reduce__(self) -> Any:
        return repeated, (self.spec.one,)


_KNOWN: weakref.WeakKeyDictionary[ETPPrimitive, tuple[ETPPrimitiveSpec, RepeatedPrimitive]]
_KNOWN = weakref.WeakKeyDictionary()


def repeated(one: ETPPrimitive) -> RepeatedPrimitive:
    """The primitive that repeats another one, or a longer repetition of a repeated one."""
    spec, known = _KNOWN.get(one, (None, None))
    if known is None or spec is not one.spec:
        made = rows_of(one)
        if known is None:
            known = RepeatedPrimitive(made, one.owner)
        else:
            known._define(made)
        _KNOWN[one] = one.spec, known
    return known


def rows_of(
    one: ETPPrimitive, kind: type[RepeatedSpec] = RepeatedSpec, name: str = "repeated"
) -> RepeatedSpec:
    """The specification of what runs a primitive for each row of its ``x``."""
    spec = one.spec

    def impl(*operands: Any, **params: Any) -> Any:
        axes = tuple(0 if i == spec.x_invar_index else None for i in range(len(operands)))
        return jax.vmap(lambda *a: spec.impl(*a, **params), in_axes=axes)(*operands)

    return kind(
        name=f"{one.name}_{name}",
        impl=impl,
        trainable_invars_fn=spec.resolve_trainable_invars,
        x_invar_index=spec.x_invar_index,
        gradient_enabled=spec.gradient_enabled,
        one=one,
    )


def repeat(one: ETPPrimitive, operands: list[Any], params: dict[str, Any]) -> jax.Array:
    """``one`` for every iteration: its ``x`` has them along its leading axis, as the result has."""
    if not isinstance(one.spec, RepeatedSpec):
        return repeated(one).bind(*operands, **params)
    return one._folded(operands, operands[one.spec.x_invar_index], params)  # type: ignore[index]
