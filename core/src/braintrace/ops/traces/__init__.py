# SPDX-License-Identifier: Apache-2.0
"""The trace that an operation's rules, or derived ones, give it."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ...base.errors import CompilationError
from ...base.types import how_many
from ..moving import ExamplesSpec, MovingSpec
from ..operation import Operation
from .base import TraceRules
from .by_rules import StructuredTrace
from .dense import DenseTrace
from .moving import ExamplesTrace, MovingTrace
from .repeated import RepeatedTrace
from .rows import RowsTrace


def trace_rules(operation: Operation, extra: tuple[int, ...], num_state: int) -> TraceRules:
    """The structured trace where the family wrote its rules, else the dense one.

    That of a repeated operation, or of one with moving weights, follows from that of one iteration,
    unless the latter has a dense one.
    """
    whole = isinstance(operation.spec, MovingSpec) and operation.spec.dense
    if not whole and (one := operation.of_one) is not None:
        rules = trace_rules(one, extra, num_state)
        forms = {MovingSpec: MovingTrace, ExamplesSpec: ExamplesTrace}
        form = forms.get(type(operation.spec), RepeatedTrace)
        return form(operation, extra, num_state, rules)
    spec = operation.spec
    if spec.yw_to_w is None or spec.init_drtrl is None or (spec.rows_drtrl and extra):
        return DenseTrace(operation, extra, num_state)
    return (RowsTrace if spec.rows_drtrl else StructuredTrace)(operation, extra, num_state)


def output_trace(operation: Operation, num_state: int) -> jax.ShapeDtypeStruct:
    """The type of the output-dimension trace [*Y, S]: the family's ``init_pp``, or like ``y``.

    Raises
    ------
    CompilationError
        When ``init_pp`` gives something else than floating-point numbers of that shape.
    """
    spec, y = operation.spec, operation.y_aval
    expected = jax.ShapeDtypeStruct((*y.shape, num_state), y.dtype)
    if spec.init_pp is None:
        return expected
    found = operation.initial_types("init_pp", num_state)
    right = isinstance(found, jax.ShapeDtypeStruct) and found.shape == expected.shape
    if not right or not jnp.issubdtype(found.dtype, jnp.floating):
        raise CompilationError(
            f"init_pp of {spec.name!r} gives {found}; expected floating-point zeros of shape "
            f"{expected.shape}, the axes of y and then {how_many(num_state, 'state')}"
        )
    return found
