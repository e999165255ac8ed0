# SPDX-License-Identifier: Apache-2.0
"""Tangents of a whole step: what all entries of parameters do to all that a step carries.

    M -> J M + P

``J`` and ``P`` are the derivatives of new states in old ones and in parameters, and no entry of
them is ever stored. Forward mode is reverse mode of reverse mode, which functions with a reverse
mode of their own (``jax.custom_vjp``) have, too. Where reverse mode runs a loop of unknown length,
which has none, the rows of ``J`` and ``P`` are computed one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.precision import wide_dtype
from ..base.types import Path
from ..base.versions import jaxp
from ..compiler.module_info import ModuleInfo, StateKind
from ..jaxprs.depends import depends
from ..jaxprs.run import holds, nested, read, run_equations, run_inlined
from ..jaxprs.wide import run_widened
from .leaves import StateLeaf

Leaves = Sequence[StateLeaf]

#: How many tangents, or rows, are computed together.
TOGETHER = 256

#: Primitives whose derivative is infinite somewhere, beside ``div`` by something that moves.
SINGULAR = frozenset(
    "acos acosh asin atan2 atanh cbrt digamma div erf_inv integer_pow lgamma log log1p pow rsqrt "
    "sqrt".split()
)


def differentiated(
    info: ModuleInfo, parameters: Leaves, olds: Leaves, carried: Leaves, inputs: Sequence[Any]
) -> tuple[list[Any], Callable[..., Any]]:
    """New values of carried leaves, and the pull-back to (parameters, old values of ``olds``).

    Where leaves are wider than those of the step, derivatives are in the widest of their dtypes.
    The step has run before: its prints and callbacks, which have no results, are left out.
    """
    eqns, first = [eqn for eqn in info.jaxpr.eqns if not eqn.effects], info.num_args

    leaves = [*parameters, *olds, *carried]
    wider = any(
        leaf.aval.dtype != info.jaxpr.invars[first + leaf.place].aval.dtype for leaf in leaves
    )
    wide = wide_dtype(*(leaf.aval.dtype for leaf in leaves))

    def new_values(weights: Sequence[Any], old: Sequence[Any]) -> list[Any]:
        full = list(inputs)
        for leaf, value in zip((*parameters, *olds), (*weights, *old), strict=True):
            full[first + leaf.place] = value
        env = versions.start_env(info.jaxpr, full)
        if wider:
            run_widened(eqns, env, wide)
        else:
            run_equations(eqns, env)
        ends = ((read(env, info.jaxpr.outvars[info.num_out + s.place]), s) for s in carried)
        return [jnp.asarray(value, leaf.aval.dtype) for value, leaf in ends]

    own = (
        [jnp.asarray(inputs[first + leaf.place], leaf.aval.dtype) for leaf in of]
        for of in (parameters, olds)
    )
    news, pull = jax.vjp(new_values, *own)
    return news, pull


def kept_inputs(info: ModuleInfo, args: Sequence[Any], states: Mapping[Path, Any]) -> Any:
    """The inputs of a step but the parameters."""
    others = (slot for slot in info.slots if slot.kind is not StateKind.PARAM)
    return (*args, *(leaf for slot in others for leaf in jax.tree.leaves(states[slot.path])))


def all_inputs(info: ModuleInfo, kept: Sequence[Any], params: Mapping[Path, Any]) -> list[Any]:
    """The inputs of a step, from :func:`kept_inputs` and the parameters."""
    others = iter(kept)
    inputs = [next(others) for _ in range(info.num_args)]
    for slot in info.slots:
        own = jax.tree.leaves(params[slot.path]) if slot.kind is StateKind.PARAM else others
        inputs += [value for _, value in zip(slot.leaves, own, strict=False)]
    return inputs


def run_cut(
    info: ModuleInfo, carried: Leaves, inputs: Sequence[Any], perturb: Sequence[Any]
) -> list[Any]:
    """The outputs of a step in which what reads a new carried value sees it as a constant.

    Zeros are added there, one for each leaf: the gradient of a loss with respect to these is along
    the paths that meet no other new value. Without any, it is the step as it was traced.
    """
    env = versions.start_env(info.jaxpr, inputs)
    ends = [info.jaxpr.outvars[info.num_out + leaf.place] for leaf in carried] if perturb else []
    seen: dict[Any, Any] = {}
    for atom, zeros in zip(ends, perturb, strict=True):
        if versions.is_var(atom) and atom not in env:
            seen.setdefault(atom, zeros)
    for eqn in info.eqns:
        run_equations([eqn], env)
        for var in eqn.outvars:
            if var in seen:
                env[var] = jax.lax.stop_gradient(env[var]) + seen[var]
    outputs = [read(env, atom) for atom in info.jaxpr.outvars]
    for leaf, atom, zeros in zip(carried, ends, perturb, strict=False):
        if not versions.is_var(atom) or atom not in seen:  # an old value, or a constant
            place = info.num_out + leaf.place
            outputs[place] = jax.lax.stop_gradient(outputs[place]) + zeros
    return outputs


def moved(
    parameters: Leaves,
    olds: Leaves,
    carried: Leaves,
    pull: Callable[..., Any],
    traces: Sequence[Any],
    singular: bool = False,
) -> list[jax.Array]:
    """``J M + P`` for ``M`` [P, \\*s] of each carried leaf; in the dtypes of these.

    ``singular``: whether derivatives may be infinite, which a tangent of zero passes as zero.
    """
    zeros = [jnp.zeros(leaf.aval.shape, leaf.aval.dtype) for leaf in carried]
    traces = [m.astype(leaf.aval.dtype) for m, leaf in zip(traces, olds, strict=True)]
    backward = jax.make_jaxpr(pull)(zeros)
    looping = any(holds(eqn, jaxp.while_p) for eqn in backward.eqns)
    if looping:
        return _by_rows(parameters, carried, pull, zeros, traces)
    return _by_columns(parameters, carried, pull, zeros, traces, singular)


def has_singular_derivatives(info: ModuleInfo) -> bool:
    """Whether a derivative within a step is infinite for some values."""

    def singular(eqn: Any) -> bool:
        name = eqn.primitive.name
        constant = name == "div" and not versions.is_var(eqn.invars[1])
        return name in SINGULAR and not constant and eqn.params.get("y", 0) <= 1

    return any(singular(sub) for eqn in info.eqns for sub in (eqn, *nested(eqn)))


def _zero_where_zero(push: Callable[..., Any], pull: Any, zeros: list[Any]) -> Callable[..., Any]:
    """``push`` of tangents, in which zero times infinity is zero.

    The state of an episode that starts anew has a tangent of zero, and may be where a root has no
    derivative. Reverse mode leaves out what is behind a selection; forward mode multiplies by it.
    """
    like = jax.eval_shape(pull, zeros)
    leaves, tree = jax.tree.flatten(like)
    calling = versions.make_jaxpr(lambda *dots: push(jax.tree.unflatten(tree, dots))[0], *leaves)
    program = versions.make_jaxpr(lambda *dots: run_inlined(calling, dots), *leaves)
    marks = depends(program.eqns, {var: frozenset({0}) for var in program.invars})

    def run(dots: Any) -> tuple[list[Any]]:
        env = versions.start_env(program, jax.tree.leaves(dots))
        for eqn in program.eqns:
            run_equations([eqn], env)
            if eqn.primitive in (jaxp.mul_p, jaxp.div_p):
                dot = next((a for a in eqn.invars if versions.is_var(a) and marks.get(a)), None)
                if dot is not None:
                    (out,) = eqn.outvars
                    env[out] = jnp.where(env[dot] == 0, jnp.zeros_like(env[out]), env[out])
        return ([read(env, atom) for atom in program.outvars],)

    return run


def _by_columns(
    parameters: Leaves,
    carried: Leaves,
    pull: Any,
    zeros: list[Any],
    traces: list[Any],
    singular: bool,
) -> list[jax.Array]:
    """A tangent for each entry of the parameters."""
    _, push = jax.vjp(pull, zeros)
    if singular:
        push = _zero_where_zero(push, pull, zeros)
    ends = [*accumulate(leaf.size for leaf in parameters)]

    def one(row: Any) -> Any:
        number, olds = row
        pairs = zip(parameters, ends, strict=True)
        weights = [leaf.tangent(number - end + leaf.size) for leaf, end in pairs]
        return push((weights, olds))[0]

    rows = jnp.arange(ends[-1]), traces
    found: list[jax.Array] = versions.mapped(one, rows, TOGETHER)
    return found


def _by_rows(
    parameters: Leaves, carried: Leaves, pull: Any, zeros: list[Any], traces: list[Any]
) -> list[jax.Array]:
    """A cotangent for each entry of the states."""
    found = []
    for k, leaf in enumerate(carried):

        def one(number: jax.Array, k: int = k, leaf: StateLeaf = leaf) -> jax.Array:
            start = [*zeros[:k], leaf.cotangent(number), *zeros[k + 1 :]]
            weights, olds = pull(start)
            pairs = zip(parameters, weights, strict=True)
            row = jnp.concatenate([leaf.entries(own) for leaf, own in pairs])
            for old, trace in zip(olds, traces, strict=True):
                row = row + jnp.real(trace.reshape(len(row), -1) @ old.reshape(-1))
            return row

        rows = versions.mapped(one, jnp.arange(leaf.size), TOGETHER)
        found.append(leaf.joined(rows.T))
    return found
