# SPDX-License-Identifier: Apache-2.0
"""pp_prop against an oracle that shares no code with it, and the facts of its definition."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle, pp_prop_oracle
from tests import zoo
from tests.truth import test_custom_primitive as custom
from tests.truth import test_mixing as mixing
from tests.zoo import HIDDEN, IN, STEPS, weight

DECAYS = (0.7, 0.6)


class NonlinearSingle(custom.Curved):
    """An operation that is not linear in its input, without a batch, under ``vmap``."""

    many = None


def of_zoo(name: str) -> Callable[[Any], zoo.Case]:
    return lambda batch: zoo.case(name, batch)


def of_model(build: Any) -> Callable[[Any], zoo.Case]:
    def made(batch: int | None) -> zoo.Case:
        model = build()
        xs, _ = mixing.data(model, batch, STEPS)
        shape = brainstate.transform.StatefulFunction(model).get_out_shapes(xs[0])[0].shape
        ys = np.random.default_rng(6).normal(size=(STEPS, *shape))
        return zoo.Case(model, xs, jnp.asarray(ys), batch)

    return made


NAMES = [
    "gru-2", "lstm-1", "two-states", "reads-old-state", "delayed", "learned-leak", "used-twice",
    "processed", "group-state", "transposed", "mapped", "lif", "through-element-wise",
]  # fmt: skip
MODELS = [
    mixing.NormOnTail, mixing.SoftmaxOfParameters, mixing.UnequalParts, custom.Curved, custom.Gated,
    custom.LowRank, custom.Scaled, NonlinearSingle,
]  # fmt: skip
CASES = {name: of_zoo(name) for name in NAMES} | {m.__name__: of_model(m) for m in MODELS}
#: batched, and some for one example
CHOSEN = [(name, 2) for name in CASES if name != "Scaled"] + [
    (name, None) for name in ("reads-old-state", "learned-leak", "NormOnTail", "Scaled")
]
ONE_STEP = [
    "gru-2", "lstm-1", "delayed", "learned-leak", "processed", "NormOnTail", "UnequalParts",
    "Scaled", "NonlinearSingle",
]  # fmt: skip
FEW = ["lstm-1", "reads-old-state", "learned-leak", "UnequalParts"]


def compiled(case: zoo.Case, decays: Any = DECAYS, **options: Any) -> Any:
    learner = bt.pp_prop(case.model, decays, **{"downstream": "step", **options})
    learner.compile_graph(case.xs[0])
    return learner


@lru_cache(maxsize=4)
def step_of(learner: Any) -> Callable[..., Any]:
    """One function for all calls of a learner, so that it is compiled once."""
    return lambda x, y: zoo.Case.loss(None, learner(x), y)  # type: ignore[arg-type]


def sequence(case: zoo.Case, learner: Any, part: slice = slice(None), **options: Any) -> Any:
    return learner.etrace_grad(
        case.xs[part],
        case.ys[part],
        step_fn=step_of(learner),
        reduction="sum",
        **options,
    )


def start_again(case: zoo.Case, learner: Any, start: Any) -> None:
    for path, state in brainstate.graph.states(case.model).items():
        state.value = start[path]
    learner.reset_state()


def start_of(case: zoo.Case) -> Any:
    return {path: s.value for path, s in brainstate.graph.states(case.model).items()}


def trace_values(learner: Any) -> Any:
    return [state.value for state in learner.traces]


def reference(case: zoo.Case, *decays: float) -> Any:
    return pp_prop_oracle(case.model, (case.xs, case.ys), case.loss, *(decays or DECAYS)).grads


# --- the oracle -------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "batch"), CHOSEN)
def test_equals_the_oracle(name: str, batch: int | None) -> None:
    case = CASES[name](batch)
    oracle = reference(case)
    assert_tree_close(sequence(case, compiled(case)), oracle)


@pytest.mark.parametrize("name", FEW)
def test_every_block_size_and_division_into_calls_gives_the_same(name: str) -> None:
    case = CASES[name](2)
    learner, start = compiled(case), start_of(case)
    whole, traces = sequence(case, learner), trace_values(learner)
    assert int(traces[0]) == STEPS
    # with a check, blocks are recorded; without one, steps are taken up as they are run
    for options in ({"block_size": 1}, {"block_size": 3}, {"block_size": 3, "check": True}):
        start_again(case, learner, start)
        assert_tree_close(sequence(case, learner, **options), whole, 1e-12)
        assert_tree_close(trace_values(learner), traces, 1e-12, scale=1.0, allow_zero=("",))
    start_again(case, learner, start)
    parts = [sequence(case, learner, cut) for cut in (slice(0, 2), slice(2, 3), slice(3, None))]
    assert_tree_close(jax.tree.map(lambda *terms: sum(terms), *parts), whole, 1e-12)
    assert_tree_close(trace_values(learner), traces, 1e-12, scale=1.0, allow_zero=("",))


@pytest.mark.parametrize("name", FEW)
def test_calls_under_grad_and_without_are_the_same_rule(name: str) -> None:
    case = CASES[name](2)
    learner, start = compiled(case), start_of(case)
    whole, traces = sequence(case, learner), trace_values(learner)

    @brainstate.transform.jit
    def of_step(x: Any, y: Any) -> Any:
        return brainstate.transform.grad(lambda: case.loss(learner(x), y), learner.param_states)()

    start_again(case, learner, start)
    found = [of_step(x, y) for x, y in zip(case.xs, case.ys, strict=True)]
    assert_tree_close(jax.tree.map(lambda *terms: sum(terms), *found), whole, 1e-12)
    assert_tree_close(trace_values(learner), traces, 1e-12, scale=1.0, allow_zero=("",))

    @brainstate.transform.jit
    def of_loop() -> Any:
        def loss() -> Any:
            return brainstate.transform.for_loop(
                lambda x, y: case.loss(learner(x), y), case.xs, case.ys
            ).sum()

        return brainstate.transform.grad(loss, learner.param_states)()

    start_again(case, learner, start)
    assert_tree_close(of_loop(), whole, 1e-12)
    start_again(case, learner, start)
    learner.etrace_evolve(case.xs)
    assert_tree_close(trace_values(learner), traces, 1e-12, scale=1.0, allow_zero=("",))


def test_the_coupled_scope() -> None:
    case = zoo.case("gru-1", 2)
    oracle = pp_prop_oracle(
        case.model, (case.xs, case.ys), case.loss, *DECAYS, recurrence_scope="coupled"
    )
    learner = compiled(case, recurrence_scope="coupled")
    assert_tree_close(sequence(case, learner), oracle.grads)


def test_calls_that_carry_no_trace_start_from_nothing() -> None:
    case = CASES["reads-old-state"](2)
    learner = compiled(case)
    fresh = sequence(case, learner, slice(0, 3))
    for block in (2, "auto"):
        case.reset()
        found = sequence(case, learner, slice(0, 3), carry_trace=False, block_size=block)
        assert_tree_close(found, fresh, 1e-12)
        assert int(learner.traces[0].value) == 0
        assert not any(leaf.any() for leaf in jax.tree.leaves(trace_values(learner)))
    assert int(learner.running_index.value) == 3


# --- facts of the definition ------------------------------------------------------------------


@pytest.mark.parametrize("name", ONE_STEP)
def test_one_step_equals_reverse_mode(name: str) -> None:
    batch = None if name == "Scaled" else 2
    whole = CASES[name](batch)
    case = zoo.Case(whole.model, whole.xs[:1], whole.ys[:1], batch)
    zoo.stir(case)
    _, gradient = bptt(case.model, (case.xs, case.ys), case.loss)
    assert_tree_close(sequence(case, compiled(case)), gradient)


def test_a_batch_is_the_sum_of_its_examples() -> None:
    case = CASES["learned-leak"](3)
    whole = sequence(case, compiled(case))
    single = CASES["learned-leak"](1)
    for path, state in brainstate.graph.states(single.model, brainstate.ParamState).items():
        state.value = brainstate.graph.states(case.model)[path].value
    learner, start, parts = compiled(single), start_of(single), []
    for b in range(3):
        start_again(single, learner, start)
        part = zoo.Case(single.model, case.xs[:, b : b + 1], case.ys[:, b : b + 1], 1)
        parts.append(sequence(part, learner))
    assert_tree_close(jax.tree.map(lambda *terms: sum(terms), *parts), whole)


@pytest.mark.parametrize("decays", [(0.0, 0.0), (0.0, 0.6), (0.7, 0.0)])
def test_a_decay_of_zero(decays: tuple[float, float]) -> None:
    case = CASES["two-states"](2)
    oracle = reference(case, *decays)
    assert_tree_close(sequence(case, compiled(case, decays)), oracle)


def test_without_memory_each_step_stands_alone() -> None:
    """``a = 0``: D-RTRL that starts anew at each step."""
    case = CASES["two-states"](2)
    learner, start = compiled(case, 0.0), start_of(case)
    found = sequence(case, learner)
    start_again(case, learner, start)
    alone = bt.D_RTRL(case.model)
    alone.compile_graph(case.xs[0])
    parts = [sequence(case, alone, slice(t, t + 1), carry_trace=False) for t in range(STEPS)]
    assert_tree_close(jax.tree.map(lambda *terms: sum(terms), *parts), found, 1e-12)


def test_the_rule_is_alive() -> None:
    """Memory matters in these tests, and it is not D-RTRL's."""
    case = CASES["two-states"](2)
    found = reference(case)
    exact = d_rtrl_oracle(case.model, (case.xs, case.ys), case.loss).grads
    for other in (
        reference(case, 0.0, 0.0),
        reference(case, 0.7, 0.0),
        reference(case, 0.6),
        exact,
    ):
        with pytest.raises(AssertionError, match="relative error"):
            assert_tree_close(other, found, 1e-2)


