# SPDX-License-Identifier: Apache-2.0
"""Places by meaning, kept over resets, files and calls; and what cannot be divided."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base.errors import NotSupportedError
from braintrace.learners.restarts import begin_call
from braintrace.testing import assert_tree_close
from tests.truth import table
from tests.truth.table import Case

from . import meshes

BATCH, IN, HIDDEN, STEPS = 8, 3, 4, 3
XS = jnp.asarray(np.random.default_rng(0).normal(size=(STEPS, BATCH, IN)))


def learner(
    cell: Any = bt.nn.LSTMCell, algorithm: str = "d_rtrl", on: Any = None, **options: Any
) -> Any:
    brainstate.random.seed(0)
    found = bt.compile(cell(IN, HIDDEN), algorithm, XS[0], batch_size=BATCH, **options)
    if on is not None:
        found.shard(on, batch="data", units="model" if "model" in on.axis_names else None)
    return found


def gradient(own: Any) -> Any:
    found = own.etrace_grad(XS, step_fn=lambda x: (own(x) ** 2).sum(), block_size=2)
    return jax.tree.map(np.asarray, found)


def places(own: Any) -> list[Any]:
    """Of all arrays but scalars."""
    leaves = jax.tree.leaves([s.value for s in brainstate.graph.states(own).values()])
    return [tuple(leaf.sharding.spec) for leaf in leaves if leaf.ndim]


def test_every_trace_is_divided_and_stays_so() -> None:
    own = learner(on=meshes.mesh("Auto", 2, 2))
    cell = own.model
    assert cell.Wf.weight.value["weight"].sharding.spec == jax.P(None, "model")
    assert cell.c.value.sharding.spec == cell.h.value.sharding.spec == jax.P("data", "model")
    kept = own.traces[0].value["weight"]  # [R, B, in, out]
    assert kept.sharding.spec == jax.P(None, "data", None, "model")
    before = places(own)
    gradient(own)
    assert own.traces[0].value["weight"].sharding.is_equivalent_to(kept.sharding, kept.ndim)
    own.reset_state(BATCH, model_states=True)
    assert places(own) == before


@pytest.mark.parametrize("rule", ["ostl_recurrent", "uoro", "snap", "rtrl"])
def test_traces_of_rules_that_mix_units_are_divided_by_them(rule: str) -> None:
    options = {"snap": {"n": 2, "downstream": "step"}}.get(rule, {})
    own = learner(bt.nn.GRUCell, rule, meshes.mesh("Auto", 2, 2), **options)
    assert own.model.h.value.sharding.spec == jax.P("data", "model")
    assert own.model.Wz.weight.value["weight"].sharding.spec == jax.P(None, "model")
    leaves = [leaf for trace in own.traces for leaf in jax.tree.leaves(trace.value)]
    largest = max(leaves, key=lambda leaf: leaf.size)  # [.., B, in, out], or [entries, B, H]
    assert {"data", "model"} <= {*largest.sharding.spec}


def test_a_copy_is_divided_alike() -> None:
    """Also where the rule has an executor of its own, as one for filters is."""
    own = learner(lambda *_: meshes.BelowALeak(), on=meshes.mesh("Auto", 2, 2))
    executors = own.rule.executor, copy.deepcopy(own).rule.executor
    assert all(one.cascades and one.parts == 2 and one.division[1] for one in executors)


def test_a_file_does_not_tell_how_many_devices_wrote_it(tmp_path: Path) -> None:
    on = meshes.mesh("Auto", 8)
    alone, divided = learner(), learner(on=on)
    for own in (alone, divided):
        gradient(own)
    divided.save(tmp_path / "of_eight.npz")
    alone.save(tmp_path / "of_one.npz")
    expected = gradient(alone)
    other, eight = learner(), learner(on=on)
    other.restore(tmp_path / "of_eight.npz")
    eight.restore(tmp_path / "of_one.npz")
    assert eight.model.h.value.sharding.spec == jax.P("data", None)
    assert len(other.model.h.value.sharding.device_set) == 1
    for own in (other, eight):
        assert_tree_close(gradient(own), expected, 1e-12)


def test_states_that_users_place() -> None:
    expected, own = gradient(learner()), learner()
    place = jax.NamedSharding(meshes.mesh("Auto", 8), jax.P("data"))
    for state in own.hidden_states.values():
        state.value = jax.device_put(state.value, place)
    assert_tree_close(gradient(own), expected, 1e-12)


def test_a_learner_that_is_made_inside_of_an_explicit_mesh() -> None:
    expected, on = gradient(learner(bt.nn.GRUCell)), meshes.mesh("Explicit", 4)
    brainstate.random.seed(0)
    cell = bt.nn.GRUCell(IN, HIDDEN)
    with jax.set_mesh(on):
        xs = jax.device_put(XS, jax.NamedSharding(on, jax.P(None, "data")))
        own = bt.compile(cell, "d_rtrl", xs[0], batch_size=BATCH)
        own.shard(on, batch="data")

        def loss(x: Any) -> Any:
            y = own(x)
            return (y**2).sum(), y

        found, ys = own.etrace_grad(xs, step_fn=loss, has_aux=True, block_size=2)
        assert jax.typeof(ys).sharding.spec == jax.P(None, "data", None)
        assert jax.typeof(own(xs[0])).sharding.spec == jax.P("data", None)
        own.reset_state(BATCH, model_states=True)
        assert jax.typeof(cell.h.value).sharding.spec == jax.P("data", None)
    assert_tree_close(jax.tree.map(np.asarray, found), expected, 1e-12)


def test_what_does_not_fit_is_refused() -> None:
    own = learner()
    wide = jax.make_mesh((8,), ("data",), devices=jax.devices())
    with pytest.raises(ValueError, match=r"units='data' divides 4 units .* among 8 devices"):
        own.shard(wide, units="data")
    with pytest.raises(ValueError, match=r"no parameter has an axis of units .*\(8, 4\).*'model'"):
        learner(OneLeak).shard(meshes.mesh("Auto", 4, 2), units="model")
    with pytest.raises(ValueError, match="no axis 'model'; its axes are 'data' .8 devices"):
        own.shard(wide, units="model")


class OneLeak(brainstate.nn.Module):
    """Units that share the only parameter."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.leak, self.units = brainstate.ParamState(jnp.asarray(0.3)), units

    def init_state(self, batch_size: int) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, self.units)))

    def update(self, x: Any) -> Any:
        self.h.value = bt.element_wise(self.leak.value) * self.h.value + x.sum(-1, keepdims=True)
        return self.h.value


