# SPDX-License-Identifier: Apache-2.0
"""Run the programs of tests/published/ on the peer library and on this one, and compare.

Numbers of programs and what layers give are compared with the files there, which hold those of
``braintrace`` 0.2.8 (of 0.2.6 for layers); attributes of records are said by both and compared.
What docs/from-0.2.md says of the peer is checked on it. 0.2.6 gives readouts no gradient. The exit
status is 1 when a program of either fails or the page is wrong.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _bench import peer

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "tests" / "published" / "numbers.json"


def differing(there: Any, here: Any, place: str = "") -> Iterator[str]:
    """Where values that were read from JSON differ; what is only here is left out."""
    if isinstance(there, dict) and isinstance(here, dict):
        for key, value in there.items():
            yield from differing(value, here.get(key, "missing"), f"{place}/{key}")
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here) > 0:
        for k, (a, b) in enumerate(zip(there, here, strict=True)):
            yield from differing(a, b, f"{place}/{k}")
    elif there != here:
        yield f"{place}: {here}, there {there}"


def module(python: Path, name: str, *arguments: str) -> int:
    """Run a module of tests/published/ and return its exit status."""
    env = {**os.environ, "JAX_PLATFORMS": "cpu"}
    if python != Path(sys.executable):
        env.pop("PYTHONPATH", None)
    command = [python, "-m", f"tests.published.{name}", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env).returncode


def main() -> int:
    """Run all with both."""
    pythons = {"peer": peer.interpreter(), "ours": Path(sys.executable)}
    print(f"The peer is {peer.REQUIREMENT}.", flush=True)
    failed = 0
    said: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for who, python in pythons.items():
            if who == "peer":
                print("\npeer: what docs/from-0.2.md says of it", flush=True)
                failed |= module(python, "rows_there")
            print(f"\n{who}: programs", flush=True)
            failed |= module(python, "numbers", "compare", str(STORED))
            for name in ("attributes", "layers"):
                file = Path(folder) / f"{who}-{name}.json"
                failed |= module(python, name, "save", str(file))
                said[f"{who} {name}"] = json.loads(file.read_text()) if file.exists() else {}
    for name in ("attributes", "layers"):
        print(f"\n{name}, of this library and there")
        lines = differing(said[f"peer {name}"], said[f"ours {name}"])
        print("\n".join(f"  {line[:300]}" for line in lines))
    return int(bool(failed))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RuntimeError as error:
        sys.exit(f"published: {error}")
