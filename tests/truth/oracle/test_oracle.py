# SPDX-License-Identifier: Apache-2.0
"""The oracle against gradients obtained in other ways: facts of mathematics, by hand."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace.testing
from braintrace.testing import (
    assert_tree_close,
    bptt,
    d_rtrl_oracle,
    truncated_bptt,
    window_oracle,
)

from . import cells
from .cells import Stack, data, element_wise, hidden, loss_fn, mm, param, second

RTOL = 1e-10

ONE_LAYER = [
    cells.Vanilla,
    cells.GRU,
    cells.GRUResetAfter,
    cells.LSTM,
    cells.Leaky,
    cells.LeakyOld,
    cells.TwoStates,
    cells.LIF,
    cells.DelayLine,
    cells.Processed,
    cells.Direct,
    cells.Partial,
    cells.Chain,
    cells.Open,
    cells.Mixing,
]

STACKS: dict[str, Callable[[], Stack]] = {
    "vanilla-gru": lambda: Stack(cells.Vanilla(), second(cells.GRU)),
    "lstm-lstm": lambda: Stack(cells.LSTM(), second(cells.LSTM)),
    "lif-lif": lambda: Stack(cells.LIF(), second(cells.LIF)),
    "old-two_states": lambda: Stack(cells.LeakyOld(), second(cells.TwoStates)),
    "gru-direct-jit": lambda: Stack(cells.GRU(), second(cells.Direct), jit=True),
}


def whole(model: Any, sequences: Any) -> Any:
    return bptt(model, sequences, loss_fn)[1]


def one_step(model: Any, sequences: Any) -> Any:
    return truncated_bptt(model, sequences, loss_fn, 1)[1]


# --- one step: every path is counted exactly once, whatever the architecture ------------------


@pytest.mark.parametrize("cell", ONE_LAYER)
@pytest.mark.parametrize("batch", [None, 2])
def test_one_step_is_the_ordinary_gradient(cell: type[cells.Cell], batch: int | None) -> None:
    model, sequences = cell(batch=batch), data(1, batch)
    losses, grads = bptt(model, sequences, loss_fn)
    result = d_rtrl_oracle(model, sequences, loss_fn)
    assert_tree_close(result.grads, grads, RTOL)
    assert_tree_close(result.loss, losses, RTOL)


@pytest.mark.parametrize("make", STACKS.values(), ids=STACKS.keys())
def test_one_step_of_two_layers_is_the_ordinary_gradient(make: Callable[[], Stack]) -> None:
    model, sequences = make(), data(1, out=2)
    assert_tree_close(d_rtrl_oracle(model, sequences, loss_fn).grads, whole(model, sequences), RTOL)


@pytest.mark.parametrize(
    ("cell", "groups"),
    [
        (cells.LSTM, []),
        (cells.LSTM, [[("c",)], [("h",)]]),
        (cells.Chain, []),
        (cells.Chain, [[("a",), ("c",)], [("b",)]]),
        (cells.Chain, [[("b",), ("c",)]]),
    ],
)
def test_one_step_is_the_ordinary_gradient_for_any_grouping(
    cell: type[cells.Cell], groups: Any
) -> None:
    model, sequences = cell(), data(1)
    result = d_rtrl_oracle(model, sequences, loss_fn, groups=groups)
    assert len(result.groups) == (3 if cell is cells.Chain else 2) - sum(len(g) - 1 for g in groups)
    assert_tree_close(result.grads, whole(model, sequences), RTOL)


# --- position-wise recurrence: exactly backpropagation through time --------------------------


@pytest.mark.parametrize(
    "cell", [cells.Leaky, cells.LeakyOld, cells.TwoStates, cells.LIF, cells.DelayLine, cells.Chain]
)
def test_position_wise_recurrence_is_bptt(cell: type[cells.Cell]) -> None:
    model, sequences = Stack(cell()), data(6, out=2)
    losses, grads = bptt(model, sequences, loss_fn)
    result = d_rtrl_oracle(model, sequences, loss_fn)
    assert_tree_close(result.grads, grads, RTOL)
    assert_tree_close(result.loss, losses, RTOL)
    short = truncated_bptt(model, sequences, loss_fn, 2)[1]
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(short, grads, 1e-3)  # credit over many steps matters here


# --- recurrent ETP weights: truncation at the operation --------------------------------------


def test_vanilla_is_truncated_to_one_step() -> None:
    model, sequences = Stack(cells.Vanilla()), data(6, out=2)
    grads = one_step(model, sequences)
    assert_tree_close(d_rtrl_oracle(model, sequences, loss_fn).grads, grads, RTOL)


@pytest.mark.parametrize("cell", [cells.GRUResetAfter, cells.LSTM])
def test_recurrent_weights_are_bptt_of_the_cut_model(cell: type[cells.Cell]) -> None:
    sequences = data(6, out=2)
    result = d_rtrl_oracle(Stack(cell()), sequences, loss_fn)
    assert_reference(result.grads, bptt(Stack(cell(cut=True)), sequences, loss_fn)[1], cell)


def test_gru_with_reset_before_the_product() -> None:
    """Two relations as in the cut model; the reset gate has the current step's gradient alone."""
    model, sequences = Stack(cells.GRU()), data(6, out=2)
    result = d_rtrl_oracle(model, sequences, loss_fn)
    cut = bptt(Stack(cells.GRU(cut=True)), sequences, loss_fn)[1]
    now = one_step(model, sequences)
    reset = ("cells", 0, "wr")
    assert len(result.relations) == 2
    assert_tree_close(result.grads, {**cut, reset: now[reset]}, RTOL)


