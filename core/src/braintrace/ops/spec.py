# SPDX-License-Identifier: Apache-2.0
"""What an ETP operation is, in one record: implementation, operands, rules of its trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

RULES = (
    "yw_to_w",
    "xy_to_dw",
    "init_drtrl",
    "init_pp",
    "instant_drtrl",
    "increments_drtrl",
    "solve_drtrl",
    "rows_drtrl",
)


class Rows(NamedTuple):
    """What the rule ``rows_drtrl`` of an operation says of its input.

    Attributes
    ----------
    indices
        The row that each example reads: integers, [B] or a number. Negative ones count from the
        end, others outside of the table as the nearest, as in an index of an array.
    forget
        Whether the row that was read longest ago makes room when there is none.
    options
        The options that decide about the room, as users write them: for errors and saved files.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from braintrace.plugin_api import Rows
    >>> Rows(jnp.array([3, 0])).forget
    False
    """

    indices: Any
    forget: bool = False
    options: str = ""


@dataclass(frozen=True, eq=False)
class ETPPrimitiveSpec:
    """What an eligibility-trace-propagation (ETP) operation ``y = op(x, w_1, ..)`` is.

    Parameters
    ----------
    name
        Name of the primitive in a jaxpr, for example ``"etp_mm"``.
    impl
        ``impl(*operands, **params) -> y``, one array, made of differentiable JAX operations.
    yw_to_w
        ``(dy, trace, **params) -> trace``: scale each entry of a trace dict by the factor ``dy``
        (shape of ``y``) of the output position that the entry feeds. ``None``: a fallback that is
        exact for every implementation is used instead of a structured trace.
    xy_to_dw
        ``(x, dy, weights, **params) -> dict``: cotangents of the weights, summed over the batch
        axis when there is one. ``None``: derived as the VJP of ``impl``.
    init_drtrl
        ``(x_var, y_var, weight_vars, num_state) -> dict`` of zeros: the parameter-dimension trace,
        leading batch axis when batched, trailing state axis. It may also declare the keyword-only
        arguments ``group`` and ``eqn_params``.
    init_pp
        ``(x_var, y_var, weight_vars, num_state) -> array`` of zeros: the output-dimension trace.
    trainable_invars_fn
        ``(params) -> {key: operand position}``; ``None`` means one weight, right after ``x``.
    x_invar_index
        Position of the non-trainable input; ``None`` when there is none.
    y_outvar_index
        Position of the output; only 0 is supported.
    batched
        ``x`` and ``y`` have a leading axis of independent examples.
    gradient_enabled
        Hidden-to-hidden gradients pass through the operation instead of being cut at it.
    batched_counterpart
        Name of the primitive that is bound when ``x`` is mapped by ``vmap``; ``None``: derived.
    instant_drtrl, solve_drtrl
        Optional rules for families whose exact trace is not shaped like the weights:
        ``instant_drtrl(x, f, weights, **params)`` is the increment in trace structure and
        ``solve_drtrl(l, trace, weights, **params)`` turns a trace into weight cotangents.
    increments_drtrl
        Optional and only for speed: ``(x, f, weights, **params) -> dict``, the sum of the
        increments of ``K`` steps, with ``x`` and ``f`` of all of them along a leading axis. It is
        called for one example of a batch after the other, as a batch of one. ``None``: increments
        are added up step by step, or by ``xy_to_dw`` where the trace is shaped like the weights.
    rows_drtrl
        Optional, for an operation whose examples read one row each of its weight [V, *W], the only
        trainable operand, and give it [*W] back as it is: ``(x, **params) -> Rows``. The trace then
        has the rows that were read, and ``init_drtrl`` says how many of them at most, ``R``: zeros
        [*B, R, *W, S]. ``yw_to_w`` scales that; ``instant_drtrl``, ``increments_drtrl`` and
        ``solve_drtrl`` are not asked.

    Notes
    -----
    An operation may have operands that are neither ``x`` nor trainable, such as the indices of a
    sparse matrix. All rules but ``init_drtrl`` and ``init_pp`` get them, as a tuple in their order,
    if they declare the keyword-only argument ``constants``.

    Raises
    ------
    ValueError, TypeError
        When a field has the wrong type or names an impossible operand.

    Examples
    --------
    >>> import braintrace
    >>> def trainable(params):
    ...     return {"gain": 1}
    >>> spec = braintrace.ETPPrimitiveSpec(
    ...     "doc_spec_scale", lambda x, gain: gain * x, trainable_invars_fn=trainable
    ... )
    >>> spec.resolve_trainable_invars({})
    {'gain': 1}
    """

    name: str
    impl: Callable[..., Any]
    yw_to_w: Callable[..., Any] | None = None
    xy_to_dw: Callable[..., Any] | None = None
    init_drtrl: Callable[..., Any] | None = None
    init_pp: Callable[..., Any] | None = None
    trainable_invars_fn: Callable[[dict[str, Any]], dict[str, int]] | None = None
    x_invar_index: int | None = 0
    y_outvar_index: int = 0
    batched: bool = False
    gradient_enabled: bool = False
    batched_counterpart: str | None = None
    instant_drtrl: Callable[..., Any] | None = None
    increments_drtrl: Callable[..., Any] | None = None
    solve_drtrl: Callable[..., Any] | None = None
    rows_drtrl: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"name must be an identifier, got {self.name!r}")

        def require(right: bool, field: str, what: str, error: type[Exception] = TypeError) -> None:
            if not right:
                found = getattr(self, field)
                raise error(f"{field} of {self.name!r} must be {what}, got {found!r}")

        for rule in ("impl", "trainable_invars_fn", *RULES):
            value = getattr(self, rule)
            require(callable(value) or (value is None and rule != "impl"), rule, "callable")
        for flag in ("batched", "gradient_enabled"):
            require(isinstance(getattr(self, flag), bool), flag, "a bool")
        x, counterpart = self.x_invar_index, self.batched_counterpart
        known = x is None or _is_position(x)
        require(known, "x_invar_index", "None or an operand position from 0", ValueError)
        named = isinstance(counterpart, str | None)
        require(named, "batched_counterpart", "the name of a primitive")
        if self.y_outvar_index != 0:
            raise ValueError(
                f"y_outvar_index of {self.name!r} is {self.y_outvar_index}; an ETP primitive has "
                "one output, so it must be 0"
            )
        if self.batched and x is None:
            raise ValueError(f"{self.name!r} is batched but has no x (x_invar_index=None)")

    def resolve_trainable_invars(self, params: Mapping[str, Any]) -> dict[str, int]:
        """Operand positions of the trainable inputs, by key, for an equation's parameters."""
        x = self.x_invar_index
        if self.trainable_invars_fn is None:
            return {"weight": 0 if x is None else x + 1}
        positions = dict(self.trainable_invars_fn(dict(params)))
        places = list(positions.values())
        right = places and all(map(_is_position, places)) and len(set(places)) == len(places)
        if not right or x in places:
            raise ValueError(
                f"trainable_invars_fn of {self.name!r} returned {positions}; it must name at "
                f"least one operand, each by a position of its own from 0, and none may be x "
                f"(operand {x})"
            )
        return positions

    @property
    def weight_invar_index(self) -> int:
        """Operand position of the trainable input called ``weight``, or else of the first."""
        positions = self.resolve_trainable_invars({})
        return positions.get("weight", min(positions.values()))


def _is_position(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
