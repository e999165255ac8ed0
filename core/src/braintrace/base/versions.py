# SPDX-License-Identifier: Apache-2.0
"""The one module that knows which JAX is installed.

Everything taken from ``jax.extend`` and ``jax.interpreters``, and every difference between
releases (``ClosedJaxpr`` became ``Jaxpr`` in 0.11), is reached through the names defined here.
"""

from __future__ import annotations

import importlib
import math
import os
import re
import sys
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, lru_cache, partial
from typing import TYPE_CHECKING, Any

import brainstate
import jax
import numpy as np
import saiunit
from jax.extend import core as jex_core
from jax.extend import source_info_util
from jax.extend.core import primitives as jaxp
from jax.interpreters import ad, batching, mlir
from jax.sharding import AxisType

Array = jax.Array
Atom = Any  # Var or Literal
Jaxpr = Any  # closed in every release: has .invars, .outvars, .eqns, .constvars and .consts
Primitive = jex_core.Primitive
if TYPE_CHECKING:  # their attributes are typed too loosely to be of use
    JaxprEqn = Any
    Var = Any
else:
    JaxprEqn = jex_core.JaxprEqn
    Var = jex_core.Var
jaxpr_as_fun = jex_core.jaxpr_as_fun
Literal = jex_core.Literal

#: Primitives whose single sub-jaxpr is run once on the operands, in order.
CALL_PRIMITIVES = frozenset({jaxp.jit_p, jaxp.remat_p, jaxp.closed_call_p})

#: The effects of ``jax.debug.print`` and ``jax.debug.callback``.
DEBUG_EFFECTS = {"DebugEffect", "OrderedDebugEffect"}

#: The differentiation rule of every primitive that has one, those of other libraries included.
JVP_RULES = ad.primitive_jvps

#: The cotangent zero of a value: zeros, or ``float0`` for integers, booleans and keys.
zero_cotangent = jax.custom_derivatives.zero_from_primal


@cache
def rearranging() -> dict[str, Any]:
    """The primitives that rearrange elements, by name, those that JAX does not export included.

    They are found by tracing a function that is made of them, which no operation should wait for.
    """

    def function(x: Array) -> list[Any]:
        np = jax.numpy
        return [jax.lax.split(x, (1, 1)), np.stack([x, x]), np.unstack(x), np.tile(x, 2)]

    jaxpr = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((2, 1), "float32"))
    eqns = [*jaxpr.eqns, *(e for eqn in jaxpr.eqns for p in inner_jaxprs(eqn) for e in p.eqns)]
    return {eqn.primitive.name: eqn.primitive for eqn in eqns}


_HIDDEN: list[str] = []


def hide_frames(module: Any) -> None:
    """Attribute equations to the callers of a package, not to its own lines."""
    folder = os.path.join(os.path.dirname(module.__file__), "")
    if folder not in _HIDDEN:
        _HIDDEN.append(folder)
        source_info_util.register_exclusion(folder)


for _module in (sys.modules[__name__.partition(".")[0]], brainstate, saiunit):
    hide_frames(_module)


def make_jaxpr(fun: Callable[..., Any], *avals: Any) -> Jaxpr:
    """Trace ``fun`` to a closed jaxpr."""
    return jax.make_jaxpr(fun)(*avals)


def types_of(avals: Sequence[Any]) -> AbstractContextManager[Any]:
    """A context in which values of these types can be made: with 64 bits if one of them has."""
    wide = any(getattr(aval.dtype, "itemsize", 0) == 8 for aval in avals)
    return jax.enable_x64(True) if wide else nullcontext()


def is_var(atom: Atom) -> bool:
    """Whether an operand is a variable (not a literal)."""
    return not isinstance(atom, jex_core.Literal)


def close(jaxpr: Jaxpr, consts: Sequence[Any] = ()) -> Jaxpr:
    """A jaxpr with ``consts``: older JAX keeps open ones in some equations' parameters."""
    return jaxpr if hasattr(jaxpr, "consts") else jex_core.ClosedJaxpr(jaxpr, consts)


