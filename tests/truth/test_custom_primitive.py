# SPDX-License-Identifier: Apache-2.0
"""Operations registered here, in a few lines, train like those of a plugin."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle
from tests import zoo

IN, HIDDEN, STEPS = zoo.IN, zoo.HIDDEN, 5


def trainable(**positions: int) -> Callable[[dict[str, Any]], dict[str, int]]:
    return lambda params: positions


# --- primitives with ``impl`` alone -----------------------------------------------------------

dense = bt.register_primitive("own_dense", lambda x, w: x @ w)
dense_many = bt.register_primitive("own_dense_many", lambda x, w: x @ w, batched=True)
curved = bt.register_primitive(
    "own_curved",
    lambda x, w, b, power: jnp.tanh(x @ w) * jax.nn.softplus(b) + (x**power).sum(-1) * b**2,
    trainable_invars_fn=trainable(w=1, b=2),
)
curved_many = bt.register_primitive(
    "own_curved_many",
    lambda x, w, b: jnp.tanh(x @ w) * jax.nn.softplus(b) + x.sum(-1, keepdims=True) * b**2,
    batched=True,
    trainable_invars_fn=trainable(w=1, b=2),
)
gate = bt.register_primitive(
    "own_gate",
    lambda x, a: jnp.sin(x) * jax.nn.sigmoid(a) + a**2,
    gradient_enabled=True,
)
gate_many = bt.register_primitive(
    "own_gate_many",
    lambda x, a: jnp.sin(x) * jax.nn.sigmoid(a) + a**2,
    batched=True,
    gradient_enabled=True,
)
scaled = bt.register_primitive(
    "own_scaled",
    lambda c, w, x: (x * c) @ (w * c[:, None]),
    trainable_invars_fn=trainable(w=1),
    x_invar_index=2,
)
mixing = bt.register_primitive("own_mixing", lambda x, w: x @ w, gradient_enabled=True)


# --- the same with hand-written rules ---------------------------------------------------------


def _written(batched: bool) -> bt.ETPPrimitive:
    """``own_dense`` with every rule written by hand; x has a batch axis if ``batched``."""

    def init(x_var: Any, y_var: Any, weight_vars: Any, num_state: int) -> Any:
        head = y_var.aval.shape[:1] if batched else ()
        w = weight_vars["weight"].aval
        return {"weight": jnp.zeros((*head, *w.shape, num_state), w.dtype)}

    return bt.register_primitive(
        "own_written_many" if batched else "own_written", lambda x, w: x @ w, batched=batched
    ).register_etp_rules(
        yw_to_w=lambda dy, trace: {"weight": trace["weight"] * dy[..., None, :]},
        xy_to_dw=lambda x, dy, weights: {
            "weight": x.reshape(-1, x.shape[-1]).T @ dy.reshape(-1, dy.shape[-1])
        },
        init_drtrl=init,
    )


written, written_many = _written(False), _written(True)


def _gathered(batched: bool) -> bt.ETPPrimitive:
    """``y = x[place] w``: ``place`` is neither ``x`` nor trainable, and one rule asks for it."""

    def xy_to_dw(x: Any, dy: Any, weights: Any, *, constants: Any) -> Any:
        (place,) = constants
        products = x[..., place] * dy
        return {"w": products.sum(0) if batched else products}

    def init(x_var: Any, y_var: Any, weight_vars: Any, num_state: int) -> Any:
        return {"w": jnp.zeros((*y_var.aval.shape, num_state), y_var.aval.dtype)}

    return bt.register_primitive(
        "own_gathered_many" if batched else "own_gathered",
        lambda x, place, w: x[..., place] * w,
        batched=batched,
        trainable_invars_fn=trainable(w=2),
    ).register_etp_rules(
        yw_to_w=lambda dy, trace: {"w": trace["w"] * dy}, xy_to_dw=xy_to_dw, init_drtrl=init
    )


gathered = {batched: _gathered(batched) for batched in (False, True)}


def _low_rank(batched: bool, ruled: bool) -> bt.ETPPrimitive:
    """``y = x B A``: the exact trace is that of the product ``B A``, which both leaves keep."""
    primitive = bt.register_primitive(
        f"own_low_rank{'_many' * batched}{'_ruled' * ruled}",
        lambda x, b, a: x @ b @ a,
        batched=batched,
        trainable_invars_fn=trainable(b=1, a=2),
    )

    def init(x_var: Any, y_var: Any, weight_vars: Any, num_state: int) -> Any:
        b, a = weight_vars["b"].aval, weight_vars["a"].aval
        head = (*(y_var.aval.shape[:1] if batched else ()), b.shape[0], a.shape[1])
        return {"b": jnp.zeros((*head, num_state)), "a": jnp.zeros((*head, num_state))}

    def instant(x: Any, f: Any, weights: Any) -> Any:
        assert x.ndim == f.ndim == 1 + batched  # one state at a time
        return dict.fromkeys(weights, x[..., :, None] * f[..., None, :])

    def solve(signal: Any, trace: Any, weights: Any) -> Any:
        assert trace["b"].ndim == signal.ndim + 1 == 2 + batched
        found = trace["b"] * signal[..., None, :]
        found = found.sum(0) if batched else found  # d loss / d (B A)
        return {"b": found @ weights["a"].T, "a": weights["b"].T @ found}

    if ruled:
        primitive.register_etp_rules(
            init_drtrl=init,
            yw_to_w=lambda dy, trace: {k: v * dy[..., None, :] for k, v in trace.items()},
            instant_drtrl=instant,
            solve_drtrl=solve,
        )
    return primitive


low_rank = {(b, r): _low_rank(b, r) for b in (False, True) for r in (False, True)}


# --- models -----------------------------------------------------------------------------------

weight = zoo.weight


def applied(single: Any, many: Any, x: Any, *operands: Any, **params: Any) -> Any:
    """The primitive that fits the rank of ``x``; ``many=None``: the single one under ``vmap``."""
    if x.ndim == 1:
        return single.bind(x, *operands, **params)
    if many is None:
        return jax.vmap(lambda one: single.bind(one, *operands, **params))(x)
    return many.bind(x, *operands)


class Alone(zoo.Model):
    """The operation's output is the new state."""

    single, many = dense, dense_many

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN + HIDDEN, HIDDEN)

    def update(self, x: Any) -> Any:
        xh = jnp.concatenate([x, jnp.tanh(self.h.value)], -1)
        self.h.value = applied(self.single, self.many, xh, self.w.value)
        return self.h.value