def assert_reference(grads: Any, reference: Any, cell: type[cells.Cell]) -> None:
    """Equality; a plain bias is in no relation, so the cut model gives it too much credit."""
    if cell is cells.LSTM:
        bias = ("cells", 0, "b")
        grads = {k: v for k, v in grads.items() if k != bias}
        reference = {k: v for k, v in reference.items() if k != bias}
    assert_tree_close(grads, reference, RTOL)


def test_plain_bias_has_the_gradient_of_the_current_step() -> None:
    model, sequences, bias = cells.LSTM(), data(6), ("b",)
    grads = d_rtrl_oracle(model, sequences, loss_fn).grads
    now = one_step(model, sequences)
    assert_tree_close({bias: grads[bias]}, {bias: now[bias]}, RTOL)


def test_weight_that_depends_on_the_input_has_the_gradient_of_the_current_step() -> None:
    class Hyper(cells.Leaky):
        def update(self, x: jax.Array) -> jax.Array:
            scale = 1 + jnp.sin(jnp.sum(x))
            y = mm(x, scale * self.w.value) + element_wise(self.a.value)
            self.h.value = 0.9 * jnp.sin(self.h.value) + y
            return self.h.value

    model, sequences = Hyper(), data(6)
    grads = d_rtrl_oracle(model, sequences, loss_fn).grads
    now, all_steps = (reference(model, sequences) for reference in (one_step, whole))
    assert_tree_close(grads, {("w",): now["w",], ("a",): all_steps["a",]}, RTOL)


# --- two layers: the second layer's future is not credited to the first ----------------------


class Layers(brainstate.nn.Module):
    """Two leaky layers; ``forget`` cuts the memory of the second, ``deaf`` its input."""

    def __init__(self, forget: bool = False, deaf: bool = False):
        super().__init__()
        self.w1, self.w2, self.readout = param(0, 2, 3), param(1, 3, 3), param(2, 3, 2)
        self.h1, self.h2 = hidden(3, 2, 3), hidden(4, 2, 3)
        self.memory = jax.lax.stop_gradient if forget else lambda value: value
        self.input = jax.lax.stop_gradient if deaf else lambda value: value

    def update(self, x: jax.Array) -> jax.Array:
        self.h1.value = 0.8 * self.h1.value + mm(x, self.w1.value)
        y = mm(jnp.tanh(self.input(self.h1.value)), self.w2.value)
        self.h2.value = 0.7 * self.memory(jnp.sin(self.h2.value)) + y
        return self.h2.value @ self.readout.value


