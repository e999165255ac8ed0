# SPDX-License-Identifier: Apache-2.0
"""A credit ledger as a table, and as a picture with bars on both sides of zero."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from braintrace.show.ledger import Row, picture, table

ROWS = [
    Row("a.w", "kept by the rule", "", "", 1.25),
    Row("a.w", "another layer", "a.h", "b.h", -0.25),
    Row("b.w", "kept by the rule", "", "", 1.0),
]


def test_a_parameter_is_named_once() -> None:
    assert table(ROWS).splitlines() == [
        "parameter  what              from  to   share",
        "a.w        kept by the rule             125.0 %",
        "           another layer     a.h   b.h  -25.0 %",
        "b.w        kept by the rule             100.0 %",
    ]


def test_bars_start_at_zero() -> None:
    root = ElementTree.fromstring(picture(ROWS))
    bars = [item for item in root if item.tag.endswith("rect")]
    starts = [float(bar.get("x", "0")) for bar in bars]
    widths = [float(bar.get("width", "0")) for bar in bars]
    (line,) = (item for item in root if item.tag.endswith("line"))
    zero = float(line.get("x1", "0"))
    assert starts[0] == starts[2] == zero and abs(starts[1] + widths[1] - zero) < 0.2
    assert abs(widths[0] - 5 * widths[1]) < 0.5