class Curved(zoo.Model):
    """A nonlinear operation with two parameters, recurrent through it, on two states."""

    names = ("h", "v")
    single, many = curved, curved_many

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN + HIDDEN, HIDDEN)
        self.b = weight(HIDDEN)

    def update(self, x: Any) -> Any:
        xh = jnp.concatenate([x, jnp.sin(self.h.value)], -1)
        params = {"power": 1} if x.ndim == 1 or self.many is None else {}
        y = applied(self.single, self.many, xh, self.w.value, self.b.value, **params)
        self.v.value = 0.7 * self.v.value + y
        self.h.value = 0.6 * self.h.value * jnp.cos(self.v.value) + y**2
        return self.h.value * self.v.value


class Mapped(Curved):
    """The unbatched operation under ``vmap``."""

    many = None


class Twice(zoo.Model):
    """Two equations with one shared and one own parameter, and processed weights."""

    single, many = dense, dense_many

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.u = weight(HIDDEN, HIDDEN)
        self.mask = (np.arange(HIDDEN**2).reshape(HIDDEN, HIDDEN) % 3 > 0).astype(float)

    def update(self, x: Any) -> Any:
        drive = applied(self.single, self.many, x, self.w.value)
        squashed = self.mask * jnp.abs(self.u.value) / (1.0 + (self.u.value**2).sum(0))
        again = applied(self.single, self.many, self.h.value, squashed)
        third = applied(self.single, self.many, jnp.cos(x), self.w.value * 0.5)
        self.h.value = 0.5 * self.h.value + drive * jax.nn.sigmoid(again) + third
        return self.h.value


class Written(Twice):
    single, many = written, written_many


class Gated(zoo.Model):
    """Position-wise and gradient-enabled: the state itself is the operation's input."""

    many: Any = gate_many

    def __init__(self) -> None:
        super().__init__()
        self.a = weight(HIDDEN)
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        leak = applied(gate, self.many, self.h.value, self.a.value)
        self.h.value = 0.8 * leak + bt.matmul(x, self.w.value)
        return self.h.value


class GatedMapped(Gated):
    many = None


