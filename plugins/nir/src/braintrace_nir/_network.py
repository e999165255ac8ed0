# SPDX-License-Identifier: Apache-2.0
"""From a NIR graph to a model in steps of ``dt``."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Collection, Mapping
from functools import reduce
from operator import add
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import nir
import numpy as np
import saiunit

from braintrace.plugin_api import NotSupportedError

from ._graph import Edge, Flat, Order, flat, order_of
from ._layers import Delay, Flatten, Pool, Port, Scale, Shape, Threshold, convolution, product
from ._neurons import FIELDS, TIME_CONSTANTS, Neuron, Surrogate, fast_sigmoid

#: Fields that ``train`` may name.
ELEMENTS = {name for fields in FIELDS.values() for name in fields} | {"scale", "threshold"}

Build = Callable[[Any, Any], brainstate.nn.Module]


class Network(brainstate.nn.Module):
    """A NIR graph as a model; made by :func:`from_nir`.

    Attributes
    ----------
    layers
        The module of each node by its name, those in sub-graphs by the path ``"graph.node"``. A
        ``Linear`` or ``Affine`` is a ``braintrace.nn.Linear``, whose weight is [in, out], a
        convolution is one of ``braintrace.nn`` with its channels first, a neuron a :class:`Neuron`.
    order, late
        The names in the order of evaluation; the edges that carry what was given one step before.
    dt
        The length of a step, in the unit of time of the graph.

    Notes
    -----
    ``update(x)`` takes [..., *shape] of the input and returns the output of the step. With several
    inputs it takes a dict, by their names, with several outputs it returns one. It raises
    ``RuntimeError`` before ``init_state``, and ``ValueError`` for inputs of other names or shapes.
    """

    def __init__(
        self,
        graph: nir.NIRGraph,
        nodes: Mapping[str, brainstate.nn.Module],
        order: Order,
        edges: list[Edge],
        dt: float,
    ) -> None:
        super().__init__()  # type: ignore[call-arg]
        self.layers: dict[str, Any]
        self.layers, self.order, self.dt = dict(nodes), tuple(order.names), dt
        self.late = tuple(sorted(order.late))
        self.sources = {n: tuple(sorted(s for s, t in edges if t == n)) for n in order.names}
        self.inputs = tuple(sorted(graph.inputs))
        self.outputs = tuple(sorted(graph.outputs))
        self.skeleton = Skeleton(graph)

    def update(self, x: Any) -> Any:
        """The output of a step with the input ``x``."""
        given = x if isinstance(x, dict) else dict.fromkeys(self.inputs[:1], x)
        if set(given) != set(self.inputs):
            raise ValueError(f"got inputs {sorted(given)}, expected {list(self.inputs)}")
        missing = [n for n, layer in self.layers.items() if not getattr(layer, "is_ready", True)]
        if missing:
            raise RuntimeError(
                f"{', '.join(missing)}: no states yet; call brainstate.nn.init_all_states(model, "
                "batch_size=...) first"
            )
        before = {source: self.layers[source].output() for source in {s for s, _ in self.late}}
        now: dict[str, jax.Array] = {}
        for name in self.order:
            parts = [
                (before if (source, name) in self.late else now)[source]
                for source in self.sources[name]
            ]
            now[name] = self.layers[name](reduce(add, parts) if parts else self._input(given, name))
        results = {name: now[name] for name in self.outputs}
        return results if len(results) != 1 else results[self.outputs[0]]

    def _input(self, given: Mapping[str, Any], name: str) -> jax.Array:
        x, shape = jnp.asarray(given[name]), self.layers[name].in_size
        if x.shape[x.ndim - len(shape) :] != shape:
            raise ValueError(f"input {name} has shape {x.shape}, expected [..., {shape}]")
        return x.astype(jnp.result_type(float))


class Skeleton:
    """The graph that a model came from, for its structure and what is not trained."""

    def __init__(self, graph: nir.NIRGraph) -> None:
        self.graph = copy.deepcopy(graph)


def from_nir(
    graph: nir.NIRGraph | str | os.PathLike[str],
    dt: Any,
    *,
    time_unit: Any = None,
    surrogate: Surrogate = fast_sigmoid,
    reset: str = "hard",
    method: str = "exact",
    train: Collection[str] = (),
) -> Network:
    """A NIR graph as a model whose products are trained online.

    Parameters
    ----------
    graph
        The graph, or the file that has it.
    dt
        Length of a step: a number in the graph's own unit of time, in which its time constants and
        delays are, or a quantity beside ``time_unit``. A graph has no time step, so there is no
        default.
    time_unit
        The unit of time of the graph, for example ``saiunit.second``; needed where ``dt`` has one.
    surrogate, reset, method
        As :class:`Neuron` takes them: the derivative of a spike, ``"hard"`` or ``"soft"``,
        ``"exact"`` or ``"euler"``. Only the first of each can be exported again.
    train
        Names of fields of nodes that are trained beside weights and biases, for example ``"tau"``,
        ``"w_in"``, ``"v_threshold"`` or ``"scale"``, in every node that has them.

    Returns
    -------
    Network
        The model, without states before ``init_state``; compile it as any other.

    Raises
    ------
    TypeError
        When ``dt`` is missing its unit, or is no time; for a ``graph`` or ``surrogate`` that is
        something else.
    ValueError
        For a ``dt`` that is not positive, a name that no node has in ``train``, and what is wrong
        with the graph: shapes that do not fit, NaN, a node without an input, a delay that is no
        multiple of ``dt``, a loop without a neuron. The message names the node.
    NotSupportedError
        For a node of another type.

    Warns
    -----
    UserWarning
        When ``dt`` is longer than every time constant, as one in another unit is.

    Notes
    -----
    Between input and output everything happens in one step, but what goes round a loop, which
    arrives one step later. Edges into one node are summed.

    References
    ----------
    J. E. Pedersen et al., "Neuromorphic intermediate representation: A unified instruction set for
    interoperable brain-inspired computing", Nature Communications 15 (2024).

    Examples
    --------
    >>> import nir, numpy as np
    >>> one = np.ones(3)
    >>> graph = nir.NIRGraph.from_list(
    ...     nir.Linear(weight=np.ones((3, 2))), nir.LI(tau=0.02 * one, r=one, v_leak=0 * one)
    ... )
    >>> model = from_nir(graph, dt=0.001)
    >>> model.order
    ('input', 'linear', 'li', 'output')
    """
    if isinstance(graph, str | os.PathLike):
        graph = nir.read(graph)
    if not isinstance(graph, nir.NIRGraph):
        raise TypeError(f"graph must be a nir.NIRGraph or a file, got {type(graph).__name__}")
    if not callable(surrogate):
        raise TypeError(f"surrogate must be a function of v - v_threshold, got {surrogate!r}")
    step = _step(dt, time_unit)
    found = flat(graph)
    _check_train(train, found)

    def neuron(node: Any, shape: Shape) -> Neuron:
        own = {"reset": reset, "method": method, "surrogate": surrogate, "train": train}
        return Neuron(node, dt=step, **own)  # type: ignore[arg-type]

    builders: dict[str, Build] = {
        **dict.fromkeys(FIELDS, neuron),
        **dict.fromkeys(("Linear", "Affine"), lambda node, shape: product(node)),
        **dict.fromkeys(("Conv1d", "Conv2d"), convolution),
        **dict.fromkeys(("SumPool2d", "AvgPool2d"), Pool),
        "Input": lambda node, shape: Port(_declared(node.input_type["input"], shape)),
        "Output": lambda node, shape: Port(_declared(node.output_type["output"], shape)),
        "Scale": lambda node, shape: Scale(node, train),
        "Threshold": lambda node, shape: Threshold(node, surrogate, train),
        "Delay": lambda node, shape: Delay(node, step),
        "Flatten": Flatten,
    }
    return _build(graph, found, builders, step)


def _build(graph: nir.NIRGraph, found: Flat, builders: Mapping[str, Build], dt: float) -> Network:
    """The modules in the order of evaluation, each for the shape of what comes in."""
    kinds = {name: type(node).__name__ for name, node in found.nodes.items()}
    for name, kind in kinds.items():
        if kind not in builders:
            raise NotSupportedError(f"{name}: nodes of type {kind} are not imported")

    def built(name: str, shape: Shape | None) -> Any:
        try:
            _check_numbers(found.nodes[name])
            return builders[kinds[name]](found.nodes[name], shape)
        except (ValueError, NotSupportedError) as error:
            raise type(error)(f"{name} ({kinds[name]}): {error}") from None

    modules = {n: built(n, ()) for n, kind in kinds.items() if kind in FIELDS or kind == "Delay"}
    states = {n: kinds[n] == "Delay" for n in modules if getattr(modules[n], "waits", True)}
    order = order_of(found.nodes, found.edges, states)
    _warn_of_unit(found, dt)
    for name in sorted(order.in_loops & modules.keys() - states.keys()):
        if modules[name].longest:
            raise ValueError(f"{name}: in a loop, with some delays of zero and some that are not")
    for name in order.names:
        sources = [s for s, t in found.edges if t == name]
        shapes = {s: tuple(modules[s].out_size) for s in sources}
        shape = _incoming(name, kinds[name], shapes)
        module = modules[name] = modules.get(name) or built(name, shape)
        if sources and tuple(module.in_size) != shape:
            raise ValueError(
                f"{name} ({kinds[name]}): gets {shape} from {', '.join(sources)}, expected "
                f"{tuple(module.in_size)}"
            )
    return Network(graph, modules, order, found.edges, dt)


def _check_numbers(node: Any) -> None:
    """No field has NaN in it; a threshold may be infinite."""
    for field, value in vars(node).items():
        is_array = isinstance(value, np.ndarray | jax.Array) and value.dtype.kind == "f"
        if is_array and np.isnan(value).any():
            raise ValueError(f"{field} holds NaN (entries: {int(np.isnan(value).sum())})")


def _warn_of_unit(found: Flat, dt: float) -> None:
    """Say where a step is longer than every time constant: nothing is remembered then."""
    nodes = found.nodes.values()
    times = [np.max(getattr(n, k)) for n in nodes for k in TIME_CONSTANTS if hasattr(n, k)]
    if times and dt > max(times):
        warnings.warn(
            f"a step of dt = {dt:g} is longer than every time constant, at most {max(times):g}: "
            "give dt in the unit of the graph",
            stacklevel=4,
        )


def _incoming(name: str, kind: str, shapes: Mapping[str, Shape]) -> Shape | None:
    """The one shape of everything that leads to a node; ``None`` for an input."""
    if not shapes and kind != "Input":
        raise ValueError(f"{name} ({kind}): no edge leads to it; what comes in is an Input")
    if len({*shapes.values()}) > 1:
        raise ValueError(f"{name} ({kind}): gets different shapes, {dict(shapes)}")
    return next(iter(shapes.values()), None)


def _declared(size: Any, incoming: Shape | None) -> Shape:
    """The shape that an end of the graph has, or takes from what leads to it."""
    if size is None and incoming is None:
        raise ValueError("its shape is missing")
    return incoming or () if size is None else tuple(int(n) for n in np.atleast_1d(size))


def _step(dt: Any, time_unit: Any) -> float:
    """The length of a step as a number in the graph's unit of time."""
    if isinstance(dt, saiunit.Quantity):
        if time_unit is None:
            raise TypeError(
                f"dt = {dt} has a unit, and a graph has none: give the unit of its time constants, "
                "time_unit=saiunit.second for example, or dt as a number in that unit"
            )
        if not isinstance(time_unit, saiunit.Unit | saiunit.Quantity):
            raise TypeError(f"time_unit must be a unit, as saiunit.second, got {time_unit!r}")
        try:
            dt = dt.to_decimal(saiunit.get_unit(time_unit))
        except saiunit.UnitMismatchError as error:
            raise TypeError(f"dt = {dt} is no multiple of time_unit = {time_unit}") from error
    elif time_unit is not None:
        raise TypeError(f"dt = {dt} has no unit, so time_unit = {time_unit} says nothing")
    step = float(dt)
    if not 0 < step < float("inf"):
        raise ValueError(f"dt must be positive, got {dt}")
    return step


def _check_train(train: Collection[str], found: Flat) -> None:
    """Every name is a field of values position by position, of some node of the graph."""
    there = {name for node in found.nodes.values() for name in ELEMENTS if hasattr(node, name)}
    if isinstance(train, str) or (unknown := sorted({*train} - there)):
        got = train if isinstance(train, str) else unknown
        raise ValueError(f"train: {got!r}, expected names among {sorted(there)}")