def test_two_layers() -> None:
    sequences = data(6, out=2)
    first = bptt(Layers(forget=True), sequences, loss_fn)[1]
    second = bptt(Layers(deaf=True), sequences, loss_fn)[1]
    result = d_rtrl_oracle(Layers(), sequences, loss_fn)
    assert result.groups == ((("h1",),), (("h2",),))
    assert_tree_close(result.grads, {**second, ("w1",): first["w1",]}, RTOL)


# --- transitions that mix positions: the true block diagonal, by hand ------------------------


def by_hand(model: Any, sequences: Any, readout: np.ndarray, trained: bool) -> dict[Any, Any]:
    """``h = tanh(x W + h R)`` with the influence of ``W[i, o]`` on ``h[b, o]`` alone.

    ``trained``: ``R`` has a trace of its own (it is an ETP operation); otherwise it has the
    gradient of the current step.
    """
    w, r, h = (np.asarray(model.cells[0].__dict__[name].value) for name in ("w", "r", "h"))
    grad = {
        name: np.zeros_like(value) for name, value in (("w", w), ("r", r), ("readout", readout))
    }
    eps_w, eps_r = np.zeros((*h.shape[:1], *w.shape)), np.zeros((*h.shape[:1], *r.shape))
    for x, target in zip(*map(np.asarray, sequences), strict=True):
        old, h = h, np.tanh(x @ w + h @ r)
        slope = 1 - h**2
        D = slope * np.diag(r)
        increment = np.einsum("bi,bo->bio", old, slope)
        eps_w = D[:, None] * eps_w + np.einsum("bi,bo->bio", x, slope)
        eps_r = D[:, None] * eps_r * trained + increment
        out = h @ readout
        dout = 2 * (out - target) * np.cos(out) - (out - target) ** 2 * np.sin(out)
        signal = dout @ readout.T
        grad["w"] += np.einsum("bo,bio->io", signal, eps_w)
        grad["r"] += np.einsum("bo,bio->io", signal, eps_r)
        grad["readout"] += h.T @ dout
    return {
        ("cells", 0, "w"): grad["w"],
        ("cells", 0, "r"): grad["r"],
        ("readout",): grad["readout"],
    }


@pytest.mark.parametrize("cell", [cells.Mixing, cells.Open])
def test_mixing_transition_keeps_the_block_diagonal(cell: type[cells.Cell]) -> None:
    model, sequences = Stack(cell()), data(6, out=2)
    reference = by_hand(model, sequences, np.asarray(model.readout.value), cell is cells.Open)
    assert_tree_close(d_rtrl_oracle(model, sequences, loss_fn).grads, reference, RTOL)


# --- the coupled scope: ETP products stay in the transition ----------------------------------


def coupled(model: Any, sequences: Any) -> Any:
    return d_rtrl_oracle(model, sequences, loss_fn, recurrence_scope="coupled")


@pytest.mark.parametrize("cell", ONE_LAYER)
@pytest.mark.parametrize("batch", [None, 2])
def test_one_coupled_step_is_the_ordinary_gradient(
    cell: type[cells.Cell], batch: int | None
) -> None:
    model, sequences = cell(batch=batch), data(1, batch)
    assert_tree_close(coupled(model, sequences).grads, whole(model, sequences), RTOL)


def test_coupled_transition_of_a_vanilla_cell_by_hand() -> None:
    model, sequences = cells.Vanilla(), data(4)
    result = coupled(model, sequences)
    weights = np.diag(np.asarray(model.w.value)[model.n_in :])
    for now, h in zip(result.steps, result.outputs, strict=True):
        assert_tree_close(now.D[0], np.diag(((1 - h**2) * weights).ravel()), RTOL)