def with_outvars(jaxpr: Jaxpr, outvars: Sequence[Atom]) -> Jaxpr:
    """A closed jaxpr with other outputs."""
    return close(jaxpr.jaxpr.replace(outvars=[*outvars]), jaxpr.consts)


def without_effects(jaxpr: Jaxpr) -> Jaxpr:
    """A closed jaxpr without its prints and callbacks, which have no results."""
    kept = [eqn for eqn in jaxpr.eqns if not eqn.effects]
    return close(jaxpr.jaxpr.replace(eqns=kept, effects=frozenset()), jaxpr.consts)


def open_jaxpr(
    free: Sequence[Var], ins: Sequence[Var], outs: Sequence[Atom], eqns: Sequence[JaxprEqn]
) -> Jaxpr | None:
    """An open jaxpr whose constants are ``free``; ``None`` where JAX has no open ones (0.11)."""
    if jex_core.ClosedJaxpr.__name__ == "Jaxpr":
        return None
    parts = {"constvars": free, "invars": ins, "outvars": outs, "eqns": eqns}
    empty = jax.make_jaxpr(lambda: ())().jaxpr  # which knows where it was made, as JAX demands
    return empty.replace(**{name: [*part] for name, part in parts.items()})


def scan_counts(eqn: JaxprEqn) -> tuple[int, int]:
    """How many constants and how many carried values a ``scan`` has; the other operands are xs."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carried, _ = eqn.params["ft_in"].unpack()
    return len(consts), len(carried)


def inner_jaxprs(eqn: JaxprEqn) -> list[Jaxpr]:
    """Every jaxpr held in an equation's parameters (branches, bodies, calls)."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns") and hasattr(item, "invars"):
                found.append(close(item))
    return found


def sub_jaxpr(eqn: JaxprEqn) -> Jaxpr:
    """The only one of them, which a call or a ``scan`` runs."""
    (program,) = inner_jaxprs(eqn)
    return program


def constants(jaxpr: Jaxpr) -> dict[Var, Any]:
    """The values of the constants of a closed jaxpr."""
    return dict(zip(jaxpr.constvars, jaxpr.consts, strict=True))


def start_env(jaxpr: Jaxpr, inputs: Iterable[Any]) -> dict[Var, Any]:
    """The values of all variables that are known before the first equation."""
    return constants(jaxpr) | dict(zip(jaxpr.invars, inputs, strict=True))


def assembled(
    jaxpr: Jaxpr,
    values: Mapping[Var, Any],
    ins: Sequence[Var],
    outs: Sequence[Atom],
    eqns: Sequence[JaxprEqn],
) -> Jaxpr:
    """A closed jaxpr of these constants and equations, with the effects of ``jaxpr``."""
    parts = {"constvars": values, "invars": ins, "outvars": outs, "eqns": eqns}
    opened = jaxpr.jaxpr.replace(**{name: [*part] for name, part in parts.items()})
    return jex_core.ClosedJaxpr(opened, [*values.values()])


def rewritten(
    eqn: JaxprEqn, operands: Sequence[Atom], results: Sequence[Var], place: Any
) -> JaxprEqn:
    """An equation in other variables, attributed to a place in the user's source."""
    effects = eqn.effects
    if effects:  # newer JAX names the variable that one is on
        known = {a: b for a, b in zip(eqn.invars, operands, strict=True) if is_var(a)}
        on = ((effect, known.get(getattr(effect, "input", None))) for effect in effects)
        effects = {effect if var is None else effect.replace(var) for effect, var in on}
    return eqn.replace(invars=[*operands], outvars=[*results], effects=effects, source_info=place)


def current_place() -> Any:
    """The place in the user's source that what is traced now is attributed to."""
    return source_info_util.current()


