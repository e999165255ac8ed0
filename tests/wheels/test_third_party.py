# SPDX-License-Identifier: Apache-2.0
"""The example of a third-party plugin: built, installed by file, checked and trained.

Its wheel goes into an empty environment that sees the packages of this one (core among them) and
nothing of the source tree.
"""

from __future__ import annotations

import os
import site
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "third_party_plugin"


def run(*command: object, cwd: Path) -> str:
    """Run a program away from this one's packages; its output."""
    dropped = ("PYTHONPATH", "PYTHONHOME", "JAX_ENABLE_X64")
    variables = {k: v for k, v in os.environ.items() if k not in dropped}
    variables |= {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    command = ["-m", "build", "--wheel", "--no-isolation", "--outdir", folder, EXAMPLE]
    run(sys.executable, *command, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment with the wheel installed."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder)
    interpreter = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    own = Path(run(interpreter, "-c", code, cwd=folder).strip())
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (own / "others.pth").write_text("\n".join(lines) + "\n")
    install = ["install", "--disable-pip-version-check", "--no-index", "--no-deps", wheel]
    run(sys.executable, "-m", "pip", "--python", interpreter, *install, cwd=folder)
    return interpreter


def test_it_depends_on_released_names_alone(wheel):
    (metadata,) = (n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("/METADATA"))
    text = zipfile.ZipFile(wheel).read(metadata).decode()
    required = [line for line in text.splitlines() if line.startswith("Requires-Dist:")]
    names = {line.split()[1].partition(">")[0].partition("<")[0] for line in required}
    assert names == {"braintrace-core", "braintrace-testing", "jax", "pytest"}
    core = tomllib.loads((EXAMPLE.parents[1] / "core" / "pyproject.toml").read_text())["project"]
    minor = core["version"].rpartition(".")[0]
    assert any(f"braintrace-core<0.2,>={minor}" in line for line in required)


def test_it_passes_the_kit_and_trains(python, tmp_path):
    output = run(
        python, "-I", "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider",
        "--rootdir", tmp_path, "-c", os.devnull, EXAMPLE / "tests", cwd=tmp_path,
    )  # fmt: skip
    assert " passed" in output
    assert "skipped" not in output
    assert "xfailed" not in output


def test_its_names_resolve_to_what_is_installed(python, tmp_path):
    code = "import braintrace; print(braintrace.receptive_fields.__module__, braintrace.dendrites)"
    assert run(python, "-I", "-c", code, cwd=tmp_path).startswith("receptive_fields._ops <function")
    code = "import receptive_fields; print(receptive_fields.__file__)"
    assert str(EXAMPLE) not in run(python, "-I", "-c", code, cwd=tmp_path)
