# SPDX-License-Identifier: Apache-2.0
"""ETP primitives: JAX primitives that mark an operation as trainable by eligibility traces.

A primitive's whole meaning is one record, its :class:`ETPPrimitiveSpec`: an implementation in
JAX operations, where its input and trainable operands stand, and the rules of its trace.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp

from . import _jax

BATCHED = "_batched"  # how the name of a derived batched primitive ends
RULES = (
    "yw_to_w",
    "xy_to_dw",
    "init_drtrl",
    "init_pp",
    "instant_drtrl",
    "increments_drtrl",
    "solve_drtrl",
)


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

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.isidentifier():
            raise ValueError(f"name must be an identifier, got {self.name!r}")
        if not callable(self.impl):
            raise TypeError(f"impl of {self.name!r} must be callable, got {type(self.impl)}")
        for rule in (*RULES, "trainable_invars_fn"):
            value = getattr(self, rule)
            if value is not None and not callable(value):
                raise TypeError(f"{rule} of {self.name!r} must be callable, got {type(value)}")
        for flag in ("batched", "gradient_enabled"):
            if not isinstance(getattr(self, flag), bool):
                raise TypeError(
                    f"{flag} of {self.name!r} must be a bool, got {getattr(self, flag)!r}"
                )
        if self.x_invar_index is not None and not _is_position(self.x_invar_index):
            raise ValueError(
                f"x_invar_index of {self.name!r} must be None or an operand position from 0, got "
                f"{self.x_invar_index!r}"
            )
        if not isinstance(self.batched_counterpart, str | None):
            raise TypeError(
                f"batched_counterpart of {self.name!r} must be the name of a primitive, got "
                f"{self.batched_counterpart!r}"
            )
        if self.y_outvar_index != 0:
            raise ValueError(
                f"y_outvar_index of {self.name!r} is {self.y_outvar_index}; an ETP primitive has "
                "one output, so it must be 0"
            )
        if self.batched and self.x_invar_index is None:
            raise ValueError(f"{self.name!r} is batched but has no x (x_invar_index=None)")

    def resolve_trainable_invars(self, params: Mapping[str, Any]) -> dict[str, int]:
        """Operand positions of the trainable inputs, by key, for an equation's parameters."""
        if self.trainable_invars_fn is None:
            return {"weight": 0 if self.x_invar_index is None else self.x_invar_index + 1}
        positions = dict(self.trainable_invars_fn(dict(params)))
        places = list(positions.values())
        distinct = len(set(places)) == len(places)
        if not places or not all(map(_is_position, places)) or not distinct:
            raise ValueError(
                f"trainable_invars_fn of {self.name!r} returned {positions}; it must name at "
                "least one operand, each by a position of its own from 0"
            )
        if self.x_invar_index in places:
            raise ValueError(
                f"trainable_invars_fn of {self.name!r} returned {positions}; it must name at "
                f"least one operand and none of them may be x (operand {self.x_invar_index})"
            )
        return positions

    @property
    def weight_invar_index(self) -> int | None:
        """Operand position of the trainable input called ``weight``, if there is one."""
        return self.resolve_trainable_invars({}).get("weight")


