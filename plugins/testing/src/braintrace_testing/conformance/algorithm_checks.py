# SPDX-License-Identifier: Apache-2.0
"""Learning rules with the operation in a model, against references that share no code with them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import brainstate
import jax

from braintrace.base.types import show_path
from braintrace.learners.learner import ETraceAlgorithm
from braintrace.learners.named import D_RTRL, pp_prop

from ..bptt import bptt
from ..oracle import d_rtrl_oracle, pp_prop_oracle
from .case import ConformanceCase
from .check import CASE_CHECKS, add_check, close, require
from .models import BATCH, STEPS, Cell, Task, Two, loss, quiet, takes_state, task


@dataclass(frozen=True)
class Algorithm:
    """A learner and its reference.

    ``oracle(model, sequences, loss)`` returns something with ``grads``. ``exact``: it equals
    backpropagation through time where every recurrence is position-wise. ``blocks``: sizes of
    blocks that are tried, the first ``FEWER`` of them on larger models.
    """

    name: str
    learner: Callable[[Any], ETraceAlgorithm]
    oracle: Callable[..., Any]
    exact: bool
    blocks: tuple[int, ...]


FEWER = 2  # sizes of blocks where compile time counts


def decays(model: Any) -> tuple[float, float]:
    """Decays of pp_prop: an input that is no floating-point number cannot be filtered."""
    case = model.case
    return 0.0 if case.has_x and not takes_state(case) else 0.7, 0.6


D_RTRL_IS = Algorithm("d_rtrl", D_RTRL, d_rtrl_oracle, exact=True, blocks=(1, 4, STEPS))
PP_PROP_IS = Algorithm(
    "pp_prop",
    lambda model: pp_prop(model, decays(model)),
    lambda model, sequences, loss: pp_prop_oracle(model, sequences, loss, *decays(model)),
    exact=False,
    blocks=(4,),
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


def online(learner: Any, work: Task, block_size: int) -> Any:
    """The gradient of a sequence from the start."""
    learner.reset_state(model_states=True)
    grads = learner.etrace_grad(
        *work.sequences,
        step_fn=lambda x, y: loss(learner(x), y),
        reduction="sum",
        block_size=block_size,
    )
    learner.reset_state(model_states=True)
    return grads


def check_blocks(algorithm: Algorithm, work: Task, reference: Any, blocks: tuple[int, ...]) -> None:
    """Require the reference's gradient, step by step and in blocks."""
    learner = compiled(algorithm, work)
    for block_size in blocks:
        try:
            close(online(learner, work, block_size), reference)
        except AssertionError as error:
            raise AssertionError(f"with block_size={block_size}: {error}") from error


def expected(algorithm: Algorithm, work: Task) -> Any:
    """The reference gradient where every recurrence is position-wise."""
    if algorithm.exact:
        return bptt(work.model, work.sequences, loss)[1]
    return algorithm.oracle(work.model, work.sequences, loss).grads


def leaky_cell(algorithm: Algorithm, case: ConformanceCase) -> None:
    """On a leaky cell with two states, the gradient is that of backpropagation through time (that
    of the oracle, for a rule that is not exact there)."""
    with quiet():
        work = task(Cell(case), case)
        check_blocks(algorithm, work, expected(algorithm, work), algorithm.blocks)


def leaky_cell_in_a_batch(algorithm: Algorithm, case: ConformanceCase) -> None:
    """The same with a batch of states around an operation for one example: ``x`` is mapped by
    ``vmap``, or the result is broadcast when there is no ``x``."""
    head, mapped = (BATCH,), case.has_x
    with quiet():
        cell = Cell(case, head=head, mapped=mapped)
        work = task(cell, case, head=head, mapped=mapped)
        check_blocks(algorithm, work, expected(algorithm, work), algorithm.blocks)


def one_layer(algorithm: Algorithm, case: ConformanceCase) -> None:
    """On a cell that is recurrent through the operation, the gradient is that of the oracle."""
    with quiet():
        work = task(Cell(case, recurrent=True), case)
        oracle = algorithm.oracle(work.model, work.sequences, loss)
        check_blocks(algorithm, work, oracle.grads, algorithm.blocks[:FEWER])


def two_layers(algorithm: Algorithm, case: ConformanceCase) -> None:
    """On two cells, one behind the other, the gradient is that of the oracle."""
    with quiet():
        work = task(Two(case), case)
        oracle = algorithm.oracle(work.model, work.sequences, loss)
        check_blocks(algorithm, work, oracle.grads, algorithm.blocks[:FEWER])


def gradient_of_calls(algorithm: Algorithm, case: ConformanceCase) -> None:
    """Differentiating a loss of calls of the learner gives the reference's gradient."""
    with quiet():
        work = task(Cell(case), case)
        reference = expected(algorithm, work)
        learner = compiled(algorithm, work)

        def total() -> Any:
            losses = brainstate.transform.for_loop(
                lambda x, y: loss(learner(x), y), *work.sequences
            )
            return losses.sum()

        learner.reset_state(model_states=True)
        gradient = brainstate.transform.jit(
            lambda: brainstate.transform.grad(total, learner.param_states)()
        )
        close(gradient(), reference)


def batch_is_the_sum(algorithm: Algorithm, case: ConformanceCase) -> None:
    """The gradient of a batch is the sum of the gradients of its examples."""
    with quiet():
        work = task(Cell(case), case)
        whole = online(compiled(algorithm, work), work, 4)
        examples = work.targets.shape[1]
        parts = [_example(algorithm, case, work, b) for b in range(examples)]
        close(whole, jax.tree.map(lambda *terms: sum(terms), *parts))


def _example(algorithm: Algorithm, case: ConformanceCase, work: Task, b: int) -> Any:
    """The gradient of one example alone, as a batch of one."""
    cell = Cell(case)
    cell.start = cell.start[b : b + 1]
    brainstate.nn.init_all_states(cell)
    alone = Task(cell, *jax.tree.map(lambda v: v[:, b : b + 1], work.sequences))
    return online(compiled(algorithm, alone), alone, 4)


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
