# SPDX-License-Identifier: Apache-2.0
"""Set up the project and run it: ``python3 dev.py COMMAND [options]``.

demo    train the digits networks (examples/digits.py); options are passed on, --help included
test    run the whole test suite, units first; options and paths are passed on to pytest;
        --changed[=COMMIT] runs what the changes since a commit (default: the last one) need, in a
        minute or two; --random[=TIMES] draws that many times as many random cells (default: 20)
bench   measure speed and memory against BPTT and the peer library; options are passed on
gpu     make build/gpu, with which a machine with a GPU and without a network measures the same
check   lint, formatting and types, and the lines of each folder of core
stubs   write the type stubs of the public names anew
docs    build the documentation site, without a network; --open shows it in a browser
wheels  build sdists and wheels, install these by file into empty environments and try every pair
        of families and all of them; --every-subset tries every subset
release build the sdist and the wheel of each distribution into dist/, and look into them

The environment is made in .venv (or the folder named by VENV), with plain venv and pip.
"""

import sys

if sys.version_info < (3, 11):
    sys.exit("braintrace needs Python 3.11 or newer, this is Python " + sys.version.split()[0])

import ast
import hashlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import tempfile
import time
import venv
import webbrowser
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "core" / "src" / "braintrace"
VENV = ROOT / os.environ.get("VENV", ".venv")
EXTRAS = "docs,examples,neurons,test,dev"
NEWER_PYTHONS = ("3.13", "3.12")
UNITS, RANDOM = "tests/unit", "tests/truth/property"
SLOW: tuple[str, ...] = (
    "tests/devices",
    RANDOM,
    "tests/truth",
    "tests/truth/neurons",
    "tests/truth/oracle",
    "tests/examples",
    "tests/benchmarks",
)
FILES_PER_PROCESS, UNITS_PER_PROCESS = 4, 12
NO_TESTS = 5  # pytest's exit status
#: With these XLA compiles small programs in half the time; a version may lack some of them.
XLA_OPTIONS = ("--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1")


# --- the environment -----------------------------------------------------------------------------


def distributions() -> list[Path]:
    """The folders of the distributions, core first."""
    return [ROOT / "core", *sorted(p.parent for p in ROOT.glob("plugins/*/pyproject.toml"))]


def python_of(folder: Path) -> Path:
    """The interpreter of a virtual environment."""
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def stamp() -> tuple[str, str]:
    """What the environment is made from: the interpreter, and what is installed into it."""
    declared = [EXTRAS, (ROOT / "constraints.txt").read_text()]
    declared += [(folder / "pyproject.toml").read_text() for folder in distributions()]
    return digest(sys.version, sys.base_prefix, str(ROOT)), digest(*declared)


def digest(*parts: str) -> str:
    """A short name for a list of texts."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def environment() -> Path:
    """The interpreter of the project's environment, made or brought up to date when needed."""
    mark, python, wanted = VENV / "braintrace-stamp", python_of(VENV), stamp()
    found = mark.read_text().split() if mark.is_file() and python.exists() else []
    if found == [*wanted]:
        return python
    if VENV.exists() and not (VENV / "pyvenv.cfg").is_file():
        sys.exit(f"{VENV} is in the way: it is not a virtual environment")
    print(f"Setting up {VENV.name} (a few minutes the first time) ...", flush=True)
    if found[:1] != [wanted[0]]:
        venv.create(VENV, with_pip=True, clear=True)
    mark.write_text(f"{wanted[0]}\n")
    install(python, "hatchling", "editables")
    editable = [f"{ROOT / 'core'}[{EXTRAS}]", *map(str, distributions()[1:])]
    install(python, "--no-build-isolation", *(part for path in editable for part in ("-e", path)))
    mark.write_text("\n".join(wanted))
    return python


def install(python: Path, *what: str) -> None:
    """Install into the environment of ``python``, within the constraints."""
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [*map(str, command), "--constraint", str(ROOT / "constraints.txt"), *what],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stdout}\npip could not install {shlex.join(what)}")


def newer_python() -> Path | None:
    """The newest Python on this machine that the constraints know, if newer than this one.

    Every candidate is tried by running it: a command on the PATH may be a version manager's
    shim for a Python that is not selected.
    """
    for version in NEWER_PYTHONS:
        if tuple(map(int, version.split("."))) <= sys.version_info[:2]:
            return None
        for candidate in candidates(version):
            if runs_as(candidate, version):
                return candidate
    return None


