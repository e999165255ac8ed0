# SPDX-License-Identifier: Apache-2.0
"""ETP primitives: registration, and JAX rules that are derived from an implementation."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Mapping, Set
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.ops.primitive import compiling
from braintrace.testing import assert_tree_close

WARNED = "rules of the primitive '{}' are replaced"


def times(x: Any, w: Any) -> Any:
    return x * w


def affine(x: Any, w: Any, b: Any, *, power: int = 1) -> Any:
    return jnp.sin(x) @ w**power + b


def positions(**where: int) -> Callable[[dict[str, Any]], dict[str, int]]:
    return lambda params: where


AFFINE = positions(w=1, b=2)
affine_p = bt.register_primitive("unit_affine", affine, trainable_invars_fn=AFFINE)
batched_p = bt.register_primitive(
    "unit_affine_many", affine, trainable_invars_fn=AFFINE, batched=True
)
linear_p = bt.register_primitive("unit_linear", lambda x, w: x @ w)


# --- registering ------------------------------------------------------------------------------


def test_registering_again_is_the_same_primitive() -> None:
    spec = bt.ETPPrimitiveSpec("unit_again", times)
    first = bt.register_primitive_spec(spec)
    assert bt.register_primitive_spec(spec) is first
    assert bt.register_primitive_spec(replace(spec)) is first
    assert bt.register_primitive("unit_again", times) is first
    assert bt.get_primitive_spec(first) is spec
    assert first.spec is spec


def test_another_owner_is_refused() -> None:
    spec = bt.ETPPrimitiveSpec("unit_owned", times)
    primitive = bt.register_primitive_spec(spec, owner="one")
    with pytest.raises(ValueError, match="'unit_owned' is registered by 'one'; 'two' must"):
        bt.register_primitive_spec(replace(spec, impl=jnp.add), owner="two")
    with pytest.raises(ValueError, match="'unit_owned' is registered by 'one'"):
        bt.register_primitive("unit_owned", times)
    assert bt.get_primitive_spec(primitive) is spec


def test_the_owner_is_the_package_of_the_implementation() -> None:
    primitive = bt.register_primitive("unit_whose", times)
    assert primitive.owner == times.__module__.partition(".")[0]


def test_replacing_warns_once_and_takes_effect() -> None:
    x, w = jnp.arange(3.0), jnp.array([2.0, 3.0, 4.0])
    primitive = bt.register_primitive("unit_replaced", times)

    def use(x: Any, w: Any) -> Any:
        return primitive.bind(x, w)

    assert_tree_close(primitive.bind(x, w), x * w)
    assert_tree_close(jax.jit(use)(x, w), x * w)
    assert_tree_close(jax.grad(lambda w: use(x, w).sum())(w), x)
    assert_tree_close(jax.vmap(use, (0, None))(jnp.stack([x, x]), w), jnp.stack([x * w] * 2))

    def plus(x: Any, w: Any) -> Any:
        return x + w**2

    with pytest.warns(UserWarning, match=WARNED.format("unit_replaced")) as issued:
        assert bt.register_primitive("unit_replaced", plus) is primitive
    assert len(issued) == 1
    assert issued[0].filename == __file__
    assert primitive.spec.impl is plus
    assert_tree_close(primitive.bind(x, w), x + w**2)
    assert_tree_close(jax.jit(lambda x, w: use(x, w))(x, w), x + w**2)
    assert_tree_close(jax.grad(lambda w: use(x, w).sum())(w), 2 * w)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the same again is silent
        bt.register_primitive("unit_replaced", plus)


def test_replacing_reaches_the_derived_batched_primitive() -> None:
    x, w = jnp.ones((2, 3)), jnp.array([2.0, 3.0, 4.0])
    primitive = bt.register_primitive("unit_rebatched", times)

    def mapped() -> Any:
        return jax.vmap(lambda one: primitive.bind(one, w))(x)

    assert_tree_close(mapped(), x * w)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bt.register_primitive("unit_rebatched", lambda x, w: x - w)
        assert_tree_close(mapped(), x - w)


def test_a_taken_name_of_the_derived_batched_primitive() -> None:
    primitive = bt.register_primitive("unit_taken", times)
    bt.register_primitive("unit_taken_batched", times, batched=True)
    with pytest.raises(ValueError, match="batched_counterpart='unit_taken_batched'"):
        jax.vmap(lambda one: primitive.bind(one, jnp.ones(3)))(jnp.ones((2, 3)))


def test_rules_can_be_set_later() -> None:
    primitive = bt.register_primitive("unit_ruled", times)
    assert primitive.spec.yw_to_w is None

    @primitive.register_yw_to_w
    def scale(dy: Any, trace: Any) -> Any:
        return {"weight": trace["weight"] * dy}

    primitive.register_xy_to_dw(lambda x, dy, weights: {"weight": x * dy})
    primitive.register_init_drtrl(lambda x, y, w, n: {"weight": jnp.zeros((*y.aval.shape, n))})
    primitive.register_init_pp(lambda x, y, w, n: jnp.zeros((*y.aval.shape, n)))
    assert primitive.spec.yw_to_w is scale
    spec = primitive.spec
    assert None not in (spec.xy_to_dw, spec.init_drtrl, spec.init_pp)
    assert primitive.register_etp_rules(instant_drtrl=times, solve_drtrl=times) is primitive
    with pytest.raises(TypeError, match=r"unknown rules \['yw'\] for 'unit_ruled'.*'yw_to_w'"):
        primitive.register_etp_rules(yw=times)
    with pytest.raises(TypeError, match="xy_to_dw of 'unit_ruled' must be callable"):
        primitive.register_etp_rules(xy_to_dw=3)  # type: ignore[arg-type]
    assert primitive.spec.xy_to_dw is spec.xy_to_dw


def test_a_rule_by_its_other_name() -> None:
    primitive = bt.register_primitive("unit_other_name", times)
    assert primitive.register_etp_rules(dt_to_t=times).spec.yw_to_w is times
    assert primitive.register_dt_to_t(max) is primitive.spec.yw_to_w is max
    with pytest.raises(TypeError, match="yw_to_w and dt_to_t of 'unit_other_name' are one rule"):
        primitive.register_etp_rules(dt_to_t=times, yw_to_w=times)
    assert primitive.spec.yw_to_w is max


@pytest.mark.parametrize("primitive", [affine_p, batched_p])
def test_copies_and_pickles_are_the_same_object(primitive: Any) -> None:
    assert copy.copy(primitive) is primitive
    assert copy.deepcopy({"a": [primitive]})["a"][0] is primitive
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(primitive, protocol)) is primitive


def test_a_pickle_of_an_unknown_primitive_is_an_error() -> None:
    text = pickle.dumps(affine_p, 0).replace(b"unit_affine", b"unit_nobody")
    with pytest.raises(LookupError, match="'unit_nobody' is not registered"):
        pickle.loads(text)


def test_only_specifications_are_registered() -> None:
    with pytest.raises(TypeError, match="spec must be an ETPPrimitiveSpec, got dict"):
        bt.register_primitive_spec({"name": "x"})  # type: ignore[arg-type]
    for other in (jax.lax.add_p, times, "unit_affine"):
        assert not bt.is_etp_primitive(other)
        with pytest.raises(TypeError, match="not an ETP primitive"):
            bt.get_primitive_spec(other)
    assert bt.is_etp_primitive(affine_p)


def test_an_implementation_returns_one_array() -> None:
    pair = bt.register_primitive("unit_pair", lambda x, w: (x, w))
    with pytest.raises((TypeError, ValueError), match="'unit_pair'.*one array"):
        pair.bind(jnp.ones(2), jnp.ones(2))


# --- JAX transformations ----------------------------------------------------------------------


def data(*head: int) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(0)
    return tuple(jnp.asarray(rng.normal(size=s)) for s in ((*head, 3), (3, 4), (4,)))  # type: ignore[return-value]


CASES = [(affine_p, ()), (batched_p, (5,))]


@pytest.mark.parametrize(("primitive", "head"), CASES)
def test_transformations_equal_the_implementation(primitive: Any, head: tuple[int, ...]) -> None:
    operands = data(*head)

    def own(x: Any, w: Any, b: Any) -> Any:
        return primitive.bind(x, w, b, power=3)

    def plain(x: Any, w: Any, b: Any) -> Any:
        return affine(x, w, b, power=3)

    def total(f: Any) -> Any:
        return lambda *a: jnp.sum(jnp.cos(f(*a)))

    def chained(f: Any) -> Any:
        def body(b: Any, k: Any) -> Any:
            return jnp.tanh(f(operands[0] * k, operands[1], b)).reshape(-1, 4)[0], b

        return lambda: jax.lax.scan(body, operands[2], jnp.arange(1.0, 4.0))

    for transform in (
        lambda f: f(*operands),
        lambda f: jax.jit(f)(*operands),
        lambda f: jax.grad(total(f), (0, 1, 2))(*operands),
        lambda f: jax.grad(total(jax.checkpoint(f)), (0, 1, 2))(*operands),
        lambda f: jax.jvp(f, operands, operands),
        lambda f: jax.jvp(lambda w: f(operands[0], w, operands[2]), operands[1:2], operands[1:2]),
        lambda f: jax.jacfwd(f, (0, 1, 2))(*operands),
        lambda f: jax.jacrev(f, (0, 1, 2))(*operands),
        lambda f: jax.jvp(jax.grad(total(f)), operands, operands),
        lambda f: jax.linearize(f, *operands)[1](*operands),
        lambda f: chained(f)(),
        lambda f: jax.grad(lambda b: chained(f)()[0].sum() + total(f)(*operands[:2], b))(
            operands[2]
        ),
        lambda f: jax.vmap(f, (0, None, None))(jnp.stack([operands[0]] * 2), *operands[1:]),
        lambda f: jax.vmap(f, (-1, None, None))(jnp.stack([operands[0]] * 2, -1), *operands[1:]),
        lambda f: jax.vmap(jax.vmap(f, (0, None, None)), (1, None, None))(
            jnp.stack([jnp.stack([operands[0], 2 * operands[0]])] * 3), *operands[1:]
        ),
        lambda f: jax.vmap(jax.grad(total(f), 1), (0, None, None))(
            jnp.stack([operands[0], 2 * operands[0]]), *operands[1:]
        ),
        lambda f: jax.grad(
            lambda w: jax.vmap(f, (0, None, None))(
                jnp.stack([operands[0], 2 * operands[0]]), w, operands[2]
            ).sum()
        )(operands[1]),
    ):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "vmap maps an operand", UserWarning)
            assert_tree_close(transform(own), transform(plain), 1e-12)
    shape = jax.eval_shape(own, *operands)
    assert (shape.shape, shape.dtype) == ((*head, 4), operands[0].dtype)


def test_linear_transpose() -> None:
    x, w, _ = data()
    g = jnp.arange(4.0)
    for primal, fix in ((w, lambda f: lambda v: f(x, v)), (x, lambda f: lambda v: f(v, w))):
        own = jax.linear_transpose(fix(linear_p.bind), primal)(g)
        assert_tree_close(own, jax.linear_transpose(fix(jnp.matmul), primal)(g), 1e-12)


def test_float32_stays_float32() -> None:
    x, w, b = (v.astype("float32") for v in data())
    assert affine_p.bind(x, w, b).dtype == jnp.float32
    assert jax.grad(lambda w: affine_p.bind(x, w, b).sum())(w).dtype == jnp.float32


def test_unhashable_params_work() -> None:
    primitive = bt.register_primitive("unit_list", lambda x, w, scale: x * w * scale[0])
    found = primitive.bind(jnp.ones(2), jnp.ones(2), scale=[3.0])
    assert_tree_close(found, 3.0 * jnp.ones(2))


def names(fun: Any, *args: Any) -> list[str]:
    return [eqn.primitive.name for eqn in jax.make_jaxpr(fun)(*args).eqns]


def test_the_equation_is_in_the_jaxpr() -> None:
    x, w, b = data()
    assert names(lambda *a: affine_p.bind(*a, power=2), x, w, b) == ["unit_affine"]
    (eqn,) = jax.make_jaxpr(lambda *a: affine_p.bind(*a, power=2))(x, w, b).eqns
    assert eqn.primitive is affine_p
    assert eqn.params == {"power": 2}


def test_vmap_over_x_keeps_an_etp_primitive() -> None:
    x, w, b = data(5)

    def mapped(x: Any) -> Any:
        return jax.vmap(lambda one: affine_p.bind(one, w, b, power=2))(x)

    assert "unit_affine_batched" in names(mapped, x)
    (eqn,) = jax.make_jaxpr(mapped)(x).eqns
    assert eqn.primitive.spec.batched
    assert eqn.primitive.spec.resolve_trainable_invars(eqn.params) == {"w": 1, "b": 2}
    assert not eqn.primitive.spec.gradient_enabled
    twice = names(jax.vmap(mapped), jnp.stack([x, x]))
    assert "unit_affine_batched" in twice and "dot_general" not in twice


def test_vmap_over_x_takes_the_declared_counterpart() -> None:
    single = bt.register_primitive(
        "unit_declared", affine, trainable_invars_fn=AFFINE, batched_counterpart="unit_affine_many"
    )
    x, w, b = data(5)
    assert names(jax.vmap(lambda one: single.bind(one, w, b)), x) == ["unit_affine_many"]
    lost = bt.register_primitive(
        "unit_lost", affine, trainable_invars_fn=AFFINE, batched_counterpart="unit_nowhere"
    )
    with pytest.raises(LookupError, match="'unit_lost' names 'unit_nowhere' as its batched"):
        jax.vmap(lambda one: lost.bind(one, w, b))(x)


@pytest.mark.parametrize("axes", [(None, 0, None), (0, 0, None), (None, None, -1), (0, 0, 0)])
def test_vmap_over_weights_warns_and_is_right(axes: tuple[int | None, ...]) -> None:
    operands = data()
    stacked = [
        v if k is None else jnp.stack([v, 2 * v], k) for v, k in zip(operands, axes, strict=True)
    ]
    with warnings.catch_warnings(action="error"):  # a program that only runs loses nothing
        jax.vmap(affine_p.bind, axes)(*stacked)
    says = "vmap maps an operand of 'unit_affine' other than x"
    before = compiling.set(True)
    with pytest.warns(UserWarning, match=says):
        found = jax.vmap(affine_p.bind, axes)(*stacked)
    compiling.reset(before)
    assert_tree_close(found, jax.vmap(affine, axes)(*stacked), 1e-12)


def test_a_declared_batched_primitive_does_not_mix_examples() -> None:
    """The batch of a derived primitive is what the single one gives, example by example."""
    x, w, b = data(5)
    mapped = jax.vmap(lambda one: affine_p.bind(one, w, b))(x)
    assert_tree_close(mapped, jnp.stack([affine_p.bind(one, w, b) for one in x]), 1e-12)


# --- views on the registry ---------------------------------------------------------------------

seen_p = bt.register_primitive("unit_seen", times)
seen_many_p = bt.register_primitive("unit_seen_many", times, batched=True)


def test_views_on_the_registry() -> None:
    assert isinstance(bt.ETP_PRIMITIVES, Set) and isinstance(bt.ETP_PRIMITIVE_SPECS, Mapping)
    assert seen_p in bt.ETP_PRIMITIVES and seen_many_p in bt.ETP_PRIMITIVES
    assert jax.lax.add_p not in bt.ETP_PRIMITIVES
    assert seen_many_p in bt.BATCHED_PRIMITIVES and seen_p not in bt.BATCHED_PRIMITIVES
    assert len(bt.ETP_PRIMITIVES) == len(list(bt.ETP_PRIMITIVES)) > len(bt.BATCHED_PRIMITIVES)
    assert bt.ETP_PRIMITIVE_SPECS[seen_p] is seen_p.spec
    assert set(bt.ETP_PRIMITIVE_SPECS) == set(bt.ETP_PRIMITIVES)
    with pytest.raises(KeyError):
        bt.ETP_PRIMITIVE_SPECS[jax.lax.add_p]


@pytest.mark.parametrize("rule", ["yw_to_w", "xy_to_dw", "init_drtrl", "init_pp"])
def test_views_on_the_rules(rule: str) -> None:
    view = getattr(bt, f"ETP_RULES_{rule.upper()}")
    primitive = bt.register_primitive(f"unit_view_{rule}", times)
    assert primitive not in view
    with pytest.raises(KeyError):
        view[primitive]
    primitive.register_etp_rules(**{rule: times})
    assert view[primitive] is times
    assert primitive in set(view)


@pytest.mark.parametrize(
    "view",
    ["ETP_PRIMITIVES", "BATCHED_PRIMITIVES", "ETP_PRIMITIVE_SPECS", "ETP_RULES_XY_TO_DW"],
)
def test_views_are_read_only(view: str) -> None:
    found = getattr(bt, view)
    for method in ("add", "discard", "clear", "pop", "update", "__setitem__", "__delitem__"):
        assert not hasattr(found, method)
    with pytest.raises(TypeError):
        found[seen_p] = None
