# SPDX-License-Identifier: Apache-2.0
"""Which hidden states are uniform, and which filters they get."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import brainstate
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.compiler.filters import move_leaks
from braintrace.compiler.module_info import StateKind
from braintrace.compiler.uniform import find
from braintrace.compiler.uniform.find import find_uniform
from braintrace.compiler.uniform.moving import Moving
from tests.unit.compiler.uniform.leaky import analysed


def test_the_step_with_filters() -> None:
    minfo, found, _ = analysed(lambda s, x, v: 0.9 * v + 0.1 * s.w(x))
    step = move_leaks(Moving(minfo, found))
    filters = [slot for slot in step.slots if slot.is_filter]
    assert sorted(slot.state.value.shape for slot in filters) == [(), (2, 4)]
    assert step.slots_of(StateKind.HIDDEN) == ()  # the inputs have no derivative
    assert [s.path for s in minfo.slots_of(StateKind.HIDDEN)] == [("v",)]


def test_the_pass_names_no_operation() -> None:
    """And no layer: what is uniform follows from what a step computes."""
    layers = {name for name in dir(bt.nn) if re.search("Cell|Conv|Pool|Norm", name)}
    names = {primitive.name for primitive in bt.ETP_PRIMITIVES} | layers
    files = Path(find.__file__).parent.glob("*.py")
    words = {word for file in files for word in re.findall(r"\w+", file.read_text("utf-8"))}
    assert "GRUCell" in names and not names & words


def test_recurrent_input_is_held() -> None:
    def step(s: Any, x: Any, v: Any) -> Any:
        return 0.9 * v + s.w(jnp.concatenate([x[:, :1], jnp.tanh(v)], -1))

    _, found, _ = analysed(step)
    (state,) = found.values()
    assert sorted(source.cut for source in state.sources.values()) == [False, True]


class Ring(brainstate.nn.Module):
    """Leaks, each driven by another one through a product, and some by the input."""

    def __init__(self, driven: str, nonlinear: str = "") -> None:
        super().__init__()
        self.driven, self.nonlinear = driven, nonlinear
        self.products = {name: bt.nn.Linear(3, 3) for name in "abc"}
        for name in "abc":
            setattr(self, name, brainstate.HiddenState(jnp.zeros((2, 3))))

    def update(self, x: Any) -> Any:
        old = {name: getattr(self, name).value for name in "abc"}
        for name, before in zip("abc", "cab", strict=True):
            drive = self.products[name](old[before] + (x if name in self.driven else 0))
            new = 0.9 * old[name] + drive
            getattr(self, name).value = jnp.tanh(new) if name == self.nonlinear else new
        return self.c.value


@pytest.mark.parametrize(
    ("driven", "nonlinear", "closed"),
    [
        ("a", "", {"a": "c"}),
        ("b", "", {"b": "a"}),
        ("abc", "", {"a": "c", "b": "a", "c": "b"}),
        ("a", "b", {}),
    ],
)
def test_loops_are_open_towards_what_drives_them(
    driven: str, nonlinear: str, closed: dict[str, str]
) -> None:
    """Away from it, from state to state; where a state is not uniform, there is no loop."""
    minfo = bt.extract_module_info(Ring(driven, nonlinear), jnp.ones((2, 3)))
    found, refused = find_uniform(minfo, bt.find_hidden_groups_from_minfo(minfo)[1])
    assert len(found) == (2 if nonlinear else 3) and len(refused) == len(nonlinear)
    states = {var: path for path, var in minfo.hidden_path_to_invar.items()}
    loops = {
        (path[0], states[v][0]) for path, u in found.items() for v, s in u.sources.items() if s.loop
    }
    assert loops == {*closed.items()}
    seen: list[Any] = []
    for path, uniform in found.items():  # lower ones first
        assert all(s.of is None or s.of in seen for s in uniform.sources.values())
        seen.append(path)
