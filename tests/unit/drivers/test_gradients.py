# SPDX-License-Identifier: Apache-2.0
"""Drivers of whole sequences: masks, windows, updates on the way, checks, progress."""

from __future__ import annotations

import warnings
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import saiunit
import saiunit as u

import braintrace as bt
from braintrace.learners.signals import feed_back, feedback_matrix
from braintrace.testing import assert_tree_close, bptt

T, B, IN, HIDDEN = 7, 3, 2, 3
KEYS = jax.random.split(jax.random.key(0), 2)


class Net(brainstate.nn.Module):
    """A GRU with a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = bt.nn.GRUCell(IN, HIDDEN, key=1)
        self.readout = bt.nn.Linear(HIDDEN, IN, key=2)

    def update(self, x: Any) -> Any:
        return self.readout(self.cell(x))


class Growing(brainstate.nn.Module):
    """Leaky integrators with a leak above one."""

    def __init__(self, leak: float) -> None:
        super().__init__()
        self.leak, self.linear = leak, bt.nn.Linear(IN, HIDDEN, key=1)

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, HIDDEN)))

    def update(self, x: Any) -> Any:
        self.h.value = self.leak * self.h.value + self.linear(x)
        return self.h.value


@pytest.fixture
def data() -> tuple[Any, Any]:
    xs = jax.random.normal(KEYS[0], (T, B, IN), float)
    return xs, jax.random.normal(KEYS[1], (T, B, IN), float)


def made(algorithm: Any = "d_rtrl", batch: int = B, model: Any = None, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*relation_excluded_non_temporal")
        x = jnp.zeros((batch, IN), float)
        return bt.compile(model or Net(), algorithm, x, batch_size=batch, **options)


def summed(learner: Any) -> Any:
    return lambda x, y: ((learner(x) - y) ** 2).sum()


def per_example(learner: Any) -> Any:
    return lambda x, y: ((learner(x) - y) ** 2).sum(-1)


def of_windows(learner: Any) -> Any:
    return lambda x, y: ((learner(bt.MultiStepData(x)) - y) ** 2).sum((1, 2))


def weights_of(learner: Any) -> Any:
    return {path: state.value for path, state in learner.param_states.items()}


# --- masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ["d_rtrl", "pp_prop"])
def test_a_mask_makes_sequences_of_several_lengths(algorithm: str, data: Any) -> None:
    options = {"decay_or_rank": 0.8} if algorithm == "pp_prop" else {}
    xs, ys = data
    lengths = [7, 4, 1]
    total = None
    for b, length in enumerate(lengths):
        one = made(algorithm, batch=1, **options)
        part = [v[:length, b : b + 1] for v in (xs, ys)]
        grads = one.etrace_grad(*part, step_fn=summed(one), reduction="sum")
        total = grads if total is None else jax.tree.map(jnp.add, total, grads)
    mask = np.arange(T)[:, None] < np.array(lengths)
    learner = made(algorithm, **options)
    grads, losses = learner.etrace_grad(
        xs, ys, step_fn=per_example(learner), mask=mask, return_value=True
    )
    assert_tree_close(grads, jax.tree.map(lambda v: v / sum(lengths), total))
    assert losses.shape == (T, B)
    learner.reset_state(B, model_states=True)
    _, mean = learner.etrace_grad(
        xs,
        ys,
        step_fn=per_example(learner),
        mask=mask,
        return_value=True,
        loss_output="scalar",
        block_size=2,
    )
    assert_tree_close(mean, (losses * mask).sum() / sum(lengths))


def test_a_masked_loss_that_is_not_finite_does_not_count(data: Any) -> None:
    xs, ys = data
    mask = jnp.ones(T).at[-1].set(0)
    learner, other = made(), made()

    def loss(x: Any, last: Any) -> Any:
        return jnp.where(last, jnp.inf, (learner(x) ** 2).sum())

    grads = learner.etrace_grad(xs, jnp.arange(T) == T - 1, step_fn=loss, mask=mask)
    expected = other.etrace_grad(xs, jnp.zeros_like(ys), step_fn=summed(other), mask=mask)
    assert_tree_close(grads, expected)


def test_nothing_is_left_when_all_is_masked(data: Any) -> None:
    learner = made()
    grads = learner.etrace_grad(*data, step_fn=summed(learner), mask=np.zeros(T, bool))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


# --- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 7, 20])
def test_windows_of_rtrl_are_bptt(chunk: int, data: Any) -> None:
    xs, ys = data
    model = bt.nn.ValinaRNNCell(IN, IN, key=1)
    learner = made("rtrl", model=model, vjp_method="multi-step")
    _, reference = bptt(model, (xs, ys), lambda out, y: ((out - y) ** 2).sum())
    options = {"step_fn": of_windows(learner), "chunk_size": chunk, "reduction": "sum"}
    assert_tree_close(learner.etrace_grad(xs, ys, **options), reference)


def test_a_window_moves_states_and_traces_like_its_steps(data: Any) -> None:
    xs, _ = data
    a, b = made(vjp_method="multi-step"), made()
    outputs = a(bt.MultiStepData(xs))
    assert_tree_close(outputs, b(bt.MultiStepData(xs)))
    assert_tree_close([t.value for t in a.traces], [t.value for t in b.traces])
    assert a.running_index.value == b.running_index.value == T
    assert a(xs[0]).shape == (B, IN)


def test_an_argument_that_is_not_wrapped_is_the_same_at_every_step(data: Any) -> None:
    xs, _ = data
    a, b, c = (made(vjp_method="multi-step") for _ in range(3))
    both = bt.MultiStepData(jnp.stack([xs[0], xs[0]]))
    a.etrace_evolve(xs[:1])
    assert_tree_close(b(both)[0], c(bt.SingleStepData(xs[0])))


def test_windows_add_up_in_more_than_half_precision() -> None:
    """One is nothing to 256 in bfloat16."""

    class Product(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = brainstate.ParamState(jnp.ones((1, 1), jnp.bfloat16))

        def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, 1), jnp.bfloat16))

        def update(self, x: Any) -> Any:
            self.h.value = bt.matmul(x, self.weight.value)
            return self.h.value

    xs = jnp.ones((600, 1, 1), jnp.bfloat16)
    learner = bt.compile(Product(), "rtrl", xs[0], batch_size=1, vjp_method="multi-step")
    step_fn = lambda x: learner(bt.MultiStepData(x)).sum((1, 2))  # noqa: E731
    grads = learner.etrace_grad(xs, step_fn=step_fn, chunk_size=1, reduction="sum")
    assert grads["weight",].dtype == jnp.bfloat16
    assert float(grads["weight",][0, 0]) == 600


def test_a_weight_that_windows_do_not_use_has_the_gradient_zero(data: Any) -> None:
    learner, unused = made(vjp_method="multi-step"), brainstate.ParamState(jnp.ones(2))
    options = {"step_fn": of_windows(learner), "chunk_size": 3, "weights": {"unused": unused}}
    np.testing.assert_array_equal(learner.etrace_grad(*data, **options)["unused"], np.zeros(2))


def test_the_losses_of_windows_cannot_be_differentiated(data: Any) -> None:
    """Their derivative would stop at the borders of windows."""
    xs, ys = data
    learner = made(vjp_method="multi-step")
    options = {"step_fn": of_windows(learner), "chunk_size": 3, "return_value": True}
    with pytest.raises(bt.NotSupportedError, match="cannot be differentiated"):
        brainstate.transform.grad(lambda xs: learner.etrace_grad(xs, ys, **options)[1].sum())(xs)


def test_synthetic_gradients_learn_the_future(data: Any) -> None:
    """With a linear recurrence and a linear loss, the gradient of the future is constant."""
    xs = data[0]
    learner = made("dni", model=Growing(0.5))
    step_fn = lambda x: learner(bt.MultiStepData(x)).sum((1, 2))  # noqa: E731
    assert ("synthesizer", "h") in learner.param_states
    for _ in range(200):
        grads = learner.etrace_grad(xs, step_fn=step_fn, chunk_size=1, reduction="sum")
        state = learner.param_states["synthesizer", "h"]
        state.value = {
            **state.value,
            "bias": state.value["bias"] - 0.05 * grads["synthesizer", "h"]["bias"],
        }
    # 1 + 1/2 + 1/4 + ...: what a hidden value does to all later losses, 0.5 / (1 - 0.5)
    np.testing.assert_allclose(state.value["bias"], np.full(HIDDEN, 1.0), rtol=1e-3)


# --- updates on the way --------------------------------------------------------------------------


@pytest.mark.parametrize("every", [1, 3])
def test_updates_are_those_of_a_loop(every: int, data: Any) -> None:
    xs, ys = data
    rate = optax.sgd(0.05)
    learner, other = made(), made()
    losses = learner.etrace_update(
        xs, ys, step_fn=summed(learner), optimizer=rate, update_every=every
    )
    expected = []
    for start in range(0, T, every):
        total = None
        for t in range(start, min(start + every, T)):
            run = brainstate.transform.grad(summed(other), other.param_states, return_value=True)
            grads, loss = run(xs[t], ys[t])
            expected.append(loss)
            total = grads if total is None else jax.tree.map(jnp.add, total, grads)
        count = min(every, T - start)
        for path, state in other.param_states.items():
            change = total[path]
            state.value = jax.tree.map(lambda w, g: w - 0.05 * g / count, state.value, change)  # noqa: B023
    assert_tree_close(losses, jnp.stack(expected))
    assert_tree_close(weights_of(learner), weights_of(other))


def test_an_optimizer_with_an_update_method_of_its_own(data: Any) -> None:
    class Descent:
        def __init__(self, weights: Any) -> None:
            self.weights = weights

        def update(self, grads: Any) -> None:
            for key, state in self.weights.items():
                state.value = jax.tree.map(lambda w, g: w - 0.05 * g, state.value, grads[key])

    a, b = made(), made()
    a.etrace_update(*data, step_fn=summed(a), optimizer=Descent(a.param_states))
    b.etrace_update(*data, step_fn=summed(b), optimizer=optax.sgd(0.05))
    assert_tree_close(weights_of(a), weights_of(b))


def test_the_state_of_the_optimizer_goes_on(data: Any) -> None:
    adam = optax.adam(1e-2)
    a, b = made(), made()
    a.etrace_update(*data, step_fn=summed(a), optimizer=adam)
    for half in (slice(0, 4), slice(4, T)):
        b.etrace_update(*(v[half] for v in data), step_fn=summed(b), optimizer=adam)
    assert_tree_close(weights_of(a), weights_of(b))
    assert a.optimizer(adam) is a.optimizer(adam)


def test_updates_under_jit(data: Any) -> None:
    adam = optax.adam(1e-2)
    a, b = made(), made()
    run = brainstate.transform.jit(
        lambda xs, ys: a.etrace_update(xs, ys, step_fn=summed(a), optimizer=adam)
    )
    with pytest.raises(ValueError, match=r"call learner.optimizer\(transformation\) once before"):
        run(*data)
    a.optimizer(adam)
    run(*data)
    b.etrace_update(*data, step_fn=summed(b), optimizer=adam)
    assert_tree_close(weights_of(a), weights_of(b))


# --- under transformations -----------------------------------------------------------------------


def test_drivers_under_jit(data: Any) -> None:
    a, b = made(), made()

    @brainstate.transform.jit
    def run(xs: Any, ys: Any) -> Any:
        a.reset_state(B, model_states=True)
        return a.etrace_grad(xs, ys, step_fn=summed(a)), a.etrace_evolve(xs, return_outputs=True)

    grads, outputs = run(*data)
    assert_tree_close(grads, b.etrace_grad(*data, step_fn=summed(b)))
    assert_tree_close(outputs, b.etrace_evolve(data[0], return_outputs=True))


def test_calls_outside_of_jit_are_compiled_once(data: Any, caplog: Any) -> None:
    learner = made(model=Net().cell)

    def grad() -> None:
        brainstate.transform.grad(lambda: learner(data[0][0]).sum(), learner.param_states)()

    with jax.log_compiles():
        grad()
        assert "XLA compilation" in caplog.text
        caplog.clear()
        grad()
    assert "XLA compilation" not in caplog.text


def test_a_setting_that_only_the_loss_reads_is_looked_up_at_every_call(data: Any) -> None:
    learner, dropout = made(), brainstate.nn.Dropout(0.5)

    def loss(x: Any, y: Any) -> Any:
        scale = brainstate.environ.get("scale", 1.0)
        return scale * ((dropout(learner(x)) - y) ** 2).sum()

    def found(driver: str = "etrace_grad", **settings: Any) -> Any:
        learner.reset_state(B, model_states=True)
        brainstate.random.seed(0)
        options = {"optimizer": optax.sgd(0.0)} if driver == "etrace_update" else {}
        options |= {"return_value": True} if driver == "etrace_grad" else {}
        with brainstate.environ.context(**settings):
            result = getattr(learner, driver)(*data, step_fn=loss, **options)
        return result[1] if driver == "etrace_grad" else result

    fitted, plain = found(fit=True), found(fit=False)
    assert not np.allclose(fitted, plain)
    doubled = found(fit=False, scale=2.0)
    np.testing.assert_allclose(doubled, 2.0 * plain, rtol=1e-12)
    np.testing.assert_array_equal(found(fit=True), fitted)
    np.testing.assert_array_equal(found(fit=False), plain)
    np.testing.assert_allclose(found("etrace_update", fit=False), plain, rtol=1e-12)
    again = found("etrace_update", fit=False, scale=2.0)
    np.testing.assert_allclose(again, doubled, rtol=1e-12)


def test_a_setting_that_nothing_reads_compiles_nothing(data: Any, caplog: Any) -> None:
    learner = made()
    step = summed(learner)
    learner.etrace_grad(*data, step_fn=step)
    learner.etrace_grad(*data, step_fn=step)
    with jax.log_compiles(), brainstate.environ.context(unread=3.0):
        learner.etrace_grad(*data, step_fn=step)
    assert not [r for r in caplog.records if "XLA compilation" in r.getMessage()]


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("driver", ["etrace_grad", "etrace_update"])
def test_a_step_fn_that_writes_a_hidden_state_is_refused(when: str, driver: str, data: Any) -> None:
    """The trace would go on as if it had not been reset."""
    learner = made()
    h = learner.model.cell.h
    done = jnp.zeros(T).at[3].set(1.0)

    def step(x: Any, y: Any, done: Any) -> Any:
        if when == "before":
            h.value = h.value * (1 - done)
        out = learner(x)
        if when == "after":
            h.value = h.value * (1 - done)
        return ((out - y) ** 2).sum()

    options = {"optimizer": optax.sgd(0.1)} if driver == "etrace_update" else {}
    with pytest.raises(ValueError, match=r"step_fn writes the hidden state cell\.h.*Let the model"):
        getattr(learner, driver)(*data, done, step_fn=step, **options)


def test_a_call_in_a_checkpoint_and_a_scan(data: Any) -> None:
    """The loss around a loop of calls has the sum of their online gradients."""
    xs, ys = data
    learner, other = made(), made()

    def loss() -> Any:
        step = brainstate.transform.checkpoint(summed(learner))
        return brainstate.transform.for_loop(step, xs, ys).sum()

    grads = brainstate.transform.grad(loss, learner.param_states)()
    expected = other.etrace_grad(xs, ys, step_fn=summed(other), reduction="sum")
    assert_tree_close(dict(grads), expected)


# --- checks and progress -------------------------------------------------------------------------


def test_a_number_that_is_not_finite_is_named_with_its_step(data: Any) -> None:
    xs, ys = data
    broken = xs.at[4].set(jnp.nan)
    learner = made()
    says = r"at step 4, .*the direct gradient of readout.weight\['bias'\].*the trace of cell.Wh"
    with pytest.raises(FloatingPointError, match=says):
        learner.etrace_grad(broken, ys, step_fn=summed(learner), check=True)
    learner = made()
    with pytest.raises(FloatingPointError, match="at step 4, "):
        learner.etrace_update(
            broken,
            ys,
            step_fn=summed(learner),
            optimizer=optax.sgd(0.1),
            update_every=3,
            check=True,
        )
    learner = made(vjp_method="multi-step")
    with pytest.raises(FloatingPointError, match="at steps 3 to 5, .*the gradient of cell.Wh"):
        learner.etrace_grad(broken, ys, step_fn=of_windows(learner), chunk_size=3, check=True)


def test_a_growing_transition_is_a_warning() -> None:
    xs = jnp.ones((12, B, IN))
    learner = made(model=Growing(1.1))
    with pytest.warns(UserWarning, match=r"spectral radius of D of h was above one.*at least 1.1"):
        learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), check=True)
    learner = made(model=Growing(0.9))
    learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), check=True)


@pytest.mark.parametrize("driver", ["etrace_grad", "etrace_update", "etrace_evolve"])
def test_progress_reaches_its_end(driver: str, data: Any, capfd: Any) -> None:
    learner = made()
    options: dict[str, Any] = {"etrace_update": {"optimizer": optax.sgd(0.1)}}.get(driver, {})
    if driver == "etrace_grad":
        options = {"block_size": 1}
    getattr(learner, driver)(*data, step_fn=summed(learner), progress=True, **options)
    jax.effects_barrier()
    assert capfd.readouterr().err.endswith("#] 7/7\n")


def test_a_new_transformation_at_each_call_is_a_warning(data: Any) -> None:
    learner = made()
    for _ in range(3):
        learner.optimizer(optax.adam(0.1))
    with pytest.warns(UserWarning, match="new optax transformation at each call.* make it once"):
        learner.optimizer(optax.adam(0.1))


def test_saving_finds_the_optimizer_of_some_weights(data: Any, tmp_path: Any) -> None:
    """It makes no other one, and a learner that has it goes on from there."""
    transformation, learner = optax.adam(0.1), made()
    some = {"Wz": learner.param_states["cell", "Wz", "weight"]}
    options = {"optimizer": transformation, "weights": some}
    learner.etrace_update(*data, step_fn=summed(learner), **options)
    learner.save(tmp_path / "file.npz", transformation)
    assert len(learner._optimizers) == 1
    other = made()
    own = other.optimizer(transformation, {"Wz": other.param_states["cell", "Wz", "weight"]})
    other.restore(tmp_path / "file.npz", transformation)
    kept = learner.optimizer(transformation, some)
    assert_tree_close(kept.moments.value, own.moments.value)


# --- what is refused -----------------------------------------------------------------------------

REFUSED = {
    "mask_length": ({"mask": np.ones(T + 1)}, ValueError, r"mask must have shape \[T\].*T = 7"),
    "mask_shape": ({"mask": np.ones((T, B))}, TypeError, r"losses of shape \(3,\).*got shape \(\)"),
    "mask_unit": ({"mask": np.ones(T) * saiunit.ms}, TypeError, "mask must have no unit, got .*ms"),
    "loss_output": ({"loss_output": "all"}, ValueError, "loss_output must be one of"),
    "reduction": ({"reduction": "max"}, ValueError, "reduction must be 'mean' or 'sum'"),
    "chunk": ({"chunk_size": 2}, ValueError, "chunk_size=2 needs .* vjp_method='multi-step'"),
    "chunk_zero": ({"chunk_size": 0}, ValueError, "chunk_size must be None or a positive integer"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_are_refused(case: str, data: Any) -> None:
    options, error, says = REFUSED[case]
    learner = made()
    with pytest.raises(error, match=says):
        learner.etrace_grad(*data, step_fn=summed(learner), **options)


LOSSES: dict[str, tuple[Any, dict[str, Any], str]] = {
    "no_pair": (lambda v: v, {"has_aux": True}, r"must return a pair \(loss, aux\)"),
    "pair": (lambda v: (v, v), {}, "got a tuple; is has_aux=True missing"),
    "unit": (lambda v: v * u.mV, {}, "without a unit, got one in mV"),
    "nothing": (lambda v: None, {}, "must return .*, got None"),
}


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("case", LOSSES)
def test_losses_that_are_refused(case: str, windows: bool, data: Any) -> None:
    """Under a mask and in windows as everywhere."""
    change, options, says = LOSSES[case]
    learner = made(vjp_method="multi-step" if windows else "single-step")
    options = {**options, **({"chunk_size": 2} if windows else {"mask": np.ones(T)})}

    def step_fn(x: Any, y: Any) -> Any:
        out = learner(bt.MultiStepData(x)) if windows else learner(x)
        return change(out.sum((-1, -2)))

    with pytest.raises(TypeError, match=says):
        learner.etrace_grad(*data, step_fn=step_fn, **options)


def test_windows_that_are_refused(data: Any) -> None:
    learner = made(vjp_method="multi-step")
    with pytest.raises(ValueError, match="pass their length as chunk_size"):
        learner.etrace_grad(*data, step_fn=summed(learner))
    with pytest.raises(TypeError, match=r"losses of shape \(2,\)"):
        learner.etrace_grad(
            *data, step_fn=lambda x, y: learner(bt.MultiStepData(x)).sum(), chunk_size=2
        )
    with pytest.raises(TypeError, match=r"aux must have an entry for each of the 2 steps"):
        learner.etrace_grad(
            *data, step_fn=lambda x, y: (of_windows(learner)(x, y), 1.0), chunk_size=2, has_aux=True
        )
    with pytest.raises(ValueError, match="exactly once per window; it called it 0 times"):
        learner.etrace_grad(*data, step_fn=lambda x, y: x.sum((1, 2)), chunk_size=2)
    with pytest.raises(ValueError, match="one length of at least one"):
        learner(bt.MultiStepData(jnp.zeros((0, B, IN))))


@pytest.mark.parametrize("optimizer", [None, optax.sgd, 3])
def test_optimizers_that_are_none(optimizer: Any, data: Any) -> None:
    learner = made()
    with pytest.raises(TypeError, match=r"optimizer must be an optax.GradientTransformation"):
        learner.etrace_update(*data, step_fn=summed(learner), optimizer=optimizer)


# --- configurations ------------------------------------------------------------------------------

CONFIGS: dict[str, tuple[dict[str, Any], Any, str]] = {
    "vocabulary": ({"recurrence_scope": "x"}, ValueError, "one of .*'diagonal'.*got 'x'"),
    "missing": ({"trace_factorization": "io_factorized"}, ValueError, "needs decay"),
    "alone": ({"kappa": 0.5}, ValueError, "kappa=0.5 needs trace_filter='kappa'"),
    "range": ({"trace_filter": "kappa", "kappa": 1.0}, ValueError, r"number in \[0, 1\)"),
    "order": ({"recurrence_scope": "sparse_n", "sparse_n": 0}, ValueError, "integer from 1"),
    "pair": (
        {"trace_factorization": "random_projection"},
        ValueError,
        r"goes with recurrence_scope in \('full',\), not with 'diagonal'",
    ),
    "filter": (
        {"recurrence_scope": "sparse_n", "sparse_n": 2, "trace_filter": "kappa", "kappa": 0.5},
        ValueError,
        "goes with recurrence_scope in",
    ),
    "dni": ({"learning_signal": "bootstrapped"}, ValueError, "goes with learning_signal in"),
    "seed": ({"seed": 0.5}, TypeError, "must be an integer or a JAX key, got 0.5"),
    "keys": ({"seed": jax.random.split(jax.random.key(0))}, TypeError, "integer or a JAX key"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configurations_that_are_refused(case: str) -> None:
    options, error, says = CONFIGS[case]
    with pytest.raises(error, match=says):
        bt.ETraceConfig(**options)


def test_spellings_of_one_rule_are_equal() -> None:
    assert bt.ETraceConfig(trace_filter="kappa", kappa=0.0) == bt.ETraceConfig()
    coupled = bt.ETraceConfig(recurrence_scope="sparse_n", sparse_n=1)
    assert coupled == bt.ETraceConfig(recurrence_scope="coupled")


@pytest.mark.parametrize(
    ("learner", "method"), [(bt.ThreeFactor, "multi-step"), (bt.DNI, "single-step")]
)
def test_rules_that_have_one_method(learner: Any, method: str) -> None:
    with pytest.raises(ValueError, match="vjp_method must be"):
        learner(Net(), vjp_method=method)


@pytest.mark.parametrize(
    ("options", "learner"),
    [
        ({"learning_signal": "modulatory"}, "ThreeFactor"),
        ({"learning_signal": "bootstrapped", "trace_factorization": "none"}, "DNI"),
    ],
)
def test_signals_that_have_a_learner_of_their_own(options: Any, learner: str) -> None:
    """The base class has neither a modulator nor predictions."""
    config = bt.ETraceConfig(**options)
    method = "multi-step" if config.needs_windows else "single-step"
    with pytest.raises(ValueError, match=rf"is that of braintrace\.{learner}"):
        bt.ETraceVjpAlgorithm(Net(), vjp_method=method, config=config)
    assert type(made(config)).__name__ == learner


def test_a_modulator_meets_the_traces_of_any_rule(data: Any) -> None:
    """With the gradient of the sum of the hidden states as modulator, it is pp_prop."""
    options = {"trace_factorization": "io_factorized", "decay": 0.7}
    given = made(bt.ETraceConfig(learning_signal="modulatory", **options), model=Net().cell)
    plain = made(bt.ETraceConfig(**options), model=Net().cell)
    a = given.etrace_grad(data[0], step_fn=lambda x: given(x, modulator=1.0).sum())
    b = plain.etrace_grad(data[0], step_fn=lambda x: plain(x).sum())
    assert_tree_close(a, b)


def test_a_configuration_is_an_algorithm(data: Any) -> None:
    config = bt.ETraceConfig(trace_factorization="io_factorized", decay=0.7)
    a, b = made(config), made("pp_prop", decay_or_rank=0.7)
    grads = [one.etrace_grad(*data, step_fn=summed(one)) for one in (a, b)]
    assert_tree_close(*grads)


def test_the_report_says_what_traces_take() -> None:
    report = made().report
    assert "learning rule: D-RTRL, diagonal recurrence" in report
    assert "cell.Wz.weight -> group 0: 432 B" in report
    assert "block_size='auto': 100 steps" in report


# --- signals that are given ----------------------------------------------------------------------


def test_the_modulator_is_per_call_or_a_state(data: Any) -> None:
    xs, ys = data
    a = made("three_factor", modulator=brainstate.ShortTermState(jnp.asarray(0.5)))
    b = made("three_factor")
    standing = a.etrace_grad(xs, ys, step_fn=summed(a))
    given = b.etrace_grad(
        xs, ys, step_fn=lambda x, y: ((b(x, modulator=0.5) - y) ** 2).sum(), block_size=2
    )
    assert_tree_close(standing, given)
    with pytest.raises(ValueError, match="needs a modulator"):
        b(xs[0])
    with pytest.raises(ValueError, match="does not broadcast to the positions"):
        b(xs[0], modulator=jnp.zeros(5))


def test_random_feedback_is_the_same_in_every_default_precision() -> None:
    """A matrix that is drawn in another dtype has other numbers."""
    learner = made("eprop", feedback="random", random_feedback_key=0)
    assert {matrix.dtype.name for matrix in learner.rule.source.matrices} == {"float32"}


def test_an_error_is_fed_back_in_the_dtype_of_the_output() -> None:
    out, error = jnp.ones((B, HIDDEN), "float32"), jnp.ones((B, 2), "float32")
    matrix = feedback_matrix(0, out, error)
    fed = jax.grad(lambda out: feed_back(out, error, matrix).sum())(out)
    assert (matrix.dtype, fed.dtype) == (out.dtype, out.dtype)


def test_an_error_is_fed_back_to_the_output(data: Any) -> None:
    """The gradient is that of the output's product with the error times a fixed matrix."""
    from braintrace.learners.signals import feedback_matrix

    xs, ys = data
    random = {"feedback": "random", "random_feedback_key": 5}
    a = made("eprop", model=bt.nn.GRUCell(IN, HIDDEN, key=1), **random)
    b = made("d_rtrl", model=bt.nn.GRUCell(IN, HIDDEN, key=1))
    matrix = feedback_matrix(5, jnp.zeros((B, HIDDEN), float), ys[0])
    assert matrix.shape == (IN, HIDDEN)
    fed = a.etrace_grad(xs, ys, step_fn=lambda x, e: a(x, error=e).sum(), reduction="sum")
    direct = b.etrace_grad(
        xs, ys, step_fn=lambda x, e: (b(x) * (e @ matrix)).sum(), reduction="sum"
    )
    assert_tree_close(fed, direct)
    with pytest.raises(ValueError, match="fed back by feedback='random' only"):
        made("eprop")(xs[0], error=ys[0])
