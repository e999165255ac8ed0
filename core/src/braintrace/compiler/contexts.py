# SPDX-License-Identifier: Apache-2.0
"""Programs whose equations run in contexts: one backward planner, and how its plans are run.

Which paths through a step count may depend on where a path has been before. An equation is then
run once per *context* in which its results are needed, and may read its operands otherwise in each.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from ..base import versions
from ..base.versions import Atom, JaxprEqn, Var


class Read(NamedTuple):
    """How an operand is read: as computed in a context, or as given (``None``).

    ``perturb`` is the number of a perturbation to add; ``stop`` stops the gradient.
    """

    atom: Atom
    context: Hashable = None
    perturb: int | None = None
    stop: bool = False


class Instruction(NamedTuple):
    """Run equation ``eqn`` in ``context`` on ``operands``."""

    eqn: int
    context: Hashable
    operands: tuple[Read, ...]


def plan_backward(
    eqns: Sequence[JaxprEqn],
    outputs: Iterable[Read],
    operands: Callable[[int, Any], tuple[Read, ...]],
    always: Hashable = None,
) -> Iterator[Instruction]:
    """What to run for ``outputs``, last first; ``operands(i, context)`` says what ``i`` reads.

    Equations with effects, which nothing needs, are run in the context ``always``, if there is one.
    """
    made = {var: i for i, eqn in enumerate(eqns) for var in eqn.outvars}
    needed: dict[int, dict[Hashable, None]] = defaultdict(dict)

    def need(reads: Iterable[Read]) -> None:
        for ref in reads:
            if ref.context is not None:
                needed[made[ref.atom]][ref.context] = None

    need(outputs)
    for i in range(len(eqns) - 1, -1, -1):
        if always is not None and eqns[i].effects and not eqns[i].outvars:
            needed[i][always] = None
        for context in needed[i]:
            step = Instruction(i, context, operands(i, context))
            need(step.operands)
            yield step


def run_in_contexts(
    eqns: Sequence[JaxprEqn],
    instructions: Iterable[Instruction],
    given: Mapping[Var, Any],
    outputs: Iterable[Read],
    perturb: Sequence[Any] = (),
) -> list[Any]:
    """Values of ``outputs``, from those of the variables that are given."""
    computed: dict[tuple[Var, Hashable], Any] = {}

    def value(ref: Read) -> Any:
        if not versions.is_var(ref.atom):
            return ref.atom.val
        found = given[ref.atom] if ref.context is None else computed[ref.atom, ref.context]
        if ref.perturb is not None:
            found = found + perturb[ref.perturb]
        return jax.lax.stop_gradient(found) if ref.stop else found

    for step in instructions:
        eqn = eqns[step.eqn]
        values = versions.bind_equation(eqn, [value(ref) for ref in step.operands])
        computed.update(zip(((var, step.context) for var in eqn.outvars), values, strict=True))
    return [value(ref) for ref in outputs]
