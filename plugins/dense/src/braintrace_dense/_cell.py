# SPDX-License-Identifier: Apache-2.0
"""What all recurrent cells have in common: sizes, hidden states, checks of their input."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ClassVar, TypeVar, cast

import brainstate
import jax
import jax.numpy as jnp
import saiunit
from brainstate.nn import init

from braintrace.plugin_api import Initializer, Size, as_size, initial_value, keyword_key, seeded

from ._layers import ZEROS, Linear
from ._ops import matmul

Activation = str | Callable[[jax.Array], jax.Array]
Init = TypeVar("Init", bound=Callable[..., None])

ORTHOGONAL: Initializer = init.Orthogonal()
XAVIER: Initializer = init.XavierNormal()


class Cell(brainstate.nn.RNNCell):
    """Sizes and hidden states of a cell; the equations belong to its subclasses."""

    hidden_names: ClassVar[tuple[str, ...]] = ("h",)
    h: brainstate.HiddenState

    def __init__(
        self, in_size: Size, out_size: Size, state_init: Initializer, name: str | None
    ) -> None:
        super().__init__(name=name)  # type: ignore[call-arg]
        inputs, hidden = as_size("in_size", in_size), as_size("out_size", out_size)
        self.in_size, self.out_size = inputs, hidden
        self.num_in, self.num_out = inputs[-1], hidden[-1]
        self._hidden_size = hidden
        self.state_init = state_init

    @property
    def _joined_size(self) -> tuple[int, ...]:
        """Size of ``[x, h]``."""
        return (*as_size("in_size", self.in_size)[:-1], self.num_in + self.num_out)

    def _linear(
        self, in_size: Size, w_init: Initializer, b_init: Initializer | None = None
    ) -> Linear:
        """A linear map to the hidden units, whose parameters have no unit."""
        layer = Linear(in_size, self._hidden_size, w_init=w_init, b_init=b_init)
        for key, value in layer.weight.value.items():
            self._unitless(f"{key[0]}_init", value)
        return layer

    def _unitless(self, name: str, value: Any) -> Any:
        unit = saiunit.get_unit(value)
        if not unit.is_unitless:
            raise TypeError(
                f"{type(self).__name__}: {name} gives the unit {unit}, expected none: hidden "
                "states have no unit"
            )
        return value

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Create the hidden states, [out] or [batch_size, out]."""
        for name in self.hidden_names:
            setattr(self, name, brainstate.HiddenState(self._initial_state(batch_size)))

    def reset_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        """Set the hidden states back to their initial value, [out] or [batch_size, out]."""
        for name in self.hidden_names:
            self._hidden(name).value = self._initial_state(batch_size)

    def _initial_state(self, batch_size: int | None) -> Any:
        batch = () if batch_size is None else as_size("batch_size", batch_size)
        shape = (*batch, *self._hidden_size)
        return self._unitless("state_init", initial_value("state_init", self.state_init, shape))

    def _hidden(self, name: str) -> brainstate.HiddenState:
        if not hasattr(self, name):
            raise RuntimeError(
                f"{type(self).__name__} has no state {name!r} yet: call "
                "init_state(batch_size=...) on it, or brainstate.nn.init_all_states on the model"
            )
        return getattr(self, name)

    def _read(self, x: Any) -> tuple[jax.Array, ...]:
        """The input and the old hidden states, after checking that they fit together."""
        old: list[Any] = [self._hidden(name).value for name in self.hidden_names]
        if not saiunit.get_unit(x).is_unitless:
            raise TypeError(
                f"{type(self).__name__}: x has the unit {saiunit.get_unit(x)}; it is joined with "
                "the unitless hidden state, so divide it by a unit first"
            )
        x, expected = jnp.asarray(x), (*old[0].shape[:-1], self.num_in)
        if x.shape != expected:
            raise ValueError(
                f"{type(self).__name__}: x has shape {x.shape}, expected {expected} for the hidden "
                f"state of shape {old[0].shape}; init_state(batch_size=...) sets the batch"
            )
        return x, *old


def cell_arguments(init: Init) -> Init:
    """Let a constructor take its sizes by brainstate's names ``num_in`` and ``num_out``, too."""
    init = keyword_key(init)

    @wraps(init)
    def with_both_names(self: Cell, *args: Any, **options: Any) -> None:
        for ours, theirs in (("in_size", "num_in"), ("out_size", "num_out")):
            if theirs in options and ours in options:
                raise TypeError(f"{type(self).__name__}: give either {ours} or {theirs}, not both")
            if theirs in options:
                options[ours] = options.pop(theirs)
        init(self, *args, **options)

    return cast(Init, with_both_names)


class GatedCell(Cell):
    """A cell of linear maps, all with the same initial values: which they are, and its equations.

    The arguments are those of every cell; see :mod:`braintrace_dense.nn`.
    """

    #: The maps of ``[x, h]`` and those of ``x`` alone, drawn in this order.
    of_both: tuple[str, ...] = ()
    of_input: tuple[str, ...] = ()

    @cell_arguments
    def __init__(
        self,
        in_size: Size,
        out_size: Size,
        w_init: Initializer = ORTHOGONAL,
        b_init: Initializer | None = ZEROS,
        state_init: Initializer = ZEROS,
        activation: Activation = "tanh",
        name: str | None = None,
        *,
        key: Any = None,
    ) -> None:
        super().__init__(in_size, out_size, state_init, name)
        self.activation = as_function(activation)
        with seeded(key):
            for maps, size in ((self.of_both, self._joined_size), (self.of_input, self.in_size)):
                for name_of_map in maps:
                    setattr(self, name_of_map, self._linear(size, w_init, b_init))
            self._draw_more()

    def _draw_more(self) -> None:
        """Draw what a cell has besides its maps."""


def as_function(activation: Activation) -> Callable[[jax.Array], jax.Array]:
    """The activation function itself, or the one of that name in ``brainstate.nn``."""
    fn = getattr(brainstate.nn, activation, None) if isinstance(activation, str) else activation
    if not callable(fn):
        raise ValueError(
            f"activation must be a function or the name of one in brainstate.nn, got {activation!r}"
        )
    return fn


def join(x: jax.Array, h: jax.Array) -> jax.Array:
    """``[x, h]``."""
    return jnp.concatenate([x, h], axis=-1)


def per_unit(parameter: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """A parameter [n], one value for each unit, broadcast to ``shape`` [..., n].

    It is the product of a constant input of 1 with the weight [1, n]: that leaves the value as it
    is and gives the parameter an eligibility trace.
    """
    one = jnp.ones(1, parameter.dtype)
    value: Any = matmul(one, parameter, weight_fn=lambda p: p[None])
    return jnp.broadcast_to(value, shape)
