# SPDX-License-Identifier: Apache-2.0
"""Named checks, their registry, and the comparison they use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from braintrace.base.versions import is_float

from ..compare import assert_tree_close

EXACT = 1e-9  # relative error allowed in float64


class ConformanceError(AssertionError):
    """A check failed; the text begins with the check's name."""


@dataclass(frozen=True)
class Check:
    """A named promise of the plugin interface.

    Attributes
    ----------
    id
        Its name, ``"<group>.<what>"``.
    text
        What is promised, in one sentence.
    """

    id: str
    text: str
    run: Callable[[Any], None]
    applies: Callable[[Any], bool]


CASE_CHECKS: dict[str, Check] = {}
FAMILY_CHECKS: dict[str, Check] = {}
PLUGIN_CHECKS: dict[str, Check] = {}


def _always(subject: Any) -> bool:
    return True


def add_check(registry: dict[str, Check], id: str, run: Any, applies: Any = _always) -> None:
    """Register a check; its text is the first sentence of the function's docstring."""
    text = " ".join((run.__doc__ or "").split("\n\n")[0].split())
    registry[id] = Check(id, text, run, applies)


def case_check(id: str, applies: Callable[[Any], bool] = _always) -> Callable[[Any], Any]:
    """Decorator: a check of a :class:`ConformanceCase`, run in 64 bits."""
    return _registering(CASE_CHECKS, id, applies)


def family_check(id: str) -> Callable[[Any], Any]:
    """Decorator: a check of all cases together, run in 64 bits."""
    return _registering(FAMILY_CHECKS, id)


def plugin_check(id: str) -> Callable[[Any], Any]:
    """Decorator: a check of a whole plugin."""
    return _registering(PLUGIN_CHECKS, id)


def _registering(registry: dict[str, Check], id: str, applies: Any = _always) -> Any:
    def register(run: Callable[[Any], None]) -> Callable[[Any], None]:
        add_check(registry, id, run, applies)
        return run

    return register


def require(condition: Any, message: str) -> None:
    """Raise ``AssertionError`` with a message unless the condition holds."""
    if not condition:
        raise AssertionError(message)


def same(actual: Any, reference: Any, rtol: float = EXACT) -> None:
    """Require equal structures, shapes and dtypes, and floating-point leaves close."""
    mine: Any = jax.tree.structure(actual)
    theirs: Any = jax.tree.structure(reference)
    require(mine == theirs, f"structure {mine}, expected {theirs}")
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(reference), strict=True)
    for got, want in pairs:
        kinds = [f"{jnp.result_type(v)}{list(jnp.shape(v))}" for v in (got, want)]
        require(kinds[0] == kinds[1], f"got {kinds[0]}, expected {kinds[1]}")
    close(actual, reference, rtol)


def close(actual: Any, reference: Any, rtol: float = EXACT) -> None:
    """Require floating-point leaves close, none of them zero everywhere."""
    assert_tree_close(wide(actual), wide(reference), rtol)


def wide(tree: Any) -> Any:
    """The floating-point leaves in double precision; the others carry no derivative."""
    return jax.tree.map(lambda v: np.asarray(v, "float64") if is_float(v) else None, tree)
