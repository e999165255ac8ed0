# SPDX-License-Identifier: Apache-2.0
"""Attributes and options of ``braintrace`` 0.2 that are not here: tables say what to use instead.

Names of the package itself are in ``names.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])

_TRACES = "get_etrace_of(weight), or read_traces() for all"
_PREDICTIONS = "nothing: the learner makes its predictions itself"
_HOW = "nothing: it said how to compute, not what"
_OF_BYPASSES = (
    "bypass_hidden_paths bypass_hidden_vars bypass_vars bypass_hidden_data_to_hidden_group_data"
)
_BYPASSES = "nothing: what bypasses the new states is always in the gradient"

#: Attributes of learners, executors and records of version 0.2, and what to use in their place.
ATTRIBUTES = {
    **dict.fromkeys(_OF_BYPASSES.split(), _BYPASSES),
    "bypass_param_paths": "coverage() of the graph, which says 'direct'",
    "attach_synthesizer": _PREDICTIONS,
    "chunked_trace": _HOW,
    "control_flow": "graph.module_info.control_flow",
    "etrace_bwg": _TRACES,
    "etrace_dfs": _TRACES,
    "etrace_s": _TRACES,
    "etrace_theta": _TRACES,
    "etrace_xs": _TRACES,
    "fast_solve": _HOW,
    "full_jacobian": "jacobians, which is 'whole' or 'near'",
    "graph_executor": "executor",
    "group_signal_shapes": _PREDICTIONS,
    "include_output_bypass": _BYPASSES,
    "include_recurrent_mixing": "graph.recurrence_scope",
    "model4compile": "model",
    "modulator": "braintrace.ThreeFactor, the rule that has one",
    "projection_eps": _HOW,
    "projection_key": "config.seed",
    "projection_rng": _TRACES,
    "projection_step": "running_index",
    "regime": "config.recurrence_scope",
    "snap_max_jacobian_elements": _HOW,
    "sparse_n": "config.sparse_n of the learner",
}

#: Options of version 0.2, the value that changes nothing, and what to use in place of others.
OPTIONS = {
    "include_output_bypass": (True, _BYPASSES),
    "include_recurrent_mixing": (False, "recurrence_scope='coupled' of compile_etrace_graph"),
    "snap_max_jacobian_elements": (None, _HOW),
    "sparse_n": (None, "braintrace.SnAp(model, n), whose groups are no other ones"),
    "synthesizer": (None, _PREDICTIONS),
}


def instead(name: str, of: Mapping[str, Any]) -> str:
    """What an error says of a name of version 0.2."""
    if name not in of:
        return ""
    use = of[name] if isinstance(of[name], str) else of[name][1]
    return f"; in the place of this name of braintrace 0.2, use {use}"


def former_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options without those of version 0.2 that change nothing."""
    return {k: v for k, v in options.items() if k not in OPTIONS or v is not OPTIONS[k][0]}


def without_former_options(function: Function) -> Function:
    """A function that refuses its options of version 0.2, unless they change nothing."""

    @functools.wraps(function)
    def checked(*args: Any, **options: Any) -> Any:
        kept = former_options(options)
        for name in kept.keys() & OPTIONS.keys():
            asked = f"{function.__name__} has no option {name!r}"
            raise TypeError(f"{asked}{instead(name, OPTIONS)}")
        return function(*args, **kept)

    return cast(Function, checked)


class FormerAttributes:
    """Says what to use in place of an attribute of version 0.2."""

    def __getattr__(self, name: str) -> Any:
        if name not in ATTRIBUTES:
            return object.__getattribute__(self, name)  # its error says what it is about
        kind = type(self).__name__
        text = f"{kind!r} object has no attribute {name!r}{instead(name, ATTRIBUTES)}"
        raise AttributeError(text, name=name, obj=self)
