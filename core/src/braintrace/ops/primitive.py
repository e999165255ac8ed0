# SPDX-License-Identifier: Apache-2.0
"""ETP primitives: JAX primitives that mark an operation as trainable by eligibility traces.

A primitive's whole meaning is one record, its :class:`ETPPrimitiveSpec`: an implementation in
JAX operations, where its input and trainable operands stand, and the rules of its trace.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from importlib import import_module
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.errors import CompilationWarning
from .spec import RULES, ETPPrimitiveSpec

Restorer: TypeAlias = Callable[[str, str], "ETPPrimitive"]
F = TypeVar("F", bound=Callable[..., Any])
BATCHED = "_batched"  # how the name of a derived batched primitive ends
#: While a step is traced to be compiled: a program that only runs, under ``vmap`` over models for
#: several seeds, loses nothing.
compiling: ContextVar[bool] = ContextVar("compiling", default=False)
#: Rules by their names in ``braintrace`` 0.2.
OTHER_NAMES = {"dt_to_t": "yw_to_w"}


def _register(name: str) -> Callable[[ETPPrimitive, F], F]:
    """The method of a primitive that sets one of its rules."""

    def register(self: ETPPrimitive, rule: F) -> F:
        self.register_etp_rules(**{name: rule})
        return rule

    register.__name__, register.__qualname__ = f"register_{name}", f"ETPPrimitive.register_{name}"
    register.__doc__ = f"Set the rule ``{name}``; usable as a decorator."
    return register


class ETPPrimitive(versions.Primitive):
    """A JAX primitive with an :class:`ETPPrimitiveSpec`.

    Made by :func:`register_primitive` or :func:`register_primitive_spec`. Copies and pickles are
    the same object again, because JAX recognises a primitive by its identity.

    Parameters
    ----------
    spec
        The specification, which can be read as ``.spec``.
    owner
        Who defines it: the name of a package.
    restorer
        Finds the primitive of a pickle by its name and owner.

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

    def __init__(
        self, spec: ETPPrimitiveSpec, owner: str, restorer: Restorer | None = None
    ) -> None:
        super().__init__(spec.name)
        self.owner = owner
        self.restorer = restorer or restored
        self._define(spec)

    def _define(self, spec: ETPPrimitiveSpec) -> None:
        self.spec = spec
        self.derived = None
        versions.install_rules(self, spec.impl, self._batch)

    def _batch(self, args: Any, dims: Any, **params: Any) -> tuple[jax.Array, int]:
        """Map over ``x``; see :meth:`_mapped`.

        Mapping any other operand has no ETP primitive to stand for it, so the plain implementation
        is mapped: the result is right. In a step that is compiled, a warning says that the compiler
        cannot see the operation.
        """
        i = self.spec.x_invar_index
        if [k for k, dim in enumerate(dims) if dim is not None] == [i]:
            return self._mapped(args, jnp.moveaxis(args[i], dims[i], 0), params)
        if compiling.get():
            versions.warn(
                f"vmap maps an operand of {self.name!r} other than x; the operation becomes "
                "plain JAX operations and its parameters are not trained by eligibility traces. "
                "Map over x alone, or compile one model per weight; where a cond has a mapped "
                "predicate, use jnp.where instead",
                CompilationWarning,
            )
        run = partial(self.spec.impl, **params)
        return jax.vmap(run, in_axes=tuple(dims))(*args), 0

    def _mapped(self, args: Any, x: jax.Array, params: Any) -> tuple[jax.Array, int]:
        """Of each row of ``x``: by the batched counterpart, or as a longer batch."""
        if self.spec.batched:
            return self._folded(args, x, params), 0
        return batched_form(self).bind(*self._with(args, x), **params), 0

    def _folded(self, args: Any, x: jax.Array, params: Any) -> jax.Array:
        """For an ``x`` with two leading axes in place of one."""
        y = self.bind(*self._with(args, x.reshape(-1, *x.shape[2:])), **params)
        return y.reshape(*x.shape[:2], *y.shape[1:])

    def _with(self, args: Any, x: jax.Array) -> list[Any]:
        """Operands with another ``x``."""
        i: int = self.spec.x_invar_index  # type: ignore[assignment]
        return [*args[:i], x, *args[i + 1 :]]

    def register_etp_rules(self, **rules: Callable[..., Any]) -> ETPPrimitive:
        """Set rules by name (``yw_to_w``, ``xy_to_dw``, ``init_drtrl``, ``init_pp``, ...).

        ``dt_to_t`` is another name for ``yw_to_w``.

        Raises
        ------
        TypeError
            For a name that is not a rule, or both names of one.
        """
        for other in rules.keys() & OTHER_NAMES.keys():
            if (name := OTHER_NAMES[other]) in rules:
                raise TypeError(f"{name} and {other} of {self.name!r} are one rule; give one")
            rules[name] = rules.pop(other)
        unknown = sorted(set(rules) - set(RULES))
        if unknown:
            raise TypeError(f"unknown rules {unknown} for {self.name!r}; rules are {list(RULES)}")
        self.spec = replace(self.spec, **cast(dict[str, Any], rules))
        self.derived = None
        return self

    register_yw_to_w = _register("yw_to_w")
    register_dt_to_t = _register("dt_to_t")
    register_xy_to_dw = _register("xy_to_dw")
    register_init_drtrl = _register("init_drtrl")
    register_init_pp = _register("init_pp")

    def __reduce__(self) -> tuple[Restorer, tuple[str, str]]:
        return self.restorer, (self.name, self.owner)

    def __copy__(self) -> ETPPrimitive:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> ETPPrimitive:
        return self


