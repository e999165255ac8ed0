# SPDX-License-Identifier: Apache-2.0
"""Published code ran in float32."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator, Mapping

import brainstate
import jax
import pytest

jax.config.update("jax_disable_most_optimizations", True)  # hundreds of small programs
NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?")


@pytest.fixture(scope="module", autouse=True)
def float32() -> Iterator[None]:
    """JAX's own default; brainstate takes its own from the moment when it is imported."""
    with jax.enable_x64(False), brainstate.environ.context(precision=32):
        yield


@pytest.fixture
def prints(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Compare what was printed with what was printed there.

    Words are equal and numbers with a point nearly so. ``but`` says which text stands there in the
    place of one of then; the reason is beside it in the test.
    """

    def check(stored: str, but: Mapping[str, str] | None = None) -> None:
        stored = textwrap.dedent(stored).strip()
        for then, now in (but or {}).items():
            assert then in stored, then
            stored = stored.replace(then, now)
        printed = re.sub(r"id=\d+", "id=...", capsys.readouterr().out)
        words = [" ".join(NUMBER.sub("#", text).split()) for text in (printed, stored)]
        assert words[0] == words[1], printed
        found, expected = ([float(n) for n in NUMBER.findall(t)] for t in (printed, stored))
        round_off = 1e-7 * max(map(abs, expected), default=0.0)  # sums in float32 cancel
        assert found == pytest.approx(expected, rel=1e-5, abs=round_off)

    return check