def test_with_a_constant_input_and_factor_the_trace_is_a_mean() -> None:
    """``h = y`` has ``D = 0``, ``f = 1``: the gradient is the filtered input of each step."""
    model = zoo.Direct()
    model.w.value = jnp.zeros_like(model.w.value)
    brainstate.nn.init_all_states(model, batch_size=2)
    learner = bt.pp_prop(model, 0.5)
    xs = jnp.ones((3, 2, IN))
    learner.compile_graph(xs[0])
    grads = learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), reduction="sum")
    # eps_x = 1, 1.5, 1.75 in each of two examples; eps_f / (1 - a^(t + 1)) is below one from t = 1
    filtered = [1.0 * 1.0, 1.5 * 0.5 / 0.75, 1.75 * 0.5 / 0.875]
    np.testing.assert_allclose(grads[("w",)][:IN], 2 * sum(filtered))


# --- memory -----------------------------------------------------------------------------------


def elements(learner: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(trace_values(learner)))


@pytest.mark.parametrize(("n_in", "n_out", "batch"), [(30, 20, 2), (300, 20, 2), (30, 20, 5)])
def test_memory_does_not_depend_on_the_number_of_parameters(
    n_in: int, n_out: int, batch: int
) -> None:
    learner = bt.compile(
        bt.nn.GRUCell(n_in, n_out),
        "pp_prop",
        jnp.ones((batch, n_in)),
        batch_size=batch,
        decay_or_rank=0.9,
    )
    assert len(learner.rule.links) == 2
    # the two gates have one input
    assert elements(learner) == 1 + batch * (n_in + n_out) * 2 + batch * 2 * n_out
    from braintrace.learners.report import shown_bytes

    assert f"traces: 2, {shown_bytes(elements(learner) * 8 - 4)}\n" in learner.report


