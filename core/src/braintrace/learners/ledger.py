# SPDX-License-Identifier: Apache-2.0
"""The credit ledger of a learner: how much of the gradient of BPTT each dropped edge carries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from ..base.types import Path, show_path
from ..compiler.graph import ETraceGraph
from ..compiler.module_info import CreditFilter
from ..drivers.call_arguments import one_step_of
from ..drivers.exactly import Exactly, follows_the_model
from ..drivers.ledger import probed
from ..drivers.options import checked_mask, common_length
from ..drivers.probe import KEPT, Found
from ..drivers.running import Running
from ..show.draw import Drawing
from ..show.ledger import Row, picture, table
from .restarts import begin_call
from .sequences import grad_options


@dataclass(frozen=True)
class CreditEntry:
    """What one kind of edge carries of the gradient of a parameter.

    Attributes
    ----------
    parameter
        Its path.
    kind
        ``'kept by the rule'``; ``"the rule's approximation"``, what traces and predictions miss of
        paths that they follow; ``'recurrent product'``, ``'another layer'`` and ``'a state that is
        not hidden'``, where paths leave a group's trace for good; ``'no trace'``, where they enter
        a state past all relations; ``'window border'``, where they do so in front of the border
        of a window behind which the loss is.
    origin, target
        The states whose trace the paths leave, and the states that they reach; empty if none.
    gradient
        A pytree like the value of the parameter: the sum over all paths whose first dropped edge
        this is.
    share
        ``<gradient, BPTT> / <BPTT, BPTT>`` of the parameter: the shares of a parameter add up to 1.

    Examples
    --------
    >>> import braintrace
    >>> braintrace.CreditEntry(("w",), "kept by the rule", "", "", 1.0, 1.0).share
    1.0
    """

    parameter: Path
    kind: str
    origin: str
    target: str
    gradient: Any
    share: float


@dataclass(frozen=True)
class CreditLedger:
    """Where the gradient of a probe comes from: a table as text, and a picture.

    Attributes
    ----------
    entries
        A :class:`CreditEntry` per parameter, kind, and pair of states, where there is anything.
    gradients
        Those of BPTT, by path of the parameter.

    Examples
    --------
    >>> import braintrace
    >>> print(braintrace.CreditLedger((), {}))
    parameter  what  from  to  share
    """

    entries: tuple[CreditEntry, ...]
    gradients: dict[Path, Any]

    def of(self, parameter: Path) -> tuple[CreditEntry, ...]:
        """The entries of a parameter."""
        return tuple(entry for entry in self.entries if entry.parameter == parameter)

    def _rows(self) -> Iterator[Row]:
        for e in self.entries:
            yield Row(show_path(e.parameter), e.kind, e.origin, e.target, e.share)

    def __str__(self) -> str:
        return table([*self._rows()])

    def draw(self) -> Drawing:
        """A picture: a bar for each entry."""
        return Drawing(picture([*self._rows()]))

    def _repr_svg_(self) -> str:
        return str(self.draw())


def credit_ledger(
    self: Running,
    *sequences: Any,
    step_fn: Callable[..., Any],
    mask: Any = None,
    reduction: str = "mean",
    chunk_size: int | None = None,
) -> CreditLedger:
    """How much of the gradient of BPTT each edge carries that the rule drops.

    A short probe answers what users ask first: is it the rule? A path from a parameter to a loss is
    booked at the first edge that the rule drops, so that the entries of a parameter add up to its
    gradient of BPTT, and each is computed by itself. States start as they are, traces at zero; no
    state moves on. It costs no more than a gradient by BPTT for each kind of entry, and one (for
    SnAp, one by its own traces for each state that they come from). Prints and callbacks of the
    model run each time.

    Parameters
    ----------
    *sequences, step_fn, mask, reduction, chunk_size
        As for :meth:`etrace_grad`; ``step_fn`` is called for windows of one step. States of
        ``step_fn`` outside of the model carry no credit.

    Returns
    -------
    CreditLedger

    Raises
    ------
    NotSupportedError
        With an error that is fed back, which is the gradient of no loss that ``step_fn`` returns.
    CompilationError, TypeError, ValueError
        As for :meth:`etrace_grad`.

    Examples
    --------
    >>> import brainstate, braintrace, jax, jax.numpy as jnp
    >>> brainstate.random.seed(0)
    >>> cell, xs = braintrace.nn.GRUCell(2, 3), jax.random.normal(jax.random.key(0), (6, 1, 2))
    >>> learner = braintrace.compile(cell, "d_rtrl", xs[0], batch_size=1)
    >>> ledger = learner.credit_ledger(xs, step_fn=lambda x: (learner(x) ** 2).sum())
    >>> [entry.kind for entry in ledger.of(("Wz", "weight"))]
    ['kept by the rule', 'recurrent product']
    >>> round(sum(entry.share for entry in ledger.of(("Wz", "weight"))), 3)
    1.0
    """
    steps, rule = common_length(sequences), self.rule
    mask = checked_mask(mask, steps)
    weights = dict(self.trained_states)
    begin_call(self, sequences, lead=2)
    options = grad_options(
        self, steps, step_fn, weights, reduction=reduction, chunk_size=chunk_size
    )
    by_step = step_fn if (options.chunk_size or 1) == 1 else partial(_of_one_step, self, step_fn)
    exact = None if follows_the_model(self.graph) else Exactly(self, self.executor.with_leaks)
    run = partial(probed, self, options, by_step, exact)
    driver = self._drivers.get(
        (step_fn, "credit", options), run, states=lambda: self.param_states.values()
    )
    whole, found = driver(sequences, mask)
    known = [path for path in weights if path in whole]
    graph = rule.executor.graph if exact is None else exact.graph.executed
    entries = (_entry(graph, path, whole[path], one) for path in known for one in found)
    return CreditLedger(
        tuple(e for e in entries if e.kind == KEPT or _matters(e.gradient, whole[e.parameter])),
        {path: whole[path] for path in known},
    )


def _of_one_step(learner: Running, step_fn: Callable[..., Any], *now: Any) -> Any:
    """The loss of a step by a function of windows."""
    by_step = learner.call_stepper

    def by_window(learner: Running, args: Any, given: Any) -> Any:
        out = by_step(learner, one_step_of(args), given)
        return jax.tree.map(lambda v: v[None], out)

    with learner.stepping_by(by_window):
        return step_fn(*jax.tree.map(lambda v: v[None], now))[0]


def _entry(graph: ETraceGraph, path: Path, whole: Any, found: Found) -> CreditEntry:
    own, size = found.gradients[path], _dot(whole, whole)
    share = _dot(own, whole) / size if size else 0.0
    origin, target = (_shown(graph, end) for end in (found.origin, found.target))
    return CreditEntry(path, found.kind, origin, target, own, share)


def _shown(graph: ETraceGraph, end: int | Path | None) -> str:
    """A group by its states, or another state; what is in front of a uniform one by that."""
    if end is None:
        return ""
    if isinstance(end, tuple):
        return show_path(end)
    group = graph.hidden_groups[end]
    names = (
        f"filter of {show_path(state.of)}" if isinstance(state, CreditFilter) else show_path(path)
        for path, state in zip(group.hidden_paths, group.hidden_states, strict=True)
    )
    return ", ".join(dict.fromkeys(names))


def _matters(own: Any, whole: Any) -> bool:
    """Whether a gradient is more than the round-off of another one."""
    dtypes = [np.asarray(v).dtype for v in jax.tree.leaves(own)]
    least = max(np.finfo(dtype).eps if dtype.kind in "fc" else 1e-2 for dtype in dtypes)
    return _dot(own, own) > 16 * float(least) ** 2 * _dot(whole, whole)


def _dot(a: Any, b: Any) -> float:
    """The product of two gradients, in double precision; of complex ones, its real part."""
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    wide = ((np.asarray(x).astype(complex), np.asarray(y).astype(complex)) for x, y in pairs)
    return float(sum(np.vdot(y, x).real for x, y in wide))
