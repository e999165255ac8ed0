# SPDX-License-Identifier: Apache-2.0
"""Types that every floor uses."""

from __future__ import annotations

from typing import Any

import brainstate

Path = tuple[Any, ...]


def show_path(path: Path) -> str:
    """A state's path as a person writes it: ``rnn.layers[0].weight``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{part}"
    return text


State = brainstate.State[Any]