def test_a_longer_block_holds_what_signals_meet_in_its_steps() -> None:
    from braintrace.drivers.block_size import auto_block_size, record_bytes

    case = CASES["lstm-1"](2)
    rule = compiled(case).rule
    _, x, f = rule.init()
    held = [*jax.tree.leaves(x), *(v[0] for v in f)]  # of the states, only their sum is kept
    assert rule.bytes_per_step == sum(v.nbytes for v in held) < record_bytes(rule)
    assert auto_block_size(rule, 10) == 10


def test_the_traces_of_a_parameter() -> None:
    case = CASES["lstm-1"](2)
    learner = compiled(case)
    sequence(case, learner, slice(0, 1))
    path = learner.rule.links[0].relation.weight_path
    (found,) = learner.get_etrace_of(path)
    assert {key: value.shape for key, value in found.items()} == {
        "x": (2, IN + HIDDEN),
        "f": (2, HIDDEN, 2),
    }
    np.testing.assert_allclose(found["x"][:, :IN], case.xs[0])
    case = CASES["learned-leak"](3)
    (found,) = compiled(case).get_etrace_of(("leak",))
    assert {key: value.shape for key, value in found.items()} == {"f": (3, HIDDEN, 1)}


# --- options and dtypes -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "decays"),
    [
        (0.9, (0.9, 0.9)),
        (0.0, (0.0, 0.0)),
        (1, (0.0, 0.0)),
        (3, (0.5, 0.5)),
        (np.int64(19), (0.9, 0.9)),
        ((0.5, 3), (0.5, 0.5)),
        ([0.25, np.float32(0.5)], (0.25, 0.5)),
    ],
)
def test_decays_and_ranks(given: Any, decays: tuple[float, float]) -> None:
    learner = bt.pp_prop(zoo.Leaky(), given)
    assert (learner.decay_x, learner.decay_f) == pytest.approx(decays)


