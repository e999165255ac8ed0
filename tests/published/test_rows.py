# SPDX-License-Identifier: Apache-2.0
"""Each row of the tables of ``docs/from-0.2.md`` is true."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace import nn

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-0.2.md"
BATCH, STEPS = 2, 3
ROWS: dict[str, Callable[[], None]] = {}


def row(text: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """The check of the row whose first cell has these words."""

    def register(check: Callable[[], None]) -> Callable[[], None]:
        ROWS[text] = check
        return check

    return register


def sequence() -> jax.Array:
    """Inputs [STEPS, BATCH, 3]."""
    return jnp.cos(jnp.arange(STEPS * BATCH * 3.0)).reshape(STEPS, BATCH, 3)


@cache
def learner(rule: str = "d_rtrl") -> Any:
    """A GRU that learns."""
    return braintrace.compile(nn.GRUCell(3, 4, key=0), rule, sequence()[0], batch_size=BATCH)


# --- learners -------------------------------------------------------------------------------------


@row("`reset_state(batch_size)` resets traces")
def resets() -> None:
    of = learner()
    of.etrace_evolve(sequence())
    of.reset_state(BATCH)
    assert of.model.h.value.any()
    (trace,) = of.get_etrace_of(("Wz", "weight"))
    assert not any(leaf.any() for leaf in jax.tree.leaves(trace))
    of.reset_state(BATCH + 1, model_states=True)
    assert of.model.h.value.shape == (BATCH + 1, 4) and not of.model.h.value.any()
    of.reset_state(BATCH, model_states=True)


@row("`get_etrace_of(weight)` is a dict")
def traces_of_a_weight() -> None:
    found = learner().get_etrace_of(("Wz", "weight"))
    assert [sorted(trace) for trace in found] == [["bias", "weight"]]
    with pytest.raises(KeyError, match="Wr.weight has no trace"):
        learner().get_etrace_of(("Wr", "weight"))


@row("`compile(..., vmap=True)` returns")
def mapped() -> None:
    cell = nn.GRUCell(3, 4)
    made = braintrace.compile(cell, "d_rtrl", sequence()[0], batch_size=BATCH, vmap=True)
    assert isinstance(made, braintrace.D_RTRL)


@row("`DNI` needs `attach_synthesizer`")
def predictions_are_trained() -> None:
    assert ("synthesizer", "h") in learner("dni").param_states


@row("`vjp_method='multi-step'` in `etrace_grad`")
def windows_have_a_length() -> None:
    cell, xs = nn.GRUCell(3, 4), sequence()
    of = braintrace.compile(cell, "d_rtrl", xs[0], batch_size=BATCH, vjp_method="multi-step")
    with pytest.raises(ValueError, match="pass their length as chunk_size"):
        of.etrace_grad(xs, step_fn=lambda x: (of(x) ** 2).sum())


@row("`etrace_evolve(..., chunk_size=k)`")
def evolves_without_windows() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'chunk_size'"):
        learner().etrace_evolve(sequence(), chunk_size=2)


@row("`ETraceConfig(temporal_recursion=...")
def coordinates_that_are_not_there() -> None:
    for name in ("temporal_recursion", "update_schedule", "window_size"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            braintrace.ETraceConfig(**{name: 1})


@row("`EProp(feedback='random')` divides")
def random_feedback_is_linear() -> None:
    of = braintrace.compile(
        nn.GRUCell(3, 4, key=0),
        braintrace.EProp,
        sequence()[0],
        batch_size=BATCH,
        feedback="random",
        random_feedback_key=jax.random.key(0),
    )

    def grads(scale: float) -> Any:
        of.reset_state(BATCH, model_states=True)
        return of.etrace_grad(sequence(), step_fn=lambda x: scale * (of(x) ** 2).sum())

    once, thrice = grads(1.0), grads(3.0)
    assert any(leaf.any() for leaf in jax.tree.leaves(once))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, 1e-5, 1e-6), once, thrice)


@row("`UORO`: `ETraceConfig(recurrence_scope='coupled'")
def scope_of_uoro() -> None:
    whole = {"trace_factorization": "random_projection"}
    with pytest.raises(ValueError, match=r"goes with recurrence_scope in \('full',\)"):
        braintrace.ETraceConfig(recurrence_scope="coupled", **whole)
    assert braintrace.ETraceConfig(recurrence_scope="full", **whole)


@row("the second positional argument of learners is `name`")
def positions_of_options() -> None:
    assert braintrace.pp_prop(nn.GRUCell(3, 4), 0.8).config.decay == 0.8
    with (
        pytest.warns(DeprecationWarning, match="options of D_RTRL are given by name"),
        pytest.raises(ValueError, match="vjp_method must be"),
    ):
        braintrace.D_RTRL(nn.GRUCell(3, 4), "name")


@row("`_solve_weight_gradients`, `_update_etrace_data`")
def hooks_of_a_subclass() -> None:
    for name in ("_solve_weight_gradients", "_update_etrace_data", "_compute_learning_signal"):
        with pytest.raises(TypeError, match=f"defines {name}, which nothing calls.*of your own"):
            type("Mine", (braintrace.D_RTRL,), {name: lambda self: None})


@row("an argument `modulator` is ignored by rules")
def modulators_that_nobody_reads() -> None:
    with pytest.raises(TypeError, match="modulator"):
        learner()(sequence()[0], modulator=1.0)


# --- layers and operations ------------------------------------------------------------------------


@row("a seed of `brainstate.random` draws")
def draws() -> None:
    """The distributions are compared in ``test_layers.py``."""
    made = []
    for _ in range(2):
        brainstate.random.seed(0)
        made.append(nn.LSTMCell(3, 4).Wi.weight.value["weight"])
    assert (made[0] == made[1]).all()


@row("`nn.SignedWLinear` with sizes of several axes")
def a_signed_weight() -> None:
    layer = nn.SignedWLinear((5, 3), (5, 4))
    assert layer.weight.value.shape == (3, 4)
    assert layer(jnp.ones((2, 5, 3))).shape == (2, 5, 4)


@row("`nn.ScaledWSLinear` with a gain gives one example")
def a_standardised_weight() -> None:
    assert nn.ScaledWSLinear(3, 4, ws_gain=True)(jnp.ones(3)).shape == (4,)


@row("`nn.LRUCell` has the `out_size`")
def the_size_of_what_an_lru_returns() -> None:
    cell = nn.LRUCell(3, 4)
    cell.init_state()
    assert cell.out_size == cell(jnp.ones(3)).shape == (3,)


@row("`matmul` takes integers and booleans")
def operands() -> None:
    x, weight = jnp.ones((2, 3)), jnp.ones((3, 4))
    for integers in (x.astype(int), x > 0):
        with pytest.raises(TypeError, match=r"x has dtype .*astype\(jax.numpy.float32\)"):
            braintrace.matmul(integers, weight)
    for bias in (jnp.ones((1, 4)), jnp.ones(())):
        with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
            braintrace.matmul(x, weight, bias)
    with pytest.raises(ValueError, match=r"weight must have shape \[in, out\]"):
        braintrace.matmul(x, weight[:, 0])
    assert braintrace.matmul(x, weight[:, :1]).shape == (2, 1)


@row("`sparse_matmul(x, weight=...)`")
def names_of_arguments() -> None:
    values = {"weight": jnp.ones(3)}
    with pytest.raises(TypeError, match="unexpected keyword argument 'weight'"):
        braintrace.sparse_matmul(jnp.ones(3), sparse_mat=None, **values)
    function = {"impl_fn": jnp.add}
    with pytest.raises(TypeError, match="unexpected keyword argument 'impl_fn'"):
        braintrace.register_primitive("published_impl", **function)


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ROWS)
def test_a_row_is_true(text: str) -> None:
    ROWS[text]()


def test_each_row_has_a_check() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found = [line[2:] for line in lines if line.startswith("| ") and line != "| in 0.2 | here |"]
    unchecked = [line for line in found if not any(line.startswith(text) for text in ROWS)]
    assert not unchecked, "rows of docs/from-0.2.md without a check here"
    assert len(found) == len(ROWS)