class Scaled(zoo.Model):
    """An operand that is a constant, in front of the weight, and ``x`` last."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.c = jnp.arange(1.0, IN + 1.0)

    def update(self, x: Any) -> Any:
        def one(x: Any) -> Any:
            return scaled.bind(self.c, self.w.value, x)

        y = one(x) if x.ndim == 1 else jax.vmap(one)(x)
        self.h.value = 0.8 * self.h.value + jnp.tanh(y)
        return self.h.value


class Gathered(zoo.Model):
    """An operand of integers, behind ``x``."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(HIDDEN)
        self.place = jnp.arange(HIDDEN) % IN

    def update(self, x: Any) -> Any:
        y = gathered[x.ndim == 2].bind(x, self.place, self.w.value)
        self.h.value = 0.8 * self.h.value + jnp.tanh(y)
        return self.h.value


class LowRank(zoo.Model):
    names = ("h", "v")
    ruled = True

    def __init__(self) -> None:
        super().__init__()
        self.b = weight(IN + HIDDEN, 2)
        self.a = weight(2, HIDDEN)

    def update(self, x: Any) -> Any:
        xh = jnp.concatenate([x, jnp.sin(self.h.value)], -1)
        y = low_rank[x.ndim == 2, self.ruled].bind(xh, self.b.value, self.a.value)
        self.v.value = 0.7 * self.v.value + jnp.tanh(y)
        self.h.value = 0.6 * self.h.value + jnp.sin(self.v.value) + 0.3 * y
        return self.h.value * self.v.value


class LowRankDerived(LowRank):
    ruled = False


MODELS = {
    m.__name__: m
    for m in (
        Alone,
        Curved,
        Mapped,
        Twice,
        Written,
        Gated,
        GatedMapped,
        Scaled,
        Gathered,
        LowRank,
        LowRankDerived,
    )
}


def made(name: str, batch: int | None) -> zoo.Case:
    brainstate.random.seed(3)
    model = MODELS[name]()
    brainstate.nn.init_all_states(model, batch_size=batch)
    rng = np.random.default_rng(4)
    head = () if batch is None else (batch,)
    xs = jnp.asarray(rng.normal(size=(STEPS, *head, IN)))
    return zoo.Case(model, xs, jnp.asarray(rng.normal(size=(STEPS, *head, HIDDEN))), batch)


def compiled(case: zoo.Case) -> Any:
    learner = bt.D_RTRL(case.model, downstream="step")
    learner.compile_graph(case.xs[0])
    return learner


def sequence(case: zoo.Case, learner: Any, **options: Any) -> Any:
    return learner.etrace_grad(
        case.xs,
        case.ys,
        step_fn=lambda x, y: case.loss(learner(x), y),
        reduction="sum",
        **options,
    )


# --- tests ------------------------------------------------------------------------------------


CHOSEN = ["Alone", "Curved", "Gated", "LowRank"]


@pytest.mark.parametrize(
    ("name", "batch", "block_sizes"),
    [
        *((name, 2, (1, 3, STEPS) if name in CHOSEN else (3,)) for name in MODELS),
        *((name, None, (3,)) for name in (*CHOSEN, "Scaled", "Gathered")),
    ],
)
def test_equals_the_oracle_at_every_block_size(
    name: str, batch: int | None, block_sizes: tuple[int, ...]
) -> None:
    case = made(name, batch)
    oracle = d_rtrl_oracle(case.model, (case.xs, case.ys), case.loss)
    learner = compiled(case)
    for block_size in block_sizes:
        case.reset()
        learner.reset_state()
        grads = sequence(case, learner, block_size=block_size)
        assert_tree_close(grads, oracle.grads)
    assert set(learner.graph.coverage().values()) == {"trace"}


@pytest.mark.parametrize("name", ["Gated", "GatedMapped"])
def test_a_gradient_enabled_operation_carries_the_state(name: str) -> None:
    case = made(name, 2)
    _, reference = bptt(case.model, (case.xs, case.ys), case.loss)
    assert_tree_close(sequence(case, compiled(case)), reference)


