# SPDX-License-Identifier: Apache-2.0
"""The folder that is carried to a machine with a GPU: ``python -m _gpu.bundle``.

It holds the wheels of this tree and of what they need, those of the peer library, and the
benchmark programs. The machine has Python, JAX with CUDA, NumPy and SciPy, and no network.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from _bench.peer import requirement

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "gpu"
WHEELS, SETS = "wheels", "sets.json"
LIMIT = 60 * 2**20  # bytes of all wheels
PEER = requirement((3, 12))
JAX = "jax==0.11.*"
#: What the machine has: JAX, and what JAX itself needs.
PROVIDED = ("jax", "jaxlib", "ml-dtypes", "numpy", "opt-einsum", "scipy")
LINUX = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
TARGET = [
    *("--python-version", "3.12", "--implementation", "cp", "--only-binary=:all:"),
    *(part for name in LINUX for part in ("--platform", f"{name}_x86_64")),
]
SOURCES = ("benchmarks/gpu.py", "benchmarks/_gpu", "benchmarks/_bench", "examples/_shared")


def make(folder: Path = FOLDER) -> None:
    """Make the folder anew, and say how the program in it is run."""
    shutil.rmtree(folder, ignore_errors=True)
    wheels = folder / WHEELS
    wheels.mkdir(parents=True)
    own = built(wheels)
    sets = {"ours": fetched([*map(str, own)], wheels), "peer": fetched([PEER], wheels)}
    if size(wheels.iterdir()) > LIMIT:
        for name in {*sets.pop("peer")} - {*sets["ours"]}:
            (wheels / name).unlink()
        print(f"The peer, {PEER}, is left out: with it the wheels are above {mebibytes(LIMIT)}.")
    (folder / SETS).write_text(json.dumps(sets, indent=1) + "\n")
    for source in SOURCES:
        copy(ROOT / source, folder / source)
    print(f"{folder.relative_to(ROOT)}: {mebibytes(size(folder.rglob('*')))}, of which wheels")
    for path in sorted(wheels.iterdir()):
        used = ", ".join(name for name, files in sets.items() if path.name in files)
        print(f"  {mebibytes(path.stat().st_size):>9}  {path.name}  ({used})")
    print("\nOn the machine with the GPU, beside this folder:\n")
    print(f"  python3 {folder.relative_to(ROOT)}/benchmarks/gpu.py --out RESULTS\n")


def built(wheels: Path) -> list[Path]:
    """Build the wheels of this tree's distributions."""
    files = [ROOT / "core" / "pyproject.toml", *sorted(ROOT.glob("plugins/*/pyproject.toml"))]
    adapters = [f for f in files[1:] if "braintrace.plugins.v1" not in f.read_text()]
    needed = [f.parent for f in files if f not in adapters or f.parent.name == "testing"]
    for project in needed:
        command = ["build", "--wheel", "--no-isolation", "--outdir", str(wheels), str(project)]
        call(command)
    return sorted(wheels.iterdir())


def fetched(requirements: Sequence[str], wheels: Path) -> list[str]:
    """The file names of all that requirements need on the machine, once they are in ``wheels``."""
    found = resolved(requirements)
    urls = [one["download_info"]["url"] for one in found if canonical(one) not in PROVIDED]
    wanted = [url for url in urls if not (wheels / file_name(url)).exists()]
    if wanted:
        call(["pip", "download", "--quiet", "--no-deps", *TARGET, "--dest", str(wheels), *wanted])
    return sorted(map(file_name, urls))


def resolved(requirements: Sequence[str]) -> list[Any]:
    """The distributions that pip would install for the machine."""
    command = ["pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    command += ["--ignore-requires-python", *TARGET, "--target", str(FOLDER), JAX, *requirements]
    return json.loads(call(command))["install"]  # type: ignore[no-any-return]


def call(arguments: Iterable[str]) -> str:
    """What a module of this Python prints; its own words on failure."""
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}")
    return done.stdout


def canonical(distribution: Any) -> str:
    """The name of a distribution, as indexes write it."""
    return str(distribution["metadata"]["name"]).lower().replace("_", "-").replace(".", "-")


def file_name(url: str) -> str:
    """The last part of an address."""
    return url.rpartition("/")[2].partition("#")[0]


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder without what Python compiled."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def size(paths: Iterable[Path]) -> int:
    """Bytes of all files."""
    return sum(path.stat().st_size for path in paths if path.is_file())


def mebibytes(count: int) -> str:
    """A number of bytes as text."""
    return f"{count / 2**20:.1f} MiB"


if __name__ == "__main__":
    make()
