# SPDX-License-Identifier: Apache-2.0
"""The works: gradients of a sequence, and online learning; the same program for both libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

import braintrace

from .cases import Network, example, loss, network, parted, weights, weights_of
from .layers import PLAIN, TRACED
from .settings import PP_DECAY, Contender, Sizes

Work = Callable[[jax.Array, jax.Array], Any]
RATE = 1e-3


@dataclass(frozen=True, eq=False)
class Built:
    """A contender's network, its learner if it has one, and its work: sequences to results.

    The result is a tree of gradients, or for online learning of the weights in the end.
    """

    network: Network
    learner: Any
    work: Work


def build(contender: Contender, name: str, sizes: Sizes) -> Built:
    """Make a contender for a model."""
    model = network(name, sizes, PLAIN if contender.rule == "plain" else TRACED)
    if contender.kind == "bptt":
        return Built(model, None, bptt(model, contender))
    learner = make_learner(model, contender, example(name, sizes))
    return Built(model, learner, KINDS[contender.kind](model, learner, contender))


def make_learner(model: Network, contender: Contender, x: jax.Array) -> Any:
    """A learner by the contender's rule, compiled for an input."""
    method = "single-step" if contender.chunk is None else "multi-step"
    learner: Any = (
        braintrace.pp_prop(model, PP_DECAY, vjp_method=method)
        if contender.rule == "pp_prop"
        else braintrace.D_RTRL(model, vjp_method=method)
    )
    learner.compile_graph(x if contender.chunk is None else windows_of(x[None], contender))
    return learner


def windows_of(x: jax.Array, contender: Contender) -> Any:
    """Steps [k, ...] as the argument of a call."""
    return braintrace.MultiStepData(jnp.broadcast_to(x, (contender.chunk, *x.shape[1:])))


# --- gradients of a sequence ---------------------------------------------------------------------


def bptt(model: Network, contender: Contender) -> Work:
    """Reverse mode through the whole sequence."""

    def total(xs: jax.Array, ys: jax.Array) -> jax.Array:
        each = brainstate.transform.for_loop(lambda x, y: loss(model(x), y), xs, ys)
        return each.mean()

    gradient = brainstate.transform.grad(total, weights_of(model))
    return gradient if contender.rule != "plain" else lambda xs, ys: parted(gradient(xs, ys))


def sequence(model: Network, learner: Any, contender: Contender) -> Work:
    """The learner's own driver, block by block or, for a rule of windows, window by window."""
    states = weights_of(model)
    chosen = traced(states, learner) if contender.traced else states
    options: dict[str, Any] = {"weights": chosen}
    if not contender.peer:
        options |= {"block_size": contender.block, "carry_trace": contender.carry}
    if contender.chunk is not None:
        options["chunk_size"] = contender.chunk

    def step(x: jax.Array, y: jax.Array) -> jax.Array:
        if contender.chunk is None:
            return loss(learner(x), y)
        return jax.vmap(loss)(learner(braintrace.MultiStepData(x)), y)

    def gradient(xs: jax.Array, ys: jax.Array) -> Any:
        found = learner.etrace_grad(xs, ys, step_fn=step, **options)
        if not contender.traced:
            return found
        rest = {path: state.value for path, state in states.items() if path not in chosen}
        return found | jax.tree.map(jnp.zeros_like, rest)

    return gradient


def traced(states: dict[Any, Any], learner: Any) -> dict[Any, Any]:
    """The weights with a trace."""
    relations = learner.graph.hidden_param_op_relations
    found = {path for relation in relations for path in relation.parameter_paths}
    return {path: state for path, state in states.items() if path in found}


def steps(model: Network, learner: Any, contender: Contender) -> Work:
    """Step by step, as for weights that are updated at every step."""
    states = weights_of(model)

    def add(total: Any, inputs: Any) -> tuple[Any, None]:
        x, y = inputs
        found = brainstate.transform.grad(lambda: loss(learner(x), y), states)()
        return jax.tree.map(jnp.add, total, dict(found)), None

    def gradient(xs: jax.Array, ys: jax.Array) -> Any:
        zeros = jax.tree.map(jnp.zeros_like, weights(model))
        total, _ = brainstate.transform.scan(add, zeros, (xs, ys))
        return jax.tree.map(lambda v: v / len(xs), total)

    return gradient


# --- an update at every step ---------------------------------------------------------------------


class Descent:
    """Plain gradient descent, by hand, so that both libraries do the same arithmetic."""

    def __init__(self, model: Network) -> None:
        self.states = weights_of(model)

    def update(self, gradients: Any) -> None:
        for path, state in self.states.items():
            change = gradients[path]
            state.value = jax.tree.map(lambda w, g: w - RATE * g, state.value, change)


def update(model: Network, learner: Any, contender: Contender) -> Work:
    """The learner's own driver with an update at every step."""
    optimizer = Descent(model)

    def learn(xs: jax.Array, ys: jax.Array) -> Any:
        learner.etrace_update(
            xs,
            ys,
            step_fn=lambda x, y: loss(learner(x), y),
            optimizer=optimizer,
            weights=optimizer.states,
        )
        return weights(model)

    return learn


def calls(model: Network, learner: Any, contender: Contender) -> Work:
    """The work of one step: a call of the learner, its gradient and an update."""
    optimizer = Descent(model)

    def step(x: jax.Array, y: jax.Array) -> None:
        found = brainstate.transform.grad(lambda: loss(learner(x), y), optimizer.states)()
        optimizer.update(dict(found))

    return step


def scan(model: Network, learner: Any, contender: Contender) -> Work:
    """Such steps in one compiled loop."""
    step = calls(model, learner, contender)

    def learn(xs: jax.Array, ys: jax.Array) -> Any:
        brainstate.transform.for_loop(step, xs, ys)
        return weights(model)

    return learn


KINDS = {"sequence": sequence, "steps": steps, "update": update, "scan": scan, "calls": calls}
