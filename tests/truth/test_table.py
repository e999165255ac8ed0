# SPDX-License-Identifier: Apache-2.0
"""Every rule of the table: its oracle, and blocks that change nothing."""

from __future__ import annotations

from typing import Any

import pytest

from braintrace.testing import assert_tree_close
from tests.truth.table import DRIVERS, RULES, Case, losses, prepared


def driven(rule: str, driver: str) -> Any:
    return DRIVERS[driver](prepared(Case("dense", rule, driver)))()


@pytest.mark.parametrize("rule", [name for name, rule in RULES.items() if rule.oracle])
def test_a_rule_equals_its_oracle(rule: str) -> None:
    job = prepared(Case("dense", rule))
    oracle = RULES[rule].oracle(job.learner.model, (job.xs, job.ys), lambda *a: losses(*a).sum())
    found = DRIVERS["block-3"](job)()
    assert_tree_close(found["losses"], oracle.loss)
    assert_tree_close(found["grads"], oracle.grads)


@pytest.mark.parametrize("rule", [name for name in RULES if name != "dni"])
def test_blocks_of_a_rule_give_the_same(rule: str) -> None:
    assert_tree_close(driven(rule, "block-3")["grads"], driven(rule, "block-1")["grads"], 1e-10)
