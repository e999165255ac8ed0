# SPDX-License-Identifier: Apache-2.0
"""With only some families installed: they train, the others say what to install.

``python -I tests/wheels/subset.py [--doctor] FAMILY...`` names those that are installed; the doctor
is asked too if so wished.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from jax.experimental.sparse import BCOO

import braintrace
from braintrace.names import OFFICIAL

STEPS, BATCH, INPUTS, UNITS = 6, 4, 3, 3
MODULE = {"ops": "braintrace", "nn": "braintrace.nn"}


class Weighted(brainstate.nn.Module):
    """A layer made of an operation ``op(x, weight)``."""

    def __init__(self, weight: Any, op: Callable[[Any, Any], Any]) -> None:
        super().__init__()
        self.weight = brainstate.ParamState(weight)
        self.op = op

    def update(self, x: Any) -> Any:
        """The operation."""
        return self.op(x, self.weight.value)


class Leaky(brainstate.nn.Module):
    """``h = tanh(layer(x) + 0.5 h)``."""

    def __init__(self, layer: brainstate.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def init_state(self, batch_size: int | None = None) -> None:
        """Zeros."""
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, UNITS)))

    def reset_state(self, batch_size: int | None = None) -> None:
        """Zeros."""
        self.h.value = jnp.zeros((batch_size, UNITS))

    def update(self, x: Any) -> Any:
        """One step."""
        self.h.value = jnp.tanh(self.layer(x) + 0.5 * self.h.value)
        return self.h.value


def conv() -> Any:
    """An operation of the family, along the row of units."""

    def along(x: Any, kernel: Any) -> Any:
        return braintrace.conv(x[:, None], kernel)[:, 0]

    return Leaky(Weighted(jnp.full((1, 1, 3), 0.1), along))


def dense() -> Any:
    """A layer of the family."""
    return braintrace.nn.GRUCell(INPUTS, UNITS)


def elemwise() -> Any:
    """An operation of the family."""
    return Leaky(Weighted(jnp.full(UNITS, 0.1), lambda x, w: x * braintrace.element_wise(w)))


def einsum() -> Any:
    """An operation of the family."""
    return Leaky(Weighted(0.1 * jnp.eye(INPUTS, UNITS), partial(braintrace.einsum, "bi,io->bo")))


def embedding() -> Any:
    """An operation of the family, of the signs of an input."""

    def read(x: Any, table: Any) -> Any:
        return braintrace.embedding((x[:, 0] > 0).astype(int), table)

    return Leaky(Weighted(0.1 * jnp.ones((2, UNITS)), read))


def lora() -> Any:
    """A layer of the family."""
    return Leaky(braintrace.nn.LoRA(INPUTS, 2, UNITS))


def sparse() -> Any:
    """A layer of the family."""
    matrix = BCOO.fromdense(0.1 * jnp.eye(INPUTS, UNITS))
    return Leaky(braintrace.nn.SparseLinear(matrix))


#: A model of each family, made with its own names alone.
MODELS: dict[str, Callable[[], Any]] = {
    "conv": conv,
    "dense": dense,
    "einsum": einsum,
    "elemwise": elemwise,
    "embedding": embedding,
    "lora": lora,
    "sparse": sparse,
}


def train(family: str) -> None:
    """Train a model of a family online; its loss must fall."""
    brainstate.random.seed(0)
    xs = jax.random.normal(jax.random.key(0), (STEPS, BATCH, INPUTS))
    ys = jnp.tanh(jnp.cumsum(xs, axis=0))
    learner = braintrace.compile(MODELS[family](), "d_rtrl", xs[0], batch_size=BATCH)

    def step(x: Any, y: Any) -> Any:
        return jnp.mean((learner(x) - y) ** 2)

    means = []
    for _ in range(12):
        learner.reset_state(BATCH, model_states=True)
        grads, losses = learner.etrace_grad(xs, ys, step_fn=step, return_value=True)
        means.append(float(losses.mean()))
        for path, state in learner.param_states.items():
            state.value = jax.tree.map(lambda w, g: w - 0.1 * g, state.value, grads[path])
    check(means[-1] < 0.95 * means[0], f"training {family} does not lower the loss: {means}")


def check(holds: bool, text: str) -> None:
    """End the program when something does not hold."""
    if not holds:
        raise SystemExit(text)


def check_absent(kind: str, name: str, distribution: str) -> None:
    """Every kind of access gives the documented text."""
    module, public = sys.modules[MODULE[kind]], f"{MODULE[kind]}.{name}"
    expected = (
        f"{public} is provided by {distribution!r}, which is not installed. "
        f"Run: pip install {distribution} (from files: its wheel, or "
        f"plugins/{distribution.removeprefix('braintrace-')} of a checkout)"
    )
    ways = {public: AttributeError, f"from {MODULE[kind]} import {name}": ImportError}
    for statement, kind_of_error in {**ways, f"import {public}": ImportError}.items():
        try:
            exec(statement, {"braintrace": braintrace})
        except kind_of_error as error:
            check(str(error) == expected, f"{statement}: {error}")
        else:
            raise SystemExit(f"{statement} raises nothing")
    check(not hasattr(module, name) and name not in dir(module), f"{public} seems to be there")


def check_names(families: set[str]) -> None:
    """What is installed resolves, and the rest says what to install."""
    check_absent("ops", "testing", "braintrace-testing")
    for kind, names in OFFICIAL.items():
        for name, distribution in names.items():
            if distribution.removeprefix("braintrace-") not in families:
                check_absent(kind, name, distribution)
            else:
                getattr(sys.modules[MODULE[kind]], name)


def check_doctor(families: set[str]) -> None:
    """The doctor finds these families, and nothing wrong with them."""
    command = [sys.executable, "-I", "-m", "braintrace", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    check(done.returncode == 0, f"the doctor finds an error:\n{done.stdout}{done.stderr}")
    data = json.loads(done.stdout)
    states = {plugin["family"]: plugin["state"] for plugin in data["plugins"]}
    check(states == dict.fromkeys(families, "loaded"), f"the doctor finds {states}")
    official = {d for names in OFFICIAL.values() for d in names.values()}
    absent = {name.removeprefix("braintrace-") for name in data["not_installed"]}
    check(absent == {d.removeprefix("braintrace-") for d in official} - families, str(absent))


def main(families: set[str], *, doctor: bool) -> None:
    """Check everything."""
    import braintrace.nn

    check({r.family for r in braintrace.plugins.records()} == families, "other families are there")
    check_names(families)
    for family in sorted(families):
        check(family in MODELS, f"tests/wheels/subset.py has no model of {family!r}")
        train(family)
    if doctor:
        check_doctor(families)


if __name__ == "__main__":
    main(set(sys.argv[1:]) - {"--doctor"}, doctor="--doctor" in sys.argv)
