# SPDX-License-Identifier: Apache-2.0
"""The code in the README and in the documentation runs, in the order in which it is read."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = {
    "README.md": r"mean squared error 0\.\d+ before, 0\.00\d+ after training",
    "docs/reading-the-graph.md": r"2 hidden groups of 2 states, 4 relations",
    "docs/learning-rules.md": r"e-prop, kappa 0.8\ntrace_factorization='random_projection'",
    "docs/saving.md": r"equal to the last bit: True[\s\S]*What differs:[\s\S]*\(4, 9\) here",
    "docs/sequences.md": r"loss after training 0\.[012][\s\S]*at step 12, .* became NaN",
    "docs/quickstart.md": r"loss \d\.\d+ -> 0\.\d+\n\(100, 32, 1\)",
}


def code_of(document: str) -> str:
    text = (ROOT / document).read_text(encoding="utf-8")
    return "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))


@pytest.mark.parametrize("document", EXPECTED)
def test_code_runs_and_prints_what_it_promises(document):
    done = subprocess.run(
        [sys.executable, "-c", code_of(document)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert re.search(EXPECTED[document], done.stdout), done.stdout


@pytest.mark.parametrize(
    "document", ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))]
)
def test_links_lead_to_files(document):
    folder = (ROOT / document).parent
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (folder / link).exists()]
    assert not missing
