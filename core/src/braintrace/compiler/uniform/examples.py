# SPDX-License-Identifier: Apache-2.0
"""Whether an equation of a linear map keeps the examples of a batch apart."""

from __future__ import annotations

from ...base.versions import JaxprEqn
from ...jaxprs.linear import is_elementwise
from ...ops.primitive import is_etp_primitive


def reads_line(eqn: JaxprEqn) -> bool:
    """Whether it reads steps of a line ``[n, *V]``, or adds them up, for each of ``V`` its own."""
    old, new, axes = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape, (0,)
    match eqn.primitive.name:
        case "slice" | "dynamic_slice":
            return bool(new[1:] == old[1:])
        case "squeeze":
            return bool(eqn.params["dimensions"] == axes)
        case "reduce_sum":
            return bool(eqn.params["axes"] == axes)
        case "gather":
            return bool(new == old[1:])
    return False


def keeps_examples(eqn: JaxprEqn, followed: tuple[int, ...]) -> bool:
    """Whether an index of the first axis of the result depends on that of the operands alone."""
    params, first = eqn.params, eqn.outvars[0].aval.shape[:1]
    if any(eqn.invars[k].aval.shape[:1] != first for k in followed):
        return False
    match eqn.primitive.name:
        case "reshape":
            return True
        case "broadcast_in_dim":
            return bool(params["broadcast_dimensions"][:1] == (0,))
        case "transpose":
            return bool(params["permutation"][0] == 0)
        case "reduce_sum":
            return 0 not in params["axes"]
        case "slice" | "dynamic_slice":
            return True  # the first axis is whole
        case "concatenate":
            return bool(params["dimension"] != 0)
        case "squeeze" | "rev":
            return 0 not in params["dimensions"]
        case "pad":
            return bool(params["padding_config"][0] == (0, 0, 0))
        case "dot_general":
            contracted, batch = params["dimension_numbers"]
            return followed == (0,) and 0 not in contracted[0] and not batch[0]
    if is_etp_primitive(eqn.primitive):
        return bool(eqn.primitive.spec.batched)
    return is_elementwise(eqn)
