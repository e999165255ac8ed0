# SPDX-License-Identifier: Apache-2.0
"""The command, and what its sub-commands share."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]


def test_help_and_mistakes_need_no_jax(run: Any) -> None:
    code = """
        from braintrace import cli
        statuses = [cli.main(["explain", "absent.py:Net"])]
        try:
            cli.main(["--help"])
        except SystemExit as error:
            statuses.append(error.code)
        out([statuses, [m for m in ("jax", "brainstate") if m in sys.modules]])
    """
    assert run(code) == [[2, 0], []]


def test_the_script_is_declared() -> None:
    project = tomllib.loads((ROOT / "core" / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"braintrace": "braintrace.cli:main"}
