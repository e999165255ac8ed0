# SPDX-License-Identifier: Apache-2.0
"""Nodes without equations in time, and the delay, against loops in numpy."""

from __future__ import annotations

import brainstate
import jax.numpy as jnp
import nir
import numpy as np
import pytest

import braintrace
from braintrace_nir import from_nir

RNG = np.random.default_rng(1)


def graph_of(node, shape):
    """One node between an input and an output; its type is not asked of nir."""
    nodes = {"input": nir.Input(np.array(shape)), "node": node, "output": nir.Output(None)}
    return nodes, [("input", "node"), ("node", "output")]


def model_of(node, shape, out):
    nodes, edges = graph_of(node, shape)
    nodes["output"] = nir.Output(np.array(out))
    return from_nir(nir.NIRGraph(nodes, edges, type_check=False), dt=1.0)


def convolved(x, node):
    """Cross-correlation, as in NIR (and torch), for one example [channels, *space]."""
    ndim = x.ndim - 1
    stride, dilation = (np.broadcast_to(v, ndim) for v in (node.stride, node.dilation))
    kernel = np.array(node.weight.shape[2:])
    if isinstance(node.padding, str):
        total = dilation * (kernel - 1) * (node.padding == "same")
        pads = [(t // 2, t - t // 2) for t in total]
    else:
        pads = [(p, p) for p in np.broadcast_to(node.padding, ndim)]
    x = np.pad(x, [(0, 0), *pads])
    size = (np.array(x.shape[1:]) - dilation * (kernel - 1) - 1) // stride + 1
    per_group = node.weight.shape[1]
    out = np.zeros((node.weight.shape[0], *size))
    for index in np.ndindex(*out.shape):
        first = index[0] // (node.weight.shape[0] // node.groups) * per_group
        total = node.bias[index[0]]
        for tap in np.ndindex(per_group, *kernel):
            at = np.array(index[1:]) * stride + np.array(tap[1:]) * dilation
            total += node.weight[(index[0], *tap)] * x[(first + tap[0], *at)]
        out[index] = total
    return out


def pooled(x, node, average):
    x = np.pad(x, [(0, 0), *((p, p) for p in node.padding)])
    size = [
        (n - k) // s + 1 for n, k, s in zip(x.shape[1:], node.kernel_size, node.stride, strict=True)
    ]
    out = np.zeros((x.shape[0], *size))
    for c, i, j in np.ndindex(*out.shape):
        i0, j0 = i * node.stride[0], j * node.stride[1]
        part = x[c, i0 : i0 + node.kernel_size[0], j0 : j0 + node.kernel_size[1]]
        out[c, i, j] = part.mean() if average else part.sum()
    return out


def conv(shape, out, kernel, stride, padding, dilation, groups=1):
    weight = RNG.normal(size=(out, shape[0] // groups, *kernel))
    bias = RNG.normal(size=out)
    kind = nir.Conv1d if len(kernel) == 1 else nir.Conv2d
    return kind(None, weight, stride, padding, dilation, groups, bias), shape, convolved


POOL = (np.array([2, 3]), np.array([2, 1]), np.array([1, 1]))
CASES = {
    "Linear": (nir.Linear(RNG.normal(size=(2, 3))), (3,), lambda x, n: n.weight @ x),
    "Affine": (
        nir.Affine(RNG.normal(size=(2, 3)), RNG.normal(size=2)),
        (3,),
        lambda x, n: n.weight @ x + n.bias,
    ),
    "Scale": (nir.Scale(RNG.normal(size=(2, 3))), (2, 3), lambda x, n: n.scale * x),
    "Threshold": (
        nir.Threshold(np.array([0.1, -0.4, 0.0])),
        (3,),
        lambda x, n: (x > n.threshold).astype(float),
    ),
    "Conv1d": conv((2, 9), 3, (3,), 2, 1, 2),
    "Conv1d of an array": conv((1, 5), 1, (2,), np.array([1]), np.array([1]), np.array([1])),
    "Conv2d": conv((2, 6, 7), 4, (3, 2), (1, 2), (1, 0), (2, 1)),
    "Conv2d, same": conv((2, 4, 5), 2, (2, 3), 1, "same", 1),
    "Conv2d, valid": conv((2, 4, 5), 2, (2, 3), 1, "valid", 1),
    "Conv2d in groups": conv((4, 5, 5), 6, (2, 2), 1, 0, 1, groups=2),
    "SumPool2d": (nir.SumPool2d(*POOL), (2, 5, 6), lambda x, n: pooled(x, n, False)),
    "AvgPool2d": (nir.AvgPool2d(*POOL), (2, 5, 6), lambda x, n: pooled(x, n, True)),
    "Flatten": (nir.Flatten(np.array([2, 3, 4]), 0), (2, 3, 4), lambda x, n: x.reshape(-1)),
    "Flatten, its default": (
        nir.Flatten(np.array([2, 3, 4])),
        (2, 3, 4),
        lambda x, n: x.reshape(2, 12),
    ),
    "Flatten, the first": (
        nir.Flatten(np.array([2, 3, 4]), 0, 1),
        (2, 3, 4),
        lambda x, n: x.reshape(6, 4),
    ),
}


@pytest.mark.usefixtures("strict_jax")
@pytest.mark.parametrize("name", CASES)
def test_a_node_computes_what_nir_says(name):
    node, shape, oracle = CASES[name]
    x = RNG.normal(size=(2, *shape))
    expected = np.array([oracle(row, node) for row in x])
    model = model_of(node, shape, expected.shape[1:])
    np.testing.assert_allclose(model(jnp.asarray(x)), expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(model(jnp.asarray(x[0])), expected[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("steps", [[0, 0, 0], [2, 2, 2], [3, 1, 2], [0, 2, 1]])
def test_a_delay(steps):
    """Each position has its own; what a file keeps in single precision is a multiple, too."""
    model = from_nir(nir.NIRGraph.from_list(nir.Delay(np.array(steps, np.float32) * 1e-3)), dt=1e-3)
    brainstate.nn.init_all_states(model, batch_size=2)
    xs = RNG.normal(size=(6, 2, 3))
    for _ in range(2):
        found = np.array([model(jnp.asarray(x)) for x in xs])
        for position, late in enumerate(steps):
            assert (found[:late, :, position] == 0).all()
            np.testing.assert_array_equal(
                found[late:, :, position], xs[: len(xs) - late, :, position]
            )
        brainstate.nn.reset_all_states(model, batch_size=2)


def test_what_is_refused_by_name():
    shape, zero = (2, 4, 5), np.array([0, 0])
    for node, text in (
        (conv(shape, 2, (2, 2), 2, "same", 1)[0], "padding 'same' with a stride of"),
        (conv((4, 4, 5), 2, (2, 2), 1, 0, 1)[0], r"gets \(2, 4, 5\), its weight .* expects 4"),
        (nir.Linear(RNG.normal(size=(3, 7))), r"gets \(2, 4, 5\) from input, expected \(7,\)"),
        (nir.Delay(np.array([0.5])), "a delay of 0.5 steps of dt = 1; choose a dt"),
    ):
        with pytest.raises(ValueError, match=rf"node \({type(node).__name__}\): {text}"):
            model_of(node, shape, (1,))
    for ends in ((0, 3), (2, 1), (-4, -1)):  # 3 is the last axis where the batch is counted
        with pytest.raises(
            ValueError, match=rf"flattens axes {ends[0]} to {ends[1]} of \(2, 4, 5\)"
        ):
            model_of(nir.Flatten({"input": np.array(shape)}, *ends), shape, (40,))
    with pytest.raises(ValueError, match=r"gets \(2, 4, 5\), smaller than its window of \(5, 5\)"):
        model_of(nir.SumPool2d(zero + 5, zero + 1, zero), shape, (2, 1, 1))
    with pytest.raises(ValueError, match=r"node \(AvgPool2d\): gets \(3,\), expected \(channels"):
        model_of(nir.AvgPool2d(zero + 2, zero + 1, zero), (3,), (1,))
    with pytest.raises(braintrace.NotSupportedError, match="node .Linear.: a weight of shape"):
        model_of(nir.Linear(np.ones((2, 3, 4))), (2, 4), (2, 3))
