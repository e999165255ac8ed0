# SPDX-License-Identifier: Apache-2.0
"""Every public name of the distribution ``braintrace`` 0.2 is here, or says what to use instead."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import brainstate
import jax.numpy as jnp
import pytest

import braintrace
from braintrace.names import CORE, INSTEAD, OFFICIAL

LINES = (Path(__file__).parent / "names.txt").read_text().splitlines()
PUBLISHED = [line.rpartition(".")[::2] for line in LINES if not line.startswith("#")]
PLACES = {"braintrace": "ops", "braintrace.nn": "nn"}
ABSENT = [(place, name) for place, kind in PLACES.items() for name in INSTEAD[kind]]


@pytest.mark.parametrize(("place", "name"), PUBLISHED)
def test_a_published_name_is_here_or_says_what_to_use(place, name):
    module = import_module(place)
    exists = hasattr(module, name)
    assert exists != (name in INSTEAD[PLACES[place]])
    if exists:
        scope: dict[str, object] = {}
        exec(f"from {place} import {name}", scope)
        assert scope[name] == getattr(module, name)


@pytest.mark.parametrize(("place", "name"), ABSENT)
def test_attributes_and_imports_say_what_to_use(place, name):
    module, use = import_module(place), re.escape(INSTEAD[PLACES[place]][name])
    assert not hasattr(module, name) and name not in dir(module)
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'; .* use {use}"):
        getattr(module, name)
    for statement in (f"from {place} import {name}", f"import {place}.{name}"):
        with pytest.raises(ImportError, match=f"cannot import name '{name}' .* use {use}"):
            exec(statement)


def test_inside_a_model_the_error_says_what_to_use():
    class Asks(braintrace.nn.GRUCell):
        place, name = "", ""

        def update(self, x):
            return getattr(import_module(self.place), self.name)(super().update(x))

    cell, x = Asks(3, 4), jnp.ones((2, 3))
    brainstate.nn.init_all_states(cell, batch_size=2)
    for cell.place, cell.name in ABSENT:
        use = re.escape(INSTEAD[PLACES[cell.place]][cell.name])
        with pytest.raises(braintrace.CompilationError, match=f"'{cell.name}'; .* use {use}"):
            braintrace.compile_etrace_graph(cell, x)


@pytest.mark.parametrize(("place", "name"), ABSENT)
def test_what_to_use_exists(place, name):
    for found in re.findall(r"brain(?:trace|state)(?:\.\w+)+", INSTEAD[PLACES[place]][name]):
        module, _, attribute = found.rpartition(".")
        assert hasattr(import_module(module), attribute), found


def test_what_is_here_needs_no_answer():
    assert not INSTEAD["ops"].keys() & {*CORE, *OFFICIAL["ops"]}
    assert not INSTEAD["nn"].keys() & OFFICIAL["nn"].keys()


def test_a_private_module_of_then_says_where_its_names_are():
    for module in ("_etrace_op", "_etrace_compiler.hid_param_op", "_algorithm", "_misc"):
        with pytest.raises(ImportError, match=r"use public names: from braintrace import"):
            exec(f"from braintrace.{module} import ETP_PRIMITIVES")


def test_all_names_at_once():
    """``from braintrace import *`` brings core, operations and ``nn``, and no submodule else."""
    scope: dict[str, object] = {}
    exec("from braintrace import *", scope)
    assert {*CORE, *OFFICIAL["ops"], "nn"} == {*braintrace.__all__} <= scope.keys()
    assert not {"base", "names", "testing"} & scope.keys()


def test_the_version_in_numbers():
    assert braintrace.__version__ == ".".join(map(str, braintrace.__version_info__))
