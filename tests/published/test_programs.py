# SPDX-License-Identifier: Apache-2.0
"""Programs written for ``braintrace`` 0.2 run, with its numbers where those are right."""

from __future__ import annotations

import ast
import json
import re
import warnings
from pathlib import Path

import brainstate
import jax
import pytest

import braintrace
from braintrace.names import INSTEAD

HERE = Path(__file__).parent
pytest.importorskip("brainevent")  # has the sparse matrices that both take

from tests.published.numbers import PROGRAMS, numbers_of  # noqa: E402

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


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_gives_the_numbers_that_it_gave(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", braintrace.CompilationWarning)
        found = numbers_of(PROGRAMS[name]())
    assert found.keys() == PEER[name].keys()
    for array, (norm, product) in PEER[name].items():
        near = pytest.approx([norm, product], rel=5e-6, abs=1e-7 * norm)
        why = [r for p, a, r in OTHERWISE if re.fullmatch(p, name) and re.search(a, array)]
        assert (found[array] == near) == (not why), (array, found[array], near, why)


def used_names(file: str) -> set[str]:
    """Names in attributes (``braintrace.x``, ``nn.x``), and words of texts, as layers are named."""
    used: set[str] = set()
    for node in ast.walk(ast.parse((HERE / file).read_text())):
        if isinstance(node, ast.Attribute):
            used.add(ast.unparse(node))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            used |= {f"nn.{word}" for word in node.value.split()}
    return used


def test_every_published_name_that_is_here_is_in_a_program():
    """In a program that runs with 0.2, too."""
    used = set().union(*map(used_names, ("programs.py", "arrivals.py", "layers.py")))
    names = [n for n in (HERE / "names.txt").read_text().splitlines() if n.startswith("braintrace")]
    absent = {f"braintrace.{name}" for name in INSTEAD["ops"]}
    absent |= {f"braintrace.nn.{name}" for name in INSTEAD["nn"]}
    here = {*names} - absent
    assert len(here) > 120
    assert not {n for n in here if not {n, n.removeprefix("braintrace.")} & used}
