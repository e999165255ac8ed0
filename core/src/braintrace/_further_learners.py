# SPDX-License-Identifier: Apache-2.0
"""The learners beside D-RTRL and pp_prop: e-prop, OSTL, SnAp, RTRL, UORO, three-factor, DNI."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

from . import _jax
from ._algorithm import LearningRule
from ._config import ETraceConfig, preset
from ._feedback import feed_back, feedback_matrix
from ._learners import ETraceVjpAlgorithm
from ._synthesizer import SyntheticGradient
from ._windows import window_step


class EProp(ETraceVjpAlgorithm):
    """e-prop: D-RTRL with a low-pass filter on the trace and, if wanted, random feedback.

    ``ebar^t = kappa ebar^{t-1} + eps^t`` with the trace ``eps`` of D-RTRL, and ``dL/dw = sum_t
    <l^t, ebar^t>`` (Bellec et al., Nature Communications 11:3625, 2020, doi
    10.1038/s41467-020-17236-y). With ``kappa`` zero and symmetric feedback it is D-RTRL.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
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
    vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Raises
    ------
    TypeError, ValueError
        For an option with another value.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.EProp(cell, kappa_filter_decay=0.9)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner(jnp.ones((2, 3))).shape
    (2, 4)
    """

    def __init__(
        self,
        model: brainstate.nn.Module,
        feedback: str = "symmetric",
        kappa_filter_decay: float = 0.0,
        random_feedback_key: Any = None,
        vjp_method: str = "single-step",
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
        config = preset(config, options)
        super().__init__(model, vjp_method, config=config, **options)

    def update(self, *args: Any, error: Any = None) -> Any:
        """Run the model and the traces; see :meth:`ETraceAlgorithm.update`.

        Parameters
        ----------
        *args
            Arguments like those the learner was compiled for.
        error
            With random feedback, what is fed back to the model's output in place of the gradient of
            the loss: [.., m] for an output [.., n].
        """
        if error is None:
            return super().update(*args)
        if self.feedback != "random":
            raise ValueError("an error is fed back by feedback='random' only")
        if self.vjp_method != "single-step":
            raise ValueError("an error is fed back with vjp_method='single-step' only")
        out = self._run(args, given=True)
        return feed_back(out, error, feedback_matrix(self.config.seed, out, error))


class OSTLRecurrent(ETraceVjpAlgorithm):
    """OSTL with recurrent Jacobians: D-RTRL with the coupled diagonal.

    Equal to ``D_RTRL(model, recurrence_scope='coupled')`` (Bohnstingl et al., IEEE Transactions on
    Neural Networks and Learning Systems, 2022, doi 10.1109/TNNLS.2022.3153985).

    Parameters
    ----------
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.OSTLRecurrent(cell)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner.get_etrace_of(("Wz", "weight"))[0]["weight"].shape
    (2, 7, 4, 1)
    """

    def __init__(
        self, model: brainstate.nn.Module, vjp_method: str = "single-step", **options: Any
    ) -> None:
        config = preset(ETraceConfig(recurrence_scope="coupled"), options)
        super().__init__(model, vjp_method, config=config, **options)


class OSTLFeedforward(ETraceVjpAlgorithm):
    """OSTL without recurrent Jacobians: only the current step, pp_prop with decay zero.

    Parameters
    ----------
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.OSTLFeedforward(cell)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner.get_etrace_of(("Wz", "weight"))[0]["x"].shape
    (2, 7)
    """

    def __init__(
        self, model: brainstate.nn.Module, vjp_method: str = "single-step", **options: Any
    ) -> None:
        config = preset(ETraceConfig(trace_factorization="io_factorized", decay=0.0), options)
        super().__init__(model, vjp_method, config=config, **options)


class SnAp(ETraceVjpAlgorithm):
    """SnAp-n: influence within a group, out to ``n`` steps of the position graph.

    ``eps^t = mask . (D^t eps^{t-1}) + f^t (x) x^t`` with the whole ``D`` of a group (Menick et al.
    2020, arXiv 2006.07232). ``n = 1`` is the coupled diagonal; when ``n`` reaches the diameter of
    the graph (2 for a dense recurrent product) it is :class:`RTRL`.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    n
        The order, from 1.
    vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Notes
    -----
    A reverse sweep is made for every position of a layer at every step, and the trace of a dense
    product is [B, in, out, S n_positions], with zeros where it is cut off: for small layers.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.SnAp(cell, n=1)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner.get_etrace_of(("Wz", "weight"))[0]["weight"].shape
    (2, 7, 4, 1)
    """

    def __init__(
        self,
        model: brainstate.nn.Module,
        n: int = 2,
        vjp_method: str = "single-step",
        **options: Any,
    ) -> None:
        config = preset(ETraceConfig(recurrence_scope="sparse_n", sparse_n=n), options)
        super().__init__(model, vjp_method, config=config, **options)


class RTRL(ETraceVjpAlgorithm):
    """Real-time recurrent learning within hidden groups, without approximation there.

    ``eps^t = D^t eps^{t-1} + f^t (x) x^t`` with the whole ``D`` of a group (Williams & Zipser,
    Neural Computation 1:270, 1989). For a model of one group whose operations all act on the
    hidden state position by position it is BPTT. A reference: a dense layer of n units takes a
    trace of n times its weights.

    Parameters
    ----------
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.RTRL(cell)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner.get_etrace_of(("Wz", "weight"))[0]["weight"].shape
    (2, 7, 4, 4)
    """

    def __init__(
        self, model: brainstate.nn.Module, vjp_method: str = "single-step", **options: Any
    ) -> None:
        config = preset(ETraceConfig(recurrence_scope="full"), options)
        super().__init__(model, vjp_method, config=config, **options)


class UORO(ETraceVjpAlgorithm):
    """UORO: an unbiased estimate of :class:`RTRL` whose trace has rank one.

    ``s^t = rho_0 D^t s^{t-1} + rho_1 nu`` and ``theta^t = theta^{t-1} / rho_0 + nu^T F^t / rho_1``
    with random signs ``nu``; the mean of ``s (x) theta`` is the influence (Tallec & Ollivier 2017,
    arXiv 1702.05043).

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    projection_key
        An integer or a JAX key; the same key gives the same signs after every reset.
    vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Notes
    -----
    Unbiased, not accurate: the variance grows with the size of a layer and the length of the
    sequence. The whole ``D`` is computed at every step. Signs go on from call to call; after a
    reset, and at every call with ``carry_trace=False``, they start anew from the key, so that the
    errors of sequences that all begin so are not independent.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.UORO(cell, projection_key=0)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> sorted(learner.get_etrace_of(("Wz", "weight"))[0])
    ['bias', 's', 'weight']
    """

    def __init__(
        self,
        model: brainstate.nn.Module,
        projection_key: Any = 42,
        vjp_method: str = "single-step",
        **options: Any,
    ) -> None:
        config = ETraceConfig(
            trace_factorization="random_projection", recurrence_scope="full", seed=projection_key
        )
        config = preset(config, options)
        super().__init__(model, vjp_method, config=config, **options)


class StandingModulator(brainstate.ShortTermState):
    """The modulator that was assigned to a learner as a number or an array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return jnp.shape(self.value)


