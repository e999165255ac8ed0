# SPDX-License-Identifier: Apache-2.0
"""Records and learners in a notebook."""

from __future__ import annotations

import jax.numpy as jnp

import braintrace as bt
from braintrace.show.records import Records


def test_notebooks_show_records_and_learners_as_tables() -> None:
    cell = bt.nn.GRUCell(3, 4)
    learner = bt.D_RTRL(cell)
    assert learner._repr_html_() is None
    learner = bt.compile(cell, "d_rtrl", jnp.ones((2, 3)), batch_size=2)
    found = learner.graph.explain()
    assert isinstance(found, Records) and isinstance(learner.graph.diagnostics, Records)
    html = found._repr_html_()
    assert "relation_included" in html and html.count("<tr>") == len(found) + 1
    html = learner._repr_html_()
    assert html == learner.report._repr_html_() and "learning rule: D-RTRL" in html
