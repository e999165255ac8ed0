# SPDX-License-Identifier: Apache-2.0
"""Every learning rule there is, and one small model with an operation of every family."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

import braintrace as bt
from braintrace.base import versions
from braintrace.plugins import process, services
from tests.truth import table

from . import meshes

STEPS, BATCH, IN, UNITS = 4, 8, 4, 4
FORMS = ("blocks", "updates")


class Everything(brainstate.nn.Module):
    """A layer of units [B, U], a line of channels [B, C, places], and a leaky readout above both.

    The units hear a product of each family, the channels convolutions, and one layer the other. The
    units of one are along the last axis, the channels of the other are not.
    """

    def __init__(self, tokens: bool = True) -> None:
        super().__init__()
        self.tokens = tokens
        shapes = {
            "dense": (IN + UNITS, UNITS),
            "low": (UNITS, 1),
            "high": (1, UNITS),
            "ring": (2 * UNITS,),
            "pairs": (2, UNITS // 2, UNITS // 2),
            **({"table": (3, UNITS)} if tokens else {}),
            "leak": (UNITS,),
            "own": (IN, UNITS),
            "bias": (UNITS,),
            "kernel": (UNITS, 1, 2),
            "mixing": (UNITS, UNITS, 1),
            "readout": (UNITS, UNITS),
        }
        rng = np.random.default_rng(0)
        for name, shape in shapes.items():
            setattr(self, name, brainstate.ParamState(jnp.asarray(0.4 * rng.normal(size=shape))))
        self.near = table.matrix(np.eye(UNITS) + np.roll(np.eye(UNITS), 1, axis=1))

    def init_state(self, batch_size: int) -> None:
        """States that are not zero."""
        for name, value in self.start(batch_size):
            setattr(self, name, brainstate.HiddenState(value))

    def reset_state(self, batch_size: int) -> None:
        """Set the states back."""
        for name, value in self.start(batch_size):
            getattr(self, name).value = value

    def start(self, batch_size: int) -> Iterator[tuple[str, jax.Array]]:
        """Values of the states by name."""
        rng = np.random.default_rng(1)
        for name, places in (("h", ()), ("c", (2,)), ("y", ())):
            yield name, jnp.asarray(0.3 * rng.normal(size=(batch_size, UNITS, *places)))

    def update(self, x: Any) -> Any:
        """One step."""
        h, c = self.h.value, self.c.value
        pairs = h.reshape(-1, 2, UNITS // 2)
        drive = bt.matmul(jnp.concatenate([x, h], -1), self.dense.value)
        drive += bt.lora_matmul(h, self.low.value, self.high.value)
        drive += bt.sparse_matmul(h, self.ring.value, sparse_mat=self.near)
        drive += bt.grouped_matmul(pairs, self.pairs.value).reshape(h.shape)
        if self.tokens:
            drive += bt.embedding(jnp.argmax(x[:, :3], -1), self.table.value)
        drive += 0.3 * table.own.bind(x, self.own.value, self.bias.value)
        drive += 0.2 * jnp.tanh(c).mean(2)
        h = bt.element_wise(self.leak.value, jax.nn.sigmoid) * h + jnp.tanh(drive)
        heard = bt.conv(x[:, None], self.kernel.value, strides=2, padding="VALID")
        heard += bt.conv(c, self.mixing.value)
        c = 0.6 * c + jnp.tanh(heard + 0.2 * h[..., None])
        self.h.value, self.c.value = h, c
        self.y.value = 0.8 * self.y.value + bt.matmul(h, self.readout.value)
        return self.y.value + c.mean(2)


def left_out() -> dict[str, set[str]]:
    """By family, its primitives, where the model has none of them."""
    rng = np.random.default_rng(0)
    learner = bt.compile(Everything(), "d_rtrl", rng.normal(size=(BATCH, IN)), batch_size=BATCH)
    known = {r.spec.name for r in learner.graph.hidden_param_op_relations}
    families = ((r.family, {*r.primitives}) for r in bt.plugins.load_all())
    return {family: own for family, own in families if own and not own & known}


# --- learning rules -------------------------------------------------------------------------------


class Rule(NamedTuple):
    """A registered name, and the number of its options in ``OPTIONS``."""

    name: str
    number: int = 0

    @property
    def options(self) -> dict[str, Any]:
        return OPTIONS.get(self.name, [{}])[self.number]

    @property
    def windows(self) -> bool:
        """Whether it learns in windows: some do unless they are told otherwise."""
        usual = "multi-step" if self.name in ("uoro", "dni") else "single-step"
        return bool(self.options.get("vjp_method", usual) == "multi-step")

    def __str__(self) -> str:
        options = (f"{name}={value}" for name, value in self.options.items())
        return ",".join((self.name, *options)).replace(" ", "")


#: Options without which a rule cannot be made, and those that make another one of it.
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "d_rtrl": [{}, {"vjp_method": "multi-step"}],
    "pp_prop": [{"decay_or_rank": (0.7, 0.6)}],
    "eprop": [{"kappa_filter_decay": 0.6}, {"feedback": "random", "random_feedback_key": 3}],
    "snap": [{}, {"n": 2, "downstream": "step"}],
    "uoro": [{}, {"vjp_method": "single-step"}],
    "three_factor": [{"modulator": -0.4}],
}


def rules() -> Iterator[Rule]:
    """Each learner class that ``braintrace.compile`` knows by name, with its options."""
    host = process.host()
    host.load_all()
    managers = [services.plugin_of_core().manager, *(manager for _, manager in host.loaded())]
    found: dict[Any, str] = {}
    for manager in managers:
        for name, learner in (manager.hook.braintrace_algorithms(api=services.HOST) or {}).items():
            found.setdefault(learner, name)
    for name in found.values():
        yield from (Rule(name, k) for k, _ in enumerate(OPTIONS.get(name, [{}])))


def run(rule: Rule, on: Any = None, forms: tuple[str, ...] = FORMS) -> dict[str, Any]:
    """Gradients of a sequence in two blocks, and weights that change at every step; with losses.

    On one device, or divided along all axes of a mesh.
    """
    rng = np.random.default_rng(2)
    xs, ys = rng.normal(size=(STEPS, BATCH, IN)), rng.normal(size=(STEPS, BATCH))
    model = Everything(tokens=rule.name != "pp_prop")  # which filters inputs, and no indices
    learner = bt.compile(model, rule.name, xs[0], batch_size=BATCH, **rule.options)
    if on is not None:
        learner.shard(on, batch="data", units="model" if "model" in on.axis_names else None)
        place = jax.NamedSharding(on, jax.P(None, "data"))
        xs, ys = (versions.put(v, place) for v in (xs, ys))

    def window(x: Any, y: Any) -> Any:
        return table.losses(learner(bt.MultiStepData(x)), y).sum(-1)

    def step(x: Any, y: Any) -> Any:
        return table.losses(learner(x), y).sum()

    def blocks() -> Any:
        options: Any = {"step_fn": step, "block_size": 2}
        if rule.windows:
            options = {"step_fn": window, "chunk_size": 2}
        return learner.etrace_grad(xs, ys, reduction="sum", return_value=True, **options)

    def updates() -> Any:
        losses = learner.etrace_update(xs, ys, step_fn=step, optimizer=table.SGD)
        return losses, {path: state.value for path, state in learner.param_states.items()}

    found = {}
    for form in forms:
        learner.reset_state(BATCH, model_states=True)
        found[form] = jax.tree.map(meshes.whole, {"blocks": blocks, "updates": updates}[form]())
    return found


#: What one device computes.
alone = cache(run)