LEGAL = r"a decay \(a float in \[0, 1\)\) or a rank \(an integer from 1\)"


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (1.0, ValueError, f"{LEGAL}, got 1.0"),
        (-0.1, ValueError, f"{LEGAL}, got -0.1"),
        (float("nan"), ValueError, f"{LEGAL}, got nan"),
        (0, ValueError, f"{LEGAL}, got the integer 0"),
        (-2, ValueError, f"{LEGAL}, got the integer -2"),
        (True, TypeError, f"{LEGAL}, got True"),
        ("0.9", TypeError, f"{LEGAL}, got '0.9'"),
        (None, TypeError, f"{LEGAL}, got None"),
        ((0.9, 1.5), ValueError, f"{LEGAL}, got 1.5"),
        ((0.9,), ValueError, "one value or a pair, for x and for f; got 1 value"),
    ],
)
def test_wrong_decays(given: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        bt.pp_prop(zoo.Leaky(), given)


def test_other_wrong_options() -> None:
    with pytest.raises(
        ValueError, match="vjp_method must be 'single-step' or 'multi-step' .*'multi'"
    ):
        bt.pp_prop(zoo.Leaky(), 0.9, vjp_method="multi")
    with pytest.raises(TypeError, match="trace_dtype must be a floating-point dtype"):
        bt.pp_prop(zoo.Leaky(), 0.9, trace_dtype=int)
    with pytest.raises(TypeError, match="unknown option 'decay'"):
        bt.pp_prop(zoo.Leaky(), 0.9, decay=0.9)
    with pytest.raises(TypeError, match="decay_or_rank"):
        bt.compile(zoo.Leaky(), "pp_prop", jnp.ones((2, IN)), batch_size=2)
    with pytest.raises(ValueError, match=r"known are .*'d_rtrl', .*'es_d_rtrl', .*'pp_prop'"):
        bt.compile(zoo.Leaky(), "pprop", jnp.ones((2, IN)), batch_size=2)


@pytest.mark.parametrize("name", ["pp_prop", "es_d_rtrl", "ES-D-RTRL", bt.IODimVjpAlgorithm])
def test_names(name: Any) -> None:
    learner = bt.compile(
        zoo.Leaky(), name, jnp.ones((2, IN)), batch_size=2, decay_or_rank=5, verbose=0
    )
    assert isinstance(learner, bt.ETraceVjpAlgorithm)
    assert bt.pp_prop is bt.ES_D_RTRL is bt.IODimVjpAlgorithm is type(learner)


picked = bt.register_primitive("pp_picked", lambda x, w: jnp.sin(w[x]))


class Embedding(zoo.Model):
    def __init__(self) -> None:
        super().__init__()
        self.w = weight(5, HIDDEN)

    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + jnp.tanh(picked.bind(x, self.w.value))
        return self.h.value


def test_an_input_that_cannot_be_filtered_is_refused() -> None:
    model = Embedding()
    brainstate.nn.init_all_states(model)
    xs = jnp.arange(STEPS) % 5
    learner = bt.pp_prop(model, 0.9)
    message = r"that of pp_picked at .*test_pp_prop.py.* has dtype int\d+; convert it"
    with pytest.raises(bt.NotSupportedError, match=message):
        learner.compile_graph(xs[0])
    learner = bt.pp_prop(model, (0.0, 0.6))
    learner.compile_graph(xs[0])

    def loss(out: Any) -> Any:
        return jnp.sum(out**2)

    oracle = pp_prop_oracle(model, (xs,), loss, 0.0, 0.6).grads
    grads = learner.etrace_grad(
        xs, step_fn=lambda x: loss(learner(x)), reduction="sum", block_size=3
    )
    assert_tree_close(grads, oracle)


def _narrow(x_var: Any, y_var: Any, weight_vars: Any, num_state: int) -> Any:
    return jnp.zeros((*y_var.aval.shape, num_state), "float32")


@pytest.mark.parametrize(
    ("name", "init_pp", "message"),
    [
        ("flat", lambda x, y, w, n: jnp.zeros(y.aval.shape), r"expected .* of shape \(2, 4, 1\)"),
        ("ints", lambda x, y, w, n: jnp.zeros((*y.aval.shape, n), int), "floating-point zeros"),
        ("dict", lambda x, y, w, n: {"w": jnp.zeros(y.aval.shape)}, "gives {'w'"),
        ("narrow", _narrow, None),
    ],
)
def test_init_pp_gives_zeros_for_every_state(name: str, init_pp: Any, message: Any) -> None:
    own = bt.register_primitive(f"pp_{name}", lambda x, w: x @ w, batched=True)
    own.register_etp_rules(init_pp=init_pp)

    class Own(zoo.Leaky):
        def update(self, x: Any) -> Any:
            self.h.value = 0.8 * self.h.value + own.bind(x, self.w.value)
            return jnp.tanh(self.h.value)

    model, xs = Own(), CASES["two-states"](2).xs
    brainstate.nn.init_all_states(model, batch_size=2)
    learner = bt.pp_prop(model, 0.9, downstream="step")
    if message is not None:
        with pytest.raises(bt.CompilationError, match=f"init_pp of 'pp_{name}' .*{message}"):
            learner.compile_graph(xs[0])
        return
    learner.compile_graph(xs[0])
    # no narrower than parameters and states, whatever init_pp gives; trace_dtype lowers it
    assert [v.dtype for v in jax.tree.leaves(trace_values(learner)[1:])] == ["float64", "float64"]
    before = jax.tree.map(jnp.result_type, trace_values(learner))
    learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), block_size=2)
    assert jax.tree.map(jnp.result_type, trace_values(learner)) == before


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_trace_dtype(dtype: str) -> None:
    """Traces are rounded between blocks; gradients keep the dtype of the weights."""
    case = CASES["learned-leak"](2)
    exact = reference(case)
    learner = compiled(case, trace_dtype=dtype)
    grads = sequence(case, learner, block_size=2)
    kept = jax.tree.leaves(trace_values(learner)[1:])
    assert {str(leaf.dtype) for leaf in kept} == {dtype}
    assert all(g.dtype == "float64" for g in jax.tree.leaves(grads))
    assert_tree_close(grads, exact, 1e-6 if dtype == "float32" else 5e-2)
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(grads, exact)


