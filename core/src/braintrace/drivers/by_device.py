# SPDX-License-Identifier: Apache-2.0
"""Inside of ``jax.shard_map``, what every device computes by itself.

There, the axes of the mesh along which a value varies between devices are part of its type, and
what meets such a value varies, too. JAX sums over the devices wherever a derivative leads back to a
value that is the same on all. A step and its record are about the examples of a device, and are
traced as if there was no other. Their results vary, and gradients are summed over the devices once,
over the axes along which their parameters do not vary. So are those of ``jax.grad``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import brainstate
import jax
import numpy as np

from ..base import versions
from ..base.errors import NotSupportedError
from ..base.own_part import on_device
from ..base.types import State
from ..base.versions import jaxp
from ..compiler.module_info import ModuleInfo, StateKind
from ..compiler.places import states_without_place, type_without_place
from ..jaxprs.depends import Along, depends, program_influences

Axes = frozenset[str]


def varying(tree: Any) -> Axes:
    """The axes of the mesh along which an array of a pytree varies between devices."""
    return Axes().union(*map(versions.varying_axes, jax.tree.leaves(tree)))


def alone(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """``run(*args)``, a function without states, which may be differentiated."""
    if not varying(args):
        return run(*args)
    leaves, tree = jax.tree.flatten(args)
    axes = varying(args)
    own, smooth = [*map(varying, leaves)], [i for i, v in enumerate(leaves) if versions.is_float(v)]

    def of(*leaves: Any) -> Any:
        return run(*jax.tree.unflatten(tree, leaves))

    def forward(*leaves: Any) -> Any:
        def pulled(*leaves: Any) -> Any:
            of_smooth = versions.partial_at(of, leaves, smooth)
            return jax.vjp(of_smooth, *(leaves[i] for i in smooth))

        return _by_itself(pulled, leaves, axes)

    def backward(pull: Any, cotangents: Any) -> Any:
        bars, tree = jax.tree.flatten(cotangents)
        given = {i: bar for i, bar in enumerate(bars) if bar.dtype != jax.dtypes.float0}

        def pulled(pull: Any, given: Any) -> Any:
            zeros = {i: np.zeros(v.shape, v.dtype) for i, v in enumerate(bars) if i not in given}
            both = given | zeros
            return pull(jax.tree.unflatten(tree, [both[i] for i in range(len(bars))]))

        found = dict(zip(smooth, _by_itself(pulled, (pull, given), axes), strict=True))
        return tuple(
            _summed_to(found[i], own[i]) if i in found else None for i in range(len(leaves))
        )

    call: Any = jax.custom_vjp(lambda *leaves: forward(*leaves)[0])
    call.defvjp(forward, backward)
    return call(*leaves)


def alone_with_states(run: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The same for a function that reads and writes states, and is not differentiated."""
    run, args = _of_device(run, args, varying(args))
    types = jax.tree.map(type_without_place, args)
    stateful = brainstate.transform.StatefulFunction(run, return_only_write=False)

    def trace() -> None:
        with states_without_place(jax.sharding.get_abstract_mesh()):
            stateful.make_jaxpr(*types)

    versions.without_varying(trace)
    program, trace_of = stateful.get_jaxpr(*types), stateful.get_state_trace(*types)
    old = [state.value for state in trace_of.states]
    flat = jax.lax.stop_gradient(jax.tree.leaves((args, old)))
    found = _bound(program, flat, along=True)
    result, new = jax.tree.unflatten(jax.tree.structure(stateful.get_out_shapes(*types)), found)
    for state, wrote, now in zip(trace_of.states, trace_of.been_writen, new, strict=True):
        if wrote:
            state.value = now
    return result


def gradients_of(run: Callable[..., Any], args: tuple[Any, ...], weights: Sequence[State]) -> Any:
    """``run(*args)``, whose ``grads`` are the same on all devices on which their weights are."""
    found = alone_with_states(run, args)
    values = tuple(state.value for state in weights)
    grads = jax.tree.map(lambda own, v: _summed_to(own, varying(v)), found.grads, values)
    return found._replace(grads=grads)


def vary_as(learner: Any, args: Any) -> None:
    """States and traces vary as the arguments do, so that a loop finds and leaves them alike.

    Counts of steps and random states, which no example reaches, stay the same on all devices.
    """
    info, still = learner.graph.executed.module_info, learner.rule.of_no_example
    states = [slot.state for slot in info.slots if slot.kind is not StateKind.PARAM]
    states += [trace for i, trace in enumerate(learner.traces) if i not in still]
    axes, counts = varying((args, [state.value for state in states])), _counts(info)
    for state in states:
        if state not in counts:
            state.value = jax.tree.map(partial(versions.vary, axes=axes), state.value)