class ThreeFactor(ETraceVjpAlgorithm):
    """Three-factor learning: a modulator takes the place of the learning signal.

    ``dL/dw = sum_t <m^t, eps^t>`` with the trace ``eps`` of D-RTRL, and ``m`` the same for every
    state of a position (Fremaux & Gerstner, Frontiers in Neural Circuits 9:85, 2016). Parameters
    without a trace, and what a parameter does besides, get the gradient of the loss. The result is
    a gradient to descend: reward is a negative modulator.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module`` with initialised states.
    modulator
        Its value for calls that are given none: a number, an array, or a brainstate state, which
        is read at every call. ``learner.modulator = ...`` changes it.
    vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`; a ``config`` is modulatory, too.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.ThreeFactor(cell)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner(jnp.ones((2, 3)), modulator=0.5).shape
    (2, 4)
    """

    def __init__(
        self,
        model: brainstate.nn.Module,
        vjp_method: str = "single-step",
        modulator: Any = None,
        **options: Any,
    ) -> None:
        config = ETraceConfig(learning_signal="modulatory")
        config = preset(config, options, "learning_signal")
        super().__init__(model, vjp_method, config=config, **options)
        self._modulator: brainstate.State[Any] | None = None
        self.modulator = modulator

    @property
    def modulator(self) -> Any:
        """The modulator of calls that are given none; it can be assigned between calls."""
        own = isinstance(self._modulator, StandingModulator)
        return self._modulator.value if own and self._modulator is not None else self._modulator

    @modulator.setter
    def modulator(self, value: Any) -> None:
        if value is not None and not isinstance(value, brainstate.State):
            value, standing = jnp.asarray(value, float), self._modulator
            same = isinstance(standing, StandingModulator) and standing.shape == value.shape
            if standing is not None and same:
                standing.value = value  # compiled programs read it from there
                return
            if _jax.is_traced(value):
                raise ValueError(
                    f"modulator of shape {value.shape} is assigned for the first time inside of a "
                    "transformation; pass it to the call, learner(x, modulator=...), or assign an "
                    "array of this shape before"
                )
            value = StandingModulator(value)
        if value is not self._modulator:
            self._modulator = value
            self._drivers.clear()

    def update(self, *args: Any, modulator: Any = None) -> Any:
        """Run the model and the traces for one step; see :meth:`ETraceAlgorithm.update`.

        Parameters
        ----------
        *args
            Arguments like those the learner was compiled for.
        modulator
            A number, or an array that broadcasts to the positions of every hidden group; default:
            the learner's own.

        Raises
        ------
        ValueError
            When there is no modulator, or it does not fit a group.
        """
        standing = self._modulator if modulator is None else modulator
        if isinstance(standing, brainstate.State):
            standing = standing.value
        if standing is None:
            raise ValueError("ThreeFactor needs a modulator: learner(x, modulator=...)")
        return self._run(args, given=tuple(self._for_groups(jnp.asarray(standing, float))))

    def _for_groups(self, modulator: jax.Array) -> list[jax.Array]:
        shapes = [group.varshape for group in self.graph.hidden_groups]
        for shape in shapes:
            try:
                fits = jnp.broadcast_shapes(modulator.shape, shape) == shape
            except ValueError:
                fits = False
            if not fits:
                raise ValueError(
                    f"modulator has shape {modulator.shape}, which does not broadcast to the "
                    f"positions {shape} of every hidden group"
                )
        return [jnp.broadcast_to(modulator, shape) for shape in shapes]


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
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> learner = braintrace.DNI(cell)
    >>> learner.compile_graph(jnp.ones((2, 3)))
    >>> learner(braintrace.MultiStepData(jnp.ones((5, 2, 3)))).shape
    (5, 2, 4)
    """

    def __init__(
        self, model: brainstate.nn.Module, vjp_method: str = "multi-step", **options: Any
    ) -> None:
        config = preset(
            ETraceConfig(trace_factorization="none", learning_signal="bootstrapped"), options
        )
        super().__init__(model, vjp_method, config=config, **options)
        self.synthesizer: SyntheticGradient | None = None

    def compile_graph(self, *args: Any) -> None:
        """Compile the model and start with predictions of zero; see the base class."""
        super().compile_graph(*args)
        self.synthesizer = SyntheticGradient(self.hidden_states)

    def make_step(self, rule: LearningRule) -> Any:
        """A window with a prediction at its end."""
        return window_step(rule, SyntheticGradient.predict)

    def _predictor(self) -> Any:
        return {} if self.synthesizer is None else self.synthesizer.values()

    @property
    def param_states(self) -> dict[Any, brainstate.State[Any]]:
        """All parameters of the model, and those of the predictions, by path."""
        own: Mapping[Any, Any] = {} if self.synthesizer is None else self.synthesizer.states_by_path
        return {**super().param_states, **own}