def jacobians(model: Any, x: jax.Array, groups: Any) -> list[np.ndarray]:
    """The derivatives of the new values of each group in its old values, by ``jax.jacfwd``."""
    step = brainstate.transform.StatefulFunction(model.update, return_only_write=False)
    step.make_jaxpr(x)
    path_of = {id(state): path for path, state in brainstate.graph.states(model).items()}
    paths = [path_of[id(state)] for state in step.get_states(x)]
    start = {path: state.value for path, state in brainstate.graph.states(model).items()}

    def run(values: dict[Any, jax.Array]) -> dict[Any, jax.Array]:
        return dict(zip(paths, step.jaxpr_call([values[p] for p in paths], x)[0], strict=True))

    dense = jax.jacfwd(run)(start)

    def block(new: Any, old: Any) -> np.ndarray:
        return np.asarray(dense[new][old]).reshape(start[new].size, start[old].size)

    return [np.block([[block(new, old) for old in group] for new in group]) for group in groups]


#: No path leaves a group and comes back, and no new value leads to another through an operation.
CLOSED: dict[str, Callable[[], Any]] = {
    **{
        cell.__name__: cell
        for cell in ONE_LAYER
        if cell not in (cells.Processed, cells.Direct, cells.Partial)
    },
    **{name: make for name, make in STACKS.items() if name != "gru-direct-jit"},
}


@pytest.mark.parametrize("make", CLOSED.values(), ids=CLOSED.keys())
def test_coupled_transition_is_the_block_diagonal_of_the_jacobian(make: Callable[[], Any]) -> None:
    model, sequences = make(), data(1, out=2 if make in STACKS.values() else 3)
    result = coupled(model, sequences)
    dense = jacobians(model, sequences[0][0], result.groups)
    for found, true, group in zip(result.steps[0].D.values(), dense, result.groups, strict=True):
        position = np.tile(np.arange(6), len(group))
        same = position[:, None] == position
        assert_tree_close(found, np.where(same, true, 0.0), RTOL)


def test_coupled_path_ends_where_a_new_value_enters_an_operation() -> None:
    """``old -> h -> (operation) -> g``: the transition of ``g`` has it neither way."""

    class Within(cells.Cell):
        def build(self) -> None:
            self.r, self.u = (self.weight(k, 1, 1) for k in range(2))
            self.a, self.b = self.state(0), self.state(1)

        n_in, n_hidden = 1, 1

        def update(self, x: jax.Array) -> jax.Array:
            a, b = self.a.value, self.b.value
            self.a.value = jnp.sin(mm(a, self.r.value)) + 0.2 * b + x
            self.b.value = 0.5 * self.a.value + mm(self.a.value, self.u.value)
            return self.b.value

    model, (xs, targets) = Within(batch=None), data(1, None)
    a, r = float(model.a.value[0]), float(model.r.value[0, 0])
    slope = np.cos(a * r) * r
    result = coupled(model, (xs[:, :1], targets[:, :1]))
    expected = np.array([[slope, 0.2], [0.5 * slope, 0.5 * 0.2]])
    assert_tree_close(result.steps[0].D[0], expected, RTOL)


def thin(cell: type[cells.Cell]) -> cells.Cell:
    """One unit: every recurrent path stays at its position."""
    return type(cell.__name__, (cell,), {"n_hidden": 1})()


def thin_data() -> tuple[jax.Array, jax.Array]:
    xs, targets = data(6)
    return xs, targets[..., :1]


@pytest.mark.parametrize("cell", [cells.Vanilla, cells.GRUResetAfter, cells.LSTM])
def test_coupled_is_bptt_for_one_unit(cell: type[cells.Cell]) -> None:
    """All but the parameters that never had a trace: plain biases."""
    model, sequences = thin(cell), thin_data()
    traced = {path for path in whole(model, sequences) if path != ("b",)}
    found, reference, diagonal = (
        {path: grads[path] for path in traced}
        for grads in (
            coupled(model, sequences).grads,
            whole(model, sequences),
            d_rtrl_oracle(model, sequences, loss_fn).grads,
        )
    )
    assert_tree_close(found, reference, RTOL)
    with pytest.raises(AssertionError, match="relative error"):
        assert_tree_close(diagonal, reference, 1e-3)


def test_coupled_gru_of_one_unit_has_no_trace_of_its_reset_gate() -> None:
    model, sequences = thin(cells.GRU), thin_data()
    reference = {**whole(model, sequences), ("wr",): one_step(model, sequences)["wr",]}
    assert_tree_close(coupled(model, sequences).grads, reference, RTOL)


