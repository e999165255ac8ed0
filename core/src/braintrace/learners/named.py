# SPDX-License-Identifier: Apache-2.0
"""The named learning rules: each a configuration and a signature."""

from __future__ import annotations

from typing import Any

from brainstate.nn import Module

from ..algorithms.config import ETraceConfig, decays_of
from ..compiler.reach import check_scope
from .vjp import ETraceVjpAlgorithm, preset


class D_RTRL(ETraceVjpAlgorithm):
    """Online learning with parameter-dimension traces (D-RTRL).

    The trace of a relation obeys ``eps^t = D^t eps^{t-1} + f^t (x) x^t`` with the diagonal ``D`` of
    the hidden transition, and ``dL/dw = sum_t <l^t, eps^t> + <e^t, eps^{t-1}>`` (Wang et al.,
    Nature Communications 2026, doi 10.1038/s41467-026-68453-w). Exact when every hidden-to-hidden
    path is element-wise; otherwise the recurrent products are left out of ``D``.

    Parameters
    ----------
    recurrence_scope
        ``'diagonal'``: recurrent ETP operations are left out of ``D``. ``'coupled'``: ``D`` is the
        diagonal of the transition with them (it contains ``act' W_ii``), which costs a reverse
        pass for each position of a layer at every step.
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`; a ``config`` has traces per parameter, too.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.D_RTRL, x, batch_size=2)
    >>> learner(x).shape
    (2, 4)
    """

    def __init__(
        self, model: Module, *_late: Any, recurrence_scope: str = "diagonal", **options: Any
    ) -> None:
        config = ETraceConfig(recurrence_scope=check_scope(recurrence_scope))
        super().__init__(model, *_late, **preset(config, options, "trace_factorization"))


class pp_prop(ETraceVjpAlgorithm):
    """Online learning with input-output-dimension traces (pp_prop, also ES-D-RTRL).

    The trace of a relation is a filtered input, a filtered factor and the number of steps ``t``
    since they were zero::

        eps_x^t = a_x eps_x^{t-1} + x^t
        eps_f^t = a_f D^t eps_f^{t-1} + (1 - a_f) f^t
        dL/dw   = sum_t xy_to_dw(eps_x^t, l^t eps_f^t / (1 - a_f^{t+1}))

    (Wang et al., Nature Communications 2026, doi 10.1038/s41467-026-68453-w). It is of the size of
    the activity, B (in + out S) for a dense product, whatever the number of parameters. The
    gradient of one step is exact; over several, a product of two sums takes the place of D-RTRL's
    sum of products.

    Parameters
    ----------
    decay_or_rank
        A float in [0, 1): the decay ``a``. An integer ``k`` from 1, the rank: ``a = (k - 1) /
        (k + 1)``. Two of these: ``(a_x, a_f)``.
    recurrence_scope
        As in :class:`D_RTRL`.
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`; a ``config`` is factorized, too, and its decay counts.

    Raises
    ------
    TypeError, ValueError
        For an option with another value.

    Notes
    -----
    Compiling refuses an operation whose ``x`` is not floating-point (an index), unless ``a_x`` is
    zero: there is nothing to filter.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.pp_prop, x, batch_size=2, decay_or_rank=0.9)
    >>> learner(x).shape
    (2, 4)
    >>> {name: part.shape for name, part in learner.get_etrace_of(("Wz", "weight"))[0].items()}
    {'x': (2, 7), 'f': (2, 4, 1)}
    """

    def __init__(
        self,
        model: Module,
        decay_or_rank: float | int | tuple[float | int, float | int],
        *_late: Any,
        recurrence_scope: str = "diagonal",
        **options: Any,
    ) -> None:
        self.decay_x, self.decay_f = decays_of(decay_or_rank)
        config = ETraceConfig(
            trace_factorization="io_factorized",
            decay=decay_or_rank,
            recurrence_scope=check_scope(recurrence_scope),
        )
        super().__init__(model, *_late, **preset(config, options, "trace_factorization"))

    @property
    def decay(self) -> float:
        """The one decay of ``x`` and of ``f``; ``AttributeError`` where there are two."""
        if self.decay_x != self.decay_f:
            raise AttributeError(f"the decays are decay_x={self.decay_x}, decay_f={self.decay_f}")
        return self.decay_x


