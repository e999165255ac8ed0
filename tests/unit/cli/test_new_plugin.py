# SPDX-License-Identifier: Apache-2.0
"""``braintrace new-plugin`` writes a plugin that works; ``tests/wheels`` builds and installs it."""

from __future__ import annotations

import ast
import importlib
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace import cli
from braintrace.cli.new_plugin import bounds


@pytest.fixture
def folder(tmp_path, capsys):
    """A plugin ``fresh_gain`` in a folder."""
    folder = tmp_path / "plugin"
    assert cli.main(["new-plugin", "fresh-gain", "--directory", str(folder)]) == 0
    assert "braintrace doctor fresh_gain" in capsys.readouterr().out
    return folder


def test_no_placeholder_is_left(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) == 11
    for file in files:
        text = file.read_text()
        assert "@" not in text.replace("@hookimpl", "").replace("@v", "").replace(
            "@parametrize_with_checks", ""
        )
        if file.suffix == ".py":
            ast.parse(text)


def test_metadata_and_the_plugin_object_agree(folder, monkeypatch):
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    core = tomllib.loads((folder / "pyproject.toml").read_text())["project"]["dependencies"][0]
    assert core == "braintrace-core" + bounds(braintrace.__version__)
    monkeypatch.syspath_prepend(str(folder / "src"))
    plugin = importlib.import_module("braintrace_fresh_gain._plugin").plugin
    info = plugin.braintrace_plugin_info()
    assert (info.distribution, info.version) == (project["name"], project["version"])
    assert list(project["entry-points"]["braintrace.plugins.v1"]) == [info.family]
    assert tuple(project["entry-points"]["braintrace.ops"]) == info.exports["ops"]
    with braintrace.plugins.isolated([plugin]) as (record,):
        assert record.primitives == ("etp_fresh_gain", "etp_fresh_gain_batched")
        assert len(braintrace.plugins.conformance_cases("fresh_gain")) == 2
        op = importlib.import_module("braintrace_fresh_gain").fresh_gain
        x = jnp.arange(6.0).reshape(2, 3)
        for y in (op(x, x[0]), jax.vmap(op, (0, None))(x, x[0])):
            np.testing.assert_array_equal(y, x * x[0])


def test_what_is_there_is_not_overwritten(folder, capsys):
    assert cli.main(["new-plugin", "other", "--directory", str(folder)]) == 2
    assert "exists already; choose another --directory" in capsys.readouterr().err
    assert not (folder / "src" / "braintrace_other").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Gain", "is not a name for a plugin"),
        ("2d", "is not a name for a plugin"),
        ("class", "is not a name for a plugin"),
        ("a b", "is not a name for a plugin"),
        ("../up", "is not a name for a plugin"),
        ("dense", "'dense' is a name of braintrace itself"),
        ("braintrace-core", "'core' is a name of braintrace itself"),
        ("compile", "'compile' is a name of braintrace itself"),
        ("lora_matmul", "'lora_matmul' is a name of braintrace itself"),
    ],
)
def test_names_that_are_refused(name, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["new-plugin", name]) == 2
    assert text in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bounds_follow_core():
    assert bounds("0.1.0") == ">=0.1,<0.2"
    assert bounds("1.10.3rc1") == ">=1.10,<1.11"