def test_coupled_is_bptt_for_recurrent_weights_on_the_diagonal() -> None:
    class Masked(cells.Cell):
        def build(self) -> None:
            self.w = self.weight(0, self.n_in, self.n_hidden)
            self.r = self.weight(1, self.n_hidden, self.n_hidden)
            self.h = self.state(0)

        def update(self, x: jax.Array) -> jax.Array:
            recurrent = mm(self.h.value, jnp.eye(self.n_hidden) * self.r.value)
            self.h.value = jnp.tanh(mm(x, self.w.value) + recurrent)
            return self.h.value

    model, sequences = Stack(Masked()), data(6, out=2)
    assert_tree_close(coupled(model, sequences).grads, whole(model, sequences), RTOL)


@pytest.mark.parametrize("cell", [cells.Leaky, cells.LeakyOld, cells.TwoStates, cells.LIF])
def test_coupled_is_diagonal_without_recurrent_operations(cell: type[cells.Cell]) -> None:
    model, sequences = Stack(cell()), data(4, out=2)
    diagonal = d_rtrl_oracle(model, sequences, loss_fn)
    assert_tree_close(coupled(model, sequences).grads, diagonal.grads, 0.0)


def test_coupled_layers_stay_apart() -> None:
    """A group's old value reaches its new one around another group in ``l`` and ``e`` alone."""

    class Ring(Layers):
        def update(self, x: jax.Array) -> jax.Array:
            self.h2.value = 0.7 * self.h2.value + mm(jnp.sin(self.h1.value), self.w2.value)
            self.h1.value = 0.8 * self.h1.value + mm(x, self.w1.value) + self.h2.value
            return self.h1.value @ self.readout.value

    result = d_rtrl_oracle(
        Ring(), data(2, out=2), loss_fn, groups=[[("h1",)]], recurrence_scope="coupled"
    )
    assert_tree_close(result.steps[0].D, {0: 0.8 * np.eye(6), 1: 0.7 * np.eye(6)}, RTOL)


# --- independence ----------------------------------------------------------------------------


def test_nothing_is_taken_from_the_compiler() -> None:
    folder = Path(braintrace.testing.__file__).parent
    own = {path.stem for path in folder.glob("*.py")}
    no_oracles = {folder / "__init__.py", folder / "fixtures.py"}
    for path in sorted(set(folder.glob("*.py")) - no_oracles):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                assert node.module in own, path
            elif isinstance(node, ast.ImportFrom) and node.module == "braintrace.ops.primitive":
                assert {a.name for a in node.names} <= {"get_primitive_spec", "is_etp_primitive"}, (
                    path
                )
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module]
                    if isinstance(node, ast.ImportFrom)
                    else [alias.name for alias in node.names]
                )
                assert not any(str(name).startswith("braintrace") for name in names), path


# --- primitives: whatever backpropagation through time can do --------------------------------

DOUBLE = jax.custom_derivatives.linear_call
THROUGH: dict[str, Callable[[jax.Array], Any]] = {
    "pad": lambda h: jnp.pad(h, ((0, 0), (1, 2))),
    "pad with a value of the state": lambda h: jax.lax.pad(h, h[0, 0], [(0, 0, 0), (1, 2, 1)]),
    "complex": lambda h: jnp.abs(0.9 * jnp.exp(0.5j) * jax.lax.complex(h, h * h) + 0.1),
    "complex result": lambda h: h * jnp.exp(1j * h),
    "complex product": lambda h: (h + 1j) @ jax.lax.complex(h, 2 * h).T,
    "Fourier transform": lambda h: jnp.fft.ifft(jnp.fft.rfft(h) * 1j).imag,
    "no derivative in a constant": lambda h: jax.scipy.special.polygamma(1, 1 + h * h),
    "no batching rule": lambda h: DOUBLE(lambda r, x: r * x, lambda r, t: r * t, 2.0, h),
    "scatter": lambda h: jnp.zeros((2, 5)).at[:, jnp.array([1, 1, 4])].add(h),
    "sorted": lambda h: jax.lax.sort((h, h * h), num_keys=1),
    "factorised": lambda h: jnp.linalg.svd(h, full_matrices=False),
}


