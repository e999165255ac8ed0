# SPDX-License-Identifier: Apache-2.0
"""What a learner reports."""

from __future__ import annotations

import pickle
import re
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest
import saiunit as u

import braintrace as bt
from braintrace.drivers.in_stages import Way
from braintrace.learners.report import shown_bytes, shown_way
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
    assert "carries, within 1 step between positions" in of("snap", n=1)
    assert "credit over time" not in compiled("d_rtrl", downstream="step").report


def test_the_report_says_how_the_last_gradient_ran() -> None:
    learner = compiled("d_rtrl")
    xs = jnp.broadcast_to(X, (20, *X.shape))

    def step(x: Any) -> Any:
        return (learner(x) ** 2).sum()

    def noisy(x: Any) -> Any:
        jax.debug.callback(lambda _: None, x[0, 0])
        return step(x)

    def said(**options: Any) -> str:
        learner.etrace_grad(xs, **{"step_fn": step, **options})
        return learner.report.splitlines()[-1].removeprefix("the last gradient: a block of ")

    assert "the last gradient" not in learner.report
    assert re.fullmatch(
        r"20 steps, at once: the recurrence \(\d+ equations\) step by step, \d+ equations for all "
        "steps together",
        said(block_size=20),
    )
    assert said(block_size=8) == "8 steps, step by step: fewer than 16"
    assert said(block_size=18).startswith("18 steps, at once")  # and not of the 2 steps behind it
    assert said(step_fn=noisy, block_size=20) == (
        "20 steps, step by step: a step has an effect (debug_callback)"
    )
    large, even = Way(20, 0, 3, 4, 2**17), Way(23, 0, 3, 4, 2**16)
    assert shown_way(large).endswith("step by step: 128.00 KiB a step is above 64.00 KiB")
    assert shown_way(even).endswith(
        "no number of steps from 16 to 16 (64.00 KiB a step) divides the block"
    )
    assert "in parts of 20: the recurrence (3 eq" in shown_way(Way(40, 20, 3, 4, 2**15))


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("d_rtrl", {}),
        ("d_rtrl", {"downstream": "exact"}),
        ("d_rtrl", {"vjp_method": "multi-step"}),
        ("snap", {"n": 1}),
        ("rtrl", {}),
        ("uoro", {}),
    ],
)
def test_one_is_no_plural_in_a_report(algorithm: str, options: Any) -> None:
    class One(brainstate.nn.Module):
        """A unit with a unit above it."""

        def __init__(self) -> None:
            super().__init__()
            self.a = brainstate.ParamState(jnp.array(0.5))
            self.h, self.v = (brainstate.HiddenState(jnp.zeros(1)) for _ in range(2))

        def update(self, x: Any) -> Any:
            self.h.value = 0.9 * self.h.value + bt.element_wise(self.a.value) * x
            self.v.value = jnp.tanh(self.v.value + bt.element_wise(self.h.value.sum()))
            return self.v.value

    learner = bt.compile(One(), algorithm, jnp.ones(1), **options)
    learner.etrace_grad(jnp.ones((1, 1)), step_fn=lambda x: learner(x).sum())
    texts = [learner.report, *map(str, learner.graph.diagnostics)]
    assert not [line for text in texts for line in re.findall(r".*\b1 [a-z]+s\b.*", text)]
