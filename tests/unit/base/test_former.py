# SPDX-License-Identifier: Apache-2.0
"""Attributes and options of version 0.2 say what to use in their place."""

from __future__ import annotations

from typing import Any

import pytest

from braintrace.base.former import (
    ATTRIBUTES,
    OPTIONS,
    FormerAttributes,
    former_options,
    instead,
    without_former_options,
)


class Thing(FormerAttributes):
    @property
    def broken(self) -> int:
        raise AttributeError("why it is broken")


@pytest.mark.parametrize("name", ATTRIBUTES)
def test_an_attribute_says_what_to_use(name: str) -> None:
    with pytest.raises(AttributeError, match=f"'Thing' object has no attribute '{name}'") as caught:
        getattr(Thing(), name)
    assert str(caught.value).endswith(f"use {ATTRIBUTES[name]}") and not hasattr(Thing(), name)


def test_other_attributes_say_what_they_would() -> None:
    with pytest.raises(AttributeError, match="'Thing' object has no attribute 'nothing'$"):
        Thing().nothing  # noqa: B018
    with pytest.raises(AttributeError, match="why it is broken"):
        Thing().broken  # noqa: B018


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_changes_nothing_is_taken(name: str) -> None:
    @without_former_options
    def function(*args: int, **options: Any) -> tuple[Any, ...]:
        """A function."""
        return args, options

    unchanged, use = OPTIONS[name]
    assert function(1, **{name: unchanged}, other=2) == ((1,), {"other": 2})
    assert former_options({name: unchanged, "other": 2}) == {"other": 2}
    assert function.__doc__ == "A function." and instead(name, OPTIONS).endswith(use)
    with pytest.raises(TypeError, match=f"function has no option '{name}'; .* braintrace 0.2"):
        function(**{name: 7})
    assert instead("nothing", OPTIONS) == ""