def test_the_correction_is_accurate_for_long_memories() -> None:
    """``1 - a^n`` cancels in float32 where ``a`` is close to one."""
    case = CASES["two-states"](2)
    rule = compiled(case, 0.99999).rule
    count = jnp.arange(0, 100, 7)
    with jax.enable_x64(False):
        found = rule._correction(jnp.asarray(np.asarray(count), "int32"))
    assert found.dtype == "float32"
    assert float(found[0]) == 0.0
    exact = 1.0 / (1.0 - np.float64(0.99999) ** np.arange(7, 100, 7))
    np.testing.assert_allclose(found[1:], exact, rtol=1e-6)


@pytest.mark.parametrize("downstream", ["step", "linear"])
def test_a_model_without_operations_has_its_direct_gradient(downstream: str) -> None:

    class Plain(zoo.Leaky):
        def update(self, x: Any) -> Any:
            self.h.value = 0.5 * self.h.value + x @ self.w.value
            return self.h.value

    options = {"batch_size": 2, "decay_or_rank": 0.9, "require_trace": False}
    learner = bt.compile(Plain(), "pp_prop", jnp.ones((2, IN)), downstream=downstream, **options)
    xs = jnp.ones((3, 2, IN))
    grads = learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), reduction="sum")
    np.testing.assert_allclose(grads[("w",)], 6.0)


