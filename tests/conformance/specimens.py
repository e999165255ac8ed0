# SPDX-License-Identifier: Apache-2.0
"""Correct primitives, and one broken in a particular way for each check of the kit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import saiunit

from braintrace import register_primitive_spec
from braintrace.plugin_api import ETPPrimitiveSpec, bind
from braintrace.testing import ConformanceCase

IN, OUT, BATCH = 3, 2, 2


def draw(seed: int, shape: tuple[int, ...], dtype: Any) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape, dtype)


# --- y = x W + b, with every rule written ----------------------------------------------------


def affine(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b


def affine_trainable(params: Any) -> dict[str, int]:
    return {"w": 1, "b": 2}


def affine_yw_to_w(dy: Any, trace: Any) -> Any:
    return {"w": trace["w"] * dy[..., None, :], "b": trace["b"] * dy}


def affine_xy_to_dw(x: Any, dy: Any, weights: Any) -> Any:
    many_x, many_dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return {"w": many_x.T @ many_dy, "b": many_dy.sum(0)}


def affine_init_drtrl(x_var: Any, y_var: Any, weight_vars: Any, num_state: int) -> Any:
    head, dtype = y_var.aval.shape[:-1], y_var.aval.dtype
    shapes = {key: (*head, *var.aval.shape, num_state) for key, var in weight_vars.items()}
    return {key: jnp.zeros(shape, dtype) for key, shape in shapes.items()}


def init_pp(x_var: Any, y_var: Any, weight_vars: Any, num_state: int) -> Any:
    return jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)


AFFINE = ETPPrimitiveSpec(
    "specimen_affine",
    affine,
    yw_to_w=affine_yw_to_w,
    xy_to_dw=affine_xy_to_dw,
    init_drtrl=affine_init_drtrl,
    init_pp=init_pp,
    trainable_invars_fn=affine_trainable,
)


def affine_operands(batched: bool) -> Callable[[int, Any], Any]:
    def operands(seed: int, dtype: Any) -> Any:
        head = (BATCH,) if batched else ()
        x = draw(seed, (*head, IN), dtype)
        return x, draw(101, (IN, OUT), dtype), draw(102, (OUT,), dtype)

    return operands


def case_of(spec: ETPPrimitiveSpec, op: Any = None) -> ConformanceCase:
    def direct(x: Any, w: Any, b: Any) -> Any:
        return bind(spec, x, w, b)

    return ConformanceCase(spec, affine_operands(spec.batched), op or direct)


numbers = count()


def broken(**changes: Any) -> ETPPrimitiveSpec:
    """The affine specimen with some fields replaced."""
    return replace(AFFINE, **{"name": f"specimen_broken_{next(numbers)}"} | changes)


def with_counterpart(**changes: Any) -> ConformanceCase:
    """One example at a time, with a batched counterpart that is broken."""
    many = broken(batched=True, **changes)
    register_primitive_spec(many)
    return case_of(broken(batched_counterpart=many.name))


# --- y[p] = sum_k x[p + k] w[k]: the exact trace keeps the positions -------------------------

KERNEL, PLACES = 2, 3


def conv(x: Any, w: Any) -> Any:
    return jnp.convolve(x, w[::-1], mode="valid")


def patches(x: Any) -> Any:
    return jnp.stack([x[p : p + KERNEL] for p in range(PLACES)])


def conv_init(x_var: Any, y_var: Any, weight_vars: Any, num_state: int) -> Any:
    y = y_var.aval
    return {"weight": jnp.zeros((*y.shape, KERNEL, num_state), y.dtype)}


CONV = ETPPrimitiveSpec(
    "specimen_conv",
    conv,
    yw_to_w=lambda dy, trace: {"weight": trace["weight"] * dy[:, None]},
    xy_to_dw=lambda x, dy, weights: {"weight": dy @ patches(x)},
    init_drtrl=conv_init,
    init_pp=init_pp,
    instant_drtrl=lambda x, f, weights: {"weight": f[:, None] * patches(x)},
    solve_drtrl=lambda l, trace, weights: {"weight": l @ trace["weight"]},  # noqa: E741
)


def conv_case(spec: ETPPrimitiveSpec) -> ConformanceCase:
    def operands(seed: int, dtype: Any) -> Any:
        x = draw(seed, (PLACES + KERNEL - 1,), dtype)
        return x, draw(103, (KERNEL,), dtype)

    return ConformanceCase(spec, operands, lambda x, w: bind(spec, x, w))


def kernel_shaped() -> ConformanceCase:
    """A trace of the kernel alone: it multiplies sums over positions."""
    spec = replace(
        CONV,
        name="specimen_conv_kernel_shaped",
        yw_to_w=lambda dy, trace: {"weight": trace["weight"] * dy.mean()},
        init_drtrl=affine_init_kernel,
        instant_drtrl=None,
        solve_drtrl=None,
    )
    return conv_case(spec)


def affine_init_kernel(x_var: Any, y_var: Any, weight_vars: Any, num_state: int) -> Any:
    return {"weight": jnp.zeros((KERNEL, num_state), y_var.aval.dtype)}


# --- an embedding: an integer input, no rule written -----------------------------------------

EMBEDDING = ETPPrimitiveSpec("specimen_embedding", lambda x, w: jnp.sin(w[x]))


def embedding_operands(seed: int, dtype: Any) -> Any:
    return jnp.asarray(seed % 2), draw(104, (2, OUT), dtype)


HEALTHY = (
    case_of(replace(AFFINE, name="specimen_affine_many", batched=True)),
    conv_case(CONV),
    ConformanceCase(EMBEDDING, embedding_operands, lambda x, w: bind(EMBEDDING, x, w)),
)


# --- broken implementations and operations ---------------------------------------------------


def ignores_the_dtype() -> ConformanceCase:
    return replace(
        case_of(broken()), operands=lambda seed, dtype: affine_operands(False)(seed, "float32")
    )


def plain() -> ConformanceCase:
    return case_of(broken(), op=affine)


def needs_values() -> ConformanceCase:
    return case_of(broken(impl=lambda x, w, b: affine(x, w, b) if (x > 9).any() else x @ w + b))


def changes_when_traced_again() -> ConformanceCase:
    times = count(1)
    return case_of(broken(impl=lambda x, w, b: affine(x, w, b) * next(times)))


def keeps_an_array() -> ConformanceCase:
    kept: dict[Any, Any] = {}

    def impl(x: Any, w: Any, b: Any) -> Any:
        return affine(x, w, b) * kept.setdefault(x.shape, jnp.full((), 2.0, x.dtype) + 0 * x[0])

    return case_of(broken(impl=impl))


def changes_at_each_call() -> ConformanceCase:
    times, spec = count(1), broken()
    return case_of(spec, op=lambda x, w, b: bind(spec, x, w, b) * next(times))


@jax.custom_jvp
def straight_through(y: Any) -> Any:
    return jnp.tanh(y)


straight_through.defjvps(lambda dy, out, y: dy)


@jax.custom_vjp
def reverse_only(y: Any) -> Any:
    return y


reverse_only.defvjp(lambda y: (y, None), lambda _, dy: (dy,))


def wrong_derivative() -> ConformanceCase:
    return case_of(broken(impl=lambda x, w, b: straight_through(affine(x, w, b))))


def no_forward_mode() -> ConformanceCase:
    return case_of(broken(impl=lambda x, w, b: reverse_only(affine(x, w, b))))


def other_numbers_in_a_batch() -> ConformanceCase:
    return with_counterpart(impl=lambda x, w, b: 2 * affine(x, w, b))


def lost_under_vmap() -> ConformanceCase:
    """The weight depends on ``x``, so ``vmap`` maps both."""
    spec = broken()
    return case_of(spec, op=lambda x, w, b: bind(spec, x, w / (1 + x @ x), b))


@jax.custom_batching.custom_vmap
def not_mapped(w: Any) -> Any:
    return w


not_mapped.def_vmap(lambda size, mapped, w: (2 * w, mapped[0]))


def other_numbers_for_mapped_weights() -> ConformanceCase:
    return case_of(broken(impl=lambda x, w, b: affine(x, not_mapped(w), b)))


def without_a_place() -> ConformanceCase:
    """A primitive with an abstract value that its author wrote, as one finds them everywhere."""
    spec = broken(batched=True)
    primitive = register_primitive_spec(spec)

    def abstract(x: Any, w: Any, b: Any) -> Any:
        return jax.core.ShapedArray((*x.shape[:-1], w.shape[-1]), x.dtype)

    primitive.def_abstract_eval(abstract)
    return case_of(spec)


def other_numbers_on_a_mesh() -> ConformanceCase:
    spec = broken(batched=True)

    def op(x: Any, w: Any, b: Any) -> Any:
        return bind(spec, x, w, b) * (1 + len(jax.sharding.get_abstract_mesh().axis_names))

    return case_of(spec, op)


def forgets_the_bias() -> ConformanceCase:
    return case_of(broken(trainable_invars_fn=lambda params: {"w": 1}))


def mixes_examples() -> ConformanceCase:
    return case_of(
        broken(batched=True, impl=lambda x, w, b: affine(x - x.mean(0), w, b), xy_to_dw=None)
    )


def drops_units() -> ConformanceCase:
    spec = broken()
    return case_of(spec, op=lambda *given: bind(spec, *map(saiunit.get_mantissa, given)))


def always_float32() -> ConformanceCase:
    return case_of(broken(impl=lambda *given: affine(*(v.astype("float32") for v in given))))


# --- broken rules ----------------------------------------------------------------------------


def factor_in_yw_to_w() -> ConformanceCase:
    """``y = 3 (x W + b)`` with the 3 in both rules."""
    return case_of(
        broken(
            impl=lambda x, w, b: 3 * affine(x, w, b),
            xy_to_dw=lambda x, dy, weights: affine_xy_to_dw(x, 3 * dy, weights),
            yw_to_w=lambda dy, trace: affine_yw_to_w(3 * dy, trace),
        )
    )


def xy_to_dw_of_something_else() -> ConformanceCase:
    return case_of(broken(xy_to_dw=lambda x, dy, weights: affine_xy_to_dw(x**2, dy, weights)))


def of_inputs_seen() -> ConformanceCase:
    """Right for the inputs of the case, wrong for their sums over several steps."""
    most = np.max([np.abs(case_of(AFFINE).arguments(seed)[0]) for seed in range(5)], axis=0)

    def rule(x: Any, dy: Any, weights: Any) -> Any:
        return affine_xy_to_dw(jnp.clip(x, -most, most), dy, weights)

    return case_of(broken(xy_to_dw=rule))


def clipped_xy_to_dw() -> ConformanceCase:
    return case_of(
        broken(xy_to_dw=lambda x, dy, weights: affine_xy_to_dw(x, jnp.clip(dy, -1, 1), weights))
    )


def mean_over_the_batch() -> ConformanceCase:
    return with_counterpart(
        xy_to_dw=lambda x, dy, weights: affine_xy_to_dw(x, dy / len(dy), weights)
    )


def trace_in_float32() -> ConformanceCase:
    def init(*given: Any) -> Any:
        return jax.tree.map(lambda v: v.astype("float32"), affine_init_drtrl(*given))

    return case_of(broken(init_drtrl=init))


def trace_in_float64() -> ConformanceCase:
    def init(*given: Any) -> Any:
        return jax.tree.map(lambda v: v.astype("float64"), affine_init_drtrl(*given))

    return case_of(broken(init_drtrl=init))


def trace_without_states() -> ConformanceCase:
    return case_of(broken(init_pp=lambda *given: init_pp(*given)[..., 0]))


def mean_factor() -> ConformanceCase:
    """Every entry is scaled by the mean over positions."""
    return case_of(broken(yw_to_w=lambda dy, trace: {k: v * dy.mean() for k, v in trace.items()}))


def increment_without_f() -> ConformanceCase:
    def instant(x: Any, f: Any, weights: Any) -> Any:
        return {"w": x[:, None] * jnp.ones_like(f), "b": jnp.ones_like(f)}

    return case_of(broken(instant_drtrl=instant))


def increments_of_the_last_step() -> ConformanceCase:
    def rule(x: Any, f: Any, weights: Any) -> Any:
        return affine_xy_to_dw(x[-1], f[-1], weights)

    return case_of(broken(increments_drtrl=rule))


def unscaled_bias() -> ConformanceCase:
    return case_of(broken(yw_to_w=lambda dy, trace: {**affine_yw_to_w(dy, trace), "b": trace["b"]}))


# --- wrong in a few places only, and the same done right --------------------------------------


def with_increments(last: int | None) -> ConformanceCase:
    """Increments of a block: of its last steps, or of all."""
    kept = slice(last and -last, None)

    def rule(x: Any, f: Any, weights: Any) -> Any:
        return affine_xy_to_dw(x[kept], f[kept], weights)

    return case_of(broken(increments_drtrl=rule))


def of_the_last_examples(last: int) -> Callable[..., Any]:
    return lambda x, dy, weights: affine_xy_to_dw(
        x.reshape(-1, IN)[-last:], dy.reshape(-1, OUT)[-last:], weights
    )


def batch_of_the_last_steps() -> ConformanceCase:
    return case_of(broken(batched=True, xy_to_dw=of_the_last_examples(4 * BATCH)))


def counterpart_of_the_last_steps() -> ConformanceCase:
    return with_counterpart(xy_to_dw=of_the_last_examples(4))


def clipped_trace() -> ConformanceCase:
    def rule(dy: Any, trace: Any) -> Any:
        return jax.tree.map(lambda v: jnp.clip(v, -50, 50), affine_yw_to_w(dy, trace))

    return case_of(broken(yw_to_w=rule))


def clipped_increments() -> ConformanceCase:
    def instant(x: Any, f: Any, weights: Any) -> Any:
        found = affine_xy_to_dw(x, f, weights)
        return jax.tree.map(lambda v: jnp.clip(v, -50, 50), found)

    return case_of(broken(instant_drtrl=instant))


def nan_at_zero_inputs() -> ConformanceCase:
    return case_of(broken(xy_to_dw=lambda x, dy, weights: affine_xy_to_dw(x**2 / x, dy, weights)))


def with_norms(floor: float) -> ConformanceCase:
    """The derivative of the norm of ``x`` is not defined at zero, unless there is a floor."""

    def impl(x: Any, w: Any, b: Any) -> Any:
        return affine(jnp.sqrt(x * x + floor), w, b)

    return case_of(broken(impl=impl, xy_to_dw=None))


def small_signals_dropped() -> ConformanceCase:
    def rule(x: Any, dy: Any, weights: Any) -> Any:
        return affine_xy_to_dw(x, jnp.where(abs(dy) < 1e-6, 0, dy), weights)

    return case_of(broken(xy_to_dw=rule))


def small_weights_dropped() -> ConformanceCase:
    """``y = x W² + b``, whose rule takes weights below 1e-6 for zero."""

    def rule(x: Any, dy: Any, weights: Any) -> Any:
        w = weights["w"]
        found = affine_xy_to_dw(x, dy, weights)
        return {**found, "w": 2 * jnp.where(abs(w) < 1e-6, 0, w) * found["w"]}

    return case_of(broken(impl=lambda x, w, b: affine(x, w * w, b), xy_to_dw=rule))


@jax.custom_vjp
def forgetful(y: Any) -> Any:
    return y


forgetful.defvjp(lambda y: (y, None), lambda _, dy: (jnp.where(abs(dy) < 1e-6, 0, dy),))


def small_cotangents_dropped() -> ConformanceCase:
    return case_of(broken(impl=lambda x, w, b: forgetful(affine(x, w, b)), xy_to_dw=None))


def small_signals_dropped_by_the_trace() -> ConformanceCase:
    def solve(l: Any, trace: Any, weights: Any) -> Any:  # noqa: E741
        return affine_yw_to_w(jnp.where(abs(l) < 1e-6, 0, l), trace)

    return case_of(broken(solve_drtrl=solve))


def with_factor(right: bool, *factors: float) -> tuple[ConformanceCase, ...]:
    """``y = factor (x W + b)``; the wrong rule has forgotten the factor."""

    def xy_to_dw(x: Any, dy: Any, weights: Any, *, factor: float) -> Any:
        return affine_xy_to_dw(x, factor * dy if right else dy, weights)

    spec = broken(
        impl=lambda x, w, b, *, factor: factor * affine(x, w, b),
        xy_to_dw=xy_to_dw,
        yw_to_w=lambda dy, trace, *, factor: affine_yw_to_w(dy, trace),
        trainable_invars_fn=affine_trainable,
    )

    def case(factor: float) -> ConformanceCase:
        named = replace(case_of(spec), name=f"factor_{factor}")
        return replace(named, op=lambda x, w, b: bind(spec, x, w, b, factor=factor))

    return tuple(map(case, factors))


def gated(x: Any, w: Any, b: Any) -> Any:
    """A gated linear unit: two halves of a product, one of which gates the other."""
    value, gate = jnp.split(x @ w, 2, axis=-1)
    return value * jax.nn.sigmoid(gate + b)


def gated_xy_to_dw(x: Any, dy: Any, weights: Any) -> Any:
    value, gate = jnp.split(x @ weights["w"], 2, axis=-1)
    open_ = jax.nn.sigmoid(gate + weights["b"])
    of_gate = dy * value * open_ * (1 - open_)
    many_x = x.reshape(-1, x.shape[-1])
    both = jnp.concatenate([dy * open_, of_gate], axis=-1)
    return {
        "w": many_x.T @ both.reshape(-1, both.shape[-1]),
        "b": of_gate.reshape(-1, OUT).sum(0),
    }


def gated_yw_to_w(dy: Any, trace: Any) -> Any:
    return affine_yw_to_w(jnp.concatenate([dy, dy], axis=-1), {**trace, "b": 0}) | {
        "b": trace["b"] * dy
    }


def gated_linear_unit(rounding: Any = None) -> ConformanceCase:
    """Right, with large weights: in bfloat16 even the derived rules are far off. ``rounding``
    makes it wrong in float32 alone, in which rules run for bfloat16 as well."""

    def xy_to_dw(x: Any, dy: Any, weights: Any) -> Any:
        found = gated_xy_to_dw(x, dy, weights)
        return found if rounding is None else jax.tree.map(rounding, found)

    def operands(seed: int, dtype: Any) -> Any:
        x = draw(seed, (BATCH, IN), dtype)
        return x, 8 * draw(101, (IN, 2 * OUT), dtype), draw(102, (OUT,), dtype)

    spec = broken(impl=gated, xy_to_dw=xy_to_dw, yw_to_w=gated_yw_to_w, batched=True)
    return ConformanceCase(spec, operands, lambda x, w, b: bind(spec, x, w, b))


def off_in_float32(value: Any) -> Any:
    return value if value.dtype != "float32" else value * 3


INCREMENTS = "rules.increments_drtrl_is_a_sum_over_steps"
AT_ZEROS = "jax.derivatives_at_zeros_and_spikes"
ONE_STEP = "rules.one_step_trace_gives_xy_to_dw"

#: Check, a case that is wrong in few places, and what the failure says.
WRONG_IN_PLACES: tuple[tuple[str, Callable[[], ConformanceCase], str], ...] = (
    (INCREMENTS, lambda: with_increments(4), "relative error"),
    ("rules.sums_over_steps", batch_of_the_last_steps, "relative error"),
    ("rules.counterpart_sums_over_its_batch", counterpart_of_the_last_steps, "relative error"),
    ("rules.yw_to_w_has_no_factor", clipped_trace, "with signals times 10000: b: error"),
    ("rules.written_trace_equals_the_derived_one", clipped_trace, "with signals times 10000"),
    (ONE_STEP, clipped_increments, "with signals times 10000"),
    ("rules.xy_to_dw_is_the_vjp", nan_at_zero_inputs, "with inputs of zero: w: error nan"),
    (AT_ZEROS, lambda: with_norms(0.0), "with zeros as x, the derivative in argument 0"),
    ("rules.xy_to_dw_is_the_vjp", small_signals_dropped, "with signals times 1e-08: b: error"),
    ("rules.xy_to_dw_is_the_vjp", small_weights_dropped, "with weights times 1e-08: w: error"),
    ("jax.grad", small_cotangents_dropped, "with cotangents times 1e-08"),
    (ONE_STEP, small_signals_dropped_by_the_trace, "with signals times 1e-08"),
    ("rules.xy_to_dw_is_the_vjp", lambda: with_factor(False, 2.0)[0], "relative error"),
    ("dtypes.training", lambda: gated_linear_unit(off_in_float32), "relative error"),
)

#: The same checks, with cases that are right.
RIGHT_IN_ALL: tuple[tuple[str, Callable[[], ConformanceCase]], ...] = (
    (INCREMENTS, lambda: with_increments(None)),
    (AT_ZEROS, lambda: with_norms(1.0)),
    ("rules.xy_to_dw_is_the_vjp", lambda: with_factor(True, 2.0)[0]),
    ("rules.xy_to_dw_is_the_vjp", gated_linear_unit),
    ("rules.written_trace_equals_the_derived_one", gated_linear_unit),
    ("dtypes.training", gated_linear_unit),
)


#: Check -> a case that fails it, and what the failure says.
BREAKERS: dict[str, tuple[Callable[[], ConformanceCase], str]] = {
    "cases.are_reproducible": (ignores_the_dtype, "has dtype float32, asked for float64"),
    "jax.binds_its_primitive": (plain, r"binds \[\], expected"),
    "jax.abstract_evaluation": (needs_values, "TracerBoolConversionError"),
    "jax.jit": (changes_when_traced_again, "relative error"),
    "jax.scan": (keeps_an_array, "[tT]racer"),
    "jax.checkpoint": (changes_at_each_call, "relative error"),
    "jax.grad": (wrong_derivative, "relative error .* of the gradient"),
    AT_ZEROS: (lambda: with_norms(0.0), "with zeros as x, the derivative in argument 0"),
    "jax.jvp": (no_forward_mode, "forward-mode"),
    "jax.vmap": (other_numbers_in_a_batch, "relative error"),
    "jax.vmap_keeps_the_primitive": (lost_under_vmap, r"binds \[\], expected one ETP"),
    "jax.vmap_over_weights": (other_numbers_for_mapped_weights, "relative error"),
    "devices.numbers": (other_numbers_on_a_mesh, "relative error"),
    "devices.explicit_axes": (without_a_place, r"the result lies at \(\), expected"),
    "devices.shard_map": (without_a_place, "varying|same on every device"),
    "rules.weights_are_trainable_operands": (forgets_the_bias, "weight 1 reaches the result"),
    "rules.batch_examples_are_apart": (mixes_examples, "relative error"),
    "rules.xy_to_dw_is_the_vjp": (xy_to_dw_of_something_else, "w: relative error"),
    "rules.xy_to_dw_is_linear_in_dy": (clipped_xy_to_dw, "relative error"),
    "rules.sums_over_steps": (batch_of_the_last_steps, "relative error"),
    "rules.counterpart_sums_over_its_batch": (mean_over_the_batch, "relative error"),
    "rules.init_drtrl": (trace_in_float32, "has dtype float32, expected float64"),
    "rules.init_pp": (trace_without_states, r"has shape \(2,\), expected \(2, 1\)"),
    "rules.yw_to_w_has_no_factor": (factor_in_yw_to_w, "relative error 2.00"),
    "rules.yw_to_w_scales_each_entry": (mean_factor, "relative error"),
    "rules.one_step_trace_gives_xy_to_dw": (increment_without_f, "relative error"),
    "rules.increments_drtrl_is_a_sum_over_steps": (increments_of_the_last_step, "relative error"),
    "rules.written_trace_equals_the_derived_one": (kernel_shaped, "relative error"),
    "algorithms.d_rtrl.leaky_cell": (factor_in_yw_to_w, "block_size=1: .*relative error"),
    "algorithms.d_rtrl.leaky_cell_in_a_batch": (mean_over_the_batch, "relative error"),
    "algorithms.d_rtrl.one_layer": (xy_to_dw_of_something_else, "relative error"),
    "algorithms.d_rtrl.two_layers": (unscaled_bias, "relative error"),
    "algorithms.d_rtrl.credit_through_leaks": (xy_to_dw_of_something_else, "relative error"),
    "algorithms.d_rtrl.gradient_of_calls": (increment_without_f, "relative error"),
    "algorithms.d_rtrl.batch_is_the_sum": (mixes_examples, "relative error"),
    "algorithms.pp_prop.leaky_cell": (of_inputs_seen, "block_size=1: .*relative error"),
    "algorithms.pp_prop.leaky_cell_in_a_batch": (mean_over_the_batch, "relative error"),
    "algorithms.pp_prop.two_layers": (trace_without_states, "init_pp of .* expected floating"),
    "units.are_never_dropped": (drops_units, "in volt and in millivolt"),
    "dtypes.result": (always_float32, "bfloat16 arguments give a result of dtype float32"),
    "dtypes.training": (trace_in_float64, "a trace has dtype"),
}