@pytest.mark.parametrize("through", THROUGH.values(), ids=THROUGH.keys())
def test_any_primitive_behind_the_state(through: Callable[[jax.Array], Any]) -> None:
    class Through(cells.Leaky):
        def update(self, x: jax.Array) -> Any:
            return through(super().update(x))

    def loss(out: Any) -> jax.Array:
        parts = [(leaf.real, 0.7 * leaf.imag) for leaf in jax.tree.leaves(out)]
        return sum((jnp.sum(re**2 + im**3) for re, im in parts), jnp.zeros(()))

    sequences = data(3)[:1]
    found = d_rtrl_oracle(Through(), sequences, loss).grads
    assert_tree_close(found, bptt(Through(), sequences, loss)[1], RTOL)


class Deviation(cells.Leaky):
    """The root of a running variance that starts at zero, where the root has no derivative."""

    def build(self) -> None:
        super().build()
        self.v = self.state(1)
        self.v.value = jnp.zeros(self.shape)

    def update(self, x: jax.Array) -> jax.Array:
        y = mm(x, self.w.value)
        self.h.value = 0.8 * self.h.value + y * jnp.sqrt(self.v.value)
        self.v.value = 0.9 * self.v.value + 0.1 * y**2
        return self.h.value + self.v.value


@pytest.mark.parametrize("steps", [1, 3])
def test_a_state_that_starts_where_there_is_no_derivative(steps: int) -> None:
    sequences = data(steps)
    found = d_rtrl_oracle(Deviation(), sequences, loss_fn).grads
    assert_tree_close(found, whole(Deviation(), sequences), RTOL, allow_zero=[("a",)])


class Rotating(brainstate.nn.Module):
    """A complex state, and complex parameters, of a linear recurrent unit."""

    def __init__(self) -> None:
        super().__init__()
        self.w = brainstate.ParamState(cells.normal(1, 2, 3) + 1j * cells.normal(2, 2, 3))
        self.h = brainstate.HiddenState(jnp.zeros((2, 3), complex))

    def update(self, x: jax.Array) -> jax.Array:
        self.h.value = 0.9 * jnp.exp(0.5j) * self.h.value + mm(x.astype(complex), self.w.value)
        return self.h.value.real + self.h.value.imag**2


def test_complex_states_and_parameters() -> None:
    result = d_rtrl_oracle(Rotating(), data(3), loss_fn)
    assert_tree_close(result.grads, bptt(Rotating(), data(3), loss_fn)[1], RTOL)
    assert result.steps[0].D[0].shape == (12, 12)
    windows = window_oracle(d_rtrl_oracle, Rotating(), data(3), loss_fn, window=2)
    assert_tree_close(windows.grads, result.grads, RTOL)


# --- structure -------------------------------------------------------------------------------


def test_groups_and_relations() -> None:
    result = d_rtrl_oracle(Stack(cells.LSTM(), second(cells.GRU)), data(1, out=2), loss_fn)
    assert result.groups == (
        (("cells", 0, "c"), ("cells", 0, "h")),
        (("cells", 1, "h"),),
    )
    assert [g for _, g in result.relations] == [0, 1, 1]
    assert set(result.names.values()) == {"oracle_mm"}


def test_layers_at_integer_indices_are_different_groups() -> None:
    class Pair(brainstate.nn.Module):
        def __init__(self, names: bool):
            super().__init__()
            self.w = param(0, 2, 3)
            self.h = [hidden(1, 2, 3), hidden(2, 2, 3)]
            if names:
                self.a, self.b = self.h
                del self.h

        def update(self, x: jax.Array) -> jax.Array:
            a, b = (self.a, self.b) if hasattr(self, "a") else self.h
            a.value = 0.5 * a.value + mm(x, self.w.value)
            b.value = 0.9 * b.value + a.value
            return b.value

    assert d_rtrl_oracle(Pair(True), data(1), loss_fn).groups == ((("a",), ("b",)),)
    assert d_rtrl_oracle(Pair(False), data(1), loss_fn).groups == ((("h", 0),), (("h", 1),))


