# SPDX-License-Identifier: Apache-2.0
"""The code in the README and in the documentation runs, in the order in which it is read."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXPECTED = {
    "README.md": r"mean squared error 0\.\d+ before, 0\.00\d+ after training",
    "docs/concepts.md": (
        r"\['I', 'V'\] positions \(4, 8\) S 2[\s\S]*\['Wz', 'Wh'\]"
        r"[\s\S]*current, potential: \[2\.44\d*, 0\.487\d*\][\s\S]*D is structurally zero"
        r"[\s\S]*\['line', 'neurons\.I', 'neurons\.V'\] S 7"
        r"[\s\S]*\(\('x',\), \('y',\)\) \{'trace'\}"
    ),
    "docs/credit.md": (
        r"step (1e\+00|[89]e-01)\nlinear exact\n"
        r"[\s\S]*another layer +layers\[0\]\.v +layers\[1\]\.v"
        r"[\s\S]*linear 0\.\d\nexact exact\nwhat layers\[0\]\.v does to later values"
    ),
    "docs/devices.md": r"P(artitionSpec)?\('data', 'model'\)\nthe same gradients: True\n\(80, 64\)",
    "docs/diagnostics.md": r"",
    "docs/exporting.md": r"the same: True[\s\S]*the same: True",
    "docs/from-0.2.md": (
        r"the same gradients: True\nhidden states are zero: False, now they are: True\n"
    ),
    "docs/missing-trace.md": (
        r"2 warnings of CompilationWarning\n[\s\S]*"
        r"recurrent direct\nparameter_outside_operation - [\s\S]*\ntrace\n\(4, 8, 8, 1\)\n"
        r"cosine with BPTT: (0\.[5-9]|1\.00)"
    ),
    "docs/reading-the-graph.md": r"2 hidden groups of 2 states, 4 relations",
    "docs/hardware.md": r"after training\nthe same weights: True",
    "docs/learning-rules.md": r"e-prop, kappa 0.8\ntrace_factorization='random_projection'",
    "docs/saving.md": r"equal to the last bit: True[\s\S]*What differs:[\s\S]*\(4, 9\) here",
    "docs/sequences.md": (
        r"loss after training 0\.[012][\s\S]*since the start: 0\n[\s\S]*at step 12, .* became NaN"
        r"[\s\S]*learned from: 29 of 30"
    ),
    "docs/speed-and-memory.md": (
        r"traces: 2, 324\.00 KiB\ntraces: 2, 9\.00 KiB\nlargest difference True"
    ),
    "docs/streams.md": r"MAE: 0\.[\s\S]*the same to the last bit: True",
    "docs/quickstart.md": r"loss \d\.\d+ -> 0\.\d+\n\(100, 32, 1\)",
}
#: What they print stands on the page in blocks of text, and is compared with them.
TUTORIALS = [
    "docs/tutorials/batching.md",
    "docs/tutorials/choosing-a-rule.md",
    "docs/tutorials/compiler.md",
    "docs/tutorials/control-flow.md",
    "docs/tutorials/episodes.md",
    "docs/tutorials/events.md",
    "docs/tutorials/operations.md",
    "docs/tutorials/primitives.md",
    "docs/tutorials/rnn.md",
    "docs/tutorials/spiking.md",
    "docs/tutorials/streaming.md",
    "docs/tutorials/synapses.md",
    "docs/tutorials/time-constants.md",
    "docs/tutorials/training-loop.md",
]
EXPECTED |= dict.fromkeys(TUTORIALS, r"")
OF_NEURONS = ("spiking", "synapses", "time-constants")
NEEDED = {f"docs/tutorials/{name}.md": "brainpy" for name in OF_NEURONS}
NEEDED["docs/hardware.md"] = "nir"
#: Its blocks are files of a plugin, which tests/examples/test_authors_guide.py makes of them.
FILES = {"docs/writing-a-plugin.md"}
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
DOCUMENTS = sorted(str(page.relative_to(ROOT)) for page in PAGES)


def blocks_of(document: str, opening: str) -> str:
    """The lines of such blocks, each where it stands; everything else is an empty line."""
    kept, inside = [], False
    for line in (ROOT / document).read_text(encoding="utf-8").splitlines():
        fence = line.startswith("```")
        kept.append(line if inside and not fence else "")
        inside = line == opening if fence else inside
    return "\n".join(kept)


def assert_shown(page: str, printed: str) -> None:
    """Words are equal, and numbers with a point nearly so: they depend on versions and machine."""
    number = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?")
    parts = [" ".join(number.sub(" # ", text).split()) for text in (page, printed)]
    assert parts[0] == parts[1], printed
    shown, found = ([float(n) for n in number.findall(text)] for text in (page, printed))
    assert found == pytest.approx(shown, rel=0.1, abs=0.06), printed


@pytest.mark.parametrize("document", EXPECTED)
def test_code_runs_prints_what_it_promises_and_draws_what_is_shown(document, tmp_path):
    if document in NEEDED:
        pytest.importorskip(NEEDED[document], reason="an extra or an adapter")
    program = tmp_path / Path(document).name  # the name that its drawings mention
    program.write_text(blocks_of(document, "```python"), encoding="utf-8")
    # as users run it, but compiled as little as possible
    variables = {k: v for k, v in os.environ.items() if k != "JAX_ENABLE_X64"}
    variables["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
    done = subprocess.run(
        [sys.executable, "-W", "error", program.name],
        cwd=tmp_path,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(EXPECTED[document], done.stdout), done.stdout
    text = (ROOT / document).read_text(encoding="utf-8")
    if "```text" in text:
        assert_shown(blocks_of(document, "```text"), done.stdout)
    shown = re.findall(r"\((?:\.\./)?(drawings/[\w-]+\.svg)\)", text)
    assert sorted(p.name for p in tmp_path.glob("*.svg")) == sorted(Path(p).name for p in shown)
    for drawing in shown:
        # the page shows the file; where the two differ, the new one belongs there
        new = (tmp_path / Path(drawing).name).read_text(encoding="utf-8")
        assert new == (ROOT / "docs" / drawing).read_text(encoding="utf-8")


def test_every_block_of_code_is_run():
    with_code = {d for d in DOCUMENTS if "```python" in (ROOT / d).read_text(encoding="utf-8")}
    assert with_code == {*EXPECTED, *FILES}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_to_files(document):
    folder = (ROOT / document).parent
    text = (ROOT / document).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if "://" not in link]
    missing = [link for link in links if not (folder / link).exists()]
    assert not missing


def test_the_files_of_the_architecture_are_there():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    questions = re.findall(r"^\| .+\? \| `(\S+\.py)` \|$", text, re.MULTILINE)
    folders = re.findall(r"^\| \d \| `(\S+)`", text, re.MULTILINE)
    package = ROOT / "core" / "src" / "braintrace"
    assert len(questions) > 20 and all((package / file).is_file() for file in questions)
    assert len(folders) > 12 and all((package / folder).exists() for folder in folders)


def test_every_program_is_on_the_site():
    page = (ROOT / "docs" / "programs.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"literalinclude\} \.\./(examples/\S+)", page))
    folder = ROOT / "examples"
    parts = ["*.py", "_*/*.py", "third_party_plugin/src/*/*.py", "third_party_plugin/tests/*.py"]
    programs = {str(file.relative_to(ROOT)) for part in parts for file in folder.glob(part)}
    private = {f"examples/{name}/__init__.py" for name in ("_shared", "_digits")}
    assert programs - private == shown - {"examples/third_party_plugin/pyproject.toml"}
