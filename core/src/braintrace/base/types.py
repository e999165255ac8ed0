# SPDX-License-Identifier: Apache-2.0
"""States and their paths."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import brainstate

Path = tuple[Any, ...]
State = brainstate.State[Any]


def show_path(path: Path) -> str:
    """A state's path as every text writes it: ``rnn.layers[0].weight``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text


def restore_values(values: Mapping[State, Any]) -> None:
    """Give states earlier values of theirs, of another structure, too."""
    for state, value in values.items():
        try:
            state.restore_value(value)
        except ValueError:  # refused to a state whose structure was changed; an assignment is not
            state.value = value
