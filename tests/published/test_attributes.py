# SPDX-License-Identifier: Apache-2.0
"""Attributes of records, executors, learners and reports have the values of ``braintrace`` 0.2."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.published.attributes import MODELS, everything

THEN: dict[str, Any] = json.loads((Path(__file__).parent / "attributes.json").read_text())

PROGRAM = "programs hold no more than what is asked of them, their states by path"
RECURRENT = "a transition holds its recurrent operations, as the notebook on the compiler prints"
#: What is otherwise, as expressions for where it stands, and the reason.
OTHERWISE = {
    r"(closed_)?jaxpr/out|perturb_jaxpr/(in|out|operations)": PROGRAM,
    r"transition_jaxpr/(in|operations)|transition_jaxpr_constvars": RECURRENT,
    r"y_to_hidden_group_jaxprs/\d+/(in|operations)": PROGRAM,
    r"eqn_params": "an option that is not given is none, as the notebook on the compiler prints",
    r"bypass_\w+": "an error says what to use instead",
    r"compiled_model_states": "a dict by path, whose keys are not read there",
    r"executor[^/]*/states": "all states in a tuple; path_to_states has them by path",
    r"diagnostics|explain|report/counts": "some kinds of records are its own; see below",
}
#: Kinds of records that only one of the two has.
OWN_KINDS = {"transition_structurally_zero", "transition_tail_bounded", "output_bypasses_hidden"}
OWN_KINDS |= {"parameter_outside_operation", "credit_stops", "exact_credit"}


@pytest.fixture(scope="module")
def now() -> dict[str, Any]:
    found: dict[str, Any] = everything()
    return found


def differing(there: Any, here: Any, place: str = "") -> Iterator[str]:
    """Where two values differ; the order of states does not count."""
    if isinstance(there, dict):
        for key, value in there.items():
            yield from differing(value, here.get(key, "missing"), f"{place}/{key}")
    elif isinstance(there, list) and there and isinstance(there[0], dict):
        for k, (value, other) in enumerate(zip(there, here, strict=True)):
            yield from differing(value, other, f"{place}/{k}")
    elif re.search(r"path_to_states|state_id_to_path|/report$", place):
        if not place.endswith("report") and sorted(there) != sorted(here):
            yield place
    elif there != here:
        yield place


def reason(place: str) -> str | None:
    """Why a value is otherwise, if it may be."""
    found = (why for at, why in OTHERWISE.items() if re.search(rf"/({at})(/\d+)?(/\w+)*$", place))
    return next(found, None)


def without_kinds(model: dict[str, Any]) -> dict[str, Any]:
    """A model without its records, which are compared by themselves."""
    return {name: part for name, part in model.items() if name != "diagnostics"}


@pytest.mark.parametrize("name", MODELS)
def test_attributes_have_the_values_that_they_had(name: str, now: dict[str, Any]) -> None:
    then, found = (without_kinds(models[name]) for models in (THEN["models"], now))
    assert found.keys() == then.keys()
    unexplained = [place for place in differing(then, found) if reason(place) is None]
    assert not unexplained


def test_each_reason_is_needed(now: dict[str, Any]) -> None:
    pairs = ((without_kinds(THEN["models"][n]), without_kinds(now[n])) for n in MODELS)
    given = {reason(place) for there, here in pairs for place in differing(there, here)}
    assert given == {*OTHERWISE.values()}


@pytest.mark.parametrize("name", MODELS)
def test_records_of_the_compiler(name: str, now: dict[str, Any]) -> None:
    """What both say, in the same order; the context may hold more here."""

    def records(models: dict[str, Any]) -> list[dict[str, Any]]:
        return [one for one in models[name]["diagnostics"] if one["kind"] not in OWN_KINDS]

    there, here = records(THEN["models"]), records(now)
    assert [one["kind"] for one in there] == [one["kind"] for one in here]
    for then, found in zip(there, here, strict=True):
        for field in ("primitive", "weight_path", "hidden_paths", "message"):
            assert then[field] == found[field]
        for fact in then["context"] or ():
            assert fact in found["context"]
        behind = then["kind"] == "relation_excluded_weight_to_weight"
        assert found["level"] == ("info" if behind else then["level"])


def test_numbers_of_a_report(now: dict[str, Any]) -> None:
    for name in MODELS:
        there, here = (dict(models[name]["report"]["counts"]) for models in (THEN["models"], now))
        for count in ("hidden_groups", "etrace_weights", "excluded_weights", "errors"):
            assert there[count] == here[count]
