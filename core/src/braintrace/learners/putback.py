# SPDX-License-Identifier: Apache-2.0
"""Hidden states that are put back to what they were before a reset, as after an evaluation.

A reset of the model starts the traces anew. Who assigns the hidden states of before that reset, to
go on from there, has to put back the traces, too; otherwise earlier steps have no credit any more.
Since the traces may be put back after the states, it is said when the next step has run, or is
about to. Values are known by identity, and none is kept alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax

from ..base import versions
from ..base.types import State


def reference(value: Any) -> Callable[[], Any]:
    """What gives a value; that of a program that is being traced is not kept alive."""
    return weakref.ref(value) if versions.is_traced(value) else lambda: value


class PutBack:
    """What resets replaced since the last step of a learner, and whether it was assigned again."""

    def __init__(self, index: State) -> None:
        self._index = index  # the number of the step, which is put back with the traces
        self._replaced: list[weakref.ref[Any]] = []
        self._before: Any = lambda: None
        self._hook: Any = None

    def begin(self) -> None:
        """A reset is about to start the traces anew."""
        self.forget()
        self._before = reference(self._index.value)

    def replaced(self, value: Any) -> None:
        """A reset replaced this value of a hidden state."""
        self._unhook()
        for leaf in jax.tree.leaves(value):
            with suppress(TypeError):  # of numbers there are no weak references
                self._replaced.append(weakref.ref(leaf))

    def assigned(self, value: Any) -> None:
        """A hidden state was assigned, and not by a reset."""
        if self._replaced and self._hook is None:
            leaves = jax.tree.leaves(value)
            if any(leaf is known() for leaf in leaves for known in self._replaced):
                self._hook = self._index.register_hook("write_after", self._index_assigned)

    def settle(self) -> None:
        """A step runs: say so if hidden states were put back and the traces were not."""
        pending = self._hook is not None and not _is_zero(self._before())
        self.forget()
        if pending:
            versions.warn(
                "hidden states were put back to their values before a reset of the model, and the "
                "traces, which started anew with that reset, were not: earlier steps have no "
                "credit. Put back the values of all of brainstate.graph.states(learner), or "
                "evaluate copy.deepcopy(model)"
            )

    def forget(self) -> None:
        """The traces are those of the states, whatever was replaced."""
        self._unhook()
        self._replaced, self._before = [], lambda: None

    def _unhook(self) -> None:
        if self._hook is not None:
            self._index.unregister_hook(self._hook)
        self._hook = None

    def _index_assigned(self, context: Any) -> None:
        """By a step, or with the traces that are put back."""
        if context.value is self._before():
            self.forget()
        else:
            self.settle()


def _is_zero(index: Any) -> bool:
    """Whether no step had run, as far as that can be told."""
    return index is not None and not versions.is_traced(index) and int(index) == 0