def test_of_two_states_with_one_value_the_first_of_the_model_has_it() -> None:
    """Whatever the order in which the step touches them."""

    class Twins(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = param(0, 2, 3)
            self.h = [hidden(1, 2, 3), hidden(2, 2, 3)]

        def update(self, x: jax.Array) -> jax.Array:
            late = self.h[1].value
            self.h[0].value = self.h[1].value = 0.5 * self.h[0].value + mm(x, self.w.value)
            return self.h[0].value * late

    result = d_rtrl_oracle(Twins(), data(1), loss_fn)
    assert result.groups == ((("h", 0),), (("h", 1),))
    assert [g for _, g in result.relations] == [0]
    assert_tree_close(result.steps[0].D[0], 0.5 * np.eye(6), RTOL)


def test_states_of_different_shapes_are_different_groups() -> None:
    class Inhibited(cells.Leaky):
        def build(self) -> None:
            super().build()
            self.mean = hidden(5, *self.shape[:-1], 1)

        def update(self, x: jax.Array) -> jax.Array:
            out = super().update(x) - self.mean.value
            self.mean.value = 0.5 * self.mean.value + jnp.mean(out, axis=-1, keepdims=True)
            return out

    result = d_rtrl_oracle(Inhibited(), data(1), loss_fn)
    assert result.groups == ((("h",),), (("mean",),))


def test_paths_without_derivative_connect_nothing() -> None:
    class Cut(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.frozen = param(0, 2, 3), param(1, 2, 3)
            self.a, self.b = hidden(2, 2, 3), hidden(3, 2, 3)

        def update(self, x: jax.Array) -> jax.Array:
            b = self.b.value
            self.b.value = mm(x, jax.lax.stop_gradient(self.frozen.value)) + jnp.sign(b)
            self.a.value = 0.5 * self.a.value + mm(x, self.w.value) * (self.b.value > 0)
            return self.a.value + jax.lax.stop_gradient(self.b.value)

    model, sequences = Cut(), data(4)
    result = d_rtrl_oracle(model, sequences, loss_fn)
    assert result.groups == ((("a",),), (("b",),))
    assert [g for _, g in result.relations] == [0]
    assert_tree_close(result.grads, whole(model, sequences), RTOL, allow_zero=[("frozen",)])


def test_group_state_holds_several_states_on_its_last_axis() -> None:
    class Grouped(brainstate.nn.Module):
        def __init__(self, together: bool):
            super().__init__()
            self.w = param(0, 2, 3)
            start = [hidden(1, 2, 3).value, hidden(2, 2, 3).value]
            if together:
                self.s = brainstate.HiddenGroupState(jnp.stack(start, axis=-1))
            else:
                self.a, self.b = map(brainstate.HiddenState, start)

        def update(self, x: jax.Array) -> jax.Array:
            together = hasattr(self, "s")
            a, b = (
                (self.s.value[..., 0], self.s.value[..., 1])
                if together
                else (self.a.value, self.b.value)
            )
            a, b = 0.8 * a - 0.3 * jnp.sin(b) + mm(x, self.w.value), 0.6 * b + jnp.tanh(a)
            if together:
                self.s.value = jnp.stack([a, b], axis=-1)
            else:
                self.a.value, self.b.value = a, b
            return a + 2 * b

    sequences = data(5)
    one = d_rtrl_oracle(Grouped(True), sequences, loss_fn)
    two = d_rtrl_oracle(Grouped(False), sequences, loss_fn)
    assert_tree_close(one.grads, two.grads, RTOL)
    assert_tree_close(two.grads, bptt(Grouped(False), sequences, loss_fn)[1], RTOL)


def test_influence_of_a_leaky_integrator() -> None:
    class Integrator(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.p = brainstate.ParamState({"w": param(0, 2, 3).value, "unused": jnp.ones(2)})
            self.q = param(1, 4)
            self.h = hidden(2, 3)

        def update(self, x: jax.Array) -> jax.Array:
            self.h.value = 0.5 * self.h.value + mm(x, self.p.value["w"])
            return self.h.value

    xs, targets = data(3, batch=None)
    result = d_rtrl_oracle(Integrator(), (xs, targets), loss_fn)
    trace = 0.25 * xs[0] + 0.5 * xs[1] + xs[2]
    (influence,) = result.influence.values()
    assert_tree_close(
        influence,
        {
            ("p",): {"w": jnp.einsum("i,ho->hio", trace, jnp.eye(3)), "unused": jnp.zeros((3, 2))},
            ("q",): jnp.zeros((3, 4)),
        },
        RTOL,
        allow_zero=["p.unused", "q"],
    )
    assert result.outputs.shape == (3, 3)
    assert result.grads["p",]["unused"].tolist() == [0.0, 0.0]
    assert result.steps[1].x[result.relations[0][0]].tolist() == xs[1].tolist()


def test_states_stay_as_they_are() -> None:
    model = cells.LSTM()
    before = {path: np.asarray(s.value) for path, s in brainstate.graph.states(model).items()}
    for reference in (d_rtrl_oracle, bptt, lambda *args: truncated_bptt(*args, 2)):
        reference(model, data(3), loss_fn)
    after = {path: np.asarray(s.value) for path, s in brainstate.graph.states(model).items()}
    assert_tree_close(after, before, 0.0)


def test_random_numbers_follow_the_generator() -> None:
    class Noisy(cells.Leaky):
        def update(self, x: jax.Array) -> jax.Array:
            return super().update(x) * brainstate.random.normal(size=self.shape)

    brainstate.random.seed(3)
    model, sequences = Noisy(), data(4)
    result = d_rtrl_oracle(model, sequences, loss_fn)
    assert_tree_close(result.grads, whole(model, sequences), RTOL)


# --- errors ----------------------------------------------------------------------------------


def test_operation_inside_control_flow_is_refused() -> None:
    class Looped(cells.Leaky):
        def update(self, x: jax.Array) -> jax.Array:
            w = self.w.value
            self.h.value, _ = jax.lax.scan(
                lambda h, _: (0.5 * h + mm(x, w), None), self.h.value, length=2
            )
            return self.h.value

    with pytest.raises(ValueError, match="an ETP operation stands inside 'scan'"):
        d_rtrl_oracle(Looped(), data(1), loss_fn)


def test_wrong_arguments_are_refused() -> None:
    model, (xs, targets) = cells.Leaky(), data(2)
    with pytest.raises(ValueError, match="one common length"):
        d_rtrl_oracle(model, (xs, targets[:1]), loss_fn)
    with pytest.raises(ValueError, match="one scalar"):
        d_rtrl_oracle(model, (xs, targets), lambda out, target: out)
    with pytest.raises(ValueError, match="groups must name each state at most once"):
        d_rtrl_oracle(model, (xs, targets), loss_fn, groups=[[("v",)]])
    with pytest.raises(ValueError, match="steps must be at least 1"):
        truncated_bptt(model, (xs, targets), loss_fn, 0)
    with pytest.raises(ValueError, match="recurrence_scope must be one of"):
        d_rtrl_oracle(model, (xs, targets), loss_fn, recurrence_scope="full")  # type: ignore[arg-type]


def test_bptt_of_a_state_that_takes_its_shape_at_the_first_step() -> None:
    class Late(cells.Leaky):
        def update(self, x: jax.Array) -> jax.Array:
            self.h.value = 0.5 * self.h.value + jnp.tanh(mm(x, self.w.value))
            return self.h.value

    late, whole = Late(), Late()
    late.h.value, whole.h.value = jnp.zeros(()), jnp.zeros(whole.shape)
    assert_tree_close(bptt(late, data(3), loss_fn)[0], bptt(whole, data(3), loss_fn)[0], RTOL)


def test_truncated_to_all_steps_is_bptt() -> None:
    model, sequences = Stack(cells.GRU(), second(cells.LSTM)), data(4, out=2)
    assert_tree_close(
        truncated_bptt(model, sequences, loss_fn, 4), bptt(model, sequences, loss_fn), RTOL
    )
