# SPDX-License-Identifier: Apache-2.0
"""The options of learners: which there are, and which have none or no more effect."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import brainstate

from ..base import versions
from ..base.former import OPTIONS, former_options, instead
from ..compiler.compile import compile_etrace_graph
from ..compiler.keywords import NAMED
from ..executor.graph_executor import compile_options

OBSOLETE = {
    "fast_solve": "the fast way is always taken where there is one, with the same numbers",
    "chunked_trace": "block_size of the drivers says how many steps are evaluated together",
    "projection_eps": "norms of zero need no care in the estimate",
    "snap_max_jacobian_elements": "the size of traces is in learner.report",
}


class Signature:
    """The signature of a class of learners, with every option by name."""

    def __get__(self, learner: Any, kind: type) -> inspect.Signature:
        if learner is not None:
            raise AttributeError("__signature__")
        own = [*inspect.signature(kind.__init__).parameters.values()][1:]  # type: ignore[misc]
        if all(p.kind is not p.VAR_KEYWORD for p in own):
            return inspect.Signature(own)
        shown = {p.name: p for p in own if p.kind in NAMED}
        others = inspect.signature(compile_etrace_graph).parameters.items()
        # learners take recurrence_scope by themselves, or not at all
        compiling = {k: p for k, p in others if k in compile_options() - {"recurrence_scope"}}
        for name, parameter in {**options_of(kind), **compiling}.items():
            shown.setdefault(name, parameter.replace(kind=parameter.KEYWORD_ONLY))
        return inspect.Signature([*shown.values()])


def options_of(learner: type) -> dict[str, inspect.Parameter]:
    """Options of a class of learners and of its bases, by name."""
    found: dict[str, inspect.Parameter] = {}
    for base in learner.__mro__:
        if issubclass(base, brainstate.nn.Module) and "__init__" in vars(base):
            for name, p in inspect.signature(base.__init__).parameters.items():  # type: ignore[misc]
                if p.kind in NAMED and name not in ("self", "model"):
                    found.setdefault(name, p)
    return found


def checked_options(learner: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that no base of a learner has taken; ``TypeError`` for one that compiling has not.

    Those of version 0.2 that say how to compute, not what, are left out with a warning.
    """
    known, options = {*options_of(learner)} - {"name"}, former_options(options)
    obsolete = {*OBSOLETE} & {*options} - known
    for name in sorted(obsolete):
        versions.warn(f"the option {name} of braintrace 0.2 has no effect: {OBSOLETE[name]}")
    if unknown := sorted({*options} - obsolete - compile_options()):
        raise TypeError(
            f"unknown option {unknown[0]!r}{instead(unknown[0], OPTIONS)}; options of "
            f"{learner.__name__} are "
            f"{sorted({*known, *compile_options()})}"
        )
    return {name: value for name, value in options.items() if name not in obsolete}
