# SPDX-License-Identifier: Apache-2.0
"""Programs written for ``braintrace`` 0.2 run, with its numbers where those are right."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path

import brainstate
import jax
import pytest

import braintrace
from braintrace.names import CORE, OFFICIAL

HERE = Path(__file__).parent
pytest.importorskip("brainevent")  # has the sparse matrices that both take

from tests.published import programs  # noqa: E402

PEER = json.loads((HERE / "numbers.json").read_text())["numbers"]

ONCE = "every path is counted once: docs/derivations.md"
CURRENT = "a weight behind another weight has its gradient of the current step"
#: What has other numbers here: expressions for the program and the array, and the reason.
OTHERWISE = [
    (r"(?!windows).*", r"\bWr/weight", CURRENT),
    ("cells", r"'(LSTMCell|URLSTMCell)'.*/(W[fgiu]/|bias)", ONCE),
    ("cells", r"'(MGUCell)'.*/Wf/|'MinimalRNNCell'.*/phi/", CURRENT),
]


@pytest.fixture(scope="module", autouse=True)
def float64():
    with jax.enable_x64(True), brainstate.environ.context(precision=64):
        yield


@pytest.mark.parametrize("name", programs.PROGRAMS)
def test_a_program_gives_the_numbers_that_it_gave(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", braintrace.CompilationWarning)
        found = programs.numbers_of(programs.PROGRAMS[name]())
    assert found.keys() == PEER[name].keys()
    for array, (norm, product) in PEER[name].items():
        near = pytest.approx([norm, product], rel=5e-6, abs=1e-7 * norm)
        why = [r for p, a, r in OTHERWISE if re.fullmatch(p, name) and re.search(a, array)]
        assert (found[array] == near) == (not why), (array, found[array], near, why)


def test_every_published_name_that_is_here_is_in_a_program():
    text = "".join(file.read_text() for file in HERE.glob("*.py"))
    own = {f"braintrace.{name}" for name in [*CORE, *OFFICIAL["ops"]]}
    own |= {f"braintrace.nn.{name}" for name in OFFICIAL["nn"]}
    published = own.intersection((HERE / "names.txt").read_text().split())
    assert len(published) > 50
    for name in published:
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", text), name