def bind_equation(eqn: JaxprEqn, operands: Sequence[Any], own_source: bool = True) -> list[Any]:
    """Run one equation on ``operands``, attributed to its own place in the user's source.

    ``own_source=False`` leaves the place that is current.
    """
    with at_source(eqn) if own_source else nullcontext():
        out = eqn.primitive.bind(*operands, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


#: A program, the tangents among its inputs, and those of the results; a literal is a zero.
Tangents = tuple[Jaxpr, Sequence[Var], Sequence[Atom]]


def kept_rule(eqn: JaxprEqn) -> Tangents | None:
    """The rule of a function with its own JVP, which JAX traces once and keeps with the equation.

    ``None`` where it is kept in another form; to differentiate the equation gives it in any case.
    """
    rule, count = eqn.params.get("jvp_jaxpr_fun"), len(eqn.invars)
    if rule is None or eqn.params["num_consts"] or eqn.params["symbolic_zeros"]:
        return None
    program, _, zeros = rule.call_wrapped(*(False,) * count)
    tangents = iter(program.outvars[len(zeros) :])
    nothing = jex_core.Literal(np.float32(0), jax.typeof(np.float32(0)))
    return program, program.invars[count:], [nothing if z else next(tangents) for z in zeros]


def same_rule(eqn: JaxprEqn) -> Hashable | None:
    """What is equal for equations of one rule and types: the user's function, as ``jit`` sees it.

    JAX keeps it in the closure of what traces the rule. ``None`` where it is not found there, or
    static arguments belong to the rule, too.
    """
    rule, avals = eqn.params.get("jvp_jaxpr_fun"), tuple(var.aval for var in eqn.invars)
    kind, function = type(rule), getattr(rule, "f", None)
    for _ in range(2):
        cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
        for held in (value for value in cells if isinstance(value, kind)):
            trees = [
                arg for _, args in held.transforms for arg in args if hasattr(arg, "num_leaves")
            ]
            single = len(held.transforms) == 1 == len(trees) and not held.params
            return (held.f, *trees, avals) if single else None
        function = next(filter(callable, cells), None)
    return None


def with_results_of(eqn: JaxprEqn, dtype_of: Callable[[Any], Any]) -> JaxprEqn:
    """An equation whose results have other dtypes, if it is a product that says which they have."""
    own = eqn.params.get("preferred_element_type")
    if own is None or (new := dtype_of(own)) == own:
        return eqn
    return eqn.replace(params={**eqn.params, "preferred_element_type": new})


def at_source(eqn: JaxprEqn) -> AbstractContextManager[Any]:
    """A context in which new equations are attributed to the source of ``eqn``."""
    return source_info_util.user_context(eqn.source_info.traceback)


def source_of(eqn: JaxprEqn) -> str:
    """The user's ``file:line (function)`` that produced an equation; empty if none is known.

    In a notebook the number of the cell, ``In[3]``, stands where the name of the file would.
    """
    text = source_info_util.summarize(eqn.source_info)
    python = sys.modules.get("IPython")
    shell = python.get_ipython() if python else None
    if shell is None or not (found := re.match(r"(.+?):\d", text)):
        return text
    cell = shell.compile.format_code_name(found[1])
    return text if cell is None else cell[1] + text[found.end(1) :]


def place_of(eqn: JaxprEqn) -> str:
    """The name of an equation's primitive, and its place in the user's source if one is known."""
    return " at ".join(filter(None, (eqn.primitive.name, source_of(eqn))))


def written_in(eqn: JaxprEqn, function: str) -> bool:
    """Whether an equation was traced from a line of the user's function of that name.

    What a library traces once (``jnp.roll``) is found again at every later call, with the place of
    the first one.
    """
    frames = source_info_util.summarize(eqn.source_info, num_frames=64)
    return any(f"{mark}{function})" in frames for mark in "(.")


def from_another_trace(value: Any, tracer: Any) -> bool:
    """Whether a value was made by another run of tracing than ``tracer``."""
    return isinstance(value, jax.core.Tracer) and value._trace is not tracer._trace


def several_devices() -> bool:
    """Whether arrays may lie on more devices than one, those of other processes included."""
    return jax.device_count() > 1


def on_processors(*args: Any, cpu: Callable[..., Any], default: Callable[..., Any]) -> Any:
    """``jax.lax.platform_dependent``, which traces ``cpu`` alone where JAX's backend is a CPU."""
    if jax.default_backend() == "cpu":
        return cpu(*args)
    return jax.lax.platform_dependent(*args, cpu=cpu, default=default)


def devices_of_mesh() -> int:
    """How many devices the mesh that is set has, along axes that are not of ``jax.shard_map``."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(n for name, n in mesh.shape.items() if name not in mesh.manual_axes)


def put(value: Any, sharding: Any) -> Any:
    """An array on other devices, of which some may be those of other processes."""
    if sharding.is_fully_addressable or not getattr(value, "is_fully_addressable", True):
        return jax.device_put(value, sharding)
    own = np.asarray(value)  # which every process has
    return jax.make_array_from_callback(own.shape, sharding, lambda part: own[part])


def varying_axes(value: Any) -> frozenset[str]:
    """The axes of the mesh along which a value varies, inside of ``jax.shard_map`` with checks."""
    varying: Any = getattr(jax.typeof(value), "manual_axis_type", None)
    return frozenset() if varying is None else varying.varying


def vary(value: Any, axes: frozenset[str]) -> Any:
    """A value whose type says that it varies along these axes."""
    missing = (*sorted(axes - varying_axes(value)),)
    return jax.lax.pcast(value, missing, to="varying") if missing else value


def types_vary() -> bool:
    """Whether types say what varies: inside of ``jax.shard_map`` with checks."""
    axes = (*jax.sharding.get_abstract_mesh().manual_axes,)
    if not axes:
        return False
    number: Any = jax.eval_shape(lambda: jax.lax.axis_index(axes))
    return bool(number.manual_axis_type and number.manual_axis_type.varying)


def without_varying(trace: Callable[[], Any]) -> Any:
    """What is traced inside is about one device: inside of ``jax.shard_map`` without checks."""
    mesh, found = jax.sharding.get_abstract_mesh(), []
    every = mesh.update_axis_types(dict.fromkeys(mesh.axis_names, AxisType.Auto))

    def body() -> tuple[()]:
        found.append(trace())
        return ()

    how: Any = {"mesh": every, "axis_names": {*mesh.manual_axes}, "check_vma": False}
    with jax.sharding.use_abstract_mesh(every):
        jax.eval_shape(jax.shard_map(body, in_specs=(), out_specs=(), **how))
    return found[0]


def is_float(aval: Any) -> bool:
    """Whether values of this type carry derivatives."""
    return _is_float_dtype(aval.dtype)


@lru_cache(maxsize=256)
def _is_float_dtype(dtype: Any) -> bool:
    return bool(jax.numpy.issubdtype(dtype, jax.numpy.inexact))


# --- JAX rules of a primitive, derived from its implementation -------------------------------


def install_rules(
    primitive: Primitive, impl: Callable[..., Array], batch: Callable[..., tuple[Array, int]]
) -> None:
    """Give ``primitive`` evaluation, lowering, JVP, transposition and batching from ``impl``.

    Installing again replaces the rules.
    """

    def whole(params: Any) -> Any:
        def one_array(*operands: Any) -> Any:
            out = impl(*operands, **dict(params))
            if not hasattr(out, "shape"):
                raise TypeError(
                    f"impl of {primitive.name!r} must return one array, got {type(out).__name__}"
                )
            return out

        return jax.jit(one_array)

    kept = lru_cache(maxsize=256)(whole)

    def compiled(params: dict[str, Any]) -> Any:
        try:
            return kept(tuple(sorted(params.items())))
        except TypeError:  # unhashable parameters
            return None

    def abstract_eval(*avals: Any, **params: Any) -> Any:
        run = compiled(params) or whole(params)
        (out,) = run.trace(*avals).jaxpr.out_avals  # with its place on the devices
        return out.update(weak_type=False)

    def evaluate(*operands: Array, **params: Any) -> Array:
        run = compiled(params) or whole(params).__wrapped__  # then operation by operation
        return run(*map(jax.numpy.asarray, operands))

    def jvp(primals: Any, tangents: Any, **params: Any) -> tuple[Array, Any]:
        moving = [i for i, t in enumerate(tangents) if type(t) is not ad.Zero]
        y = primitive.bind(*primals, **params)
        if not moving:
            return y, ad.Zero(jax.typeof(y).to_tangent_aval())
        of_moving = partial_at(partial(impl, **params), primals, moving)
        x, x_dot = ([values[i] for i in moving] for values in (primals, tangents))
        return y, jax.jvp(of_moving, x, x_dot)[1]

    def transpose(cotangent: Any, *operands: Any, **params: Any) -> list[Any]:
        linear = [i for i, v in enumerate(operands) if ad.is_undefined_primal(v)]
        if type(cotangent) is ad.Zero:
            return [ad.Zero(v.aval) if ad.is_undefined_primal(v) else None for v in operands]
        of_linear = partial_at(partial(impl, **params), operands, linear)
        pull = jax.linear_transpose(of_linear, *(operands[i].aval for i in linear))
        cotangents = dict(zip(linear, pull(cotangent), strict=True))
        return [cotangents.get(i) for i in range(len(operands))]

    primitive.def_abstract_eval(abstract_eval)
    primitive.def_impl(evaluate)
    mlir.register_lowering(primitive, mlir.lower_fun(impl, multiple_results=False))
    ad.primitive_jvps[primitive] = jvp
    ad.primitive_transposes[primitive] = transpose
    batching.primitive_batchers[primitive] = batch


def install_credit(primitive: Primitive) -> None:
    """Make ``primitive`` the function ``(value, of) -> value`` with the derivative of ``of``."""

    def first(value: Array, of: Array) -> Array:
        return value

    def jvp(primals: Any, tangents: Any) -> tuple[Array, Any]:
        return primitive.bind(*primals), tangents[1]

    def batch(args: Sequence[Array], dims: Sequence[int | None]) -> tuple[Array, int]:
        (size,) = {v.shape[k] for v, k in zip(args, dims, strict=True) if k is not None}
        pairs = zip(args, dims, strict=True)
        rows = [
            jax.lax.broadcast(v, (size,)) if k is None else jax.numpy.moveaxis(v, k, 0)
            for v, k in pairs
        ]
        return primitive.bind(*rows), 0

    primitive.def_abstract_eval(first)
    primitive.def_impl(first)
    mlir.register_lowering(primitive, mlir.lower_fun(first, multiple_results=False))
    ad.primitive_jvps[primitive] = jvp
    batching.primitive_batchers[primitive] = batch


def partial_at(
    fun: Callable[..., Any], operands: Sequence[Any], free: Sequence[int]
) -> Callable[..., Any]:
    """``fun`` as a function of the operands at positions ``free`` alone."""

    def of_free(*values: Any) -> Any:
        full = list(operands)
        for i, value in zip(free, values, strict=True):
            full[i] = value
        return fun(*full)

    return of_free


def mapped(fun: Callable[..., Any], rows: Any, together: int) -> Any:
    """``vmap``, of ``together`` rows at a time, if it can map what is inside, or else ``lax.map``.

    A primitive of another library may have no batching rule.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    try:
        if count <= together:
            return jax.vmap(fun)(rows)
        return jax.lax.map(fun, rows, batch_size=together)
    except NotImplementedError:
        return jax.lax.map(fun, rows)


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """A warning attributed to the first frame outside JAX, this package and its plugins."""
    libraries = (os.path.join(os.path.dirname(str(m.__file__)), "") for m in (jax, importlib))
    inside = (*_HIDDEN, *libraries, "<frozen importlib")
    level, frame = 2, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inside):
        frame = frame.f_back  # ``stacklevel`` does not count the frames of an import
        level += not frame.f_code.co_filename.startswith("<frozen importlib")
    warnings.warn(message, category, stacklevel=level)


def random_bits_of(seed: Any) -> Array:
    """The bits of a random key: of a typed one, of an old-style one, or of an integer seed."""
    if isinstance(seed, int | np.integer):
        return jax.random.key_data(jax.random.key(int(seed)))
    if jax.dtypes.issubdtype(getattr(seed, "dtype", None), jax.dtypes.prng_key):
        return jax.random.key_data(seed)
    return jax.numpy.asarray(seed, "uint32")


def is_traced(value: Any) -> bool:
    """Whether a value is being traced (not a concrete array or a number)."""
    return isinstance(value, jax.core.Tracer)
