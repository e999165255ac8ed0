# SPDX-License-Identifier: Apache-2.0
"""Records of the compiler, as a notebook shows them."""

from __future__ import annotations

from ..base.diagnostics import CompilationRecord


class Records(tuple[CompilationRecord, ...]):
    """Records of the compiler: a tuple, which a notebook shows as a table."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        from .report import records_to_html

        return records_to_html(self)
