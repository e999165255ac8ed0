# SPDX-License-Identifier: Apache-2.0
"""What the compiler has to say about a model, as records."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .types import Path


class DiagnosticLevel(str, enum.Enum):  # noqa: UP042  str() of it is its name
    """How much attention a record deserves; a WARNING is also a :class:`CompilationWarning`.

    Those about a gradient that is exact are not issued, and stand under "Notes" in reports: a
    readout, a large trace.

    No record is an ERROR: what would be one is raised as a :class:`CompilationError`.

    Examples
    --------
    >>> import braintrace
    >>> [level.value for level in braintrace.DiagnosticLevel]
    ['info', 'warning', 'error']
    """

    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class DiagnosticKind(str, enum.Enum):  # noqa: UP042  str() of it is its name
    """What a record is about; ``docs/diagnostics.md`` says what to do about each.

    Examples
    --------
    >>> import braintrace
    >>> braintrace.DiagnosticKind("relation_included").name
    'RELATION_INCLUDED'
    """

    RELATION_INCLUDED = "relation_included"
    RELATION_EXCLUDED_NO_PARAMSTATE = "relation_excluded_no_paramstate"
    RELATION_EXCLUDED_NON_TEMPORAL = "relation_excluded_non_temporal"
    RELATION_EXCLUDED_WEIGHT_TO_WEIGHT = "relation_excluded_weight_to_weight"
    RELATION_PARTIAL_PATH = "relation_partial_path"
    TRAINABLE_INVAR_NOT_PARAMSTATE = "trainable_invar_not_paramstate"
    PYTREE_WEIGHT_LEAF_AMBIGUOUS = "pytree_weight_leaf_ambiguous"
    MULTI_OUTPUT_PRIMITIVE_DETECTED = "multi_output_primitive_detected"
    HIDDEN_GROUP_MERGED = "hidden_group_merged"
    TRANSITION_STRUCTURALLY_ZERO = "transition_structurally_zero"
    TRANSITION_TAIL_BOUNDED = "transition_tail_bounded"
    TRANSITION_NOT_POSITION_WISE = "transition_not_position_wise"
    TAIL_NOT_POSITION_WISE = "tail_not_position_wise"
    CROSS_GROUP_DEPENDENCE = "cross_group_dependence"
    CREDIT_THROUGH_OTHER_STATE = "credit_through_other_state"
    PARAMETER_OUTSIDE_OPERATION = "parameter_outside_operation"
    PARAMETER_UNUSED = "parameter_unused"
    STATE_MISMATCH = "state_mismatch"
    WEIGHTS_ARE_CONSTANTS = "weights_are_constants"
    PRIMITIVE_INSIDE_NESTED_JIT = "primitive_inside_nested_jit"
    PRIMITIVE_INSIDE_CONTROL_FLOW = "primitive_inside_control_flow"
    WEIGHT_IN_CONTROL_FLOW = "weight_in_control_flow"
    WEIGHT_IN_WHILE = "weight_in_while"
    CONTROL_FLOW_REWRITTEN = "control_flow_rewritten"
    SCAN_DESCENT_APPLIED = "scan_descent_applied"
    CONTROL_FLOW_OPAQUE_FWD = "control_flow_opaque_fwd"
    UNIFORM_DYNAMICS = "uniform_dynamics"
    EXACT_CREDIT = "exact_credit"
    CREDIT_STOPS = "credit_stops"

    # of braintrace 0.2, for code that compares with them; no record has one
    RELATION_EXCLUDED_SHAPE_MISMATCH = "relation_excluded_shape_mismatch"
    RELATION_EXCLUDED_SLICED_WEIGHT = "relation_excluded_sliced_weight"
    COND_IF_CONVERTED = "cond_if_converted"
    COND_CONVERSION_SKIPPED = "cond_conversion_skipped"
    SCAN_UNROLLED = "scan_unrolled"
    SCAN_UNROLL_SKIPPED = "scan_unroll_skipped"
    SCAN_DESCENT_SKIPPED = "scan_descent_skipped"
    SCAN_DESCENT_NO_RELATIONS = "scan_descent_no_relations"
    CONTROL_FLOW_RECURRENT_MIXING = "control_flow_recurrent_mixing"
    OUTPUT_BYPASSES_HIDDEN = "output_bypasses_hidden"
    OUTPUT_BYPASS_DROPPED = "output_bypass_dropped"
    SNAP_PATTERN_CONSERVATIVE = "snap_pattern_conservative"
    SNAP_PATTERN_DEGENERATE = "snap_pattern_degenerate"


@dataclass(frozen=True, repr=False)
class CompilationRecord:
    """One finding of the compiler.

    ``repr`` shows what it is about, ``str`` also where, and what to do.

    Attributes
    ----------
    kind, level
        What it is about, and how much attention it deserves.
    message
        The finding, for people.
    primitive
        Name of the primitive of the equation it is about.
    weight_path, hidden_paths
        The parameter and the states it is about.
    context
        The facts the message was made from.
    source
        The user's ``file:line (function)``.
    remedy
        What to do about it, if anything.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> graph = braintrace.compile_etrace_graph(cell, jnp.ones((2, 3)))
    >>> record = graph.explain(weight_path=("Wr", "weight"))[0]
    >>> record.kind.value, record.level.value, record.primitive
    ('relation_excluded_weight_to_weight', 'info', 'etp_mm')
    """

    kind: DiagnosticKind
    level: DiagnosticLevel
    message: str
    primitive: str | None = None
    weight_path: Path | None = None
    hidden_paths: tuple[Path, ...] = ()
    context: Mapping[str, Any] = field(default_factory=dict, hash=False)
    source: str | None = None
    remedy: str = ""

    def __repr__(self) -> str:
        about = {
            "primitive": self.primitive,
            "weight_path": self.weight_path,
            "hidden_paths": [*self.hidden_paths],
            "message": self.message,
            "context": dict(self.context),
        }
        shown = "".join(f", {name}={value!r}" for name, value in about.items() if value)
        return f"CompilationRecord(kind={self.kind.value}, level={self.level.value}{shown})"

    def __str__(self) -> str:
        where = f" [{self.source}]" if self.source else ""
        remedy = f". {self.remedy}" if self.remedy else ""
        return f"{self.level.value}: {self.kind.value}: {self.message}{remedy}{where}"
