# SPDX-License-Identifier: Apache-2.0
"""The authors' guide, followed to the letter: every file written, every command run, in order."""

from __future__ import annotations

import os
import re
import shlex
import site
import subprocess
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GUIDE = ROOT / "docs" / "writing-a-plugin.md"
BLOCK = re.compile(r"^```(\w+)(?: title=\"(.+?)\")?\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def environment(folder: Path) -> Path:
    """An empty environment that sees the packages of this one; returns its interpreter."""
    venv.create(folder)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True)
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (Path(own.stdout.strip()) / "others.pth").write_text("\n".join(lines) + "\n")
    return python


class Reader:
    """Somebody who does what the guide says."""

    def __init__(self, python: Path, folder: Path) -> None:
        self.python, self.folder = python, folder
        dropped = ("PYTHONPATH", "PYTHONHOME", "JAX_ENABLE_X64")
        self.variables = {k: v for k, v in os.environ.items() if k not in dropped}
        self.variables |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
        # What the guide installs is here already: no network, no second copy of the build tools.
        self.variables |= {"PIP_NO_INDEX": "1", "PIP_NO_BUILD_ISOLATION": "false"}

    def run(self, *command: str) -> str:
        done = subprocess.run(
            [self.python, *command],
            cwd=self.folder,
            env=self.variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def type(self, line: str) -> str:
        """Type one line of a console block."""
        assert line.startswith("$ "), line
        program, *arguments = shlex.split(line[2:])
        if program == "cd":
            self.folder = self.folder / arguments[0]
            return ""
        if program == "braintrace":
            return self.run("-m", "braintrace", *arguments)
        assert program == "python", line
        return self.run(*arguments)

    def follow(self, language: str, title: str, text: str) -> str:
        """Do what one block says."""
        if language == "console":
            return "".join(self.type(line) for line in text.splitlines())
        assert language == "python", language
        if not title:
            return self.run("-c", text)
        path = self.folder / title
        assert path.exists(), f"{title} is not one of the files that new-plugin writes"
        path.write_text(text, encoding="utf-8")
        return ""


@pytest.fixture
def reader(tmp_path):
    return Reader(environment(tmp_path / "environment"), tmp_path)


def test_the_guide_leads_to_a_working_plugin(reader):
    text = GUIDE.read_text(encoding="utf-8")
    blocks = BLOCK.findall(text)
    assert 2 * len(blocks) == len(re.findall(r"^```", text, re.MULTILINE))
    output = [reader.follow(*block) for block in blocks]
    kit = next(out for out, (_, _, code) in zip(output, blocks, strict=True)
               if code == "$ python -m pytest\n")  # fmt: skip
    assert " passed" in kit
    assert "skipped" not in kit
    assert "<function amplified" in output[-1]


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)\)", GUIDE.read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (GUIDE.parent / link).exists()]
