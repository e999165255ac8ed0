# SPDX-License-Identifier: Apache-2.0
"""One step of a model and its loss, as a function of arrays.

Everything in this package starts from here, and takes nothing from the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import brainstate
import jax

Path = tuple[Any, ...]


@dataclass(frozen=True)
class Step:
    """``(states, inputs) -> states, (out, loss)`` of a model and a loss function.

    ``states`` are those that the step touches, with their ``paths`` in the model (``None`` for a
    state outside it, such as a random generator) and their ``values`` when the step was traced.
    ``order`` lists the paths of all states of the model; ``parameters`` are the values of all its
    ``ParamState``, by path.
    """

    function: brainstate.transform.StatefulFunction
    example: tuple[Any, ...]
    states: tuple[brainstate.State[Any], ...]
    paths: tuple[Path | None, ...]
    values: tuple[Any, ...]
    order: tuple[Path, ...]
    parameters: dict[Path, Any]

    @property
    def jaxpr(self) -> Any:
        """Closed; ``[*inputs, *states] -> [*out, loss, *states]``, leaf by leaf."""
        return self.function.get_jaxpr(*self.example)

    @property
    def out_tree(self) -> Any:
        """The structure of ``(out, loss)``."""
        shapes: Any = self.function.get_out_shapes(*self.example)
        return jax.tree.structure(shapes[0])

    def __call__(self, values: Sequence[Any], inputs: tuple[Any, ...]) -> tuple[Any, Any]:
        return self.function.jaxpr_call(values, *inputs)

    def with_parameters(self, values: Sequence[Any], parameters: dict[Path, Any]) -> list[Any]:
        """The values of the states with those of the parameters replaced."""
        pairs = zip(self.paths, values, strict=True)
        return [value if path is None else parameters.get(path, value) for path, value in pairs]


def trace_step(model: Any, sequences: tuple[Any, ...], loss_fn: Callable[..., Any]) -> Step:
    """Trace ``out = model(x); loss = loss_fn(out, *rest)`` on the first entry of the sequences."""

    def model_and_loss(x: Any, *rest: Any) -> tuple[Any, Any]:
        out = model(x)
        return out, loss_fn(out, *rest)

    example = entry(sequences, 0)
    function = brainstate.transform.StatefulFunction(model_and_loss, return_only_write=False)
    function.make_jaxpr(*example)
    shapes: Any = function.get_out_shapes(*example)
    loss = jax.tree.leaves(shapes[0][1])
    if len(loss) != 1 or loss[0].shape != ():
        raise ValueError(f"loss_fn must return one scalar, got {loss}")
    in_model = brainstate.graph.states(model)
    path_of = {id(state): path for path, state in in_model.items()}
    states = tuple(function.get_states(*example))
    return Step(
        function=function,
        example=example,
        states=states,
        paths=tuple(path_of.get(id(state)) for state in states),
        values=tuple(state.value for state in states),
        order=tuple(in_model),
        parameters={
            path: state.value
            for path, state in in_model.items()
            if isinstance(state, brainstate.ParamState)
        },
    )


def entry(sequences: tuple[Any, ...], t: int) -> tuple[Any, ...]:
    """Entry ``t`` of every sequence."""
    return jax.tree.map(lambda sequence: sequence[t], sequences)


def num_steps(sequences: tuple[Any, ...]) -> int:
    """The common length of the sequences.

    Raises
    ------
    ValueError
        When there is none: no sequence, different lengths, or length zero.
    """
    lengths = {len(sequence) for sequence in jax.tree.leaves(sequences)}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(f"sequences must have one common length of at least 1, got {lengths}")
    return lengths.pop()