ParamDimVjpAlgorithm = D_RTRL
IODimVjpAlgorithm = ES_D_RTRL = pp_prop


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
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.OSTLRecurrent, x, batch_size=2)
    >>> learner.get_etrace_of(("Wz", "weight"))[0]["weight"].shape
    (2, 7, 4, 1)
    """

    def __init__(self, model: Module, *_late: Any, **options: Any) -> None:
        super().__init__(model, *_late, **preset(ETraceConfig(recurrence_scope="coupled"), options))


class OSTLFeedforward(ETraceVjpAlgorithm):
    """OSTL without recurrent Jacobians: only the current step, pp_prop with decay zero.

    Parameters
    ----------
    decay_or_rank
        As of :class:`pp_prop`.
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.OSTLFeedforward, x, batch_size=2)
    >>> learner.get_etrace_of(("Wz", "weight"))[0]["x"].shape
    (2, 7)
    """

    def __init__(
        self, model: Module, decay_or_rank: Any = 0.0, *_late: Any, **options: Any
    ) -> None:
        self.decay_x, self.decay_f = decays_of(decay_or_rank)
        config = ETraceConfig(trace_factorization="io_factorized", decay=decay_or_rank)
        super().__init__(model, *_late, **preset(config, options))

    decay = pp_prop.decay


class SnAp(ETraceVjpAlgorithm):
    """SnAp-n: the influence of a parameter within ``n`` steps of the position graph.

    ``M^t = mask . (J^t M^{t-1} + P^t)`` with the derivatives ``J`` and ``P`` of all that a step
    carries in what it carried before and in the parameters (Menick et al. 2020, arXiv 2006.07232).
    ``mask`` keeps the positions of all layers that a parameter entry reaches in one step, and
    those that these reach within ``n - 1`` further ones; where that is everything (2 for a dense
    recurrent layer) it is :class:`RTRL`.

    Parameters
    ----------
    n
        The order, from 1.
    downstream
        ``'step'``: the rule of each hidden group by itself, with a mask for each element of an
        operation's output: :class:`RTRL` says more.
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Notes
    -----
    It costs as much as :class:`RTRL`, with zeros where the trace is cut off: for small models.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.SnAp, x, batch_size=2, n=1)
    >>> learner.get_etrace_of(("Wz", "weight"))[0]["weight"].shape
    (2, 7, 4, 4)
    """

    def __init__(self, model: Module, n: int = 2, *_late: Any, **options: Any) -> None:
        config = ETraceConfig(recurrence_scope="sparse_n", sparse_n=n, downstream="linear")
        super().__init__(model, *_late, **preset(config, options))

    @property
    def n(self) -> int:
        """The order."""
        return self.config.sparse_n or 1


class RTRL(ETraceVjpAlgorithm):
    """Real-time recurrent learning: backpropagation through time, forward in time.

    ``M^t = J^t M^{t-1} + P^t`` is the influence of every parameter on all states that a step
    carries, hidden or not, in all layers (Williams & Zipser, Neural Computation 1:270, 1989), and
    ``dL/dw = sum_t dL^t/dw + <dL^t/ds^{t-1}, M^{t-1}>``. While weights stay as they are this is the
    gradient of BPTT, for every parameter of every model that compiles.

    Parameters
    ----------
    downstream
        ``'step'``: RTRL within each hidden group, as others publish it: ``eps^t = D^t eps^{t-1} +
        f^t (x) x^t`` with the whole ``D`` of a group. Credit does not pass through the memory of
        other layers, and learners that were saved by earlier versions go on.
    model, vjp_method, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Notes
    -----
    A reference, for small models: the trace has an entry for every parameter entry and every entry
    of the states, and a step is run backward for each value that an example carries, or forward for
    each parameter entry. :attr:`learner.report <braintrace.ETraceAlgorithm.report>` says which, and
    how many these are.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.RTRL, x, batch_size=2)
    >>> learner.get_etrace_of(("Wr", "weight"))[0]["weight"].shape
    (2, 7, 4, 4)
    """

    def __init__(self, model: Module, *_late: Any, **options: Any) -> None:
        config = ETraceConfig(recurrence_scope="full", downstream="linear")
        super().__init__(model, *_late, **preset(config, options))


class UORO(ETraceVjpAlgorithm):
    """UORO: an unbiased estimate of RTRL within hidden groups, whose trace has rank one.

    ``s^t = rho_0 D^t s^{t-1} + rho_1 nu`` and ``theta^t = theta^{t-1} / rho_0 + nu^T F^t / rho_1``
    with random signs ``nu``; the mean of ``s (x) theta`` is the influence (Tallec & Ollivier 2017,
    arXiv 1702.05043).

    Parameters
    ----------
    projection_key
        An integer or a JAX key; the same key gives the same signs after every reset.
    vjp_method
        ``'multi-step'``: windows, of one step where no ``chunk_size`` is given. ``'single-step'``:
        as the other rules do by default.
    model, trace_dtype, **options
        See :class:`ETraceVjpAlgorithm`.

    Notes
    -----
    Unbiased, not accurate: the variance grows with the size of a layer and the length of the
    sequence. The whole ``D`` is computed at every step. Signs go on from call to call; after a
    reset, and at every call with ``carry_trace=False``, they start anew from the key, so that the
    errors of sequences that all begin so are not independent.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.UORO, x, batch_size=2, projection_key=0)
    >>> sorted(learner.get_etrace_of(("Wz", "weight"))[0])
    ['bias', 's', 'weight']
    """

    def __init__(
        self,
        model: Module,
        projection_key: Any = 42,
        *_late: Any,
        vjp_method: str = "multi-step",
        **options: Any,
    ) -> None:
        config = ETraceConfig(
            trace_factorization="random_projection", recurrence_scope="full", seed=projection_key
        )
        super().__init__(model, *_late, vjp_method=vjp_method, **preset(config, options))


# what ``isinstance`` says of them in version 0.2
D_RTRL.register(OSTLRecurrent)
D_RTRL.register(SnAp)
pp_prop.register(OSTLFeedforward)