# what a reload of this module finds is kept: JAX knows a primitive by its identity
_LOCK: threading.RLock = globals().get("_LOCK") or threading.RLock()  # type: ignore[valid-type]
REGISTRY: dict[str, ETPPrimitive] = globals().get("REGISTRY", {})
for _known in REGISTRY.values():
    _known.__class__ = ETPPrimitive


def find_primitive(name: str | None) -> ETPPrimitive | None:
    """The registered primitive of that name, or ``None``."""
    return None if name is None else REGISTRY.get(name)


def restored(name: str, owner: str) -> ETPPrimitive:
    """The primitive of a pickle, when its owner's package registers it; or derived again.

    Raises
    ------
    LookupError
        When no primitive of that name is registered.
    """
    primitive = find_primitive(name)
    if primitive is None and ":" in owner:
        return batched_form(restored(name.removesuffix(BATCHED), owner.partition(":")[0]))
    if primitive is None:
        with contextlib.suppress(ImportError):  # the package that registers it as it is imported
            import_module(owner)
        primitive = find_primitive(name)
    if primitive is None:
        raise LookupError(f"the ETP primitive {name!r} is not registered in this process")
    return primitive


@contextlib.contextmanager
def kept_registry() -> Iterator[None]:
    """Forget, at the end, primitives that were registered inside, and put replaced rules back."""
    known = {name: (primitive, primitive.spec) for name, primitive in tuple(REGISTRY.items())}
    try:
        yield
    finally:
        with _LOCK:
            REGISTRY.clear()
            for name, (primitive, spec) in known.items():
                REGISTRY[name] = primitive
                if primitive.spec is not spec:
                    primitive._define(spec)


def register_primitive_spec(
    spec: ETPPrimitiveSpec, *, owner: str | None = None, restorer: Restorer = restored
) -> ETPPrimitive:
    """Register a primitive from its specification.

    Registering the same specification again returns the same primitive. Another specification
    of that name by the same owner replaces its rules, with one warning.

    Parameters
    ----------
    spec
        The specification.
    owner
        Who defines it; the top-level package of ``spec.impl`` when not given.
    restorer
        Finds the primitive of a pickle by its name and owner, in a fresh process too.

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
        known = REGISTRY.get(spec.name)
        if known is None:
            return REGISTRY.setdefault(spec.name, ETPPrimitive(spec, owner, restorer))
        if known.owner != owner:
            raise ValueError(
                f"the primitive {spec.name!r} is registered by {known.owner!r}; {owner!r} must "
                "choose another name"
            )
        if restorer is not restored:
            known.restorer = restorer
        if known.spec is not spec and vars(known.spec) != vars(spec):
            versions.warn(f"the rules of the primitive {spec.name!r} are replaced")
            known._define(spec)
        return known


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


# --- read-only views on the registry, keyed by primitive ---------------------------------------


class _View(Mapping[ETPPrimitive, Any]):
    """Primitive -> an attribute of it, where that is set."""

    def __init__(self, attribute: str) -> None:
        self._get = attrgetter(attribute)

    def __getitem__(self, primitive: ETPPrimitive) -> Any:
        if not any(primitive is known for known in self):
            raise KeyError(primitive)
        return self._get(primitive)

    def __iter__(self) -> Iterator[ETPPrimitive]:
        return filter(self._get, tuple(REGISTRY.values()))

    def __len__(self) -> int:
        return sum(1 for _ in self)


ETP_PRIMITIVE_SPECS = _View("spec")
ETP_PRIMITIVES = ETP_PRIMITIVE_SPECS.keys()
BATCHED_PRIMITIVES = _View("spec.batched").keys()
ETP_RULES_YW_TO_W = _View("spec.yw_to_w")
ETP_RULES_XY_TO_DW = _View("spec.xy_to_dw")
ETP_RULES_INIT_DRTRL = _View("spec.init_drtrl")
ETP_RULES_INIT_PP = _View("spec.init_pp")


# --- vmap ------------------------------------------------------------------------------------


def batched_form(primitive: ETPPrimitive) -> ETPPrimitive:
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
            derived, owner = _derive_batched(primitive), f"{primitive.owner}:derived"
            known = find_primitive(derived.name)
            if known is None:
                known = register_primitive_spec(derived, owner=owner, restorer=primitive.restorer)
            elif known.owner == owner:
                known._define(derived)
            else:
                raise ValueError(
                    f"vmap needs a batched form of {primitive.name!r}, which would be derived as "
                    f"{derived.name!r}, but {known.owner!r} registered that name. If it is the "
                    f"batched form, say so with batched_counterpart={derived.name!r}; otherwise "
                    "rename it"
                )
            primitive.derived = known
        return primitive.derived


def _derive_batched(primitive: ETPPrimitive) -> ETPPrimitiveSpec:
    x_index = primitive.spec.x_invar_index

    def impl(*operands: Any, **params: Any) -> Any:
        axes = tuple(0 if i == x_index else None for i in range(len(operands)))
        return jax.vmap(lambda *a: primitive.spec.impl(*a, **params), in_axes=axes)(*operands)

    return ETPPrimitiveSpec(
        name=primitive.name + BATCHED,
        impl=impl,
        trainable_invars_fn=primitive.spec.resolve_trainable_invars,
        x_invar_index=x_index,
        batched=True,
        gradient_enabled=primitive.spec.gradient_enabled,
    )
