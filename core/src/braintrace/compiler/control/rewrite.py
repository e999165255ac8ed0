# SPDX-License-Identifier: Apache-2.0
"""Control flow around ETP operations, rewritten so that the operations stand in the open.

A trace is kept per ETP equation, so each must be an equation of the step itself, run at every
step. A branch is cut at its operations (see ``branches``); a short ``scan`` becomes its iterations,
one after the other, and from a long one the operations are taken out, for all iterations at once
(see ``rolled``); a ``while`` has no length and is refused. Control flow without an ETP operation
inside stays as it is, with a reverse mode for a ``while`` (see ``reverse``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from ...base import versions
from ...base.diagnostics import CompilationRecord
from ...base.errors import NotSupportedError
from ...base.versions import Jaxpr, JaxprEqn, jaxp
from ...jaxprs.run import etp_equations, first_nested_operation, inlined, with_replacements
from ...ops.repeated import repeated
from ..findings.record import IN_CALL, INSIDE, REWRITTEN, ROLLED
from .branches import cut, run_branches, varying_variables
from .loops import fixed_in_body, run_iterations
from .rolled import Rolled

#: The values of the fields of a policy that are words.
CHOICES = {
    "cond": ("convert", "refuse"),
    "while_hidden": ("opaque-fwd", "error"),
    "etp_in_control_flow": ("error",),
    "scan_descent": ("auto", "off"),
}

#: Why there is none of a value of ``braintrace`` 0.2, and what to use.
NOT_HERE = {
    ("cond", "opaque"): "; an operation in a branch that stays whole has no trace, so that is "
    "'refuse' here",
    ("etp_in_control_flow", "exclude"): "; a weight that silently loses its trace has a wrong "
    "gradient. Use a plain product in the loop to have the gradient of the current step",
}


@dataclass(frozen=True)
class ControlFlowPolicy:
    """What the compiler does with an ETP operation inside control flow.

    Parameters
    ----------
    cond
        ``'convert'``: cut the branches of a ``cond`` or ``switch`` at their ETP operations, in a
        way that is safe when the branch not taken has no finite value or derivative.
        ``'refuse'``: raise ``NotSupportedError``.
    scan_unroll_limit
        The longest ``scan`` (or ``fori_loop`` with static bounds) that is written out, in
        iterations. Zero: none is. Every iteration of every operation has a trace of its own.
    while_hidden
        What to do with a ``while`` without an ETP operation inside that a derivative has to pass.
        ``'opaque-fwd'``: run it as it is, and undo its iterations one by one for the derivative,
        which is exact whatever they do. ``'error'``: raise ``NotSupportedError``.
    etp_in_control_flow
        ``'error'``: raise ``NotSupportedError`` where an ETP operation stands in control flow that
        is not rewritten. There is no other value: its weight would lose its trace.
    scan_descent
        What to do with a longer ``scan`` with ETP operations inside. ``'auto'``: keep it a loop,
        and have one trace for all iterations of each operation, where that is exact; raise
        ``NotSupportedError`` with the reason where it is not. ``'off'``: raise it always.
    fixpoint_iteration_limit
        Without an effect, because no rewriting is repeated: a positive integer.

    Raises
    ------
    TypeError, ValueError
        For anything else.

    Examples
    --------
    >>> import braintrace as bt
    >>> policy = bt.ControlFlowPolicy(scan_unroll_limit=32)
    >>> policy.scan_unroll_limit, policy.while_hidden
    (32, 'opaque-fwd')
    """

    cond: str = "convert"
    scan_unroll_limit: int = 16
    while_hidden: str = "opaque-fwd"
    etp_in_control_flow: str = "error"
    scan_descent: str = "auto"
    fixpoint_iteration_limit: int = 64

    def __post_init__(self) -> None:
        for name, known in CHOICES.items():
            if (value := getattr(self, name)) not in known:
                because = NOT_HERE.get((name, value), "")
                wanted = " or ".join(map(repr, known))
                raise ValueError(f"{name} must be {wanted}, got {value!r}{because}")
        for name, least in (("scan_unroll_limit", 0), ("fixpoint_iteration_limit", 1)):
            limit = getattr(self, name)
            if isinstance(limit, bool) or not isinstance(limit, int):
                raise TypeError(f"{name} must be an integer, got {limit!r}")
            if limit < least:
                least_is = "positive" if least else "not be negative"
                raise ValueError(f"{name} must {'be ' * least}{least_is}, got {limit}")


@dataclass(frozen=True)
class Rewriting:
    """One run of the pass; every level of nesting is left behind for good, so it ends.

    ``note`` is called with a record of everything that is rewritten, or found inside.
    """

    policy: ControlFlowPolicy
    note: Callable[[CompilationRecord], None]

    def program(self, jaxpr: Jaxpr, fixed: Sequence[bool]) -> Jaxpr:
        """A branch or body without calls, with all its ETP operations in the open."""
        return self.open(inlined(jaxpr, lambda eqn: self.note(IN_CALL(eqn))), fixed)

    def open(self, jaxpr: Jaxpr, fixed: Sequence[bool]) -> Jaxpr:
        """The same for a program without calls.

        ``fixed`` says of each input whether it is made of parameters and constants. Operations in
        other loops or in functions with a custom differentiation rule are refused.
        """
        nested = {i: first_nested_operation(eqn) for i, eqn in enumerate(jaxpr.eqns)}
        if not any(nested.values()):
            return jaxpr
        varying, replacements = varying_variables(jaxpr, fixed), {}
        for i, operation in nested.items():
            if operation is not None:
                atoms = jaxpr.eqns[i].invars
                known = [not (versions.is_var(atom) and atom in varying) for atom in atoms]
                replacements[i] = self.replacement(jaxpr.eqns[i], operation, known)
        return with_replacements(jaxpr, replacements)

    def replacement(
        self, eqn: JaxprEqn, operation: JaxprEqn, fixed: Sequence[bool]
    ) -> Callable[..., list[Any]]:
        """What to run instead of control flow with an ETP operation inside."""
        name, length = eqn.primitive.name, eqn.params.get("length", 0)
        run: Callable[..., list[Any]]
        if eqn.primitive is jaxp.cond_p and self.policy.cond == "convert":
            programs = [self.program(b, fixed[1:]) for b in versions.inner_jaxprs(eqn)]
            run = partial(run_branches, [cut(program, fixed[1:]) for program in programs])
            how = f"{len(programs)} branches are cut at their operations"
        elif eqn.primitive is jaxp.scan_p and length <= self.policy.scan_unroll_limit:
            programs = [self.program(versions.sub_jaxpr(eqn), fixed_in_body(eqn, fixed))]
            run = partial(run_iterations, eqn, programs[0])
            how = f"its {length} iterations are written out"
        elif eqn.primitive is jaxp.scan_p and self.policy.scan_descent == "auto":
            return self.rolled(eqn, operation, fixed)
        else:
            raise NotSupportedError(self.refusal(eqn, operation))
        self.note(REWRITTEN(eqn, how=how))
        for inner in (program.eqns[i] for program in programs for i in etp_equations(program.eqns)):
            self.note(INSIDE(inner, outer=name, place=versions.source_of(eqn)))
        return run

    def rolled(self, eqn: JaxprEqn, operation: JaxprEqn, fixed: Sequence[bool]) -> Rolled:
        """A long ``scan`` with its operations taken out of it."""
        loop = Rolled(eqn, self.program(versions.sub_jaxpr(eqn), fixed_in_body(eqn, fixed)))
        if why := loop.why_not():
            raise NotSupportedError(self.refusal(eqn, operation, why))
        self.note(ROLLED(eqn, length=eqn.params["length"], count=len(loop.operations)))
        for i, inner in loop.operations.items():
            record = INSIDE(inner, outer=eqn.primitive.name, place=versions.source_of(eqn))
            name = repeated(inner.primitive).name if i in loop.moving else record.primitive
            self.note(replace(record, primitive=name))
        return loop

    def refusal(self, eqn: JaxprEqn, operation: JaxprEqn, why_not: str = "") -> str:
        length, limit = eqn.params.get("length"), self.policy.scan_unroll_limit
        off = "ControlFlowPolicy(scan_descent='off') does not keep a longer one a loop"
        why_not = f"this one cannot stay a loop: {why_not}" if why_not else off
        why = {
            jaxp.cond_p: "which ControlFlowPolicy(cond='refuse') does not allow. Use "
            "control_flow=braintrace.ControlFlowPolicy(cond='convert'), which is the default",
            jaxp.scan_p: f"which has {length} iterations; loops of up to {limit} are written out, "
            f"with a trace for each iteration, and {why_not}. Raise the limit with "
            f"control_flow=braintrace.ControlFlowPolicy(scan_unroll_limit={length}), move the "
            "operation out of the loop, or use a plain product in it (the gradient of its weight "
            "is then that of the current step)",
            jaxp.while_p: "whose number of iterations is not known before it runs, so there is no "
            "trace for each. Use jax.lax.scan, or fori_loop with static bounds, or move the "
            "operation out of the loop",
        }
        other = (
            "where its parameters cannot be traced. Call the operation outside of it, or use a "
            "plain JAX operation there"
        )
        return (
            f"the ETP operation {operation.primitive.name!r} at {versions.source_of(operation)} "
            f"stands inside {eqn.primitive.name!r} at {versions.source_of(eqn)}, "
            + why.get(eqn.primitive, other)
        )
