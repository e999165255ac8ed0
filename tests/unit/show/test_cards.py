# SPDX-License-Identifier: Apache-2.0
"""Which boxes stand together, and what is written in them."""

from __future__ import annotations

from typing import Any

from braintrace.compiler.graph import summarize
from braintrace.show.cards import ADVANCE, Card, Item, make_cards, text_size
from braintrace.show.facts import (
    CreditFacts,
    Flow,
    GroupFacts,
    OperationFacts,
    ParameterFacts,
    Summary,
)
from tests.unit.show.graphs import GRAPHS, everything, of_zoo

W, H = ("cell", "w"), ("cell", "h")
GROUP = GroupFacts(0, 9, (H,), ("",), (2, 4), 1, "position-wise")


def operation(eqn: int, relation: int | None = 0, **more: Any) -> OperationFacts:
    made: dict[str, Any] = {"parameters": (W,), "shapes": ((3, 4),), "groups": (0,)}
    return OperationFacts(
        eqn, relation, "etp_mm", alignment=(), source="net.py:3", **{**made, **more}
    )


def summary_of(*operations: OperationFacts, **more: Any) -> Summary:
    made = {"inputs": (), "outputs": (), "groups": (GROUP,), "parameters": (), "paths": {}}
    return Summary(**{**made, "operations": operations, "flows": (), "warnings": (), **more})


def texts(item: Item | None) -> list[str]:
    assert item is not None
    return [text for _, text in item.lines]


def test_the_size_of_a_text() -> None:
    assert text_size(("name", "abcd"), ("fine", "ab")) == (round(4 * ADVANCE["name"]), 16 + 14)
    assert text_size() == (0, 0)


def test_a_group_and_the_operations_that_drive_it_are_one_card() -> None:
    parameters = (ParameterFacts(W, (), "trace", (0,)),)
    (card,) = make_cards(summary_of(operation(5), operation(3), parameters=parameters))
    assert (card.rank, card.layer, card.title) == (9, ("cell",), "cell")
    assert [item.node for item in card.items] == [("op", 3), ("op", 5)]
    assert texts(card.group) == [".h", "group 0 (2, 4) S=1", "D position-wise"]
    assert texts(card.items[0]) == [".w", "#0 etp_mm 3×4"]
    assert card.items[0].look == "relation"
    assert card.items[0].tip == "etp_mm(cell.w)\nrelation 0, drives 0\nnet.py:3"


def test_transitions_and_units_in_a_box() -> None:
    zero = GroupFacts(0, 9, (H, ("cell", "c")), ("mV", ""), (4,), 2, "zero")
    (card,) = make_cards(summary_of(groups=(zero,)))
    assert texts(card.group) == [".h, .c", "group 0 (4,) S=2", "D = 0", "unit mV"]
    assert card.group is not None and card.group.look == "group zero"


def test_a_box_says_where_credit_passes_and_stops() -> None:
    credit = (
        CreditFacts((("low", "v"),), (H,), "stops: a gate", "Detach it"),
        CreditFacts((), (H,), "passes: a filter [3]", ""),
        CreditFacts((H,), (("else", "v"),), "stops: a gate", "Detach it"),
    )
    (card,) = make_cards(summary_of(credit=credit))
    assert texts(card.group)[3:] == ["credit of low.v stops", "credit of the input passes"]


def test_an_operation_without_a_trace_says_why() -> None:
    kind = "relation_excluded_non_temporal"
    parameters = (ParameterFacts(W, (), "direct", ()),)
    op = operation(12, None, groups=(), kind=kind, reason="because")
    first, second = make_cards(summary_of(op, parameters=parameters))
    assert first.group is not None and second.group is None
    (item,) = second.items
    assert item.look == "excluded only-direct"
    assert texts(item)[-2:] == ["reaches no hidden state", "gradient: direct"]
    assert "because" in item.tip.splitlines()


def test_neighbours_without_a_group_are_one_card() -> None:
    ops = [operation(k, None, groups=(), parameters=(("out", str(k)),)) for k in (20, 21)]
    cards = make_cards(summary_of(*ops))
    assert [card.group is None for card in cards] == [False, True]
    assert {item.node for item in cards[1].items} == {("op", 20), ("op", 21)}


def test_parameters_used_plainly_not_at_all_or_frozen() -> None:
    parameters = tuple(
        ParameterFacts((name,), (), how, ())
        for name, how in (("plain", "direct"), ("idle", "none"), ("still", "frozen"))
    )
    flows = (Flow(("plain", 0), ("group", 0), True),)
    paths = {("plain", 0): ("plain",)}
    cards = make_cards(summary_of(parameters=parameters, paths=paths, flows=flows))
    looks = {item.node: item.look for card in cards for item in card.items}
    assert looks == {("plain", 0): "direct", ("unused", 1): "unused", ("unused", 2): "frozen"}
    assert cards[0].items[0].node == ("plain", 0)  # beside the group that it enters


def test_an_operation_that_only_feeds_another_stands_in_its_card() -> None:
    feeding = operation(2, None, groups=(), parameters=(("cell", "gate"),))
    flows = (Flow(("op", 2), ("op", 3), True),)
    (card,) = make_cards(summary_of(feeding, operation(3), flows=flows))
    assert [item.node for item in card.items] == [("op", 2), ("op", 3)]


def test_cards_of_whole_graphs_hold_every_operation_once() -> None:
    for graph in (GRAPHS["fan-out"](), everything(), of_zoo("lif")):
        summary = summarize(graph)
        nodes = [item.node for card in make_cards(summary) for item in card.items]
        assert len({*nodes}) == len(nodes)
        assert {("op", op.eqn) for op in summary.operations} <= {*nodes}
    assert Card(3).title == "without a trace"
