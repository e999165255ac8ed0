# SPDX-License-Identifier: Apache-2.0
"""Read-only views on the registry of ETP primitives, keyed by primitive."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from typing import Any

from .primitive import REGISTRY, ETPPrimitive


class _PrimitiveSet(Set):  # type: ignore[type-arg]
    """The registered primitives, optionally only the batched ones."""

    def __init__(self, batched_only: bool = False) -> None:
        self._batched_only = batched_only

    def __contains__(self, item: object) -> bool:
        return any(item is p for p in self)

    def __iter__(self) -> Iterator[ETPPrimitive]:
        return (p for p in tuple(REGISTRY.values()) if p.spec.batched or not self._batched_only)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _FieldView(Mapping[ETPPrimitive, Any]):
    """Primitive -> one field of its specification (or the whole), where it is set."""

    def __init__(self, field: str | None) -> None:
        self._field = field

    def _get(self, primitive: ETPPrimitive) -> Any:
        return primitive.spec if self._field is None else getattr(primitive.spec, self._field)

    def __getitem__(self, primitive: ETPPrimitive) -> Any:
        if primitive not in ETP_PRIMITIVES or self._get(primitive) is None:
            raise KeyError(primitive)
        return self._get(primitive)

    def __iter__(self) -> Iterator[ETPPrimitive]:
        return (p for p in ETP_PRIMITIVES if self._get(p) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)


ETP_PRIMITIVES = _PrimitiveSet()
BATCHED_PRIMITIVES = _PrimitiveSet(batched_only=True)
ETP_PRIMITIVE_SPECS = _FieldView(None)
ETP_RULES_YW_TO_W = _FieldView("yw_to_w")
ETP_RULES_XY_TO_DW = _FieldView("xy_to_dw")
ETP_RULES_INIT_DRTRL = _FieldView("init_drtrl")
ETP_RULES_INIT_PP = _FieldView("init_pp")
