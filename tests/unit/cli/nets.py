# SPDX-License-Identifier: Apache-2.0
"""Models in a file of their own, and ``braintrace explain`` of them, as fixtures."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import brainstate
import pytest

from braintrace import cli

NETS = """
import brainstate
import braintrace as bt
import jax.numpy as jnp


class Net(brainstate.nn.Module):
    def __init__(self, size=4):
        super().__init__()
        self.cell = bt.nn.GRUCell(3, size)
        self.out = bt.nn.Linear(size, 2)

    def update(self, x):
        return self.out(self.cell(x))


class Sized(Net):
    def __init__(self, size):
        super().__init__(size)


class Needy(Net):
    # needs every option of compiling

    def __init__(self):
        super().__init__()
        self.idle = bt.nn.Linear(2, 2)
        self.factor = brainstate.ParamState(jnp.ones((4, 4)))

    def update(self, x):
        for_loop = brainstate.transform.for_loop
        factors = jnp.linspace(1.0, 2.0, 20)

        def turn(k):
            return self.out(bt.matmul(self.cell(x), k * self.factor.value))

        return for_loop(turn, factors)[-1]


class Stateless(Net):
    def update(self, x):
        return self.out(jnp.zeros(4))


class Wrong(Net):
    def update(self, x):
        return super().update(x) + jnp.ones(7)


def make():
    net = Net()
    brainstate.nn.init_all_states(net, batch_size=5)
    return net, jnp.ones((5, 3))


def batch():
    return brainstate.nn.Sequential(Net()), jnp.ones((5, 3))


def only_model():
    return Net()


def fails():
    raise OSError("no data")


cell = bt.nn.GRUCell(3, 4)
number = 3
"""


Explain = Callable[..., tuple[int, str, str]]


"""Status, output and error output of ``braintrace explain`` with some arguments."""


def line_of(text: str, occurrence: int = 0) -> int:
    """The line of the file on which some text stands."""
    found = [k for k, line in enumerate(NETS.splitlines(), 1) if text in line]
    return found[occurrence]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "nets.py").write_text(NETS, encoding="utf-8")
    (folder / "broken.py").write_text("x = 1\ny = = 2\n", encoding="utf-8")
    (folder / "exits.py").write_text("import sys\nsys.exit(3)\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def in_a_process(folder: Path) -> Explain:
    def run(*arguments: str) -> tuple[int, str, str]:
        env = {**os.environ, "JAX_ENABLE_X64": "0", "COLUMNS": "100", "PYTHONIOENCODING": "utf-8"}
        command = [sys.executable, "-m", "braintrace", "explain", *arguments]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, encoding="utf-8")
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def explain(
    folder: Path, x32: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Explain:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> tuple[int, str, str]:
        before = {*sys.modules}
        try:
            with brainstate.environ.context(precision=32):
                status = cli.main(["explain", *arguments])
        except SystemExit as error:
            status = int(error.code or 0)
        for name in {"nets", "broken", "exits"} - before:
            sys.modules.pop(name, None)
        return status, *capsys.readouterr()

    return run
