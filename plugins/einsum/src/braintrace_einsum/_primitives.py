# SPDX-License-Identifier: Apache-2.0
"""The primitives of a contraction ``y = einsum(x, weight) + bias``, by what its letters are for.

All have the static parameter ``equation``, ``"x,weight->y"`` or ``"x,weight,bias->y"``, of one
example; with ``_batched`` in the name, ``x`` and ``y`` have one more axis in front, the examples
(``B`` below). :class:`~braintrace_einsum._equation.Equation` says what letters are for.

- ``etp_einsum``: every letter of ``y`` is one of the weight. An entry of the weight feeds one
  position of ``y``, so the trace is shaped like the weight.
- ``etp_einsum_shared``: one weight serves several positions ``P``, each with a transition of its
  own. The exact trace [P, *W] has an entry for each position and entry of the weight ::

      eps[b, p, w] = sum_t  D..D f^t[b, p, .]  x^t[b, p, .]

  and the positions are summed when a trace is solved, not before.
- ``etp_einsum_elementwise`` and ``etp_einsum_elementwise_shared``: the same where every position of
  ``y`` reads its own entry of ``x`` alone. Hidden-to-hidden gradients pass through these, since
  nothing is mixed.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from braintrace.plugin_api import ETPPrimitiveSpec

from ._equation import EXAMPLES, STEPS, Equation

Arrays = dict[str, jax.Array]


def _trainable(params: dict[str, Any]) -> dict[str, int]:
    bias = Equation.read(params["equation"]).bias if "equation" in params else None
    return {"weight": 1} if bias is None else {"weight": 1, "bias": 2}


def _spread(value: Any, letters: str, onto: str) -> jax.Array:
    """An array with ``letters`` such that it broadcasts against one with the letters ``onto``."""
    order = [letter for letter in onto if letter in letters]
    value = jnp.transpose(value, [letters.index(letter) for letter in order])
    sizes = iter(value.shape)
    return value.reshape([next(sizes) if letter in letters else 1 for letter in onto])


class Rules:
    """The rules for operands with letters of their own; those of the examples are in front."""

    def __init__(self, batched: bool) -> None:
        self.batched = batched

    def letters(self, equation: str) -> Equation:
        """What an equation says, with a letter for the examples."""
        one = Equation.read(equation)
        return one.with_letter(EXAMPLES) if self.batched else one

    def impl(self, x: Any, weight: Any, *bias: Any, equation: str) -> jax.Array:
        of = self.letters(equation)
        y = jnp.einsum(f"{of.x},{of.weight}->{of.y}", x, weight)
        if of.bias is not None:
            y = y + jnp.broadcast_to(_spread(bias[0], of.bias, of.y), y.shape)
        return y

    def xy_to_dw(self, x: jax.Array, dy: jax.Array, weights: Arrays, equation: str) -> Arrays:
        of = self.letters(equation)
        return {
            key: jnp.einsum(f"{of.x},{of.y}->{of.weight}", x, dy)
            if key == "weight"
            else jnp.einsum(f"{of.y}->{of.bias}", dy)
            for key in weights
        }

    def of_trace(self, of: Equation, key: str) -> str:
        """The letters of a trace: positions, then those of the parameter."""
        return of.positions + ((of.weight if key == "weight" else of.bias) or "")

    def yw_to_w(self, dy: jax.Array, trace: Arrays, equation: str) -> Arrays:
        of = self.letters(equation)
        return {
            key: leaf * _spread(dy, of.y, self.of_trace(of, key)) for key, leaf in trace.items()
        }

    def init_drtrl(
        self,
        x_var: Any,
        y_var: Any,
        weight_vars: dict[str, Any],
        num_state: int,
        *,
        eqn_params: dict[str, Any],
    ) -> Arrays:
        of, y = self.letters(eqn_params["equation"]), y_var.aval
        head = tuple(y.shape[of.y.index(letter)] for letter in of.positions)
        return {
            key: jnp.zeros((*head, *var.aval.shape, num_state), y.dtype)
            for key, var in weight_vars.items()
        }

    def init_pp(self, x_var: Any, y_var: Any, weight_vars: Any, num_state: int) -> jax.Array:
        return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)

    def instant_drtrl(self, x: jax.Array, f: jax.Array, weights: Arrays, equation: str) -> Arrays:
        return self._read(self.letters(equation), "", x, f, weights)

    def increments_drtrl(
        self, x: jax.Array, f: jax.Array, weights: Arrays, equation: str
    ) -> Arrays:
        return self._read(self.letters(equation), STEPS, x, f, weights)

    def _read(
        self, of: Equation, steps: str, x: jax.Array, f: jax.Array, weights: Arrays
    ) -> Arrays:
        """What each position has read, times its factor; summed over the steps, if any."""
        x_letters, y_letters = steps + of.x, steps + of.y
        read = f"{x_letters},{y_letters}->{self.of_trace(of, 'weight')}"
        return {
            key: jnp.einsum(read, x, f)
            if key == "weight"
            else jnp.einsum(f"{y_letters}->{self.of_trace(of, key)}", f)
            for key in weights
        }

    def solve_drtrl(
        self, signal: jax.Array, trace: Arrays, weights: Arrays, equation: str
    ) -> Arrays:
        of = self.letters(equation)
        return {
            key: jnp.einsum(
                f"{of.y},{self.of_trace(of, key)}->{of.weight if key == 'weight' else of.bias}",
                signal,
                leaf,
            )
            for key, leaf in trace.items()
        }


def _spec(name: str, batched: bool) -> ETPPrimitiveSpec:
    rules = Rules(batched)
    positions = {}
    if name.endswith("_shared"):
        positions = {
            rule: getattr(rules, rule)
            for rule in ("instant_drtrl", "increments_drtrl", "solve_drtrl")
        }
    return ETPPrimitiveSpec(
        name + "_batched" * batched,
        rules.impl,
        rules.yw_to_w,
        rules.xy_to_dw,
        rules.init_drtrl,
        rules.init_pp,
        _trainable,
        batched=batched,
        gradient_enabled="elementwise" in name,
        batched_counterpart=None if batched else f"{name}_batched",
        **positions,
    )


#: By whether it is element-wise, has positions, and is of a batch.
FORMS = {
    (elementwise, shared, batched): _spec(
        "etp_einsum" + "_elementwise" * elementwise + "_shared" * shared, batched
    )
    for elementwise in (False, True)
    for shared in (False, True)
    for batched in (False, True)
}
PRIMITIVES = tuple(FORMS.values())


def primitive_of(equation: Equation, batched: bool) -> ETPPrimitiveSpec:
    """The primitive that an equation of one example needs."""
    return FORMS[equation.elementwise, equation.positions != "", batched]