def candidates(version: str) -> Iterator[Path]:
    """Files that may be the Python of ``version``: on the PATH, then those of pyenv."""
    for folder in os.get_exec_path():
        found = shutil.which(f"python{version}", path=folder)
        if found:
            yield Path(found)
    roots = {os.environ.get("PYENV_ROOT", ""), output("pyenv", "root"), "~/.pyenv"}
    for root in sorted(roots - {""}):
        folders = (Path(root).expanduser() / "versions").glob(f"{version}.*")
        yield from (python_of(folder) for folder in sorted(folders, reverse=True))


def runs_as(candidate: Path, version: str) -> bool:
    """Whether a file is a working Python of that version that can make environments."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    return output(str(candidate), "-c", code) == version


def output(*command: str, variables: Mapping[str, str] | None = None) -> str:
    """What a command prints, or nothing when it fails or does not exist."""
    try:
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


# --- commands ------------------------------------------------------------------------------------


def demo(options: Sequence[str]) -> int:
    """Run the example program."""
    return subprocess.call([environment(), ROOT / "examples" / "digits.py", *options])


def bench(options: Sequence[str]) -> int:
    """Run the benchmark program."""
    return subprocess.call([environment(), ROOT / "benchmarks" / "bench.py", *options])


def gpu(options: Sequence[str]) -> int:
    """Make the folder for a machine with a GPU, and say what to run there."""
    refuse("gpu", options)
    return subprocess.call([environment(), "-m", "_gpu.bundle"], cwd=ROOT / "benchmarks")


@dataclass(frozen=True)
class Tally:
    """How many tests of a pytest process passed, failed and were skipped."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.passed + other.passed, self.failed + other.failed, self.skipped + other.skipped
        )

    def __str__(self) -> str:
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return f"{self.passed} passed, {self.failed} failed{skipped}"


def test(options: Sequence[str]) -> int:
    """Run the suite, or that part of it that is in ``tests`` or ``plugins``, one pytest process
    per group of files; with other paths, pytest as it is."""
    python = environment()
    for option in options:
        name, _, value = option.partition("=")
        rest = [other for other in options if other != option]
        if name == "--changed":
            files = needed_by(changed_files(value or "HEAD"))
            print("For what has changed:", *(str(file.relative_to(ROOT)) for file in files))
            return subprocess.call([python, "-m", "pytest", *rest, *files])
        if name == "--random":
            many = {**quick_compilation(python), "BRAINTRACE_PROPERTY_RUNS": value or "20"}
            return subprocess.call([python, "-m", "pytest", *rest, RANDOM], cwd=ROOT, env=many)
    parts = [option for option in options if option.rstrip("/") in ("tests", "plugins")]
    options = [option for option in options if option not in parts]
    if any(Path(option.partition("::")[0]).exists() for option in options):
        return subprocess.call([python, "-m", "pytest", *options, *parts])
    groups = test_groups(parts or ("tests", "plugins"))
    start = time.monotonic()
    variables = quick_compilation(python)
    units = [group for group in groups if group[0].is_relative_to(ROOT / UNITS)]
    others = [group for group in groups if group not in units]
    tallies = run_groups(python, options, variables, units)
    if sum(tallies, Tally()).failed:
        print("A unit failed: the rest is not run.")
        others = []
    tallies += run_groups(python, options, variables, others)
    total = sum(tallies, Tally())
    print(f"\n{'=' * 30} summary ({time.monotonic() - start:.0f} s) {'=' * 30}")
    for group, tally in zip([*units, *others], tallies, strict=True):
        print(f"{'FAILED' if tally.failed else 'ok':8}{title(group)}: {tally}")
    if total == Tally():
        print("no test ran")
    print(total)
    return 1 if total.failed or total == Tally() else 0


def run_groups(
    python: Path,
    options: Sequence[str],
    variables: Mapping[str, str],
    groups: Sequence[Sequence[Path]],
) -> list[Tally]:
    """Run groups of files, two at a time."""
    with ThreadPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        return list(pool.map(partial(run_group, python, options, variables), groups))


def changed_files(commit: str) -> list[Path]:
    """What differs from a commit, files that are not yet in the repository included."""
    inside = ["git", "-C", str(ROOT)]
    found = output(*inside, "diff", "--name-only", commit).splitlines()
    found += output(*inside, "ls-files", "--others", "--exclude-standard").splitlines()
    return [ROOT / name for name in dict.fromkeys(found)]


