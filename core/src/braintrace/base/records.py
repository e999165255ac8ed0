# SPDX-License-Identifier: Apache-2.0
"""Records that also answer as the named tuples of published code did."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar


class NamedFields:
    """A dataclass with ``_fields``, ``_asdict()``, ``dict()``, ``_replace()`` and unpacking.

    Its fields are attributes, stored or computed, in the order that they had; ``_replace`` takes
    those that are stored.
    """

    _fields: ClassVar[tuple[str, ...]]

    def __init_subclass__(cls, fields: str, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls._fields = tuple(fields.split())

    def _asdict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._fields}

    def _replace(self, **changes: Any) -> Any:
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._asdict().values())

    dict = _asdict