@pytest.mark.parametrize(("own", "derived"), [("Written", "Twice"), ("LowRank", "LowRankDerived")])
def test_written_rules_equal_derived_ones(own: str, derived: str) -> None:
    """Also for a trace that is carried from call to call."""
    found = []
    for name in (own, derived):
        case = made(name, 2)
        learner = compiled(case)

        def step_fn(x: Any, y: Any, case: zoo.Case = case, learner: Any = learner) -> Any:
            return case.loss(learner(x), y)

        parts = [(case.xs[i : i + 2], case.ys[i : i + 2]) for i in (0, 2)]
        grads = [learner.etrace_grad(*part, step_fn=step_fn, block_size=1) for part in parts]
        found.append((grads, learner.get_etrace_of(next(iter(learner.param_states)))))
    (own_grads, own_traces), (derived_grads, derived_traces) = found
    assert_tree_close(own_grads, derived_grads, 1e-12)
    # the two do keep different traces
    assert jax.tree.map(jnp.shape, own_traces) != jax.tree.map(jnp.shape, derived_traces)


def test_vmap_of_a_custom_primitive_is_its_batched_counterpart() -> None:
    learner = compiled(made("Mapped", 2))
    (relation,) = learner.graph.hidden_param_op_relations
    assert relation.primitive.name == "own_curved_batched"
    assert relation.spec.batched
    assert relation.eqn_params == {"power": 1}
    assert relation.parameter_paths == (("w",), ("b",))


def test_relations_of_an_operation_used_three_times() -> None:
    graph = compiled(made("Twice", 2)).graph
    assert [r.primitive.name for r in graph.hidden_param_op_relations] == ["own_dense_many"] * 3
    paths = [r.parameter_paths for r in graph.hidden_param_op_relations]
    assert sorted(paths) == [(("u",),), (("w",),), (("w",),)]
    assert set(graph.coverage().values()) == {"trace"}


@pytest.mark.parametrize("name", ["Curved", "LowRank"])
def test_trains(name: str) -> None:
    case = made(name, 2)
    learner = compiled(case)
    target = 0.2 * jnp.sin(case.ys)

    @brainstate.transform.jit
    def update() -> Any:
        learner.reset_state(batch_size=2, model_states=True)
        grads, losses = learner.etrace_grad(
            case.xs,
            target,
            step_fn=lambda x, y: jnp.mean((learner(x) - y) ** 2),
            return_value=True,
        )
        for path, state in learner.param_states.items():
            state.value = jax.tree.map(lambda w, g: w - 0.05 * g, state.value, grads[path])
        return losses.mean()

    losses = [float(update()) for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0], losses
    assert all(b < a for a, b in pairwise(losses)), losses


# --- refused ----------------------------------------------------------------------------------


def line_of(function: Any, marker: str) -> int:
    """The line in this file of a function's source that holds ``marker``."""
    lines, first = inspect.getsourcelines(function)
    return first + next(i for i, text in enumerate(lines) if marker in text)