class Leaks(brainstate.nn.Module):
    """No layers but leaky ones."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.first, self.last = bt.nn.Linear(inputs, units, key=0), bt.nn.Linear(units, 6, key=1)
        self.units = units

    def init_state(self, batch_size: int) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, self.units)))
        self.k = brainstate.HiddenState(jnp.zeros((batch_size, 6)))

    def update(self, x: Any) -> Any:
        self.h.value = 0.8 * self.h.value + self.first(x)
        self.k.value = 0.7 * self.k.value + self.last(self.h.value)
        return self.k.value


def test_layers_of_leaks_alone() -> None:
    """There are no traces, but filters of what the layers hear."""
    expected = gradient(learner(Leaks))
    for on, lies in (
        (meshes.mesh("Auto", 8), ("data", None)),
        (meshes.mesh("Auto", 2, 2), ("data", "model")),
    ):
        own = learner(Leaks, on=on)
        assert not any(jax.tree.leaves(trace.value) for trace in own.traces)
        assert tuple(own.model.h.value.sharding.spec) == lies
        filters = [f.value for f in own.filters if f.value.ndim]
        assert filters and all(f.sharding.spec[0] == "data" for f in filters)
        assert_tree_close(gradient(own), expected, 1e-12)


def test_examples_of_several_steps_of_a_convolution_are_divided() -> None:
    with meshes.prepared(Case("conv"), meshes.mesh("Auto", 2, 2)) as job:
        assert job.xs.sharding.spec == jax.P(None, "data")
        assert job.learner(bt.MultiStepData(job.xs)).shape[:2] == job.xs.shape[:2]


def test_positions_in_space_of_a_convolution() -> None:
    """On a mesh of several axes XLA's derivatives of convolutions are wrong there."""
    expected = meshes.run(Case("conv", "snap-2"))
    divided = meshes.mesh("Auto", 2, 2)

    def found(on: Any, *spec: Any, driver: str = "block-3") -> Any:
        with meshes.prepared(Case("conv", "snap-2", driver)) as job:
            for state in job.learner.hidden_states.values():
                state.value = jax.device_put(state.value, jax.NamedSharding(on, jax.P(*spec)))
            return jax.tree.map(meshes.whole, table.DRIVERS[driver](job)())

    for driver in ("block-3", "call"):
        with pytest.raises(NotSupportedError, match=r"axis 2, a position in .* \[2\] .*'model'"):
            found(divided, "data", None, "model", driver=driver)
    for spec in (("data", "model"), (None, "model")):
        assert_tree_close(found(divided, *spec), expected, 1e-12)
    assert_tree_close(found(meshes.mesh("Auto", 2), None, None, "data"), expected, 1e-12)
    with meshes.prepared(Case("conv", "snap-2")) as job:
        place = jax.NamedSharding(divided, jax.P(None, "data", "model"))
        xs = jax.device_put(job.xs, place)
        with pytest.raises(NotSupportedError, match="an argument of shape .* divided as"):
            job.learner.etrace_grad(xs, job.ys, step_fn=job.step)


def test_arguments_may_lie_elsewhere_than_states_on_a_mesh_that_is_not_set() -> None:
    own = learner(bt.nn.GRUCell, on=meshes.mesh("Explicit", 4, 2))
    assert_tree_close(gradient(own), gradient(learner(bt.nn.GRUCell)), 1e-12)


def test_sums_are_divided_as_what_is_put_onto_devices_by_hand() -> None:
    """As states are, or else arguments; what ``learner.shard`` was told stays."""
    own, on = learner(), meshes.mesh("Auto", 2, 2)
    parts = own.rule.executor
    assert parts.division == (1, None)
    with jax.set_mesh(on):
        assert parts.division == (4, None)  # any axis may be that of examples

    def put(*spec: Any) -> None:
        for state in own.hidden_states.values():
            state.value = jax.device_put(state.value, jax.NamedSharding(on, jax.P(*spec)))

    put("data")
    assert parts.division == own.executor.compiled.division == (2, None)
    put(("data", "model"))
    assert parts.division == (4, None)
    put("data", "model")
    assert parts.division[0] == 2 and parts.division[1].spec == jax.P(("data",))
    put()
    assert parts.division == (1, None)
    begin_call(own, jax.device_put(XS, jax.NamedSharding(on, jax.P(None, "model"))), lead=2)
    assert parts.division == (2, None)
    own.shard(on, batch=("data", "model"))
    put("data")
    assert parts.division == (4, None)
