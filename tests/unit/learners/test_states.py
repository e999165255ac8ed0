# SPDX-License-Identifier: Apache-2.0
"""The states of a learner by path, and the traces of a parameter."""

from __future__ import annotations

import copy
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from brainstate import TraceContextError

import braintrace as bt
from tests import zoo
from tests.unit.algorithms.test_in_place import RATE, B, learner_of
from tests.unit.learners.bench import Bench, refused


def test_states_are_those_of_the_model(bench: Bench) -> None:
    learner, model = bench.learner, bench.model
    params = {("out",): model.out, ("w",): model.w}
    assert learner.param_states == learner.trained_states == params
    assert learner.hidden_states[("h",)] is model.h
    assert learner.path_to_states.items() >= {**params, **learner.hidden_states}.items()
    assert learner.state_id_to_path[model.h] == ("h",)
    assert learner.other_states.keys() == {("count",), ("noise",)}
    assert learner.own_options["vjp_method"] == "single-step"


@pytest.mark.parametrize("weight", [("nothing",), ("out",), "w", 3, ("h",)])
def test_get_etrace_of_something_without_a_trace(bench: Bench, weight: Any) -> None:
    with refused(bench, KeyError, r"has no trace; parameters with one are \['w'\]"):
        bench.learner.get_etrace_of(weight)


def test_get_etrace_of_a_state_without_a_trace(bench: Bench) -> None:
    with refused(bench, KeyError, r"out.* has no trace; parameters with one are \['w'\]"):
        bench.learner.get_etrace_of(bench.model.out)


XS, YS = np.ones((3, B, zoo.IN)), np.ones((3, B, 2))


class Updating:
    """A learner whose trace has two states, and its updates."""

    def __init__(self) -> None:
        self.learner = learner_of("gru")
        self.traces = self.learner.traces

    def step(self, x: Any, y: Any) -> Any:
        return ((self.learner(x) - y) ** 2).mean()

    def update(self) -> Any:
        xs, ys = jnp.asarray(XS), jnp.asarray(YS)
        return self.learner.etrace_update(xs, ys, step_fn=self.step, optimizer=RATE)

    @property
    def apart(self) -> list[bool]:
        return [trace.is_apart for trace in self.traces]

    @property
    def places(self) -> list[int]:
        leaves = jax.tree.leaves(self.learner.held_traces)
        return [leaf.unsafe_buffer_pointer() for leaf in leaves]


def test_traces_stay_in_parts_between_updates() -> None:
    one, read = Updating(), Updating()
    assert not any(one.apart)
    for made in (one, read):
        made.update()
        assert all(made.apart) and made.learner.traces is made.traces
    whole = read.learner.read_traces()
    assert not any(read.apart) and all(one.apart)
    assert whole[0]["weight"].shape == (2, *one.learner.held_traces[0]["weight"][0].shape)
    places = one.places
    assert (one.update() == read.update()).all() and one.places == places
    (driver,) = (kept[2] for kept in one.learner._drivers._kept)
    assert driver.donated._cache_size() == 1
    snapshot = jax.tree.map(jnp.copy, one.learner.held_traces)
    other = copy.deepcopy(one.learner)
    taken = brainstate.graph.treefy_states(one.learner)
    assert not any(one.apart)  # whoever looks at a value has them put together
    for a, b, c in zip(one.traces, read.traces, other.traces, strict=True):
        jax.tree.map(np.testing.assert_array_equal, a.value, b.value)
        jax.tree.map(np.testing.assert_array_equal, a.value, c.value)
    jax.tree.map(
        np.testing.assert_array_equal, snapshot, one.learner.rule.parted(other.read_traces())
    )
    one.update()
    brainstate.graph.update_states(one.learner, taken)
    assert (one.update() == read.update()).all()


def test_traces_in_parts_start_anew_as_such() -> None:
    made = Updating()
    made.update()
    with pytest.warns(UserWarning, match="Leak has no reset_state"):
        made.learner.reset_state(batch_size=B, model_states=True)
    assert all(made.apart)
    assert not any(leaf.any() for leaf in jax.tree.leaves(made.learner.held_traces))
    made.update()
    driver = made.learner._drivers._kept[-1][2]
    program = driver.donated

    def stopped(*args: Any) -> Any:
        program(*args)
        raise KeyboardInterrupt

    driver.donated = stopped
    with pytest.raises(KeyboardInterrupt) as error:
        made.update()
    driver.donated = program
    assert "check=True" in error.value.__notes__[-1]
    assert not any(leaf.any() for leaf in jax.tree.leaves(made.learner.read_traces()))
    made.update()
    assert any(leaf.any() for leaf in jax.tree.leaves(made.learner.read_traces()))


def test_inside_of_transformations_traces_are_whole() -> None:
    made, eager = Updating(), Updating()
    one_step = brainstate.transform.jit(made.learner)
    one_step(jnp.asarray(XS[0]))
    eager.learner(jnp.asarray(XS[0]))
    for _ in range(2):
        losses = made.update()  # between two calls of a program that was compiled before
        assert (losses == eager.update()).all() and all(made.apart)
        one_step(jnp.asarray(XS[0]))
        eager.learner(jnp.asarray(XS[0]))
        assert not any(made.apart)
    np.testing.assert_allclose(
        brainstate.transform.jit(made.update)(), eager.update(), rtol=1e-12, atol=0
    )
    assert not any(made.apart)
    with brainstate.StateTraceStack() as stack:
        made.update()
    assert {*made.traces} <= {*stack.states} and not any(made.apart)


def test_who_reads_a_trace_while_it_is_in_parts_is_told_where_to_find_it() -> None:
    made, free = Updating(), Updating()

    def reading(x: Any, y: Any) -> Any:
        return made.step(x, y) + made.traces[0].value["weight"].sum()

    free.update(), made.update()
    assert "_Apart" not in repr(made.traces[0]) and all(made.apart)
    with pytest.raises(bt.NotSupportedError, match=r"inside of step_fn.*learner\.get_etrace_of"):
        made.learner.etrace_update(
            jnp.asarray(XS), jnp.asarray(YS), step_fn=reading, optimizer=RATE
        )
    assert (made.update() == free.update()).all()  # nothing is lost


def test_a_plain_jit_is_refused_and_leaves_no_tracers_behind() -> None:
    made, free = Updating(), Updating()
    for _ in range(2):
        with pytest.raises(TraceContextError):
            jax.jit(made.update)()
        with pytest.raises(TraceContextError):
            jax.jit(lambda: made.learner.reset_state(model_states=False))()
        assert (made.update() == free.update()).all() and all(made.apart)