def needed_by(changed: Sequence[Path]) -> list[Path]:
    """The test files of changed files: themselves, those of their name, those that import them.

    The tests of the structure are always among them; a changed plugin brings all of its tests.
    """
    every = [*ROOT.glob("tests/**/test_*.py"), *ROOT.glob("plugins/*/tests/**/test_*.py")]
    found = {ROOT / "tests" / "platform" / "test_layers.py"} | ({*changed} & {*every})
    for file in changed:
        if file.is_relative_to(PACKAGE):
            inside = file.relative_to(PACKAGE).with_suffix("")
            found.add(ROOT / "tests" / "unit" / inside.parent / f"test_{inside.name.strip('_')}.py")
            dotted = ".".join(["braintrace", *inside.parts]).removesuffix(".__init__")
            found |= {test for test in every if names_module(test, dotted)}
        elif file.is_relative_to(ROOT / "tests") and file.suffix == ".py":  # what tests share
            dotted = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            found |= {test for test in every if names_module(test, dotted)}
        elif file.is_relative_to(ROOT / "plugins"):
            folder = ROOT / "plugins" / file.relative_to(ROOT / "plugins").parts[0]
            found |= {test for test in every if test.is_relative_to(folder)}
        elif file.suffix == ".md":
            found.add(ROOT / "tests" / "examples" / "test_documents.py")
    return sorted(file for file in found if file.is_file())


def names_module(test: Path, dotted: str) -> bool:
    """Whether a test file imports a module, as such or from its package."""
    package, _, name = dotted.rpartition(".")
    names = rf"(from {re.escape(dotted)} import|from {re.escape(package)} import .*\b{name}\b)"
    return re.search(names, test.read_text()) is not None


def quick_compilation(python: Path) -> dict[str, str]:
    """The environment variables, with what the installed XLA knows of ``XLA_OPTIONS``.

    An option that it does not know would end every process that has it. Bytecode is kept: every
    process would compile the sources again.
    """
    own = os.environ.get("XLA_FLAGS", "")
    cpu = {**os.environ, "JAX_PLATFORMS": "cpu"}
    known = []
    for option in XLA_OPTIONS:
        code = "import jax; jax.devices(); print('known')"
        if output(str(python), "-c", code, variables={**cpu, "XLA_FLAGS": option}) == "known":
            known.append(option)
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    kept |= {"JAX_TRACEBACK_IN_LOCATIONS_LIMIT": "1"}  # in compiled programs; a tenth of lowering
    return {**kept, "XLA_FLAGS": " ".join([*known, own]).strip()}


def test_groups(parts: Sequence[str]) -> list[list[Path]]:
    """The test files of each folder, at most a few together: compiled programs pile up.

    What takes long comes first, so that no process is left alone with it in the end.
    """
    patterns = {"tests": "tests/**/test_*.py", "plugins": "plugins/*/tests/**/test_*.py"}
    files = sorted(file for part in parts for file in ROOT.glob(patterns[part.rstrip("/")]))
    slow = [ROOT / folder for folder in SLOW]
    folders = sorted({file.parent for file in files} - {*slow})
    groups = []
    for folder in [*slow, *folders]:
        inside = [file for file in files if file.parent == folder]
        quick = folder.is_relative_to(ROOT / UNITS)
        size = UNITS_PER_PROCESS if quick else FILES_PER_PROCESS
        groups += [inside[i : i + size] for i in range(0, len(inside), size)]
    return groups


def title(group: Sequence[Path]) -> str:
    """The name of a group in the summary."""
    names = ", ".join(file.stem.removeprefix("test_") for file in group)
    return f"{group[0].parent.relative_to(ROOT)} ({names})"


