# SPDX-License-Identifier: Apache-2.0
"""Functions, classes and methods take the parameters that they took in ``braintrace`` 0.2.8."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from braintrace.base.former import OPTIONS
from braintrace.executor.graph_executor import compile_options
from braintrace.ops.primitive import OTHER_NAMES
from braintrace.ops.spec import RULES
from tests.published.signatures import signatures

THEN: dict[str, dict[str, bool]] = json.loads(
    (Path(__file__).parent / "signatures.json").read_text()
)
NOW = signatures()

COMPILER = "the compiler makes it"
BY_POSITION = "a row of docs/from-0.2.md: by position"
REFUSED = "a row of docs/from-0.2.md, or an option whose error says what to use"
#: Parameters that are not there: expressions for the name and the parameter, and the reason.
OTHERWISE = [
    (
        r"(HiddenGroup|HiddenParamOpRelation|HiddenPerturbation|ModuleInfo|ETPPrimitive)",
        r"\w+",
        COMPILER,
    ),
    (r"(HiddenGroup|HiddenParamOpRelation)\.\w+", r"\w+_(vals?)|const_vals", BY_POSITION),
    (r"\w+_from_minfo|ETPPrimitive.register_\w+", r"hid_path_to_group|fn", BY_POSITION),
    (r"nn.LRUCell.update|sparse_matmul|register_primitive", r"inputs|weight|impl_fn", BY_POSITION),
    (r"\w+\.etrace_evolve", "chunk_size", REFUSED),
    (r"ETraceConfig", "temporal_recursion|update_schedule|window_size", REFUSED),
    (r".*", "|".join(OPTIONS), REFUSED),
    (r"ETraceVjpGraphExecutor.*", "full_jacobian|etrace_stepper|init_etrace", REFUSED),
    (r".*(perturb|eval_jaxpr).*", "bypass_(hidden_)?data", REFUSED),
    (r"ETPPrimitive.register_etp_rules", "fast_path|pp_x_repr|snap_\\w+", REFUSED),
    (r"\w+_from_(minfo|module)", r"descended_\w+", "loops have no groups of their own"),
]
#: What else is taken, as ``**options``.
FURTHER = {
    r".*Executor": compile_options(),
    r".*\.update": {"modulator"},
    r".*register_etp_rules": {*RULES, *OTHER_NAMES},
}
#: Classes of records and of primitives that are not made by hand, and methods that are not there.
NOT_CALLED = r"(MultiStepData|SingleStepData)\.tree_(un)?flatten|HiddenPerturbation\.bypass_\w+"
NOT_CALLED += r"|DNI\.(attach_synthesizer|group_signal_shapes)"


def explained(name: str, parameter: str) -> bool:
    """Whether a parameter may be missing."""
    return any(re.fullmatch(n, name) and re.fullmatch(p, parameter) for n, p, _ in OTHERWISE)


def shown(name: str) -> str:
    """A name without that of the package."""
    return name.removeprefix("braintrace.")


@pytest.mark.parametrize("name", THEN)
def test_parameters(name: str) -> None:
    short, there = shown(name), THEN[name]
    if re.fullmatch(NOT_CALLED, short):
        assert name not in NOW
        return
    here = NOW[name]
    more = {p for pattern, of in FURTHER.items() if re.fullmatch(pattern, short) for p in of}
    assert not [p for p in there if p not in here and p not in more and not explained(short, p)]
    if not all(explained(short, parameter) for parameter in there):
        places = {p: k for k, p in enumerate(here) if here[p]}
        kept = [places[p] for p, positional in there.items() if positional and p in places]
        assert kept == sorted(kept)  # those that are there stand in the same order


def test_each_reason_is_needed() -> None:
    missing = [(shown(n), p) for n, of in THEN.items() for p in of if p not in NOW.get(n, {})]
    for name, parameter, _ in OTHERWISE:
        found = [pair for pair in missing if re.fullmatch(name, pair[0])]
        assert any(re.fullmatch(parameter, p) for _, p in found), (name, parameter)
