# SPDX-License-Identifier: Apache-2.0
"""Settings that a step reads."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import pytest
import saiunit as u

from braintrace.base.errors import MissingSettingError
from braintrace.compiler.environment import (
    UNSET,
    changed_setting,
    moving_values,
    recorded_settings,
)

context = brainstate.environ.context


def test_settings_that_are_read_are_recorded() -> None:
    before = brainstate.environ.get
    with context(dt=0.1, other=3):
        with recorded_settings() as found:
            assert brainstate.environ.get("dt") == 0.1
            assert brainstate.environ.get("absent", 7) == 7
            brainstate.environ.get("precision", None)  # states have that already
            with context(mine=1):
                brainstate.environ.get("mine")  # the step's own
        assert found == {"dt": 0.1, "absent": UNSET}
    assert brainstate.environ.get is before and repr(UNSET) == "not set"


def test_what_the_tracer_puts_there_is_a_setting() -> None:
    time, other = jnp.ones(()), jnp.ones(())
    with recorded_settings({"t": other}) as found, context(t=time):
        brainstate.environ.get("t")
    assert found == {}  # what the model itself puts there
    with recorded_settings({"t": time}) as found, context(t=time):
        brainstate.environ.get("t")
    assert found == {"t": time}


def test_recording_ends_with_an_error() -> None:
    before = brainstate.environ.get
    with pytest.raises(KeyError, match="x"), recorded_settings():
        raise KeyError("x")
    assert brainstate.environ.get is before


def test_a_setting_that_is_missing_is_told_unless_there_is_another_way() -> None:
    def with_another_way() -> int:
        try:
            return brainstate.environ.get("gain")
        except KeyError:
            return 7

    with recorded_settings() as found:
        assert with_another_way() == 7
        for read, text in (
            (lambda: brainstate.environ.get("fit"), r"^'fit' is read .*\.set\(fit=True\) trains"),
            (brainstate.environ.get_dt, r"^'dt' is read .*environ\.set\(dt=\.\.\.\)"),
            (lambda: brainstate.environ.get("t"), r"context\(t=\.\.\.\) around compiling, and"),
            (lambda: brainstate.environ.get("gain"), r"environ\.set\(gain=\.\.\.\) sets it$"),
        ):
            with pytest.raises(MissingSettingError, match=text):
                read()
    assert found["gain"] is UNSET


def test_the_first_setting_that_changed_is_named() -> None:
    with context(dt=0.2, fit=True):
        assert changed_setting({"fit": True, "dt": 0.2}) is None
        text = (
            "'dt' from brainstate.environ, which was 0.1 when the learner was compiled and is 0.2"
        )
        assert str(changed_setting({"fit": True, "dt": 0.1})).startswith(text)
        assert "was not set when" in str(changed_setting({"dt": UNSET}))
        assert "is not set now" in str(changed_setting({"gone": 1}))


def test_values_are_compared_with_their_structure_and_units() -> None:
    for then, now, same in (
        (jnp.ones(2), jnp.ones(2), True),
        (0.1 * u.ms, 0.1 * u.ms, True),
        (0.1 * u.ms, 0.1 * u.second, False),
        ({"a": 1}, {"b": 1}, False),
        (jnp.ones(2), jnp.ones(3), False),
    ):
        with context(given=now):
            assert (changed_setting({"given": then}) is None) == same


def test_moving_values_are_in_the_dtypes_of_the_environment() -> None:
    assert moving_values() == {}
    with context(i=3, t=2 * u.ms, precision=32):
        found = moving_values()
        assert found["i"].dtype == "int32" and found["t"].mantissa.dtype == "float32"
        assert jax.tree.structure(found["t"]) == jax.tree.structure(1.0 * u.ms)
        assert {*moving_values(("i",))} == {"i"}