def run_group(
    python: Path, options: Sequence[str], variables: Mapping[str, str], group: Sequence[Path]
) -> Tally:
    """Run one pytest process and print its output when it has ended."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        done = subprocess.run(
            [python, "-m", "pytest", *options, f"--junitxml={report}", *group],
            cwd=ROOT,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        tally = read_tally(report, done.returncode)
    print(f"--- {title(group)}\n{done.stdout}", flush=True)
    return tally


def read_tally(report: Path, status: int) -> Tally:
    """The counts of a JUnit report; a process that died without failures counts as one."""
    tally = Tally()
    if report.is_file():
        for suite in ElementTree.parse(report).getroot().iter("testsuite"):
            total, failures, errors, skipped = (
                int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")
            )
            failed = failures + errors
            tally += Tally(max(0, total - failed - skipped), failed, skipped)
    if status not in (0, NO_TESTS) and not tally.failed:
        tally += Tally(failed=1)
    return tally


def check(options: Sequence[str]) -> int:
    """Lint, formatting and types; every one runs, the first failure is the exit status.

    The lines of each folder of core are printed.
    """
    refuse("check", options)
    print(f"{'':14}{'lines':>8}{'code':>8}{'texts':>8}{'blank':>8}")
    for room, counts in {**(rooms := lines_of_core()), "all": sum_of(rooms.values())}.items():
        print(f"{room:14}" + "".join(f"{count:8}" for count in counts))
    python = environment()
    commands = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"])
    return first_failure(python, [["-m", *command] for command in commands])


def lines_of_core() -> dict[str, tuple[int, ...]]:
    """Lines, code, docstrings with comments, and blank lines, per folder and for the modules."""
    found: dict[str, list[tuple[int, ...]]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).parts
        found.setdefault(parts[0] if len(parts) > 1 else "modules", []).append(lines_of(file))
    return {room: sum_of(counts) for room, counts in found.items()}


def lines_of(file: Path) -> tuple[int, ...]:
    """Lines of a file: all, code, docstrings with comments, blank."""
    text = file.read_text()
    described = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, described) and ast.get_docstring(node) is not None:
            texts |= {*range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)}
    numbered = [(k, line.strip()) for k, line in enumerate(text.splitlines(), 1)]
    texts |= {k for k, line in numbered if line.startswith("#")}
    blank = sum(not line for k, line in numbered if k not in texts)
    return len(numbered), len(numbered) - len(texts) - blank, len(texts), blank


def sum_of(counts: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The sum of each column."""
    return tuple(map(sum, zip(*counts, strict=True)))


def stubs(options: Sequence[str]) -> int:
    """Write the stubs of ``braintrace`` and ``braintrace.nn`` from the table of names."""
    refuse("stubs", options)
    for name, text in stub_texts().items():
        (PACKAGE / name).write_text(text)
    return 0


def stub_texts() -> dict[str, str]:
    """The stubs by file: names of core, and those that the official distributions export."""
    names = runpy.run_path(str(PACKAGE / "names.py"))
    head = "# SPDX-License-Identifier: Apache-2.0\n# Written by `python3 dev.py stubs`.\n\n"
    own = sorted((f".{module}", name) for name, module in names["CORE"].items())
    own += [(".", name) for name in names["SUBMODULES"] if name not in names["DISTRIBUTED"]]
    given = sorted((owner, name) for name, owner in names["OFFICIAL"]["ops"].items())
    layers = sorted((f"{owner}.nn", name) for name, owner in names["OFFICIAL"]["nn"].items())
    distributed = [f"import {p} as {n}" for n, (_, p) in names["DISTRIBUTED"].items()]
    package = [*map(imported, given), *distributed, "", *map(imported, own)]
    package += ["", "__version__: str", "__version_info__: tuple[int, ...]"]
    rest = ["def __getattr__(name: str) -> Any: ...  # everything else of brainstate.nn"]
    nn = ["from typing import Any", "", *map(imported, layers), "", *rest]
    return {"__init__.pyi": head + lines(package), "nn.pyi": head + lines(nn)}


def imported(source: tuple[str, str]) -> str:
    """One name of a stub, exported."""
    return f"from {source[0].replace('-', '_')} import {source[1]} as {source[1]}"


def lines(texts: Sequence[str]) -> str:
    """The text of a file."""
    return "\n".join(texts) + "\n"


def docs(options: Sequence[str]) -> int:
    """Build the documentation site anew; a warning is an error, and all of them are shown."""
    if list(options) not in ([], ["--open"]):
        sys.exit(f"dev.py docs takes --open or nothing, got {shlex.join(options)}")
    target = ROOT / "build" / "docs"
    command = ["-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going", "--fresh-env"]
    status = first_failure(environment(), [[*command, "docs", str(target)]])
    if status == 0:
        print(f"The site is in {target / 'index.html'}")
        if options:
            webbrowser.open((target / "index.html").as_uri())
    return status


def wheels(options: Sequence[str]) -> int:
    """Build the wheels and try them in empty environments of this and of a newer Python."""
    every = [option for option in options if option == "--every-subset"]
    refuse("wheels", [option for option in options if option not in every])
    python = environment()
    newer = newer_python()
    if newer is None:
        print("No newer Python was found: the wheels are tried with this one only.")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "dist"
        if status := build_release(python, built):
            return status
        files = sorted(built.glob("*.whl"))
        interpreters = [Path(sys.executable)] + ([newer] if newer else [])
        with ThreadPoolExecutor(max_workers=len(interpreters)) as pool:
            one = partial(try_wheels, files, Path(folder), [word.strip("-") for word in every])
            statuses = pool.map(one, interpreters)
            return first_nonzero(list(statuses))


