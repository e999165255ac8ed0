# SPDX-License-Identifier: Apache-2.0
"""Example inputs with which a model cannot be run, and what is said of them."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.base.errors import ExampleInputError, MissingSettingError
from braintrace.learners.example_inputs import explained, initialise
from tests.unit.drivers.net import HIDDEN, IN, B, Growing, Net, T


class Needing(Growing):
    """Its states cannot be made without a batch."""

    def __init__(self) -> None:
        super().__init__(0.5)

    def init_state(self, batch_size: int, **kwargs: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, HIDDEN)))


class Free(Needing):
    """Its states may be those of one example."""

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        shape = (HIDDEN,) if batch_size is None else (batch_size, HIDDEN)
        self.h = brainstate.HiddenState(jnp.zeros(shape))


def in_sequence() -> Any:
    return brainstate.nn.Sequential(bt.nn.GRUCell(IN, HIDDEN), bt.nn.Linear(HIDDEN, IN))


ONE = r"if they are a sequence, pass one step of it, x\[0\]"
BATCH = f"if they are {B} examples, pass batch_size={B}"


@pytest.mark.parametrize(
    ("make", "shape", "options", "text"),
    [
        (Net, (B, IN), {}, BATCH),
        (
            Free,
            (B, IN),
            {},
            rf"inputs \(3, 2\) and batch_size=None: {BATCH}; or {ONE}\. \(the state",
        ),
        (Needing, (B, IN), {}, BATCH),
        (in_sequence, (B, IN), {}, BATCH + r".*\(GRUCell: x has shape"),
        (Net, (T, B, IN), {}, f"{ONE}, and batch_size={B}"),
        (Net, (T, B, IN), {"batch_size": B}, f"batch_size=3: {ONE}"),
        (Free, (T, B, IN), {"batch_size": B}, f"batch_size=3: {ONE}"),
        (Net, (T, B, IN), {"vmap": True}, ONE),
        (Net, (B, T, IN), {"batch_size": B}, r"B, T, .*, pass one step of all, x\[:, 0\] .*T, B"),
        (Net, (B, T, IN), {}, rf"{ONE}, and batch_size=7; or .* x\[:, 0\], and batch_size=3"),
        (Net, (B, IN), {"batch_size": 5}, BATCH),
        (Needing, (B, IN), {"batch_size": 5}, BATCH),
        (
            Net,
            (IN,),
            {"batch_size": 5},
            "if they are one example, pass no batch_size or 5 examples",
        ),
    ],
)
def test_what_was_meant_is_what_can_be_run(make: Any, shape: Any, options: Any, text: str) -> None:
    random = brainstate.random.DEFAULT
    with pytest.raises(ExampleInputError, match=text):
        before = [make() for _ in range(1)], random.value
        bt.compile(*before[0], "d_rtrl", jnp.ones(shape), seed=0, **options)
    assert (random.value == before[1]).all()


class OfBatch(Free):
    """Its ``init_state`` may be called without a batch, and then fails."""

    def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, HIDDEN)))


class ResetOfBatch(Free):
    def reset_state(self, batch_size: int, **kwargs: Any) -> None:
        self.h.value = jnp.zeros((batch_size, HIDDEN))


@pytest.mark.parametrize("size", [None, B])
@pytest.mark.parametrize("make", [Needing, OfBatch])
def test_a_model_that_needs_a_batch_is_not_for_vmap(make: type, size: int | None) -> None:
    place = rf"{make.__name__}\.init_state \(.*test_example_inputs\.py:\d+\) cannot make the states"
    with pytest.raises(ExampleInputError, match=f"{place}.* pass batch_size={B} without vmap=True"):
        bt.compile(make(), "d_rtrl", jnp.ones((B, IN)), vmap=True, batch_size=size)


def test_nor_is_one_whose_reset_needs_it() -> None:
    learner = bt.compile(ResetOfBatch(), "d_rtrl", jnp.ones((B, IN)), vmap=True)
    with pytest.raises(ExampleInputError, match=r"ResetOfBatch\.reset_state \(.*\.py:\d+\) cannot"):
        learner.reset_state(model_states=True)


@pytest.mark.parametrize("kind", [RuntimeError, TypeError])
def test_another_error_of_an_initialisation_stays(kind: type[Exception]) -> None:
    class Broken(Free):
        def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
            raise kind("of its own")

    with pytest.raises(kind, match="^of its own"):
        bt.compile(Broken(), "d_rtrl", jnp.ones((B, IN)), vmap=True)


def test_an_error_of_another_cause_stays() -> None:
    """Nothing that has to do with the inputs would help."""

    class Wrong(Net):
        def update(self, x: Any) -> Any:
            raise RuntimeError("of its own")

    class Nothing(Free):
        def update(self, x: Any) -> Any:
            self.h.value = 0.5 * self.h.value + x.sum()
            return self.h.value

    class Checked(Net):
        def update(self, x: Any) -> Any:
            if x.ndim != 2:
                raise ValueError
            return super().update(x)

    x = jnp.ones((B, IN))
    with pytest.raises(ExampleInputError, match=r"x\[0\].*\(ValueError\)$"):
        bt.compile(Checked(), "d_rtrl", jnp.ones((T, B, IN)), batch_size=B)
    with pytest.raises(RuntimeError, match="^of its own"):
        bt.compile(Wrong(), "d_rtrl", x, batch_size=B)
    with pytest.raises(bt.CompilationError, match="^the model uses no brainstate.ParamState"):
        bt.compile(Nothing(), "d_rtrl", x)
    missing = MissingSettingError("no")
    assert explained(missing, Net(), (x,), None, False) is missing


def test_the_kinds_of_error_that_it_is() -> None:
    for kind in (bt.CompilationError, ValueError, TypeError):
        assert issubclass(ExampleInputError, kind)


def test_states_are_made_for_the_batch() -> None:
    model, x = Free(), jnp.ones((B, IN))
    for args, size, vmap, shape in (
        ((x,), None, False, (HIDDEN,)),
        ((x,), 5, False, (5, HIDDEN)),
        ((x,), None, True, (B, HIDDEN)),
    ):
        initialise(model, args, size, vmap)
        assert model.h.value.shape == shape


def test_jax_in_float64_and_brainstate_in_float32() -> None:
    """``jax_enable_x64`` alone: inputs are wider than what a model of ``brainstate`` is made of."""

    class Plain(Free):
        def init_state(self, batch_size: int | None = None, **kwargs: Any) -> None:
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, HIDDEN), "float32"))

    with brainstate.environ.context(precision=32), jax.enable_x64(True):
        wide = jnp.ones((B, IN), "float64")
        model = Net()
        text = "an argument is float64: convert it to float32, or .*environ.set.precision=64."
        with pytest.raises(bt.CompilationError, match=f"cell.h is float32.*Here {text}"):
            bt.compile(model, "d_rtrl", wide, batch_size=B)
        learner = bt.compile(model, "d_rtrl", wide.astype("float32"), batch_size=B)
        xs, ys = jnp.ones((T, B, IN), "float32"), jnp.ones((T, B, IN), "float64")
        step_fn = lambda x, y: ((learner(x) - y) ** 2).mean()  # noqa: E731
        grads, losses = learner.etrace_grad(xs, ys, step_fn=step_fn, return_value=True)
        assert losses.dtype == "float64"  # targets may be wider
        assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {"float32"}
        with pytest.raises(ValueError, match="dtype float64, but .* float32; convert it"):
            learner(wide)
    with brainstate.environ.context(precision=64):
        learner = bt.compile(Net(), "d_rtrl", wide, batch_size=B)
        assert learner(wide).dtype == "float64"
        with pytest.raises(
            bt.CompilationError, match="Here the parameter linear.weight is float64"
        ):
            bt.compile(Plain(), "d_rtrl", wide.astype("float32"), batch_size=B)


@pytest.mark.parametrize("kind", ["by itself", "in a container"])
def test_dropout_without_fit(kind: str) -> None:
    class Dropping(Net):
        def __init__(self) -> None:
            super().__init__()
            dropout = brainstate.nn.Dropout(0.5)
            self.drop = dropout if kind == "by itself" else brainstate.nn.Sequential(dropout)

        def update(self, x: Any) -> Any:
            return self.drop(super().update(x))

    x = jnp.ones((B, IN))
    text = "^'fit' is read from brainstate.environ, where it is not set: .*set.fit=True. trains"
    for error in (bt.CompilationError, KeyError):
        with pytest.raises(error, match=text):
            bt.compile(Dropping(), "d_rtrl", x, batch_size=B)
    with brainstate.environ.context(fit=False):
        learner = bt.compile(Dropping(), "d_rtrl", x, batch_size=B)
        assert learner(x).shape == (B, IN)
    with pytest.raises(bt.CompilationError, match="which was False .* not set now; set it as it"):
        learner(x)
