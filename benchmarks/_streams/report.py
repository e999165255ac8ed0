# SPDX-License-Identifier: Apache-2.0
"""The results as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(found: Sequence[dict[str, Any]]) -> str:
    """One block of lines for each series."""
    lines = []
    for name in dict.fromkeys(one["series"] for one in found):
        mine = [one for one in found if one["series"] == name]
        lines += ["", f"{name}: {mine[0]['measure']}"]
        lines.append(f"   {'model':<40}{'mean':>9}   {'seeds':<30}{'us a sample':>12}")
        for one in mine:
            seeds = " ".join(f"{value:.4g}" for value in one["values"])
            figures = f"{one['mean']:>9.4g}   {seeds:<30}{one['microseconds']:>12.0f}"
            lines.append(f"   {one['model']:<40}{figures}")
    return "\n".join(lines)