def release(options: Sequence[str]) -> int:
    """Build what a release uploads, and check that it is whole; nothing is uploaded."""
    refuse("release", options)
    shutil.rmtree(ROOT / "dist", ignore_errors=True)
    return build_release(environment(), ROOT / "dist")


def build_release(python: Path, folder: Path) -> int:
    """Build the sdist and the wheel of each distribution into a folder; the exit status."""
    program = ROOT / "tests" / "wheels" / "release.py"
    return subprocess.call([python, program, folder, *distributions()])


def try_wheels(
    files: Sequence[Path], folder: Path, options: Sequence[str], interpreter: Path
) -> int:
    """Install wheels by file into an empty environment and use them, away from the sources.

    What the programs print is shown when they have ended: there is one such environment for each
    interpreter at a time. What does not depend on the Python is shared between the two: the
    plugins' own tests are run with the newest, pairs of families are tried with this one.
    """
    target = Path(tempfile.mkdtemp(dir=folder))
    subprocess.check_call([interpreter, "-m", "venv", target])
    python = python_of(target)
    version = output(str(python), "-c", "import sys; print(sys.version.split()[0])")
    print(f"Installing the wheels by file with Python {version} ...", flush=True)
    install(python, *map(str, files), "pytest>=8", "hatchling")
    smoke = shutil.copy(ROOT / "tests" / "wheels" / "smoke.py", target)
    first = ["-I", "-c", "import braintrace; print(braintrace.matmul)"]
    options = [*options, *(["own-tests"] if interpreter == (newer_python() or interpreter) else [])]
    options += ["pairs"] if interpreter == Path(sys.executable) else []
    matrix = ["-P", str(ROOT / "tests" / "wheels" / "matrix.py"), str(files[0].parent), *options]
    quick = quick_compilation(python)
    with (target / "printed.txt").open("w+") as printed:
        statuses = [first_failure(python, [first, ["-I", str(smoke)]], printed)]
        statuses.append(first_failure(python, [matrix], printed, quick))
        printed.seek(0)
        print(f"--- wheels with Python {version}\n{printed.read()}", flush=True)
    return first_nonzero(statuses)


def first_failure(
    python: Path,
    commands: Sequence[Sequence[str]],
    to: TextIO = sys.stdout,
    variables: Mapping[str, str] = os.environ,
) -> int:
    """Run ``python`` with each command; return the first status that is not zero, or zero."""
    statuses = []
    for command in commands:
        print("+", shlex.join(["python", *command]), flush=True, file=to)
        statuses.append(
            subprocess.call(
                [python, *command],
                cwd=ROOT,
                env=without_python_path(variables),
                stdout=to,
                stderr=subprocess.STDOUT,
            )
        )
    return first_nonzero(statuses)


def first_nonzero(statuses: Sequence[int]) -> int:
    """The first exit status that is a failure (a signal's is negative), or zero."""
    return next((status for status in statuses if status), 0)


def without_python_path(variables: Mapping[str, str]) -> dict[str, str]:
    """Environment variables, less those that would put other packages in the way."""
    return {k: v for k, v in variables.items() if k not in ("PYTHONPATH", "PYTHONHOME")}


def made(options: Sequence[str]) -> int:
    """Make the environment and print its interpreter (for .ci/run)."""
    refuse("environment", options)
    print(environment())
    return 0


def newest(options: Sequence[str]) -> int:
    """Print a Python newer than this one, when there is one (for .ci/run)."""
    refuse("newest", options)
    print(newer_python() or "")
    return 0


def refuse(command: str, options: Sequence[str]) -> None:
    """Exit for options of a command that takes none."""
    if options:
        sys.exit(f"dev.py {command} takes no options, got {shlex.join(options)}")


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "demo": demo,
    "test": test,
    "bench": bench,
    "gpu": gpu,
    "check": check,
    "stubs": stubs,
    "docs": docs,
    "wheels": wheels,
    "release": release,
    "environment": made,
    "newest": newest,
}


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print((__doc__ or "").strip())
        return 0 if arguments else 2
    name, *options = arguments
    if name not in COMMANDS:
        known = ", ".join(c for c in COMMANDS if c not in ("environment", "newest"))
        print(f"dev.py: unknown command {name!r}; commands are {known}")
        return 2
    return COMMANDS[name](options)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
