# SPDX-License-Identifier: Apache-2.0
"""The numbers that rules are tried on, and how what they give is compared."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from braintrace.base.versions import is_float

from ..compare import named_leaves
from ..quick import jit
from .case import Equation
from .check import EXACT, require, same, wide

SCALES = (1e-8, 1e4)
#: Relative error allowed where inputs are so small or large that rounding counts, and the error
#: allowed beside it, in parts of what ordinary numbers give.
ROUNDED, FLOOR = 1e-6, 1e-11


def with_zeros_and_spikes(values: Any) -> np.ndarray:
    """Of every three numbers, one is zero, one is one, and one stays."""
    flat = np.array(values, "float64").ravel()
    flat[::3], flat[1::3] = 0.0, 1.0
    return flat.reshape(np.shape(values))


def _of_signals(signal: Any) -> Iterator[tuple[str, Any]]:
    for scale in SCALES:
        yield f"signals times {scale:g}", jax.tree.map(lambda v, by=scale: by * v, signal)
    yield "zeros and spikes among the signals", jax.tree.map(with_zeros_and_spikes, signal)


def _of_inputs(x: Any) -> Iterator[tuple[str, np.ndarray]]:
    if x is not None and is_float(x):
        yield "inputs of zero", 0 * x
        yield "zeros and spikes among the inputs", with_zeros_and_spikes(x)
        for scale in SCALES:
            yield f"inputs times {scale:g}", scale * x


def _of_weights(equation: Equation) -> Iterator[tuple[str, list[Any]]]:
    operation = equation.operation
    trainable = {operation.positions[key] for key in operation.traced}
    for scale in SCALES:
        yield (
            f"weights times {scale:g}",
            [v * scale if i in trainable else v for i, v in enumerate(_operands(equation))],
        )


def _operands(equation: Equation) -> list[Any]:
    return [np.asarray(v) for v in equation.operands]


def agree(
    equation: Equation, both: Callable[[Any, Any, Any], tuple[Any, Any]], x: Any, signal: Any
) -> None:
    """Require ``found, expected = both(x, signal, operands)`` equal, for ordinary numbers and
    unusual ones.

    ``both`` is compiled once. ``x`` may be ``None`` or integers, ``signal`` is a pytree. Where what
    is expected is no finite number, anything may be found.
    """
    compiled, operands = jit(both), _operands(equation)
    x, signal = jax.tree.map(np.asarray, (x, signal))
    found, expected = compiled(x, signal, operands)
    same(found, expected)
    for name, unusual in _of_signals(signal):
        alike(name, *compiled(x, unusual, operands))
    ordinary = {key: FLOOR * float(np.linalg.norm(v)) for key, v in named_leaves(expected).items()}
    for name, unusual in _of_inputs(x):
        alike(name, *compiled(unusual, signal, operands), rtol=ROUNDED, floor=ordinary)
    for name, weights in _of_weights(equation):
        alike(name, *compiled(x, signal, weights), rtol=ROUNDED, floor=ordinary)


def alike(
    name: str,
    found: Any,
    expected: Any,
    *,
    rtol: float = EXACT,
    floor: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Require floating-point leaves close where finite numbers are expected; zeros may be."""
    got = named_leaves(wide(found))
    for key, want in named_leaves(wide(expected)).items():
        known = np.isfinite(want)
        size, off = (float(np.linalg.norm(v[known])) for v in (want, got[key] - want))
        require(
            off <= rtol * size + floor.get(key, 0.0),
            f"with {name}: {key}: error {off:.1e} of {size:.1e}",
        )
