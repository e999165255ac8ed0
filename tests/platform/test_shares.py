# SPDX-License-Identifier: Apache-2.0
"""Two Pythons share the tests: together they run all of them."""

from __future__ import annotations

import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

CONFTEST = Path(__file__).resolve().parents[2] / "conftest.py"
CONFIG: Any = SimpleNamespace(hook=SimpleNamespace(pytest_deselected=lambda items: None))


class Item(SimpleNamespace):
    """What is looked at of pytest's items, which can be hashed."""

    __hash__ = object.__hash__  # type: ignore[assignment]


def chosen(share: str, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The names that are left of tests with one to nine cells, in two files."""
    monkeypatch.setenv("BRAINTRACE_CELLS", share)
    names = [f"{file}::test_{n}[{k}]" for file in "ab" for n in range(2, 10) for k in range(n)]
    names += [f"{file}::alone_{k}" for file in "ab" for k in range(7)]
    items = [Item(nodeid=name, path=Path(name[0])) for name in names]
    runpy.run_path(str(CONFTEST))["pytest_collection_modifyitems"](CONFIG, items)
    return {item.nodeid for item in items}


def test_the_third_and_the_rest_are_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    every, third, rest = (chosen(share, monkeypatch) for share in ("all", "third", "rest"))
    assert third | rest == every and len(every) == 2 * (44 + 7)
    assert {name for name in third & rest if "[" in name} == set()
    functions = {name.partition("[")[0] for name in every if "[" in name}
    for part in (third, rest):
        assert {name.partition("[")[0] for name in part if "[" in name} == functions
    assert len({name for name in third if "[" not in name}) == 2 * 3
    assert {name for name in every if "[" not in name} <= rest


def test_another_share_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(pytest.UsageError, match="is all, third or rest, not 'half'"):
        chosen("half", monkeypatch)
