# SPDX-License-Identifier: Apache-2.0
"""Control flow around ETP operations, rewritten so that the operations stand in the open.

A trace is kept per ETP equation, so each must be an equation of the step itself, run at every
step. A branch is cut at its operations (see ``_branches``); a ``scan`` becomes its iterations,
one after the other; a ``while`` has no length and is refused. Control flow without an ETP
operation inside stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...base import versions
from ...base.errors import NotSupportedError
from ...base.versions import Jaxpr, JaxprEqn, jaxp
from ...jaxprs.run import read, run_equations, run_inlined
from ...jaxprs.sites import etp_equations, first_nested_operation
from .branches import Branch, run_branches, varying_variables
from .loops import fixed_in_body, run_iterations
from .policy import ControlFlowPolicy, Rewrite, inside_call, rewrite_record


def canonicalise(
    jaxpr: Jaxpr, fixed: Sequence[bool], policy: ControlFlowPolicy
) -> tuple[Jaxpr, tuple[Rewrite, ...]]:
    """``jaxpr`` with every ETP operation taken out of branches and loops.

    Parameters
    ----------
    jaxpr
        A closed jaxpr without calls.
    fixed
        For each input, whether it is made of parameters and constants.
    policy
        What to do with control flow.

    Raises
    ------
    NotSupportedError
        When an operation stands in a loop that is not written out, in a ``while``, or in a
        function with a custom differentiation rule.
    """
    found: list[Rewrite] = []
    return _Rewriting(policy, found.append).open(jaxpr, fixed), tuple(found)


@dataclass(frozen=True)
class _Rewriting:
    """One run of the pass; every level of nesting is left behind for good, so it ends."""

    policy: ControlFlowPolicy
    note: Callable[[Rewrite], None]

    def program(self, jaxpr: Jaxpr, fixed: Sequence[bool]) -> Jaxpr:
        """A branch or body without calls, with all its ETP operations in the open."""

        def run(*values: Any) -> list[Any]:
            return run_inlined(jaxpr, values, note=lambda e: self.note(inside_call(e)))

        return self.open(versions.make_jaxpr(run, *jaxpr.in_avals), fixed)

    def open(self, jaxpr: Jaxpr, fixed: Sequence[bool]) -> Jaxpr:
        """The same for a program without calls."""
        if all(first_nested_operation(eqn) is None for eqn in jaxpr.eqns):
            return jaxpr
        varying = varying_variables(jaxpr, fixed)
        replacements = {
            i: self.replacement(
                eqn, operation, [not (versions.is_var(a) and a in varying) for a in eqn.invars]
            )
            for i, eqn in enumerate(jaxpr.eqns)
            if (operation := first_nested_operation(eqn)) is not None
        }

        def run(*values: Any) -> list[Any]:
            env = dict(versions.constants(jaxpr))
            env.update(zip(jaxpr.invars, values, strict=True))
            for i, eqn in enumerate(jaxpr.eqns):
                if i not in replacements:
                    run_equations([eqn], env)
                    continue
                with versions.at_source(eqn):
                    results = replacements[i]([read(env, atom) for atom in eqn.invars])
                env.update(zip(eqn.outvars, results, strict=True))
            return [read(env, atom) for atom in jaxpr.outvars]

        return versions.make_jaxpr(run, *jaxpr.in_avals)

    def replacement(
        self, eqn: JaxprEqn, operation: JaxprEqn, fixed: Sequence[bool]
    ) -> Callable[[list[Any]], list[Any]]:
        """What to run instead of control flow with an ETP operation inside."""
        if eqn.primitive is jaxp.cond_p and self.policy.cond == "convert":
            branches = [self.program(versions.close(b), fixed[1:]) for b in eqn.params["branches"]]
            plans = [Branch(branch, tuple(fixed[1:])) for branch in branches]
            self.note(rewrite_record(eqn, f"{len(plans)} branches are cut at their operations"))
            self.inside(eqn, [plan.jaxpr for plan in plans])
            return lambda operands: run_branches(plans, operands[0], operands[1:])
        if eqn.primitive is jaxp.scan_p and eqn.params["length"] <= self.policy.scan_unroll_limit:
            body = self.program(versions.sub_jaxpr(eqn), fixed_in_body(eqn, fixed))
            self.note(rewrite_record(eqn, f"its {eqn.params['length']} iterations are written out"))
            self.inside(eqn, [body])
            return lambda operands: run_iterations(eqn, body, operands)
        raise NotSupportedError(self.refusal(eqn, operation))

    def inside(self, eqn: JaxprEqn, programs: Sequence[Jaxpr]) -> None:
        where = f"{eqn.primitive.name!r} at {versions.source_of(eqn)}"
        for program in programs:
            for i in etp_equations(program.eqns):
                operation = program.eqns[i]
                self.note(
                    Rewrite(
                        "primitive_inside_control_flow",
                        versions.source_of(operation),
                        operation.primitive.name,
                        f"{operation.primitive.name} stood inside {where}",
                    )
                )

    def refusal(self, eqn: JaxprEqn, operation: JaxprEqn) -> str:
        name, here = eqn.primitive.name, versions.source_of(eqn)
        text = (
            f"the ETP operation {operation.primitive.name!r} at {versions.source_of(operation)} "
            f"stands inside {name!r} at {here}"
        )
        if eqn.primitive is jaxp.cond_p:
            return (
                f"{text}, which ControlFlowPolicy(cond='refuse') does not allow. Use "
                "control_flow=braintrace.ControlFlowPolicy(cond='convert'), which is the default"
            )
        if eqn.primitive is jaxp.scan_p:
            length, limit = eqn.params["length"], self.policy.scan_unroll_limit
            return (
                f"{text}, which has {length} iterations; loops of up to {limit} are written out, "
                f"with a trace for each iteration. Raise the limit with "
                f"control_flow=braintrace.ControlFlowPolicy(scan_unroll_limit={length}), move the "
                "operation out of the loop, or use a plain product in it (the gradient of its "
                "weight is then that of the current step)"
            )
        if eqn.primitive is jaxp.while_p:
            return (
                f"{text}, whose number of iterations is not known before it runs, so there is no "
                "trace for each. Use jax.lax.scan, or fori_loop with static bounds, or move the "
                "operation out of the loop"
            )
        return (
            f"{text}, where its parameters cannot be traced. Call the operation outside of it, or "
            "use a plain JAX operation there"
        )