def _is_position(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


class ETPPrimitive(_jax.Primitive):
    """A JAX primitive with an :class:`ETPPrimitiveSpec`.

    Made by :func:`register_primitive` or :func:`register_primitive_spec`. Copies and pickles are
    the same object again, because JAX recognises a primitive by its identity.

    Parameters
    ----------
    spec
        The specification, which can be read as ``.spec``.
    owner
        Who defines it: the name of a package.

    Examples
    --------
    >>> import braintrace, jax, jax.numpy as jnp
    >>> def scale(x, w):
    ...     return x * w
    >>> scale_p = braintrace.register_primitive("doc_primitive_scale", scale)
    >>> @scale_p.register_xy_to_dw
    ... def xy_to_dw(x, dy, weights):
    ...     return {"weight": x * dy}
    >>> scale_p.spec.xy_to_dw is xy_to_dw
    True
    """

    spec: ETPPrimitiveSpec
    owner: str
    derived: ETPPrimitive | None

    def __init__(self, spec: ETPPrimitiveSpec, owner: str) -> None:
        super().__init__(spec.name)
        self.owner = owner
        self._define(spec)

    def _define(self, spec: ETPPrimitiveSpec) -> None:
        self.spec = spec
        self.derived = None
        _jax.install_rules(self, spec.impl, partial(_batch, self))

    def register_etp_rules(self, **rules: Callable[..., Any]) -> ETPPrimitive:
        """Set rules by name (``yw_to_w``, ``xy_to_dw``, ``init_drtrl``, ``init_pp``, ...).

        Raises
        ------
        TypeError
            For a name that is not a rule.
        """
        unknown = sorted(set(rules) - set(RULES))
        if unknown:
            raise TypeError(f"unknown rules {unknown} for {self.name!r}; rules are {list(RULES)}")
        self.spec = replace(self.spec, **cast(dict[str, Any], rules))
        self.derived = None
        return self

    def register_yw_to_w(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Set the rule ``yw_to_w``; usable as a decorator."""
        self.register_etp_rules(yw_to_w=rule)
        return rule

    def register_xy_to_dw(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Set the rule ``xy_to_dw``; usable as a decorator."""
        self.register_etp_rules(xy_to_dw=rule)
        return rule

    def register_init_drtrl(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Set the rule ``init_drtrl``; usable as a decorator."""
        self.register_etp_rules(init_drtrl=rule)
        return rule

    def register_init_pp(self, rule: Callable[..., Any]) -> Callable[..., Any]:
        """Set the rule ``init_pp``; usable as a decorator."""
        self.register_etp_rules(init_pp=rule)
        return rule

    def __reduce__(self) -> tuple[Callable[[str, str], Any], tuple[str, str]]:
        return _restore, (self.name, self.owner)

    def __copy__(self) -> ETPPrimitive:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ETPPrimitive:
        return self


# what a reload of this module finds is kept: JAX knows a primitive by its identity
_LOCK: threading.RLock = globals().get("_LOCK") or threading.RLock()  # type: ignore[valid-type]
_REGISTRY: dict[str, ETPPrimitive] = globals().get("_REGISTRY", {})
for _known in _REGISTRY.values():
    _known.__class__ = ETPPrimitive


def find_primitive(name: str) -> ETPPrimitive | None:
    """The registered primitive of that name, or ``None``."""
    return _REGISTRY.get(name)


def _restore(name: str, owner: str) -> ETPPrimitive:
    """The primitive of a pickle; in a fresh process the plugin that owns it is loaded first."""
    from ._plugins import host

    package, _, derived = owner.partition(":")
    primitive = find_primitive(name)
    if primitive is None and derived:
        return _counterpart(_restore(name.removesuffix(BATCHED), package))
    primitive = primitive or host().find_primitive(name, package)
    if primitive is None:
        raise LookupError(f"the ETP primitive {name!r} is not registered in this process")
    return primitive


def snapshot() -> dict[str, tuple[ETPPrimitive, ETPPrimitiveSpec]]:
    """The registry as it is, for :func:`restore`."""
    with _LOCK:
        return {name: (primitive, primitive.spec) for name, primitive in _REGISTRY.items()}


def restore(known: Mapping[str, tuple[ETPPrimitive, ETPPrimitiveSpec]]) -> None:
    """Forget primitives registered since a :func:`snapshot`, and put replaced rules back."""
    with _LOCK:
        _REGISTRY.clear()
        for name, (primitive, spec) in known.items():
            _REGISTRY[name] = primitive
            if primitive.spec is not spec:
                primitive._define(spec)


def register_primitive_spec(spec: ETPPrimitiveSpec, *, owner: str | None = None) -> ETPPrimitive:
    """Register a primitive from its specification.

    Registering the same specification again returns the same primitive. Another specification
    of that name by the same owner replaces its rules, with one warning.

    Parameters
    ----------
    spec
        The specification.
    owner
        Who defines it; the top-level package of ``spec.impl`` when not given.

    Returns
    -------
    ETPPrimitive
        The one primitive of that name.

    Raises
    ------
    TypeError
        When ``spec`` is not an :class:`ETPPrimitiveSpec`.
    ValueError
        When another owner registered the name.

    Examples
    --------
    >>> import braintrace
    >>> spec = braintrace.ETPPrimitiveSpec("doc_registered_scale", lambda x, w: x * w)
    >>> primitive = braintrace.register_primitive_spec(spec, owner="example")
    >>> primitive is braintrace.register_primitive_spec(spec, owner="example")
    True
    """
    if not isinstance(spec, ETPPrimitiveSpec):
        raise TypeError(f"spec must be an ETPPrimitiveSpec, got {type(spec).__name__}")
    owner = owner or getattr(spec.impl, "__module__", "").partition(".")[0] or "<unknown>"
    with _LOCK:
        known = _REGISTRY.get(spec.name)
        if known is None:
            return _REGISTRY.setdefault(spec.name, ETPPrimitive(spec, owner))
        if known.owner != owner:
            raise ValueError(
                f"the primitive {spec.name!r} is registered by {known.owner!r}; {owner!r} must "
                "choose another name"
            )
        if known.spec is not spec and not _same_fields(known.spec, spec):
            _jax.warn(f"the rules of the primitive {spec.name!r} are replaced")
            known._define(spec)
        return known


def _same_fields(a: ETPPrimitiveSpec, b: ETPPrimitiveSpec) -> bool:
    return all(getattr(a, f.name) == getattr(b, f.name) for f in fields(a))


def register_primitive(
    name: str,
    impl: Callable[..., Any],
    *,
    batched: bool = False,
    gradient_enabled: bool = False,
    trainable_invars_fn: Callable[[dict[str, Any]], dict[str, int]] | None = None,
    x_invar_index: int | None = 0,
    y_outvar_index: int = 0,
    batched_counterpart: str | None = None,
    owner: str | None = None,
) -> ETPPrimitive:
    """Register an ETP primitive from an implementation; see :class:`ETPPrimitiveSpec`.

    Parameters
    ----------
    name
        Name of the primitive in a jaxpr.
    impl
        ``impl(*operands, **params) -> y``.
    batched
        Whether ``x`` and ``y`` have a leading axis of independent examples.
    gradient_enabled
        Whether hidden-to-hidden gradients pass through the operation.
    trainable_invars_fn
        ``(params) -> {key: operand position}``; ``None``: one weight, right after ``x``.
    x_invar_index
        Position of the non-trainable input; ``None`` when there is none.
    y_outvar_index
        Position of the output, 0.
    batched_counterpart
        Name of the primitive that is bound under ``vmap``; ``None``: derived.
    owner
        Who defines it; the top-level package of ``impl`` when not given.

    Returns
    -------
    ETPPrimitive
        The one primitive of that name.

    Raises
    ------
    TypeError, ValueError
        As for :class:`ETPPrimitiveSpec` and :func:`register_primitive_spec`.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> import braintrace
    >>> def scale(x, w):
    ...     return x * w
    >>> scale_p = braintrace.register_primitive("doc_scale", scale)
    >>> scale_p.bind(jnp.ones(3), jnp.full(3, 2.0)).tolist()
    [2.0, 2.0, 2.0]
    """
    spec = ETPPrimitiveSpec(
        name=name,
        impl=impl,
        batched=batched,
        gradient_enabled=gradient_enabled,
        trainable_invars_fn=trainable_invars_fn,
        x_invar_index=x_invar_index,
        y_outvar_index=y_outvar_index,
        batched_counterpart=batched_counterpart,
    )
    return register_primitive_spec(spec, owner=owner)


def is_etp_primitive(primitive: Any) -> bool:
    """Whether a JAX primitive is an ETP primitive.

    Parameters
    ----------
    primitive
        Anything.

    Examples
    --------
    >>> import braintrace, jax
    >>> braintrace.is_etp_primitive(jax.lax.mul_p)
    False
    """
    return isinstance(primitive, ETPPrimitive)


def get_primitive_spec(primitive: Any) -> ETPPrimitiveSpec:
    """The specification of an ETP primitive.

    Parameters
    ----------
    primitive
        An ETP primitive.

    Raises
    ------
    TypeError
        When ``primitive`` is not one.

    Examples
    --------
    >>> import braintrace
    >>> scale_p = braintrace.register_primitive("doc_get_scale", lambda x, w: x * w)
    >>> braintrace.get_primitive_spec(scale_p).name
    'doc_get_scale'
    """
    if not isinstance(primitive, ETPPrimitive):
        raise TypeError(f"{primitive} is not an ETP primitive")
    return primitive.spec


# --- vmap ------------------------------------------------------------------------------------


def _batch(primitive: ETPPrimitive, args: Any, dims: Any, **params: Any) -> tuple[jax.Array, int]:
    """Map an ETP primitive over ``x``: its batched counterpart, or a longer batch.

    Mapping any other operand has no ETP primitive to stand for it, so the plain implementation
    is mapped, with a warning: the result is right, but the compiler cannot see the operation.
    """
    spec = primitive.spec
    mapped = [i for i, dim in enumerate(dims) if dim is not None]
    if mapped != [spec.x_invar_index]:
        _jax.warn(
            f"vmap maps an operand of {primitive.name!r} other than x; the operation becomes plain "
            "JAX operations and its parameters are not trained by eligibility traces. Map over x "
            "alone, or compile one model per weight; where a cond has a mapped predicate, use "
            "jnp.where instead"
        )
        y = jax.vmap(lambda *a: spec.impl(*a, **params), in_axes=tuple(dims))(*args)
        return y, 0
    (i,) = mapped
    x = jnp.moveaxis(args[i], dims[i], 0)
    if not spec.batched:
        return _counterpart(primitive).bind(*args[:i], x, *args[i + 1 :], **params), 0
    folded = x.reshape(-1, *x.shape[2:])
    y = primitive.bind(*args[:i], folded, *args[i + 1 :], **params)
    return y.reshape(*x.shape[:2], *y.shape[1:]), 0


def _counterpart(primitive: ETPPrimitive) -> ETPPrimitive:
    """The batched primitive bound for a mapped unbatched one: declared, or derived from it."""
    spec = primitive.spec
    if spec.batched_counterpart is not None:
        found = find_primitive(spec.batched_counterpart)
        if found is None:
            raise LookupError(
                f"{spec.name!r} names {spec.batched_counterpart!r} as its batched counterpart, "
                "which is not registered"
            )
        return found
    with _LOCK:
        if primitive.derived is None:
            derived = _derive_batched(primitive, spec.name + BATCHED)
            known = find_primitive(derived.name)
            if known is not None and known.owner != f"{primitive.owner}:derived":
                raise ValueError(
                    f"vmap needs a batched form of {primitive.name!r}, which would be derived as "
                    f"{derived.name!r}, but {known.owner!r} registered that name. If it is the "
                    f"batched form, say so with batched_counterpart={derived.name!r}; otherwise "
                    "rename it"
                )
            if known is not None:
                known._define(derived)
            primitive.derived = register_primitive_spec(
                derived if known is None else known.spec, owner=f"{primitive.owner}:derived"
            )
        return primitive.derived


def _derive_batched(primitive: ETPPrimitive, name: str) -> ETPPrimitiveSpec:
    x_index = primitive.spec.x_invar_index

    def impl(*operands: Any, **params: Any) -> Any:
        axes = tuple(0 if i == x_index else None for i in range(len(operands)))
        return jax.vmap(lambda *a: primitive.spec.impl(*a, **params), in_axes=axes)(*operands)

    return ETPPrimitiveSpec(
        name=name,
        impl=impl,
        trainable_invars_fn=primitive.spec.resolve_trainable_invars,
        x_invar_index=x_index,
        batched=True,
        gradient_enabled=primitive.spec.gradient_enabled,
    )


# --- read-only views on the registry ---------------------------------------------------------


class _PrimitiveSet(Set):  # type: ignore[type-arg]
    """The registered primitives, optionally only the batched ones."""

    def __init__(self, batched_only: bool = False) -> None:
        self._batched_only = batched_only

    def __contains__(self, item: object) -> bool:
        return any(item is p for p in self)

    def __iter__(self) -> Iterator[ETPPrimitive]:
        return (p for p in tuple(_REGISTRY.values()) if p.spec.batched or not self._batched_only)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _FieldView(Mapping[ETPPrimitive, Any]):
    """Primitive -> one field of its specification (or the whole), where it is set."""

    def __init__(self, field: str | None) -> None:
        self._field = field

    def _get(self, primitive: ETPPrimitive) -> Any:
        return primitive.spec if self._field is None else getattr(primitive.spec, self._field)

    def __getitem__(self, primitive: ETPPrimitive) -> Any:
        if primitive not in ETP_PRIMITIVES or self._get(primitive) is None:
            raise KeyError(primitive)
        return self._get(primitive)

    def __iter__(self) -> Iterator[ETPPrimitive]:
        return (p for p in ETP_PRIMITIVES if self._get(p) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


ETP_PRIMITIVES = _PrimitiveSet()
BATCHED_PRIMITIVES = _PrimitiveSet(batched_only=True)
ETP_PRIMITIVE_SPECS = _FieldView(None)
ETP_RULES_YW_TO_W = _FieldView("yw_to_w")
ETP_RULES_XY_TO_DW = _FieldView("xy_to_dw")
ETP_RULES_INIT_DRTRL = _FieldView("init_drtrl")
ETP_RULES_INIT_PP = _FieldView("init_pp")
