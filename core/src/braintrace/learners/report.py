# SPDX-License-Identifier: Apache-2.0
"""What a learner's traces take, as text."""

from __future__ import annotations

import jax

from ..algorithms.rule import LearningRule
from ..base.arrays import bytes_of
from ..base.types import show_path
from ..drivers.block_size import auto_block_size

EXAMPLE_LENGTH = 100


def trace_report(rule: LearningRule, vjp_method: str) -> str:
    """The rule, the memory of every trace, and the steps that a gradient evaluates together."""
    traces = jax.eval_shape(rule.init)
    lines = [
        f"learning rule: {rule.name}",
        f"traces: {len(rule.links) if traces else 0}, {shown_bytes(bytes_of(traces))}",
    ]
    for i, link in enumerate(rule.links):
        own = jax.eval_shape(lambda held, i=i: rule.held_by(held, i), traces)
        if not own:
            continue
        names = ", ".join(show_path(p) for p in link.relation.parameter_paths)
        shapes = ", ".join(f"{key} {[*leaf.shape]}" for key, leaf in own.items())
        size = shown_bytes(bytes_of(own))
        lines.append(f"  {names} -> group {link.group.index}: {size} ({shapes})")
    if vjp_method == "multi-step":
        return "\n".join([*lines, "windows: as long as chunk_size, with reverse mode inside"])
    block = auto_block_size(rule, EXAMPLE_LENGTH)
    lines.append(f"block_size='auto': {block} steps for a sequence of {EXAMPLE_LENGTH}")
    return "\n".join(lines)


def shown_bytes(count: int) -> str:
    """``count`` in a unit that suits it."""
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"
