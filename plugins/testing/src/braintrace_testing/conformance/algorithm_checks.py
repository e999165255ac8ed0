# SPDX-License-Identifier: Apache-2.0
"""Learning rules with the operation in a model, against references that share no code with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import brainstate
import jax
import numpy as np

from braintrace.base.types import show_path
from braintrace.learners.learner import ETraceAlgorithm
from braintrace.learners.named import D_RTRL, pp_prop

from ..bptt import bptt
from ..learn import Influences, carried, learn, of_products
from ..quick import jit, options
from ..records import Recorded, record
from .case import ConformanceCase, once
from .check import CASE_CHECKS, add_check, close, require
from .models import (
    BLOCK,
    STEPS,
    Make,
    Task,
    below_leaks,
    in_a_batch,
    leaky,
    loss,
    of_one_example,
    quiet,
    recurrent,
    takes_state,
    two,
)


@dataclass(frozen=True)
class Algorithm:
    """A learner, and the influence that it takes, as the oracle has it.

    ``exact``: it equals backpropagation through time where every recurrence is position-wise.
    """

    name: str
    learner: Callable[[Any], ETraceAlgorithm]
    influences: Callable[[Any], Influences]
    exact: bool


def decays(model: Any) -> tuple[float, float]:
    """Decays of pp_prop: an input that is no floating-point number cannot be filtered."""
    case = model.case
    return 0.0 if case.has_x and not takes_state(case) else 0.7, 0.6


D_RTRL_IS = Algorithm(
    "d_rtrl", partial(D_RTRL, downstream="step"), lambda model: carried, exact=True
)
PP_PROP_IS = Algorithm(
    "pp_prop",
    lambda model: pp_prop(model, decays(model), downstream="step"),
    lambda model: of_products(*decays(model)),
    exact=False,
)


def compiled(algorithm: Algorithm, work: Task) -> Any:
    """A learner for the model of a task, all of whose parameters have traces."""
    learner = algorithm.learner(work.model)
    learner.compile_graph(jax.tree.map(lambda v: v[0], work.inputs))
    for path, how in learner.graph.coverage().items():
        require(
            how == "trace", f"the parameter {show_path(path)} has no trace: its coverage is {how!r}"
        )
    return learner


def step_of(learner: Any) -> Callable[[Any, Any], Any]:
    """One step of a sequence."""
    return lambda x, y: loss(learner(x), y)


def driver(learner: Any, block_size: int) -> Callable[..., Any]:
    """The gradient of sequences, as a program that is compiled once."""

    def gradient(*sequences: Any) -> Any:
        return learner.etrace_grad(
            *sequences, step_fn=step_of(learner), reduction="sum", block_size=block_size
        )

    return brainstate.transform.jit(gradient, compiler_options=options())


def online(learner: Any, sequences: Any, run: Callable[..., Any]) -> Any:
    """The gradient of a sequence from the start, by a :func:`driver`."""
    learner.reset_state(model_states=True)
    grads = run(*sequences)
    learner.reset_state(model_states=True)
    return grads


@once
def found(case: ConformanceCase, algorithm: Algorithm, make: Make, block_size: int) -> Any:
    """The gradient of a learner on a model."""
    with quiet():
        work = make(case)
        learner = compiled(algorithm, work)
        return online(learner, work.sequences, driver(learner, block_size))


@once
def _run(case: ConformanceCase, make: Make) -> Recorded:
    """What every learning rule needs of a model's steps."""
    work = make(case)
    return record(work.model, work.sequences, loss, None, "diagonal")


@once
def by_bptt(case: ConformanceCase, make: Make) -> Any:
    """The gradient of backpropagation through time."""
    work = make(case)
    return jit(lambda: bptt(work.model, work.sequences, loss)[1])()


def by_oracle(case: ConformanceCase, algorithm: Algorithm, make: Make) -> Any:
    """The gradient by the definition of the rule."""
    return learn(_run(case, make), algorithm.influences(make(case).model)).grads


def expected(case: ConformanceCase, algorithm: Algorithm, make: Make) -> Any:
    """The reference gradient where every recurrence is position-wise."""
    return by_bptt(case, make) if algorithm.exact else by_oracle(case, algorithm, make)


def check_blocks(
    case: ConformanceCase, algorithm: Algorithm, make: Make, reference: Any, block_size: int
) -> None:
    """Require the reference's gradient, in blocks of a size."""
    try:
        close(found(case, algorithm, make, block_size), reference)
    except AssertionError as error:
        raise AssertionError(f"with block_size={block_size}: {error}") from error


