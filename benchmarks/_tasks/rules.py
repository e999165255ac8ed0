# SPDX-License-Identifier: Apache-2.0
"""The learning rules: how a network's gradients over a sequence come about, and what uses them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainstate
import jax
import optax
from _shared import learning

import braintrace

#: Names on the command line, and titles in the table.
RULES = {
    "d_rtrl": "D-RTRL",
    "pp_prop": "pp_prop",
    "bptt": "BPTT",
    "no_trace": "no trace",
    "no_trace_rms": "no trace, RMSprop",
    "e_prop": "e-prop",
    "d_rtrl_step": "D-RTRL, published",
    "pp_prop_step": "pp_prop, published",
    "e_prop_step": "e-prop, published",
}

#: ``loss(network, *inputs of one step) -> (scalar loss, what else is wanted of the step)``.
Loss = Callable[..., tuple[jax.Array, Any]]
#: ``gradient(*sequences) -> (gradients, losses [T], what else was wanted [T, ...])``.
Gradient = Callable[..., tuple[dict[Any, Any], jax.Array, Any]]


def gradient_of(
    rule: str,
    model: brainstate.nn.Module,
    loss: Loss,
    example: jax.Array,
    decay: float,
    go_on: bool = False,
    kappa: float = 0.9,
    block_size: int | str = "auto",
) -> Gradient:
    """A function that gives the gradients of the mean loss over the steps of a sequence.

    Parameters
    ----------
    rule
        A key of :data:`RULES`. ``no_trace`` is pp_prop with decay 0: credit for the current step
        alone (``no_trace_rms``: the same for another optimiser); with ``_step`` behind it, a rule
        is as it was published.
    model
        The network; its states are made here.
    loss
        Runs one step.
    example
        Input of the network at one step [B, ...].
    decay
        Of pp_prop.
    go_on
        Whether states and traces go on from call to call; else every sequence starts from a reset.
    kappa
        Of e-prop.
    block_size
        How many steps an online rule takes at a time; the numbers are the same.
    """
    if rule == "bptt":
        return _through_time(model, loss, len(example), go_on)
    learner = _learner(rule, model, example, decay, kappa)
    return _online(learner, loss, len(example), go_on, block_size)


def _learner(
    rule: str, model: brainstate.nn.Module, example: jax.Array, decay: float, kappa: float
) -> Any:
    name = rule.removesuffix("_step").removesuffix("_rms")
    algorithm = {"no_trace": "pp_prop"}.get(name, name)
    options = {
        "d_rtrl": {},
        "e_prop": {"kappa_filter_decay": kappa},
        "no_trace": {"decay_or_rank": 0.0},
        "pp_prop": {"decay_or_rank": decay},
    }[name]
    published = name != rule or name == "no_trace"
    return braintrace.compile(
        model,
        algorithm,
        example,
        batch_size=len(example),
        downstream="step" if published else "linear",
        **options,
    )


def _online(
    learner: Any, loss: Loss, batch_size: int, go_on: bool, block_size: int | str
) -> Gradient:
    def step(*inputs: jax.Array) -> tuple[jax.Array, Any]:
        return loss(learner, *inputs)

    def gradient(*sequences: jax.Array) -> tuple[dict[Any, Any], jax.Array, Any]:
        if not go_on:
            learner.reset_state(batch_size=batch_size, model_states=True)
        return learner.etrace_grad(
            *sequences,
            step_fn=step,
            carry_trace=go_on,
            has_aux=True,
            return_value=True,
            block_size=block_size,
        )

    return gradient


def _through_time(
    model: brainstate.nn.Module, loss: Loss, batch_size: int, go_on: bool
) -> Gradient:
    brainstate.nn.init_all_states(model, batch_size=batch_size)

    def total(*sequences: jax.Array) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        if not go_on:
            brainstate.nn.reset_all_states(model, batch_size=batch_size)
        losses, aux = brainstate.transform.for_loop(lambda *xs: loss(model, *xs), *sequences)
        return losses.mean(), (losses, aux)

    differentiated = brainstate.transform.grad(
        total, model.states(brainstate.ParamState), has_aux=True
    )

    def gradient(*sequences: jax.Array) -> tuple[dict[Any, Any], jax.Array, Any]:
        grads, (losses, aux) = differentiated(*sequences)
        return grads, losses, aux

    return gradient


def optimiser(rule: str, rate: Any) -> optax.GradientTransformation:
    """Adam, or for ``no_trace_rms`` RMSprop (decay 0.99); gradients of norm 1 at most.

    RMSprop is Adam without momentum. A. Shalev Merin, "Temporal credit is free", arXiv 2603.28750
    (2026), has it as enough where no trace is kept.
    """
    if not rule.endswith("_rms"):
        return learning.adam(rate)
    rms = optax.adam(rate, b1=0.0, b2=0.99)
    return optax.chain(optax.clip_by_global_norm(1.0), rms)


def values_of(model: brainstate.nn.Module) -> dict[Any, Any]:
    """The weights of a model, by path."""
    states = brainstate.graph.states(model, brainstate.ParamState)
    return {path: weight.value for path, weight in states.items()}


def updater(
    model: brainstate.nn.Module, optimiser: optax.GradientTransformation
) -> Callable[[dict[Any, Any]], None]:
    """A function that improves the weights of a model by their gradients."""
    weights = dict(brainstate.graph.states(model, brainstate.ParamState))

    def values() -> dict[Any, Any]:
        return {path: weight.value for path, weight in weights.items()}

    moments = brainstate.ShortTermState(optimiser.init(values()))

    def update(grads: dict[Any, Any]) -> None:
        changes, moments.value = optimiser.update(dict(grads), moments.value, values())
        for path, value in optax.apply_updates(values(), changes).items():
            weights[path].value = value

    return update
