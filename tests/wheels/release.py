# SPDX-License-Identifier: Apache-2.0
"""What is uploaded at a release: an sdist and a wheel of each distribution, built and looked into.

``release.py FOLDER SOURCE...``: each wheel is built from its sdist, so that both are whole. It
uploads nothing. The exit status is 1 when something is missing or does not go together; that the
changelog does not name a date yet is said, and no failure.
"""

from __future__ import annotations

import email
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from email.message import Message
from pathlib import Path

from packaging.requirements import Requirement

CORE = "braintrace-core"
IN_SDIST = ("pyproject.toml", "README.md", "LICENSE")


def problems(folder: Path, count: int) -> Iterator[str]:
    """What is wrong with the files of a release."""
    wheels, sdists = sorted(folder.glob("*.whl")), sorted(folder.glob("*.tar.gz"))
    if (len(wheels), len(sdists)) != (count, count):
        yield f"{len(wheels)} wheels and {len(sdists)} sdists of {count} distributions"
    about = {wheel.name: metadata_of(wheel) for wheel in wheels}
    versions = {str(found["Version"]) for found in about.values()}
    if len(versions) != 1:
        yield f"versions differ: {sorted(versions)}"
    for name, found in about.items():
        yield from (f"{name}: no {key}" for key in missing(found))
        needed = map(Requirement, found.get_all("Requires-Dist", []))
        bounds = [r.specifier for r in needed if r.name == CORE]
        if found["Name"] != CORE and not any(found["Version"] in bound for bound in bounds):
            yield f"{name}: does not go with the {CORE} of its own version"
    for sdist in sdists:
        with tarfile.open(sdist) as archive:
            files = {member.name.partition("/")[2] for member in archive}
        yield from (f"{sdist.name}: no {file}" for file in IN_SDIST if file not in files)


def metadata_of(wheel: Path) -> Message:
    """The fields of a wheel; its licence and the mark of its types count as such."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (path,) = (name for name in names if name.endswith(".dist-info/METADATA"))
        found = email.message_from_bytes(archive.read(path))
    for key, ending in (("licence file", "LICENSE"), ("py.typed", "py.typed")):
        if any(name.endswith(ending) for name in names):
            found[key] = "yes"
    return found


def missing(found: Message) -> list[str]:
    """Fields that a page on an index shows, and what a user of the wheel looks for."""
    wanted = ("Summary", "License-Expression", "Requires-Python", "licence file", "py.typed")
    text = found.get_payload()
    return [key for key in wanted if not found[key]] + ["description"] * (not str(text).strip())


def main(arguments: Sequence[str]) -> int:
    """Build into an empty folder and look; the exit status."""
    folder, *sources = map(Path, arguments)
    if folder.exists() and any(folder.iterdir()):
        print(f"{folder} is not empty")
        return 1
    for source in sources:
        build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder)]
        subprocess.run([*build, str(source)], check=True, stdout=subprocess.DEVNULL)
    found = list(problems(folder, len(sources)))
    print(*sorted(file.name for file in folder.iterdir()), *found, sep="\n")
    changelog = (sources[0].parent / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = re.search(r"^## (.+)$", changelog, re.MULTILINE)
    print(f"the changelog's newest version: {newest[1] if newest else 'none'}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
