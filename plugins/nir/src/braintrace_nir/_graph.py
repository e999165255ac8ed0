# SPDX-License-Identifier: Apache-2.0
"""A NIR graph as a flat one: sub-graphs opened, an order of evaluation, and the edges that wait.

NIR's time is continuous and knows no order. A step of length ``dt`` does: what goes round a loop
arrives one step later, since nothing acts before it is there. Which edges wait is a property of the
graph alone, whatever its nodes are called: those that leave a neuron for a node of its own strongly
connected component, and those that leave a delay of at least one step, which waits as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

Edge = tuple[str, str]


class Flat(NamedTuple):
    """Nodes by path, names of sub-graphs joined by points, and edges between them."""

    nodes: dict[str, Any]
    edges: list[Edge]


class Order(NamedTuple):
    """Names in the order of evaluation, edges that carry what was given a step before, loops."""

    names: list[str]
    late: frozenset[Edge]
    in_loops: frozenset[str]


def flat(graph: Any) -> Flat:
    """Open the sub-graphs of a ``nir.NIRGraph``: an edge to one leads to its only input."""
    nodes: dict[str, Any] = {}
    edges: list[Edge] = []
    for path, node in _leaves(graph, ""):
        if path in nodes:
            raise ValueError(f"{path}: two nodes have this name once sub-graphs are opened")
        nodes[path] = node
    for edge in _edges(graph, ""):
        if edge in edges:
            raise ValueError(f"{edge[0]} -> {edge[1]}: this edge is there twice")
        edges.append(edge)
    return Flat(nodes, edges)


def is_graph(node: Any) -> bool:
    """Whether a node is a graph of its own."""
    return type(node).__name__ == "NIRGraph"


def _leaves(graph: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for name, node in graph.nodes.items():
        if is_graph(node):
            yield from _leaves(node, f"{prefix}{name}.")
        else:
            yield prefix + name, node


def _edges(graph: Any, prefix: str) -> Iterator[Edge]:
    for name, node in graph.nodes.items():
        if is_graph(node):
            yield from _edges(node, f"{prefix}{name}.")
    for source, target in graph.edges:
        yield _end(graph, prefix, source, "Output"), _end(graph, prefix, target, "Input")


def _end(graph: Any, prefix: str, name: str, port: str) -> str:
    """The path of the node that an edge really leaves or enters."""
    path = prefix + name
    if name not in graph.nodes:
        raise ValueError(f"{path}: an edge names a node that is not there")
    node = graph.nodes[name]
    if not is_graph(node):
        return path
    ports = [n for n, inner in node.nodes.items() if type(inner).__name__ == port]
    if len(ports) != 1:
        raise ValueError(
            f"{path}: an edge names this sub-graph, which has {len(ports)} nodes of type {port}, "
            "expected 1; connect the nodes inside of it by a sub-graph for each"
        )
    return _end(node, f"{path}.", ports[0], port)


def order_of(nodes: Iterable[str], edges: Iterable[Edge], states: Mapping[str, bool]) -> Order:
    """The order of evaluation; ``states`` has the nodes with a state: whether they delay by it.

    Raises
    ------
    ValueError
        For a loop without a neuron or a delay, by the names of its nodes.
    """
    names, edges = list(nodes), list(edges)
    waits = {e for e in edges if states.get(e[0])}
    reach = _reachable(names, [e for e in edges if e not in waits])
    waits |= {(s, t) for s, t in edges if s in states and (t == s or s in reach[t])}
    left: dict[str, set[str]] = {name: set() for name in names}
    for source, target in edges:
        if (source, target) not in waits:
            left[target].add(source)
    order: list[str] = []
    while ready := [name for name, sources in left.items() if not sources]:
        order += ready
        left = {k: sources - {*ready} for k, sources in left.items() if k not in ready}
    if left:
        loop = sorted(name for name in left if name in reach[name])
        raise ValueError(f"{', '.join(loop)}: a loop without a neuron or a delay has no first step")
    return Order(order, frozenset(waits), frozenset(n for n in names if n in reach[n]))


def _reachable(names: list[str], edges: list[Edge]) -> dict[str, set[str]]:
    """What each node leads to, itself only round a loop."""
    targets: dict[str, list[str]] = {name: [] for name in names}
    for source, target in edges:
        targets[source].append(target)
    found = {}
    for name in names:
        seen: set[str] = set()
        todo = [*targets[name]]
        while todo:
            node = todo.pop()
            if node not in seen:
                seen.add(node)
                todo += targets[node]
        found[name] = seen
    return found
