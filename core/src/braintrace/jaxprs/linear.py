# SPDX-License-Identifier: Apache-2.0
"""In which operands an equation is linear, and along which axes a value is the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from ..base import versions
from ..base.versions import Atom, Jaxpr, JaxprEqn, Var, jaxp
from .depends import Along, carries, depends
from .positions.of_primitives import ALONG, elementwise

#: Results are linear in all operands together.
SUMS = frozenset(
    "add add_any sub neg convert_element_type reshape squeeze expand_dims transpose "
    "broadcast_in_dim slice rev concatenate pad reduce_sum reduce_window_sum cumsum split stack "
    "unstack tile select_n".split()
)

#: Results are linear in each of these operands while the others are held.
PRODUCTS = {
    "mul": (0, 1),
    "div": (0,),
    "dot_general": (0, 1),
    "conv_general_dilated": (0, 1),
    "gather": (0,),
    "dynamic_slice": (0,),
}


#: Their results are no linear functions of an operand, and their derivatives do not show it.
STEPS = frozenset("sign round floor ceil rem stop_gradient reduce_precision".split())
#: Stands among operands for the numbers of a program itself.
ITSELF = -1

#: What runs one program on its operands, whatever its derivative is.
CALLS = versions.CALL_PRIMITIVES | {jaxp.custom_jvp_call_p, jaxp.custom_vjp_call_p}


def is_elementwise(eqn: JaxprEqn) -> bool:
    """Whether an equation works on elements of the same place."""
    return carries(eqn) or ALONG.get(eqn.primitive) is elementwise


def is_sum(eqn: JaxprEqn) -> bool:
    """Whether an equation is linear in its floating-point operands together."""
    return eqn.primitive.name in SUMS or (carries(eqn) and len(eqn.invars) == 1)


def affine_part(eqn: JaxprEqn, k: int) -> frozenset[int] | None:
    """Operands behind what an ETP equation gives when operand ``k`` is zero.

    ``None`` when it is not known to be affine in that operand: its derivative depends on the
    operand, or it is a step function somewhere. An operand more may be named, never one too few;
    :data:`ITSELF` is among them unless the result is known to be zero then.
    """
    avals = [atom.aval for atom in eqn.invars]
    if _curved(lambda *values: versions.bind_equation(eqn, [*values]), avals, {k}):
        return None
    impl = versions.make_jaxpr(partial(eqn.primitive.spec.impl, **eqn.params), *avals)
    return None if _has_steps(impl, impl.invars[k]) else _behind_the_rest(impl, k)


def _curved(run: Callable[..., Any], avals: Sequence[Any], own: set[int]) -> bool:
    """Whether the derivative of ``run`` in some operands depends on one of them."""
    moved = sorted(own)

    def tangent(dots: Any, *operands: Any) -> Any:
        of_own = versions.partial_at(run, operands, moved)
        return jax.jvp(of_own, [operands[k] for k in moved], dots)[1]

    program = versions.make_jaxpr(tangent, [avals[k] for k in moved], *avals)
    marks = {program.invars[len(moved) + k]: frozenset({0}) for k in moved}
    found = depends(program.eqns, marks)
    return any(versions.is_var(out) and bool(found.get(out)) for out in program.outvars)


def _has_steps(program: Jaxpr, own: Var) -> bool:
    """Whether an input leads to a step function, or to a value that is no real number."""
    marks = depends(program.eqns, {own: frozenset({0})}, along=Along.EQUATIONS)
    if not all(versions.is_float(var.aval) for var in marks):
        return True
    for eqn in program.eqns:
        behind = {k for k, a in enumerate(eqn.invars) if versions.is_var(a) and a in marks}
        if behind and _is_step(eqn, behind):
            return True
    return False


def _is_step(eqn: JaxprEqn, behind: set[int]) -> bool:
    """Whether an equation is no smooth function, or not the function its derivative says."""
    inner = versions.inner_jaxprs(eqn)
    own_rule = eqn.primitive in (jaxp.custom_jvp_call_p, jaxp.custom_vjp_call_p)
    if own_rule and _curved(versions.jaxpr_as_fun(inner[0]), [a.aval for a in eqn.invars], behind):
        return True
    names = {e.primitive.name for jaxpr in inner for e in jaxpr.eqns} | {eqn.primitive.name}
    deeper = (e for jaxpr in inner for e in jaxpr.eqns)
    return bool(STEPS & names) or any(_is_step(e, {*range(len(e.invars))}) for e in deeper)


def _behind_the_rest(program: Jaxpr, k: int) -> frozenset[int]:
    """The inputs behind the only result where input ``k`` is zero."""
    zero = _zeros(program, {program.invars[k]})
    found = depends(
        program.eqns,
        {var: frozenset({i}) for i, var in enumerate(program.invars)},
        passes=lambda i, eqn, operand: zero.isdisjoint(eqn.outvars),
    )
    (out,) = program.outvars
    if not versions.is_var(out):
        return frozenset({ITSELF})
    return frozenset() if out in zero else found.get(out, frozenset()) - {k} | {ITSELF}


def _zeros(program: Jaxpr, zero: set[Var]) -> set[Var]:
    """The variables of a program that are zero when those of ``zero`` are; not all of them."""
    zero = set(zero)
    for eqn in program.eqns:
        operands = [versions.is_var(a) and a in zero for a in eqn.invars]
        if eqn.primitive in CALLS:
            inner = versions.inner_jaxprs(eqn)[0]
            given = {v for v, is_zero in zip(inner.invars, operands, strict=False) if is_zero}
            found = _zeros(inner, given)
            pairs = zip(eqn.outvars, inner.outvars, strict=True)
            zero.update(v for v, result in pairs if versions.is_var(result) and result in found)
            continue
        product = any(operands[i] for i in PRODUCTS.get(eqn.primitive.name, ()))
        if product or (is_sum(eqn) and any(operands) and all(operands)):
            zero.update(eqn.outvars)
    return zero


def same_along(
    atom: Atom,
    eqns: Mapping[Var, JaxprEqn],
    constants: Mapping[Var, Any],
    known: dict[Var, frozenset[int]],
) -> frozenset[int]:
    """Axes along which all entries of a value are known to be equal.

    Parameters
    ----------
    atom
        The value.
    eqns, constants
        The equations of the program by their results, and the values of its constants.
    known
        What was found before; it is added to.
    """
    shape = atom.aval.shape
    if not versions.is_var(atom):
        return frozenset(range(len(shape)))
    if atom not in known:
        single = (i for i, n in enumerate(shape) if n == 1)
        known[atom] = _along(atom, eqns, constants, known).union(single)
    return known[atom]


def _along(
    var: Var,
    eqns: Mapping[Var, JaxprEqn],
    constants: Mapping[Var, Any],
    known: dict[Var, frozenset[int]],
) -> frozenset[int]:
    axes = range(len(var.aval.shape))
    if var in constants:
        array = np.asarray(constants[var])
        return frozenset(i for i in axes if array.size and np.all(array == array.take([0], i)))
    eqn = eqns.get(var)
    if eqn is None:
        return frozenset()
    operands = [same_along(a, eqns, constants, known) for a in eqn.invars]
    shapes = [a.aval.shape for a in eqn.invars]
    if is_elementwise(eqn):
        full = (same for same, shape in zip(operands, shapes, strict=True) if shape)
        return frozenset(axes).intersection(*full)
    name = eqn.primitive.name
    if name == "broadcast_in_dim":
        places = eqn.params["broadcast_dimensions"]
        return frozenset(axes).difference(k for i, k in enumerate(places) if i not in operands[0])
    if name in ("reshape", "squeeze") and _long(shapes[0]) == _long(var.aval.shape):
        varying = [i for i, n in enumerate(shapes[0]) if n != 1 and i not in operands[0]]
        ranks = {sum(n != 1 for n in shapes[0][:i]) for i in varying}
        long = [k for k in axes if var.aval.shape[k] != 1]
        return frozenset(axes).difference(long[r] for r in ranks)
    everywhere = all(len(same) == len(shape) for same, shape in zip(operands, shapes, strict=True))
    moved = name in ("reshape", "squeeze", "transpose", "slice", "rev")
    return frozenset(axes if everywhere and moved else ())


def _long(shape: Sequence[int]) -> list[int]:
    return [n for n in shape if n != 1]