def leaky_cell(algorithm: Algorithm, case: ConformanceCase) -> None:
    """On a leaky cell with two states, the gradient is that of backpropagation through time (that
    of the oracle, for a rule that is not exact there)."""
    check_blocks(case, algorithm, leaky, expected(case, algorithm, leaky), 1)


def leaky_cell_in_a_batch(algorithm: Algorithm, case: ConformanceCase) -> None:
    """The same with a batch of states around an operation for one example: ``x`` is mapped by
    ``vmap``, or the result is broadcast when there is no ``x``."""
    size = BLOCK if algorithm.exact else 1
    check_blocks(case, algorithm, in_a_batch, expected(case, algorithm, in_a_batch), size)


def one_layer(algorithm: Algorithm, case: ConformanceCase) -> None:
    """On a cell that is recurrent through the operation, the gradient is that of the oracle."""
    check_blocks(case, algorithm, recurrent, by_oracle(case, algorithm, recurrent), STEPS)


def two_layers(algorithm: Algorithm, case: ConformanceCase) -> None:
    """On two cells, one behind the other, the gradient is that of the oracle (in blocks of several
    steps, for D-RTRL)."""
    size = BLOCK if algorithm.exact else 1
    check_blocks(case, algorithm, two, by_oracle(case, algorithm, two), size)


def credit_through_leaks(algorithm: Algorithm, case: ConformanceCase) -> None:
    """On a cell below leaky integrators that the operation drives, the gradient is that of
    backpropagation through time, if the operation is found to be linear in its input."""
    with quiet():
        work = below_leaks(case)
        learner = compiled(replace(algorithm, learner=D_RTRL), work)
    if learner.graph.uniform:
        gradient = online(learner, work.sequences, driver(learner, 1))
        close(gradient, by_bptt(case, below_leaks))


def gradient_of_calls(algorithm: Algorithm, case: ConformanceCase) -> None:
    """Differentiating a loss of calls of the learner gives the reference's gradient."""
    with quiet():
        work = leaky(case)
        learner = compiled(algorithm, work)

        def total() -> Any:
            losses = brainstate.transform.for_loop(step_of(learner), *work.sequences)
            return losses.sum()

        learner.reset_state(model_states=True)
        gradient = brainstate.transform.jit(
            lambda: brainstate.transform.grad(total, learner.param_states)(),
            compiler_options=options(),
        )
        close(gradient(), expected(case, algorithm, leaky))


def batch_is_the_sum(algorithm: Algorithm, case: ConformanceCase) -> None:
    """The gradient of a batch is the sum of the gradients of its examples."""
    whole = found(case, algorithm, leaky, 1)
    with quiet():
        work = leaky(case)
        examples = [
            jax.tree.map(lambda v, b=b: v[:, b : b + 1], work.sequences)
            for b in range(work.targets.shape[1])
        ]
        alone = Task(of_one_example(work.model), *examples[0])
        learner = compiled(algorithm, alone)
        run = driver(learner, 1)
        parts = [online(learner, one, run) for one in examples]
    close(whole, jax.tree.map(lambda *terms: np.sum(terms, axis=0), *parts))


def _batched(case: ConformanceCase) -> bool:
    return case.batched


def _single(case: ConformanceCase) -> bool:
    return not case.batched


def _anywhere(case: ConformanceCase) -> bool:
    return True


Checks = dict[Callable[..., None], Callable[[ConformanceCase], bool]]

CHECKS: Checks = {
    leaky_cell: _anywhere,
    leaky_cell_in_a_batch: _single,
    one_layer: takes_state,
    two_layers: _anywhere,
    credit_through_leaks: takes_state,
    gradient_of_calls: _anywhere,
    batch_is_the_sum: _batched,
}
#: What another rule asks of a family besides: its rules for a filtered input, and ``init_pp``.
OTHER_CHECKS = (leaky_cell, leaky_cell_in_a_batch, two_layers)


def _register(algorithm: Algorithm, checks: Iterable[Callable[..., None]]) -> None:
    for check in checks:
        run = partial(check, algorithm)
        run.__doc__ = check.__doc__
        id = f"algorithms.{algorithm.name}.{check.__name__}"
        add_check(CASE_CHECKS, id, run, CHECKS[check])


_register(D_RTRL_IS, CHECKS)
_register(PP_PROP_IS, OTHER_CHECKS)
