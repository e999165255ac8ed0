# SPDX-License-Identifier: Apache-2.0
"""Small recurrent models around the operation of a case, with inputs, targets and a loss."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np

from braintrace.base.errors import CompilationWarning
from braintrace.base.versions import is_float

from .case import ConformanceCase, normal

STEPS, BLOCK, BATCH = 8, 4, 2
DIGITS = "bfloat16"  # of weights and inputs, which are then the same numbers in every dtype


class Cell(brainstate.nn.Module):
    """Two leaky states around the operation; every path between them is position-wise::

        y  = op(x, *weights)
        v' = 0.6 v cos(0.3 y) + y drive
        h' = 0.7 h + sin(v')

    Parameters
    ----------
    case
        The case.
    head
        Axes in front of those of ``y`` that the states have: a batch.
    mapped
        Map the operation over the first axis of ``x`` with ``vmap``.
    recurrent
        Add a fixed mixture of the old ``h`` to ``x``, which makes the operation recurrent.
    linear
        The states are leaky integrators, ``v' = 0.6 v + y`` and ``h' = 0.7 h + 0.5 v'``.
    """

    def __init__(
        self,
        case: ConformanceCase,
        dtype: Any = "float64",
        *,
        head: tuple[int, ...] = (),
        mapped: bool = False,
        recurrent: bool = False,
        linear: bool = False,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.case, self.mapped, self.recurrent, self.linear = case, mapped, recurrent, linear
        values = [np.asarray(value) for value in case.weights(dtype, DIGITS)]
        scaled = [(scale * value).astype(value.dtype) for value in values]
        self.weights = [brainstate.ParamState(jax.device_put(value)) for value in scaled]
        arguments = case.arguments(0, dtype)
        y = jax.eval_shape(case.op, *arguments)
        self.start = jax.device_put(np.full((*head, *y.shape), 0.1, y.dtype))
        self.apart = int(case.batched) + len(head)  # leading axes that examples are counted along

    def init_state(self, batch_size: int | None = None) -> None:
        """Create the states; a batch is part of the case."""
        self.v = brainstate.HiddenState(self.start)
        self.h = brainstate.HiddenState(self.start)

    def reset_state(self, batch_size: int | None = None) -> None:
        """Set the states back."""
        self.v.value = self.h.value = self.start

    def update(self, inputs: Any) -> Any:
        """One step: ``(x, drive)`` to ``h``; ``x`` is ``None`` without input."""
        x, drive = inputs
        old_v: Any = self.v.value
        old_h: Any = self.h.value
        if self.recurrent:
            x = x + jnp.tanh(mixed(old_h, x.shape, self.apart))
        y = self._apply(x)
        if self.linear:
            self.v.value = 0.6 * old_v + y
            self.h.value = 0.7 * old_h + 0.5 * self.v.value  # type: ignore[arg-type]
            return self.h.value
        self.v.value = 0.6 * old_v * jnp.cos(0.3 * y) + y * drive
        self.h.value = 0.7 * old_h + jnp.sin(self.v.value)  # type: ignore[arg-type]
        return self.h.value

    def _apply(self, x: Any) -> Any:
        weights = [state.value for state in self.weights]
        if x is None:
            return self.case.op(*weights)
        op = self.case.op
        if self.mapped:
            op = jax.vmap(op, in_axes=(0, *(None for _ in weights)))
        return op(x, *weights)


class Two(brainstate.nn.Module):
    """Two cells; a fixed mixture of the first one's ``h`` is added to the input of the second.

    They are recurrent through the operation; with ``linear``, they are not, the second one is a
    pair of leaky integrators, and the mixture is that of a function of ``h``.
    """

    def __init__(self, case: ConformanceCase, linear: bool = False) -> None:
        super().__init__()
        recurrent, self.linear = takes_state(case) and not linear, linear
        self.cells = [
            Cell(case, recurrent=recurrent),
            Cell(case, recurrent=recurrent, linear=linear, scale=0.7),
        ]

    def update(self, inputs: Any) -> Any:
        """One step: ``(x, drive)`` to the ``h`` of both."""
        x, drive = inputs
        first, second = self.cells
        h = first(inputs)
        if self.linear:
            x = x + mixed(jnp.sin(h), x.shape, first.apart)
        elif takes_state(self.case):
            x = x + jnp.sin(mixed(h, x.shape, first.apart))
        else:
            drive = drive * jnp.sin(h)
        return h + second((x, drive))

    @property
    def case(self) -> ConformanceCase:
        """The case of both cells."""
        return self.cells[0].case


def takes_state(case: ConformanceCase) -> bool:
    """Whether hidden values can be added to ``x``."""
    return case.has_x and is_float(case.arguments()[0])


def mixed(h: jax.Array, shape: Sequence[int], apart: int) -> jax.Array:
    """A fixed linear mixture of ``h``, example by example, of the shape of ``x``."""
    flat = h.reshape(*h.shape[:apart], -1)
    size = 1
    for n in shape[apart:]:
        size *= n
    matrix = normal(7, (flat.shape[-1], size), h.dtype) / flat.shape[-1] ** 0.5
    return (flat @ matrix).reshape(tuple(shape))


@dataclass(frozen=True, eq=False)
class Task:
    """A model with initialised states and its sequences: ``(x, drive)`` and targets, [T, ...]."""

    model: Any
    inputs: Any
    targets: Any

    @property
    def sequences(self) -> tuple[Any, Any]:
        """What the model takes, and what the loss takes."""
        return self.inputs, self.targets


def loss(out: jax.Array, target: jax.Array) -> jax.Array:
    """A sum over examples, so that a batch is the sum of its examples."""
    return jnp.sum((out - target) ** 2)


def _task(model: Any, case: ConformanceCase, dtype: Any, head: tuple[int, ...] = ()) -> Task:
    """A model around the case with sequences of ``STEPS`` steps; mapped ``x`` has axes ``head``."""
    brainstate.nn.init_all_states(model)
    shape = jax.eval_shape(case.op, *case.arguments(0, dtype)).shape
    steps = STEPS * (head[0] if head else 1)
    x = case.inputs(steps, dtype, DIGITS)
    if head and case.has_x:
        x = x.reshape(STEPS, *head, *x.shape[1:])
    drive = normal(8, (STEPS, *head, *shape), dtype)
    return Task(model, (x, drive), normal(9, (STEPS, *head, *shape), dtype))


Make = Callable[[ConformanceCase], Task]


def leaky(case: ConformanceCase, dtype: Any = "float64") -> Task:
    """A cell."""
    return _task(Cell(case, dtype), case, dtype)


def in_a_batch(case: ConformanceCase) -> Task:
    """A batch of states around an operation for one example."""
    head = (BATCH,)
    return _task(Cell(case, head=head, mapped=case.has_x), case, "float64", head)


def recurrent(case: ConformanceCase) -> Task:
    """A cell that is recurrent through the operation."""
    return _task(Cell(case, recurrent=True), case, "float64")


def two(case: ConformanceCase) -> Task:
    """Two cells, one behind the other."""
    return _task(Two(case), case, "float64")


def below_leaks(case: ConformanceCase) -> Task:
    """A cell below leaky integrators."""
    return _task(Two(case, linear=True), case, "float64")


def of_one_example(model: Cell) -> Cell:
    """A cell like this one, for the first example of its batch."""
    alone = Cell(model.case)
    alone.start = alone.start[:1]
    brainstate.nn.init_all_states(alone)
    return alone


@contextmanager
def quiet() -> Iterator[None]:
    """Without the compiler's diagnostics: a model here may lose credit on purpose."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CompilationWarning)
        yield