class Moving(zoo.Model):
    """The weights change their places with an input."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)
        self.b = weight(HIDDEN)

    def update(self, x: Any) -> Any:
        w = jnp.roll(self.w.value, jnp.int32(x[0]))
        y = curved.bind(x, w, self.b.value, power=1)
        self.h.value = 0.5 * self.h.value + y
        return self.h.value


class DynamicConstant(zoo.Model):
    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        y = scaled.bind(jnp.cos(x), self.w.value, x)  # here
        self.h.value = 0.5 * self.h.value + y
        return self.h.value


class MixingTransition(zoo.Model):
    def __init__(self) -> None:
        super().__init__()
        self.u = weight(HIDDEN, HIDDEN)
        self.w = weight(IN, HIDDEN)

    def update(self, x: Any) -> Any:
        mixed = mixing.bind(self.h.value, self.u.value)  # here
        self.h.value = jnp.tanh(mixed) + bt.matmul(x, self.w.value)
        return self.h.value


class Wide(zoo.Model):
    """The output has more positions than the state."""

    def __init__(self) -> None:
        super().__init__()
        self.w = weight(IN, 2 * HIDDEN)

    def update(self, x: Any) -> Any:
        y = dense.bind(x, self.w.value)
        self.h.value = 0.5 * self.h.value + y.reshape(2, HIDDEN).sum(0)  # here
        return self.h.value


def test_a_constant_that_moves_is_refused_with_its_line() -> None:
    built = DynamicConstant()
    brainstate.nn.init_all_states(built)
    says = r"operand 0\)? of 'own_scaled' at .*depends on inputs or states"
    with pytest.raises(bt.NotSupportedError, match=says) as refusal:
        bt.D_RTRL(built).compile_graph(jnp.ones(IN))
    assert "''" not in str(refusal.value)  # an operand without a key is named by its position
    place = f"test_custom_primitive.py:{line_of(DynamicConstant.update, '# here')}"
    assert place in str(refusal.value)


def test_weights_that_move_are_exact() -> None:
    model = Moving()
    brainstate.nn.init_all_states(model)
    xs = 2.0 * jax.random.normal(jax.random.key(0), (6, IN))

    def loss(h: Any) -> Any:
        return jnp.sum(h**2)

    exact = bptt(model, (xs,), loss)[1]
    learner = bt.D_RTRL(model)
    learner.compile_graph(xs[0])
    brainstate.nn.reset_all_states(model)
    learner.reset_state()
    found = learner.etrace_grad(xs, step_fn=lambda x: loss(learner(x)), reduction="sum")
    assert_tree_close(found, exact)


absent_p = bt.register_primitive(
    "unit_absent", lambda x, w: x @ w, trainable_invars_fn=trainable(w=5)
)
last_p = bt.register_primitive("unit_last", lambda w, x: x @ w, x_invar_index=1)


@pytest.mark.parametrize("primitive", [absent_p, last_p])
def test_a_trainable_operand_that_is_not_there_is_an_error(primitive: Any) -> None:
    """Left alone, the weight would silently have the gradient of the current step only."""

    class Model(zoo.Model):
        def __init__(self) -> None:
            super().__init__()
            self.w = weight(IN, HIDDEN)

        def update(self, x: Any) -> Any:
            operands = (x, self.w.value) if primitive is absent_p else (self.w.value, x)
            self.h.value = 0.5 * self.h.value + primitive.bind(*operands)
            return self.h.value

    model = Model()
    brainstate.nn.init_all_states(model)
    with pytest.raises((ValueError, bt.CompilationError), match=f"'{primitive.name}'.*operand"):
        bt.compile_etrace_graph(model, jnp.ones(IN))


@pytest.mark.parametrize("model", [MixingTransition, Wide])
def test_positions_that_do_not_stay_in_place_equal_the_oracle(model: Any) -> None:
    """A transition that mixes has its true diagonal; outputs may outnumber the positions."""
    built = model()
    brainstate.nn.init_all_states(built)
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(5, IN)))
    oracle = d_rtrl_oracle(built, (xs,), lambda out: jnp.sum(jnp.sin(out)))
    learner = bt.D_RTRL(built, downstream="step")
    learner.compile_graph(xs[0])
    grads = learner.etrace_grad(xs, step_fn=lambda x: jnp.sum(jnp.sin(learner(x))), reduction="sum")
    assert_tree_close(grads, oracle.grads)
    mixing = learner.graph.explain(kind=bt.DiagnosticKind.TRANSITION_NOT_POSITION_WISE)
    assert [record.primitive for record in mixing] == ["own_mixing"] * (model is MixingTransition)


def test_rules_are_passed_the_group_that_they_ask_for() -> None:
    asked = []

    def init(x_var: Any, y_var: Any, weights: Any, num_state: int, *, group: Any) -> Any:
        asked.append((group.varshape, group.num_state, num_state))
        return {"weight": jnp.zeros((*weights["weight"].aval.shape, num_state))}

    spec = bt.ETPPrimitiveSpec(
        "cell_asks",
        lambda x, w: x * w,
        yw_to_w=lambda dy, trace: {"weight": dy * trace["weight"]},
        init_drtrl=init,
        init_pp=lambda *args, group: init(*args, group=group)["weight"],
    )
    primitive = bt.register_primitive_spec(spec)

    class Gain(zoo.Model):
        def __init__(self) -> None:
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones(HIDDEN))

        def start(self, batch_size: int | None) -> Any:
            return jnp.zeros(HIDDEN)

        def update(self, x: Any) -> Any:
            self.h.value = 0.5 * self.h.value + primitive.bind(x, self.w.value)
            return self.h.value

    for rule in (bt.D_RTRL, partial(bt.pp_prop, decay_or_rank=0.5)):
        asked.clear()
        model = Gain()
        brainstate.nn.init_all_states(model)
        rule(model, downstream="step").compile_graph(jnp.ones(HIDDEN))
        assert asked and set(asked) == {((HIDDEN,), 1, 1)}