def _counts(info: ModuleInfo) -> set[State]:
    """The states without a derivative that are made from others of these alone."""
    behind = program_influences(info.jaxpr, Along.VALUES)[info.num_out :]
    slots = [slot for slot in info.slots if slot.kind is not StateKind.PARAM]
    found = {s.state: s.leaves for s in slots if not any(map(_is_smooth, info.invars_of(s)))}
    while True:
        known = {info.num_args + i for leaves in found.values() for i in leaves}
        kept = {s: of for s, of in found.items() if all(behind[i] <= known for i in of)}
        if len(kept) == len(found):
            return {*kept}
        found = kept


def _is_smooth(var: Any) -> bool:
    return versions.is_float(var.aval)


def _summed_to(value: Any, own: Axes) -> Any:
    axes = varying(value) - own
    return jax.lax.psum(value, (*sorted(axes),)) if axes else value


def _by_itself(run: Callable[..., Any], args: tuple[Any, ...], axes: Axes) -> Any:
    """``run(*args)`` of which every result varies as any of the arguments does."""
    run, args = _of_device(run, args, axes)
    types = jax.tree.map(type_without_place, args)
    program, shapes = versions.without_varying(
        lambda: jax.make_jaxpr(run, return_shape=True)(*types)
    )
    return jax.tree.unflatten(jax.tree.structure(shapes), _bound(program, jax.tree.leaves(args)))


def _of_device(
    run: Callable[..., Any], args: tuple[Any, ...], axes: Axes
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """``run`` that knows which device it is for along some axes, and its arguments."""
    mesh = jax.sharding.get_abstract_mesh()
    names = (*(name for name in mesh.axis_names if name in axes),)
    count = math.prod(mesh.shape[name] for name in names)

    def own(number: Any, *args: Any) -> Any:
        with on_device(number, count):
            return run(*args)

    return own, (jax.lax.axis_index(names) if names else np.int32(0), *args)


def _bound(program: Any, operands: Sequence[Any], along: bool = False) -> list[Any]:
    """The results of a program that was traced without varying axes.

    ``along``: a result varies as those operands do that it depends on. So does a count of steps.
    """
    _refuse_communication(program)
    types = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in program.invars]
    whole = versions.without_varying(
        lambda: versions.make_jaxpr(jax.jit(versions.jaxpr_as_fun(program)), *types)
    )
    found = versions.jaxpr_as_fun(whole)(*operands)
    given = {var: varying(value) for var, value in versions.start_env(whole, operands).items()}
    every = Axes().union(*given.values()) | _numbered(program)
    if _numbered(program):
        return [versions.vary(value, every) for value in found]
    marks = depends(whole.eqns, given)

    def own(value: Any, atom: Any) -> Axes:
        if not along and versions.is_float(value):
            return every
        return marks.get(atom, Axes()) if versions.is_var(atom) else Axes()

    return [versions.vary(v, own(v, a)) for v, a in zip(found, whole.outvars, strict=True)]


def _numbered(program: Any) -> Axes:
    """The axes along which a program reads the number of its device, to draw numbers of its own."""
    return Axes().union(
        *(found for eqn, found in _named(program) if eqn.primitive is jaxp.axis_index_p)
    )


def _refuse_communication(program: Any) -> None:
    """The derivative of a sum over devices is about the examples of others, too."""
    for eqn, found in _named(program):
        if eqn.primitive is not jaxp.axis_index_p:
            raise NotSupportedError(
                f"{versions.place_of(eqn)} communicates along {sorted(found)} in a step of the "
                "learner. Inside of jax.shard_map a step is about the examples of one device, and "
                "gradients are summed over the devices after it: communicate outside of the model "
                "and of step_fn. Where a model has to, use learner.shard in place of jax.shard_map"
            )


def _named(program: Any) -> Iterator[tuple[Any, Axes]]:
    """The equations that name axes of the mesh, with these."""
    for eqn in program.eqns:
        axes = (*_tuple(eqn.params.get("axes")), *_tuple(eqn.params.get("axis_name")))
        if found := Axes(axis for axis in axes if isinstance(axis, str)):
            yield eqn, found
        for inner in versions.inner_jaxprs(eqn):
            yield from _named(inner)


def _tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
