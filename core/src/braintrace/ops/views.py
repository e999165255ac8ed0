# SPDX-License-Identifier: Apache-2.0
"""Read-only views on the registry of ETP primitives, keyed by primitive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .primitive import REGISTRY, ETPPrimitive


class _FieldView(Mapping[ETPPrimitive, Any]):
    """Primitive -> one field of its specification (or the whole), where it is set."""

    def __init__(self, field: str | None) -> None:
        self._field = field

    def _get(self, primitive: ETPPrimitive) -> Any:
        return primitive.spec if self._field is None else getattr(primitive.spec, self._field)

    def __getitem__(self, primitive: ETPPrimitive) -> Any:
        if not any(primitive is known for known in self):
            raise KeyError(primitive)
        return self._get(primitive)

    def __iter__(self) -> Iterator[ETPPrimitive]:
        return (p for p in tuple(REGISTRY.values()) if self._get(p))

    def __len__(self) -> int:
        return sum(1 for _ in self)


ETP_PRIMITIVE_SPECS = _FieldView(None)
ETP_PRIMITIVES = ETP_PRIMITIVE_SPECS.keys()
BATCHED_PRIMITIVES = _FieldView("batched").keys()
ETP_RULES_YW_TO_W = _FieldView("yw_to_w")
ETP_RULES_XY_TO_DW = _FieldView("xy_to_dw")
ETP_RULES_INIT_DRTRL = _FieldView("init_drtrl")
ETP_RULES_INIT_PP = _FieldView("init_pp")
