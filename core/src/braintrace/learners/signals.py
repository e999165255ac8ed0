# SPDX-License-Identifier: Apache-2.0
"""Learners with a learning signal of their own: e-prop, whose calls may be given an error, which
comes back through a fixed random matrix; three-factor learning, whose calls are given a modulator;
and DNI, with a learned prediction of the gradient of later losses at hidden states.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from brainstate.nn import Module

from ..algorithms.config import ETraceConfig
from ..base import versions
from ..base.errors import NoModulatorError
from ..base.types import Path, how_many
from ..compiler.batch_states import is_batched
from ..compiler.groups import HiddenGroup
from ..drivers.call_arguments import number_of_steps
from .named import D_RTRL
from .vjp import ETraceVjpAlgorithm, preset

# --- e-prop ---------------------------------------------------------------------------------------


def feedback_matrix(seed: Any, out: Any, error: Any) -> jax.Array:
    """A fixed matrix [m, n] for an output [.., n] and an error [.., m], of variance ``1 / m``.

    It raises ``TypeError`` or ``ValueError`` when they are not such arrays.
    """
    if len(jax.tree.leaves(out)) != 1 or not versions.is_float(jnp.asarray(out)):
        raise TypeError(
            "an error is fed back to a model that returns one floating-point array; this one "
            f"returns {jax.tree.map(lambda v: (jnp.shape(v), jnp.result_type(v)), out)}"
        )
    shapes = jnp.shape(out), jnp.shape(error)
    if any(len(s) == 0 for s in shapes) or shapes[0][:-1] != shapes[1][:-1]:
        raise ValueError(
            f"error has shape {shapes[1]} and the model's output {shapes[0]}; they must be [.., m] "
            "and [.., n] with the same axes in front"
        )
    rows, columns = shapes[1][-1], shapes[0][-1]
    key = jax.random.fold_in(versions.random_bits_of(seed), rows)
    return jax.random.normal(key, (rows, columns), jnp.result_type(out)) / math.sqrt(rows)


@jax.custom_vjp
def feed_back(out: jax.Array, error: jax.Array, matrix: jax.Array) -> jax.Array:
    """``out``, whose cotangent is ``error @ matrix`` whatever the loss is."""
    return out


def _fed_back(kept: Any, _: jax.Array) -> Any:
    error, matrix = kept
    fed = (jnp.asarray(error) @ matrix).astype(matrix.dtype)
    return fed, jax.tree.map(versions.zero_cotangent, error), jnp.zeros_like(matrix)


feed_back.defvjp(lambda out, error, matrix: (out, (error, matrix)), _fed_back)


def arguments_and_error(learner: EProp, args: tuple[Any, ...], error: Any = None) -> Any:
    """What calls of e-prop take: an error [.., m] that is fed back to the output [.., n]."""
    if error is None:
        return learner.run_call(args)
    if learner.feedback != "random":
        raise ValueError("an error is fed back by feedback='random' only")
    if learner.vjp_method != "single-step":
        raise ValueError("an error is fed back with vjp_method='single-step' only")
    out = learner.run_call(args, given=True)
    shapes = {group.varshape for group in learner.graph.hidden_groups}
    of_examples = learner.executor.options.get("vmap", False)
    if jnp.ndim(out) == 1 and any(len(s) > 1 - of_examples and s[0] == len(out) for s in shapes):
        raise ValueError(
            f"error is fed back to an output of shape {jnp.shape(out)}, which may be a value for "
            f"each of {how_many(len(out), 'example')} or {how_many(len(out), 'value')} of one; let "
            "the model return out[:, None] or out[None]"
        )
    return feed_back(out, error, feedback_matrix(learner.config.seed, out, error))


class EProp(ETraceVjpAlgorithm):
    """e-prop: D-RTRL with a low-pass filter behind the trace and, if wanted, random feedback.

    With ``z`` what a layer emits, the last values that follow its states position by position,
    ``ebar^t = kappa ebar^{t-1} + (dz^t/dh^t) eps^t`` with the trace ``eps`` of D-RTRL, and
    ``dL/dw = sum_t <dL^t/dz^t, ebar^t>`` (Bellec et al., Nature Communications 11:3625, 2020, doi
    10.1038/s41467-020-17236-y). With ``kappa`` zero and symmetric feedback it is D-RTRL.

    The filter stands for the leak of a readout. Where the compiler finds leaks above a layer
    (``downstream='linear'``), ``kappa`` takes the place of all of them in what the layer is
    credited with, and the weights of the readout have the gradient that its own leak gives. With
    ``downstream='step'``, in windows, and for a layer that emits no value for each position (a
    record says so), the filter is in front of the derivative: ``ebar^t = kappa ebar^{t-1} + eps^t``
    and ``dL/dw = sum_t <l^t, ebar^t>``. What a loss reads of a hidden state itself, past the
    model's result, is credited without a filter.

    Parameters
    ----------
    feedback
        ``'symmetric'``: learning signals are gradients of the loss. ``'random'``: they pass a fixed
        random matrix. Without an error, the gradient at the hidden states [.., n] passes a matrix
        [n, n]. When calls are given one, ``learner(x, error=err)`` with ``err`` [.., m], a matrix
        [m, n] brings it to the model's output [.., n], in place of the gradient of the loss: the
        model is the recurrent layers, and ``err`` that of a readout behind them.
    kappa_filter_decay
        ``kappa``, in [0, 1).
    random_feedback_key
        An integer or a JAX key, which ``'random'`` needs.
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Raises
    ------
    TypeError, ValueError
        For an option with another value.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, "eprop", x, batch_size=2, kappa_filter_decay=0.9)
    >>> learner(x).shape
    (2, 4)
    """

    call_takes = staticmethod(arguments_and_error)

    def __init__(
        self,
        model: Module,
        feedback: str = "symmetric",
        kappa_filter_decay: float = 0.0,
        random_feedback_key: Any = None,
        *_late: Any,
        **options: Any,
    ) -> None:
        if feedback not in ("symmetric", "random"):
            raise ValueError(f"feedback must be 'symmetric' or 'random', got {feedback!r}")
        if feedback == "random" and random_feedback_key is None:
            raise ValueError("feedback='random' needs random_feedback_key, a seed or a JAX key")
        self.feedback = feedback
        config = ETraceConfig(
            trace_filter="kappa",
            kappa=kappa_filter_decay,
            learning_signal="random_feedback" if feedback == "random" else "symmetric",
            seed=0 if random_feedback_key is None else random_feedback_key,
        )
        super().__init__(model, *_late, **preset(config, options))

    @property
    def kappa_filter_decay(self) -> float:
        """``kappa``."""
        return self.config.kappa or 0.0


# --- three-factor learning ------------------------------------------------------------------------


class StandingModulator(brainstate.ShortTermState):
    """The modulator that was assigned to a learner as a number or an array."""


def one_array(modulator: Any) -> jax.Array:
    """A modulator as an array; ``TypeError`` for several, which would become one of positions."""
    if isinstance(modulator, tuple | list | Mapping):
        raise TypeError(
            "a modulator is one number or array for the positions of every hidden group, got a "
            f"{type(modulator).__name__} of {len(modulator)}"
        )
    return jnp.asarray(modulator, float)


def standing_modulator(learner: Any) -> Any:
    """The modulator of calls that are given none; it can be assigned between calls."""
    standing = learner._modulator
    return standing.value if isinstance(standing, StandingModulator) else standing


def assign_modulator(learner: Any, value: Any) -> None:
    """Take a number, an array, or a state, which is read at every call."""
    if value is not None and not isinstance(value, brainstate.State):
        value, standing = one_array(value), learner._modulator
        own = isinstance(standing, StandingModulator)
        if own and jnp.shape(standing.value) == value.shape:
            standing.value = value  # compiled programs read it from there
            return
        if versions.is_traced(value):
            raise ValueError(
                f"modulator of shape {value.shape} is assigned for the first time inside of a "
                "transformation; pass it to the call, learner(x, modulator=...), or assign an "
                "array of this shape before"
            )
        value = StandingModulator(value)
    if value is not learner._modulator:
        learner._modulator = value
        learner._drivers.clear()


def arguments_and_modulator(learner: Any, args: tuple[Any, ...], modulator: Any = None) -> Any:
    """What calls take: a modulator for the positions of every group, or that of the learner."""
    standing = learner._modulator if modulator is None else modulator
    if isinstance(standing, brainstate.State):
        standing = standing.value
    if standing is None:
        raise NoModulatorError("ThreeFactor needs a modulator: learner(x, modulator=...)")
    modulator, groups = one_array(standing), learner.graph.executed.hidden_groups
    shapes, steps = [group.varshape for group in groups], number_of_steps(args)
    if {modulator.ndim - 1} == set(map(len, shapes)):
        given = tuple(_for_states(modulator, group) for group in groups)
        if _is_of_steps(modulator, steps) and all(_fits(modulator.shape[1:], s) for s in shapes):
            raise _unclear(modulator, shapes, ["axis by axis, with the states last", BY_STEPS])
    else:
        of_examples = learner.executor.options.get("vmap", False)
        given = along_positions(modulator, shapes, of_examples, steps)
    return learner.run_call(args, given=given)


BY_STEPS = "step by step, by a call for each step"


def _is_of_steps(given: jax.Array, steps: int | None) -> bool:
    """Whether the first axis may be that of several steps of a call."""
    return steps != 1 and given.shape[:1] == (steps,)


def _fits(shape: tuple[int, ...], positions: tuple[int, ...]) -> bool:
    with suppress(ValueError):
        return np.broadcast_shapes(shape, positions) == positions
    return False


def _unclear(given: jax.Array, shapes: Sequence[tuple[int, ...]], ways: list[str]) -> ValueError:
    return ValueError(
        f"modulator has shape {given.shape}, which fits {_named(shapes)} in {len(ways)} ways: "
        f"{'; '.join(ways)}. Say which"
    )


def _named(shapes: Sequence[tuple[int, ...]]) -> str:
    return f"the positions {', '.join(map(str, dict.fromkeys(shapes)))} of every hidden group"


def _for_states(modulator: jax.Array, group: HiddenGroup) -> jax.Array:
    """A modulator [*V, S] for the states of every position of a group: [S, *V]."""
    shape = (*group.varshape, group.num_state)
    with suppress(ValueError):
        return jnp.moveaxis(jnp.broadcast_to(modulator, shape), -1, 0)
    raise ValueError(
        f"modulator has shape {modulator.shape}, which does not broadcast to the positions {shape} "
        "of the states of every hidden group"
    )


def along_positions(
    given: jax.Array, shapes: Sequence[tuple[int, ...]], of_examples: bool, steps: int | None = None
) -> tuple[jax.Array, ...]:
    """A modulator for positions of these shapes, whose first axis may be known as of examples.

    With fewer axes than these it stands for the first of them, or for the last: whichever fits,
    the first where that axis is known. It raises ``ValueError`` when none does, or both, or its
    first axis may be that of the ``steps`` of a call.
    """
    rank = max(map(len, shapes))

    def wide(shape: tuple[int, ...], first: bool) -> tuple[int, ...]:
        ones = (1,) * (rank - len(shape))
        return (*shape, *ones) if first else (*ones, *shape)

    def laid(first: bool) -> tuple[jax.Array, ...]:
        value = given.reshape(wide(given.shape, first))
        return tuple(jnp.broadcast_to(value, wide(s, first)).reshape(s) for s in shapes)

    same = given.size == 1 or {given.ndim, *map(len, shapes)} == {rank}
    found: dict[bool, tuple[jax.Array, ...]] = {}
    for first in (True,) if of_examples and not same else (True, False):
        with suppress(ValueError):
            found[first] = laid(first)
    if not found:
        why = "; with vmap=True, its first axis is that of examples" if of_examples else ""
        has = f"modulator has shape {given.shape}, which does not broadcast to"
        raise ValueError(f"{has} {_named(shapes)}{why}")
    ways = (
        ["axis by axis"]
        if same
        else [
            f"along their {'first' if first else 'last'} axes, as modulator.reshape"
            f"{wide(given.shape, first)} does"
            for first in found
        ]
    )
    if _is_of_steps(given, steps):
        ways.append(BY_STEPS)
    if len(ways) > 1:
        raise _unclear(given, shapes, ways)
    return next(iter(found.values()))


class ThreeFactor(ETraceVjpAlgorithm):
    """Three-factor learning: a modulator takes the place of the learning signal.

    ``dL/dw = sum_t <m^t, eps^t>`` with the trace ``eps`` of D-RTRL, and ``m`` the same for every
    state of a position (Fremaux & Gerstner, Frontiers in Neural Circuits 9:85, 2016). Parameters
    without a trace, and what a parameter does besides, get the gradient of the loss. The result is
    a gradient to descend: reward is a negative modulator.

    Parameters
    ----------
    modulator
        Its value for calls that are given none: a number, an array, or a brainstate state, which
        is read at every call. ``learner.modulator = ...`` changes it. Calls take another one,
        ``learner(x, modulator=...)``: a number; an array that broadcasts to the positions [*V] of
        every hidden group, axis by axis, or to those of their states [*V, S]; or one with fewer
        axes: a value for each example [B], or for each neuron [N]. Where it could be either,
        ``ValueError`` asks for [B, 1] or [1, N]; with ``vmap=True`` it is [B]. No axis is that of
        the steps of a call: where one could be, the steps need calls of their own.
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`; a ``config`` is modulatory, too.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.ThreeFactor, x, batch_size=2)
    >>> learner(x, modulator=0.5).shape
    (2, 4)
    """

    call_takes = staticmethod(arguments_and_modulator)
    modulator = property(standing_modulator, assign_modulator)

    def __init__(self, model: Module, *_late: Any, modulator: Any = None, **options: Any) -> None:
        config = ETraceConfig(learning_signal="modulatory")
        super().__init__(model, *_late, **preset(config, options, "learning_signal"))
        self._modulator: brainstate.State[Any] | None = None
        self.modulator = modulator


# --- DNI ------------------------------------------------------------------------------------------


class SyntheticGradient(Module):
    """One affine map per hidden state [.., n], over its last axis: ``g(h) = h W + b``.

    An axis of examples is not one of these; of a single number, ``n`` is 1. ``W`` [n, n] and ``b``
    [n] start at zero: before it has learned, nothing is predicted.
    """

    def __init__(self, hidden_states: Mapping[Path, brainstate.State[Any]]) -> None:
        super().__init__()
        self.maps: dict[Path, brainstate.State[Any]] = {}
        for path, state in hidden_states.items():
            hidden = jax.tree.leaves(state.value)[0]
            shape = hidden.shape[is_batched(state) :]
            bias = jnp.zeros(shape[-1:] or (1,), hidden.dtype)
            weight = jnp.zeros(2 * bias.shape, hidden.dtype)
            self.maps[path] = brainstate.ParamState({"weight": weight, "bias": bias})

    @property
    def states_by_path(self) -> dict[Path, brainstate.State[Any]]:
        """The parameters, by ``('synthesizer', *path)`` of the hidden state."""
        return {("synthesizer", *path): state for path, state in self.maps.items()}

    def values(self) -> dict[Path, Any]:
        """Values of the parameters, by path of the hidden state."""
        return {path: state.value for path, state in self.maps.items()}

    @staticmethod
    def predict(values: Mapping[Path, Any], hidden: Mapping[Path, Any]) -> dict[Path, Any]:
        """Predicted cotangents of hidden values."""
        found = {}
        for path, h in hidden.items():
            bias = values[path]["bias"]
            wide = h if h.shape[-1:] == bias.shape else h[..., None]
            predicted = wide @ values[path]["weight"] + bias
            found[path] = predicted.reshape(h.shape)
        return found


class DNI(ETraceVjpAlgorithm):
    """Truncated reverse mode with learned predictions of the future gradient (DNI).

    There is no trace. In a window, the gradient is that of reverse mode, with the prediction
    ``g(h^k)`` of ``d (later losses) / d h^k`` added to the signal at its end, so that the sum over
    all windows is BPTT if ``g`` is right (Jaderberg et al. 2016, arXiv 1608.05343). ``g`` is one
    affine map per hidden state over its last axis, zero at the start. Its parameters are among
    :attr:`param_states`, and their gradient is that of ``|g(h^0) - dL/dh^0|^2 / 2`` at the start of
    each window: any optimizer trains them with the model.

    Parameters
    ----------
    model, **options
        See :class:`ETraceVjpAlgorithm`.
    vjp_method
        ``'multi-step'``.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.DNI, x, batch_size=2)
    >>> learner(braintrace.MultiStepData(jnp.ones((5, 2, 3)))).shape
    (5, 2, 4)
    """

    synthesizer_of = SyntheticGradient

    def __init__(
        self, model: Module, *_late: Any, vjp_method: str = "multi-step", **options: Any
    ) -> None:
        config = ETraceConfig(trace_factorization="none", learning_signal="bootstrapped")
        super().__init__(model, *_late, vjp_method=vjp_method, **preset(config, options))


for _learner in (EProp, ThreeFactor, DNI):  # what ``isinstance`` says of them in version 0.2
    D_RTRL.register(_learner)
