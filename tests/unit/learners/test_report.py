# SPDX-License-Identifier: Apache-2.0
"""What a learner reports."""

from __future__ import annotations

import pickle
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest
import saiunit as u

import braintrace as bt
from braintrace.learners.report import shown_bytes
from tests import zoo
from tests.unit.drivers.net import made


def test_a_report_is_text_to_others() -> None:
    report = bt.compile(zoo.Leaky(), "d_rtrl", jnp.ones((2, zoo.IN)), batch_size=2).report
    assert pickle.loads(pickle.dumps(report)) == str(report) == report()


X = jnp.ones((2, zoo.IN))


def compiled(algorithm: Any, model: Any = None, **options: Any) -> Any:
    brainstate.random.seed(3)
    return bt.compile(model or zoo.Leaky(), algorithm, X, batch_size=2, **options)


def test_a_report_can_be_called_shown_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    report = compiled("d_rtrl").report
    assert report() == str(report) == report and "learning rule" in report
    assert report.splitlines()[-1].startswith("block_size='auto'")
    report.show()
    assert capsys.readouterr().out == f"{report}\n"
    report.show(2)
    assert "relation_included" in capsys.readouterr().out
    assert report.counts["hidden_groups"] == report.counts["etrace_weights"] == 1
    assert report.counts["errors"] == 0


def test_the_report_says_what_traces_take() -> None:
    report = made().report
    assert "learning rule: D-RTRL, diagonal recurrence" in report
    assert "cell.Wz.weight -> group 0: 432 B" in report
    assert "block_size='auto': 100 steps" in report


def test_bytes_are_shown_in_a_unit_that_suits_them() -> None:
    found = [shown_bytes(n) for n in (0, 1023, 1024, 3 * 2**19, 5 * 2**30)]
    assert found == ["0 B", "1023 B", "1.00 KiB", "1.50 MiB", "5.00 GiB"]


def test_windows_and_rules_without_traces_are_told() -> None:
    report = compiled("dni", vjp_method="multi-step").report
    assert report.splitlines()[-3::2] == [
        "traces: 0, 0 B",
        "windows: of chunk_size steps (default: 1), with reverse mode inside; credit stops at "
        "their borders alone",
    ]
    assert report.counts["excluded_weights"] == 0


def test_the_report_says_what_a_guarded_call_keeps() -> None:
    learner = compiled("d_rtrl")
    learner.reset_state(batch_size=2)
    values = [s.value for s in brainstate.graph.states(learner).values()]
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(values)) - learner.running_index.value.nbytes
    assert f"check=True: no copy; values from before a call, {size} B," in learner.report


def test_the_report_says_how_far_credit_goes() -> None:
    def of(algorithm: str, **options: Any) -> str:
        with brainstate.environ.context(dt=u.ms):
            layers = (bt.nn.GRUCell(zoo.IN, 3), bt.nn.LeakyRateReadout(3, 2))
            return compiled(algorithm, brainstate.nn.Sequential(*layers), **options).report

    (line,) = (line for line in of("d_rtrl").splitlines() if "passes: a filter [2, 3]" in line)
    assert line.split()[:2] == ["layers[0].h", "layers[1].r"]
    assert "over time: within each hidden group alone" in of("d_rtrl", downstream="step")
    assert "credit over time: through all that a step carries\n" in of("rtrl")
    assert "carries, within 1 steps between positions" in of("snap", n=1)
    assert "credit over time" not in compiled("d_rtrl", downstream="step").report
