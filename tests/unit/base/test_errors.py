# SPDX-License-Identifier: Apache-2.0
"""Errors of compiling, and methods that nothing calls."""

from __future__ import annotations

import pytest

from braintrace.base.errors import (
    CompilationError,
    MissingSettingError,
    NotSupportedError,
    behind,
    refuse_unused,
)

INSTEAD = {"old_hook": "write new_hook", "older": "leave it out"}


class ContainerError(Exception):
    """One that a container of ``brainstate`` raises around that of a layer."""

    __module__ = "brainstate.somewhere"


def test_the_error_behind_those_of_containers() -> None:
    cause, other = ValueError("of the model"), RuntimeError("around it")
    outer, middle = ContainerError(), ContainerError()
    outer.__cause__, middle.__cause__, other.__cause__ = middle, cause, cause
    assert behind(outer) is behind(cause) is cause
    assert behind(other) is other
    alone = ContainerError()
    assert behind(alone) is alone


def test_a_missing_setting_is_told_without_quotes() -> None:
    assert str(MissingSettingError("no 'fit'")) == "no 'fit'"


def test_what_is_not_supported_cannot_be_compiled() -> None:
    assert issubclass(NotSupportedError, CompilationError)


def test_a_method_that_nothing_calls_is_refused_with_a_remedy() -> None:
    class Old:
        def old_hook(self) -> None: ...

    class Beside(Old):
        """Inherits it."""

    for cls in (Old, Beside):
        text = f"{cls.__name__} defines old_hook, which nothing calls: write new_hook"
        with pytest.raises(TypeError, match=text):
            refuse_unused(cls, INSTEAD)


def test_other_methods_are_fine() -> None:
    class New:
        def new_hook(self) -> None: ...

    refuse_unused(New, INSTEAD)
    with pytest.raises(TypeError, match="New defines new_hook"):
        refuse_unused(New, {"new_hook": ""})
