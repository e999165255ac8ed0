# SPDX-License-Identifier: Apache-2.0
"""From a graph to a model and back, through files."""

from __future__ import annotations

from itertools import pairwise

import brainstate
import jax
import jax.numpy as jnp
import nir
import numpy as np
import pytest

import braintrace
from braintrace_nir import from_nir, to_nir

RNG = np.random.default_rng(3)
N = 4


def draw(*shape):
    return RNG.uniform(0.5, 1.5, shape).astype(np.float32)


def conv(groups=1):
    bias = draw(2)
    return nir.Conv2d((5, 5), draw(2, 2 // groups, 3, 2), 1, (1, 0), 1, groups, bias)


def everything():
    """Every node that is imported, with a loop, a sub-graph and metadata."""
    pool = (np.array([2, 2]), np.array([1, 1]), np.array([0, 0]))
    lif = {"r": draw(N), "v_leak": draw(N), "v_threshold": draw(N), "v_reset": draw(N)}
    cuba = {"tau_syn": draw(N), "tau_mem": draw(N), "w_in": draw(N)}
    sub = nir.NIRGraph(
        {
            "in": nir.Input(np.array([N])),
            "cubalif": nir.CubaLIF(**cuba, **lif, metadata={"layer": "recurrent"}),
            "back": nir.Linear(draw(N, N)),
            "late": nir.Delay(np.array([1, 2, 3, 1], np.float32)),
            "out": nir.Output(np.array([N])),
        },
        [
            ("in", "cubalif"),
            ("cubalif", "late"),
            ("late", "back"),
            ("back", "cubalif"),
            ("cubalif", "out"),
        ],
    )
    chain = {
        "input": nir.Input(np.array([2, 5])),
        "conv1d": nir.Conv1d(5, draw(2, 2, 1), 1, 0, 1, 1, draw(2)),
        "scale": nir.Scale(draw(2, 5)),
        "flatten": nir.Flatten(np.array([2, 5]), 0),
        "to_image": nir.Linear(draw(50, 10)),
        "i": nir.I(draw(50)),
        "if": nir.IF(draw(50), draw(50)),
        "affine": nir.Affine(draw(N, 50), draw(N)),
        "lif": nir.LIF(draw(N), **lif),
        "cubali": nir.CubaLI(**cuba, r=draw(N), v_leak=draw(N)),
        "threshold": nir.Threshold(draw(N)),
        "sub": sub,
        "li": nir.LI(draw(N), draw(N), draw(N)),
        "output": nir.Output(np.array([N])),
    }
    images = {
        "image": nir.Input(np.array([2, 5, 5])),
        "conv2d": conv(),
        "avg": nir.AvgPool2d(*pool),
        "sum": nir.SumPool2d(*pool),
        "flat": nir.Flatten(np.array([2, 3, 2]), 0),
        "seen": nir.Output(np.array([12])),
    }
    paths = [*pairwise(chain), *pairwise(images)]
    # nir 1.0.8 takes a kernel for square, so it has another shape for what follows
    return nir.NIRGraph({**chain, **images}, paths, {"made": "here"}, type_check=False)


def assert_same(found, expected):
    assert {*found.nodes} == {*expected.nodes}
    assert {*map(tuple, found.edges)} == {*map(tuple, expected.edges)}
    assert found.metadata == expected.metadata
    for name, node in expected.nodes.items():
        other = found.nodes[name]
        assert type(other) is type(node) and other.metadata == node.metadata
        if isinstance(node, nir.NIRGraph):
            assert_same(other, node)
            continue
        for field in type(node).__dataclass_fields__:
            if field not in ("metadata", "input_type", "output_type"):
                a, b = getattr(other, field), getattr(node, field)
                np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=f"{name}.{field}")


def test_every_node_comes_back(tmp_path):
    graph = everything()
    model = from_nir(graph, dt=1)
    assert_same(to_nir(model), graph)
    nir.write(tmp_path / "graph.nir", to_nir(model))
    again = from_nir(nir.read(tmp_path / "graph.nir", type_check=False), dt=1)
    assert_same(to_nir(again), graph)
    for each in (model, again):
        brainstate.nn.init_all_states(each, batch_size=2)
    x = {"input": jnp.asarray(RNG.normal(size=(2, 2, 5))), "image": jnp.ones((2, 2, 5, 5))}
    for _ in range(3):
        first, second = model(x), again(x)
        for name in ("output", "seen"):
            np.testing.assert_array_equal(first[name], second[name])


def test_what_was_trained_is_what_is_exported(tmp_path):
    """In single precision, as most models are; the graph that was imported stays as it was."""
    with jax.enable_x64(False):
        graph = everything()
        before = graph.nodes["affine"].weight.copy()
        train = ["tau", "w_in", "scale", "v_reset", "threshold"]
        model = from_nir(graph, dt=1, train=train)
        parameters = model.states(brainstate.ParamState)
        assert len(parameters) == 5 + sum([2, 2, 1, 3, 1])  # products, and fields of nodes
        for state in parameters.values():
            state.value = jax.tree.map(lambda v: v + 0.25, state.value)
        nir.write(tmp_path / "trained.nir", to_nir(model))
    found = nir.read(tmp_path / "trained.nir", type_check=False)
    np.testing.assert_array_equal(graph.nodes["affine"].weight, before)
    for name, fields in {
        "affine": ["weight", "bias"],
        "conv1d": ["weight", "bias"],
        "conv2d": ["weight", "bias"],
        "lif": ["tau", "v_reset"],
        "if": ["v_reset"],
        "cubali": ["w_in"],
        "scale": ["scale"],
        "threshold": ["threshold"],
    }.items():
        for field in fields:
            expected = getattr(graph.nodes[name], field) + 0.25
            np.testing.assert_allclose(getattr(found.nodes[name], field), expected, rtol=1e-6)
    np.testing.assert_array_equal(found.nodes["lif"].v_threshold, graph.nodes["lif"].v_threshold)


def test_nodes_that_are_no_longer_nirs_are_refused_by_name():
    def refused(model, *texts):
        with pytest.raises(braintrace.NotSupportedError, match="NIR cannot say what") as error:
            to_nir(model)
        for text in texts:
            assert text in str(error.value)

    graph = everything()
    soft = from_nir(graph, dt=1, reset="soft")
    refused(soft, "lif: a soft reset", "if: a soft reset", "sub.cubalif: a soft reset")
    refused(from_nir(graph, dt=1, method="euler"), "cubali: a forward Euler step", "i: a forward")
    graph.nodes["conv2d"] = conv(groups=2)
    refused(from_nir(graph, dt=1), "conv2d: 2 groups of channels")
    model = from_nir(everything(), dt=1)
    model.layers["sub.back"] = braintrace.nn.Linear(N, N, b_init=None, w_mask=jnp.eye(N))
    model.layers["lif"] = brainstate.nn.Dropout(0.5)
    model.layers["affine"].weight.value["bias"] = jnp.full(N, jnp.nan)
    refused(
        model,
        "sub.back: a mask of its weight",
        "lif: a module of type Dropout",
        "affine: a parameter that is not finite",
    )
    fast = from_nir(everything(), dt=1, train=["tau", "tau_syn"])
    fast.layers["lif"].tau.value = jnp.asarray(draw(N)).at[1].set(-0.1)
    refused(fast, "lif: a tau that training has made zero or negative")
    with pytest.raises(TypeError, match="model must be what from_nir returns, got Linear"):
        to_nir(braintrace.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="got Learner; of a learner, give learner.model"):
        to_nir(type("Learner", (), {"model": model})())