def test_half_precision() -> None:
    """Gradients keep the dtype of the weights; filters are sums, kept in float32."""

    def trained(dtype: str) -> tuple[Any, Any]:
        brainstate.random.seed(0)
        model = zoo.Leaky()
        model.w.value = model.w.value.astype(dtype)
        brainstate.nn.init_all_states(model, batch_size=2)
        model.h.value = model.h.value.astype(dtype)
        xs = CASES["two-states"](2).xs.astype(dtype)
        learner = bt.pp_prop(model, DECAYS, downstream="step")
        learner.compile_graph(xs[0])
        grads = learner.etrace_grad(xs, step_fn=lambda x: learner(x).mean(), block_size=2)
        return grads, learner

    exact, _ = trained("float64")
    grads, learner = trained("bfloat16")
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(grads)} == {"bfloat16"}
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(trace_values(learner)[1:])} == {"float32"}
    assert_tree_close(jax.tree.map(lambda v: v.astype("float64"), grads), exact, 0.05)


@pytest.mark.parametrize(("dtype", "block"), [(None, 1), ("bfloat16", 200)])
def test_long_memories_in_half_precision(dtype: Any, block: int) -> None:
    """A decay is not rounded to the dtype of what it filters, nor does a sum stop growing."""
    model = zoo.Direct()
    model.w.value = model.w.value.astype("bfloat16")
    brainstate.nn.init_all_states(model, batch_size=2)
    model.h.value = model.h.value.astype("bfloat16")
    learner = bt.pp_prop(model, 0.99, trace_dtype=dtype)
    xs = jnp.ones((200, 2, IN), "bfloat16")
    learner.compile_graph(xs[0])
    learner.etrace_grad(xs, step_fn=lambda x: learner(x).mean(), block_size=block)
    filtered = learner.get_etrace_of(model.w)[0]["x"].astype("float64")
    np.testing.assert_allclose(filtered[:, :IN], (1 - 0.99**200) / 0.01, rtol=5e-3)
