# SPDX-License-Identifier: Apache-2.0
"""From a model back to a NIR graph."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import nir
import numpy as np

from braintrace.plugin_api import NotSupportedError
from braintrace_conv.nn import Conv1d, Conv2d
from braintrace_dense.nn import Linear

from ._graph import is_graph
from ._layers import Flatten, Pool, Port
from ._network import Network
from ._neurons import TIME_CONSTANTS, Elements, Neuron

IMPORTED = (Elements, Linear, Conv1d, Conv2d, Flatten, Pool, Port)


def to_nir(model: Network) -> nir.NIRGraph:
    """The NIR graph of a model, with the parameters that it has now.

    Parameters
    ----------
    model
        What :func:`from_nir` made, trained since. Its sub-graphs, names and metadata come back, and
        fields that are not trained are those of the graph, to the last bit.

    Returns
    -------
    nir.NIRGraph
        A graph of its own, for ``nir.write`` or another library.

    Raises
    ------
    NotSupportedError
        When the equations of some node are not NIR's: a soft reset, forward Euler, groups of
        channels, a module that was put in place of the imported one, a parameter that is not
        finite, a time constant that is not positive. All of them are named.
    TypeError
        For a model of another type.

    Examples
    --------
    >>> import nir, numpy as np
    >>> from braintrace_nir import from_nir
    >>> graph = nir.NIRGraph.from_list(nir.Linear(weight=np.ones((3, 2))))
    >>> again = to_nir(from_nir(graph, dt=0.001))
    >>> bool((again.nodes["linear"].weight == graph.nodes["linear"].weight).all())
    True
    """
    if not isinstance(model, Network):
        raise TypeError(
            f"model must be what from_nir returns, got {type(model).__name__}"
            + "; of a learner, give learner.model" * hasattr(model, "model")
        )
    refused = [
        f"{name}: {why}" for name, module in model.layers.items() for why in _refused(module)
    ]
    if refused:
        raise NotSupportedError("NIR cannot say what these nodes compute: " + "; ".join(refused))
    return _exported(model, model.skeleton.graph, "")


def _exported(model: Network, graph: nir.NIRGraph, prefix: str) -> nir.NIRGraph:
    nodes = {}
    for name, node in graph.nodes.items():
        if is_graph(node):
            nodes[name] = _exported(model, node, f"{prefix}{name}.")
        else:
            nodes[name] = copy.deepcopy(node)
            for field, value in _fields(model.layers[prefix + name]).items():
                setattr(nodes[name], field, value)
    metadata = copy.deepcopy(graph.metadata)
    return nir.NIRGraph(nodes, [*graph.edges], metadata=metadata, type_check=False)


def _fields(module: Any) -> dict[str, np.ndarray]:
    """What training may have changed, as NIR keeps it."""
    if isinstance(module, Elements):
        return {name: np.asarray(module.now(name)) for name in module.trained}
    if not isinstance(module, Linear | Conv1d | Conv2d):
        return {}
    found = {name: np.asarray(value) for name, value in module.weight.value.items()}
    # [*kernel, in, out] to [out, in, *kernel]
    weight = np.moveaxis(found["weight"], (-1, -2), (0, 1))
    bias = {"bias": found["bias"].reshape(-1)} if "bias" in found else {}
    return {"weight": np.ascontiguousarray(weight), **bias}


def _refused(module: Any) -> Iterator[str]:
    """Why a node cannot be exported exactly."""
    if isinstance(module, Neuron):
        if module.reset == "soft" and module.fires:
            yield "a soft reset, where NIR's v_reset takes the place of the potential"
        if module.method != "exact":
            yield "a forward Euler step, which is not the solution of NIR's equations"
        for name in {*module.trained} & {*TIME_CONSTANTS}:
            if not (np.asarray(module.now(name)) > 0).all():
                yield f"a {name} that training has made zero or negative"
    elif isinstance(module, Conv1d | Conv2d) and module.groups != 1:
        yield f"{module.groups} groups of channels, which nir's own reader refuses"
    elif not isinstance(module, IMPORTED):
        yield f"a module of type {type(module).__name__}, which was not imported"
    if getattr(module, "w_mask", None) is not None:
        yield "a mask of its weight"
    if not all(np.isfinite(value).all() for value in _fields(module).values()):
        yield "a parameter that is not finite"
