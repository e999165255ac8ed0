# SPDX-License-Identifier: Apache-2.0
"""What a learner requires of what it is given: as it was when the model was compiled."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

import brainstate

from ..base import versions
from ..executor.graph_executor import compile_options

OBSOLETE = {
    "fast_solve": "the fast way is always taken where there is one, with the same numbers",
    "chunked_trace": "block_size of the drivers says how many steps are evaluated together",
    "snap_max_jacobian_elements": "the size of traces is in learner.report",
}


def options_of(learner: type) -> dict[str, inspect.Parameter]:
    """Options of a class of learners and of its bases, by name."""
    found: dict[str, inspect.Parameter] = {}
    for base in reversed(learner.__mro__):
        if issubclass(base, brainstate.nn.Module) and "__init__" in vars(base):
            found.update(inspect.signature(base.__init__).parameters)  # type: ignore[misc]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: p for name, p in found.items() if p.kind in named and name not in ("self", "model")
    }


def check_options(learner: type, options: Collection[str]) -> None:
    """Names of options that no base of a learner has taken must be those of compiling.

    Raises
    ------
    TypeError
        When one is not.
    """
    unknown, known = sorted({*options} - compile_options()), {*options_of(learner)} - {"name"}
    if unknown:
        raise TypeError(
            f"unknown option {unknown[0]!r}; options of {learner.__name__} are "
            f"{sorted({*known, *compile_options()})}"
        )


def without_obsolete(learner: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those of version 0.2 that say how to compute, not what; a warning for each.

    Parameters
    ----------
    learner
        The class of the learner, whose own options are left in.
    """
    obsolete = {*OBSOLETE} & {*options} - {*options_of(learner)}
    for name in sorted(obsolete):
        versions.warn(f"the option {name} of braintrace 0.2 has no effect: {OBSOLETE[name]}")
    return {name: value for name, value in options.items() if name not in obsolete}


def check_required(learner: type, options: Collection[str]) -> None:
    """Options of a class of learners that have no default must be there.

    Raises
    ------
    TypeError
        When one is missing.
    """
    required = {k for k, p in options_of(learner).items() if p.default is p.empty}
    if missing := sorted(required - {*options}):
        raise TypeError(
            f"{learner.__name__} needs the option {missing[0]!r}: pass {missing[0]}=... to "
            f"compile; help({learner.__name__}) says which values it takes"
        )
