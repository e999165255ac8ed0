# SPDX-License-Identifier: Apache-2.0
"""What a learning rule is to the drivers: pure functions of its traces and a block of steps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ..base import versions
from ..base.types import Path
from ..executor.executor import Executor
from ..executor.graph_executor import compiled_step
from ..executor.jacobians import JACOBIANS, StepJacobians
from ..executor.layout import Link
from ..ops.operation import Arrays
from ..ops.traces import trace_rules
from ..ops.traces.base import TraceRules, add

Traces = tuple[Any, ...]
"""A pytree of arrays of unchanging shapes and dtypes; a learner holds each entry in a state."""

Operands = Sequence[Sequence[Any]]
"""Per relation, the values of its operands (``None`` at ``x``)."""

Cotangents = list[Arrays]
"""Per relation or per link, cotangents of the traced operands by trainable key."""

Signals = tuple[jax.Array, ...]
OldSignals = tuple[jax.Array | None, ...]
Entries = Mapping[int, jax.Array | None]
"""By group, a signal [S, *V] at its old values."""


class _Fields(NamedTuple):
    jacobians: StepJacobians
    signal: Signals
    old_signal: OldSignals
    given: Any = None


class Block(_Fields):
    """``K`` steps as an algorithm sees them; every array has a leading axis of ``K`` steps.

    Attributes
    ----------
    jacobians
        ``x`` per relation, ``f`` per link, ``D`` per group.
    signal, old_signal
        ``l`` and ``e`` per group, [K, S, *V]: gradients at the new and at the old values; ``e`` is
        ``None`` where structurally zero.
    given
        What the caller passed to the learner besides the model's arguments, such as a modulator.
    heard
        By group, which states the loss depends on [S]; the others have a signal of zero. ``None``
        where that is not known: a block that is made of another one does not know it.

    Examples
    --------
    >>> from braintrace.algorithms import Block
    >>> Block._fields
    ('jacobians', 'signal', 'old_signal', 'given')
    """

    heard: tuple[tuple[bool, ...], ...] | None = None

    def heard_by(self, states: tuple[tuple[bool, ...], ...]) -> Block:
        """The block, with what is known of which states are heard."""
        known = Block(*self)
        known.heard = states
        return known

    @property
    def late(self) -> OldSignals:
        """The former name of ``old_signal``."""
        warn_of_old_name("Block.late", "old_signal")
        return self.old_signal

    def _replace(self, **changes: Any) -> Block:
        if "late" in changes:
            warn_of_old_name("Block.late", "old_signal")
            changes["old_signal"] = changes.pop("late")
        return super()._replace(**changes)


def warn_of_old_name(old: str, new: str) -> None:
    """Say that a name stays for one release."""
    versions.warn(f"{old} is called {new} now", DeprecationWarning)


def accept_old_name(cls: type, old: str, new: str) -> None:
    """Let a class define a method by its old name, and callers call it so; with a warning.

    Of a class and its bases, the first that defines the method under either name decides.
    """
    defining = (vars(base) for base in cls.__mro__ if {old, new} & vars(base).keys())
    own: Mapping[str, Any] = next(defining, {})
    if {old, new} <= own.keys():
        return
    if new in own:
        method = own[new]

        @wraps(method)
        def by_old_name(*args: Any, **options: Any) -> Any:
            warn_of_old_name(f"{cls.__name__}.{old}", new)
            return method(*args, **options)

        by_old_name.__doc__ = f"The former name of ``{new}``."
        setattr(cls, old, by_old_name)
    elif old in own:
        warn_of_old_name(f"{cls.__name__}.{old}", new)
        setattr(cls, new, own[old])


class LearningRule(ABC):
    """A learning rule for one compiled model.

    Weights do not change inside a block, and how steps are divided into blocks changes no number
    beyond round-off. Traces before a block may be given as ``None``, which stands for
    :meth:`init`.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> cell, x = braintrace.nn.GRUCell(3, 4), jnp.ones((2, 3))
    >>> learner = braintrace.compile(cell, braintrace.D_RTRL, x, batch_size=2)
    >>> from braintrace.algorithms import LearningRule
    >>> isinstance(learner.rule, LearningRule), len(learner.rule.links), len(learner.rule.init())
    (True, 2, 2)
    """

    executor: Executor
    #: What ``D`` and ``f`` must hold: ``'near'``, the entries between equal positions, or
    #: ``'whole'``, every entry within a hidden group (which is near ones and more).
    jacobians: str = "near"
    #: Whether gradients are made from blocks of ``x``, ``f``, ``D`` and signals, and not from the
    #: steps themselves as those of ``InfluenceRule`` are.
    from_blocks: bool = True
    #: Whether a loop may give each step to :meth:`take` as it is run, where no signal is at old
    #: values, in place of recording a block for :meth:`advance`. A class that overrides how blocks
    #: are treated, and not :meth:`take`, gets blocks.
    takes_steps: bool = False
    #: Whether every step is differentiated by itself, whatever the size of a block.
    in_single_steps: bool = False
    #: Whether :meth:`solve` and :meth:`solve_at_start` may give [parts, *W] in place of [*W], as
    #: :attr:`parts` says, and nothing that the class does with cotangents minds it. A class that
    #: inherits from such a one says so itself, because what it overrides may mind.
    adds_up_parts: bool = False
    #: Which entries of the traces are the same whatever the examples are: a count, random bits.
    of_no_example: tuple[int, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        accept_old_name(cls, "boundary", "solve_at_start")
        if "take" not in vars(cls) and {"advance", "solve", "update"} & vars(cls).keys():
            cls.takes_steps = False  # it looks at blocks

    def __post_init__(self) -> None:
        if (step := compiled_step(self.executor)) is not self.executor:
            object.__setattr__(self, "executor", step)
        check_jacobians(self)

    @property
    def needs_no_past(self) -> bool:
        """Whether ``D`` and ``e`` of a first step are not read where there are no traces before."""
        return False

    @property
    def name(self) -> str:
        """What the rule is called in reports."""
        return type(self).__name__

    @property
    def links(self) -> tuple[Link, ...]:
        """The relations in their groups."""
        return self.executor.links

    @property
    def parts(self) -> int:
        """In how many parts cotangents are held until all terms of a parameter are there.

        Those of a class that does not say so itself are whole.
        """
        return self.executor.parts if vars(type(self)).get("adds_up_parts") else 1

    @abstractmethod
    def init(self) -> Traces:
        """Traces of zeros."""

    @abstractmethod
    def solve(self, traces: Traces | None, block: Block, operands: Operands) -> Cotangents:
        """Cotangents of the traced operands of every relation, summed over a block."""

    @abstractmethod
    def solve_at_start(self, traces: Traces, signal: OldSignals, operands: Operands) -> Cotangents:
        """Cotangents of the traced operands from a signal at the start of a window.

        Parameters
        ----------
        signal
            Per group, the gradient with respect to its values [S, *V]; ``None`` for zero.
        """

    @abstractmethod
    def update(self, traces: Traces | None, block: Block, operands: Operands) -> Traces:
        """Traces after a block; its signals are not read and may be left empty."""

    def advance(
        self, traces: Traces | None, block: Block, operands: Operands
    ) -> tuple[Cotangents, Traces]:
        """:meth:`solve` and :meth:`update`, for rules in which they share work."""
        new = self.update(traces, block, operands)
        return self.solve_after(traces, new, block, operands), new

    def hold(self, traces: Traces | None) -> Any:
        """What a loop over steps carries for the rule; see :attr:`takes_steps`."""
        raise NotImplementedError

    def take(self, held: Any, step: Block) -> tuple[Any, Any]:
        """What the loop carries on after a step, without leading axis, and what it keeps of it."""
        raise NotImplementedError

    def release(self, held: Any, kept: Any, operands: Operands) -> tuple[Cotangents, Traces]:
        """:meth:`advance`, from what the loop carries in the end and has kept of ``K`` steps."""
        raise NotImplementedError

    def solve_after(
        self, traces: Traces | None, new: Traces, block: Block, operands: Operands
    ) -> Cotangents:
        """:meth:`solve`, where the traces after the block are known: ``new``.

        For a single step, a rule that reads ``new`` only lets them be written in place of the old
        ones. By default ``new`` is not looked at.
        """
        return self.solve(traces, block, operands)

    @abstractmethod
    def of_link(self, traces: Traces, index: int) -> dict[str, Any]:
        """What the traces hold for a link, with the state axis last."""

    def held_by(self, traces: Traces, index: int) -> dict[str, Any]:
        """The arrays that are held for a link."""
        return self.of_link(traces, index)

    def summed(self, found: Sequence[Arrays], operands: Operands) -> Cotangents:
        """Cotangents per relation from those per link, in the dtypes of sums.

        A link without any has those of zero. Some may be in parts, as :attr:`Executor.parts` says.
        """
        total: dict[int, Arrays] = {}
        for link, one in zip(self.links, found, strict=True):
            r, types = link.relation.index, link.cotangent_types
            own = {key: leaf.astype(types[key].dtype) for key, leaf in one.items()}
            own = own or {key: jnp.zeros(v.shape, v.dtype) for key, v in types.items()}
            total[r] = add(total.get(r, {}), own)
        return [total[r] for r in sorted(total)]

    # --- what drivers and learners ask besides -------------------------------------------------

    def run(
        self, args: Sequence[Any], states: Mapping[Path, Any], perturb: Sequence[Any]
    ) -> tuple[Any, dict[Path, Any], tuple[Any, ...]]:
        """One step as the rule sees it, with what is recorded of it; see ``Executor.run``."""
        return self.executor.run(args, states, perturb)

    def perturbations(self) -> Sequence[jax.Array]:
        """Zeros that :meth:`run` adds to new values; gradients with respect to them are signals."""
        return self.executor.graph.perturbed.init_perturb_data()

    @property
    def has_parts(self) -> bool:
        """Whether :meth:`parted` has another form."""
        return False

    def parted(self, traces: Traces) -> Traces:
        """Traces in a form in which a loop of single steps is fast; see :meth:`joined`."""
        return traces

    def joined(self, traces: Traces) -> Traces:
        """Traces as :meth:`init` makes them, from either form."""
        return traces

    @property
    def traced_paths(self) -> tuple[Path, ...]:
        """The parameters with a trace."""
        weights = self.executor.weights.values()
        return tuple(weight.path for weight in weights if weight.links)

    def of_parameter(self, traces: Traces, path: Path) -> list[dict[str, Any]]:
        """What the traces hold for a parameter: a dict for each of its links."""
        links = (w.links for w in self.executor.weights.values() if w.path == path)
        traces = self.joined(traces)
        return [self.of_link(traces, i) for own in links for i in own]

    @property
    def bytes_per_step(self) -> int:
        """Memory that a gradient takes for each step of a block, besides the block itself."""
        return 0


def check_jacobians(rule: LearningRule) -> None:
    """Raise ``ValueError`` unless the executor of a rule gives the Jacobians that it needs."""
    needed, given = rule.jacobians, rule.executor.jacobians
    if needed not in (given, "near"):
        raise ValueError(
            f"{type(rule).__name__} needs {needed} Jacobians ({JACOBIANS.get(needed, 'unknown')}), "
            f"and the executor gives {given} ones ({JACOBIANS[given]}). Write jacobians = "
            f"{needed!r} in the class of the learner, or pass jacobians={needed!r} to its executor"
        )


@dataclass(frozen=True, eq=False)
class ParameterTraces(LearningRule):
    """A rule with a trace per link that is laid out by the rules of its operation.

    ``trace_dtype`` is the dtype in which traces are kept; ``None``: that of the operation's output,
    and no narrower than those of its parameters and of the states, and float32.
    """

    executor: Executor
    trace_dtype: Any = None

    @cached_property
    def rules(self) -> tuple[TraceRules, ...]:
        """Per link, the rules of its trace."""
        return tuple(trace_rules(k.operation, k.extra, self.states_of(k)) for k in self.links)

    def with_entries(
        self, found: Cotangents, traces: Traces | None, entries: Entries, operands: Operands
    ) -> Cotangents:
        """Cotangents ``found`` per link plus what signals [S, *V] by group find in traces."""
        total = list(found)
        for link, rules in zip(self.links, self.rules, strict=True):
            i, entry = link.index, entries.get(link.group.index)
            if traces is not None and entry is not None and rules.num_state:
                kept, held = self.read(link, entry, 0), operands[link.relation.index]
                own = link.to_y(kept, 1), traces[i], held
                total[i] = add(total[i], rules.solve_in_parts(*own, self.parts))
        return total

    def read(self, link: Link, array: jax.Array, *axes: int) -> jax.Array:
        """The entries of the states that a trace of the link has, along axes of states."""
        return array

    def states_of(self, link: Link) -> int:
        """How many states a trace of the link has."""
        return link.group.num_state

    def zeros(self, link: Link) -> Arrays:
        """The trace of a link before the first step."""
        rules = self.rules[link.index]
        return self.stored(link, rules.init()) if rules.num_state else {}

    def stored(self, link: Link, trace: Arrays) -> Arrays:
        """The trace of a link in the dtypes in which it is kept."""
        own, types = self.trace_dtype, self.rules[link.index].types
        if own is not None:  # of what is no number of the trace, the dtype stays
            types = {
                key: v.update(dtype=own) if jnp.issubdtype(v.dtype, jnp.inexact) else v
                for key, v in types.items()
            }

        def kept(key: str, leaf: Any) -> Any:
            own = types[key].dtype
            return jax.tree.map(lambda v: v if v.dtype == own else v.astype(own), leaf)

        return {key: kept(key, leaf) for key, leaf in trace.items()}
