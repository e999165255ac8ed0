# SPDX-License-Identifier: Apache-2.0
"""Models with loops that stay loops against the same iterations, written in Python."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace as bt
from braintrace.base import versions
from braintrace.compiler.control.rolled import Rolled
from braintrace.testing import assert_tree_close, bptt, d_rtrl_oracle
from tests import zoo
from tests.zoo import HIDDEN, IN, STEPS, weight

lax = jax.lax
ROLLED = bt.ControlFlowPolicy(scan_unroll_limit=0)


class Model(zoo.Model):
    """``scan`` is that of JAX, or a loop in Python."""

    names = ("h", "c")

    def __init__(self, by_hand: bool, length: int = 3) -> None:
        super().__init__()
        self.by_hand, self.length = by_hand, length
        self.w, self.b, self.u = weight(IN, HIDDEN), weight(HIDDEN), weight(HIDDEN, HIDDEN)

    def times(self) -> Any:
        return jnp.arange(1.0, self.length + 1.0) / self.length

    def scan(self, body: Any, start: Any, xs: Any, reverse: bool = False) -> Any:
        if not self.by_hand:
            return lax.scan(body, start, xs, reverse=reverse)
        rows: list[Any] = [None] * self.length
        for t in range(self.length)[:: -1 if reverse else 1]:
            start, rows[t] = body(start, jax.tree.map(lambda v, t=t: v[t], xs))
        return start, None if rows[0] is None else jnp.stack(rows)


class Parts(Model):
    """A sum over parts of the input, and a product that is the same in each iteration."""

    def update(self, x: Any) -> Any:
        def body(total: Any, now: Any) -> Any:
            again = bt.matmul(x, 0.1 * self.w.value)
            decay = bt.element_wise(self.b.value, jax.nn.sigmoid)
            part = bt.matmul(jnp.sin(now * x), jnp.abs(self.w.value), self.b.value)
            return total + now * part + again * decay, None

        total, _ = self.scan(body, jnp.zeros_like(self.h.value), self.times())
        self.h.value = 0.8 * self.h.value + jnp.tanh(total)
        self.c.value = 0.5 * self.c.value + jnp.sin(bt.matmul(x, self.w.value) @ jnp.eye(HIDDEN))
        return self.h.value * self.c.value + bt.matmul(self.h.value, self.u.value)


class Recurrent(Model):
    """Steps within a step: products of what the loop carries, in a row and backward."""

    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.w.value)

        def body(carry: Any, now: Any) -> Any:
            h, c = carry
            y = jnp.tanh(bt.matmul(h, self.u.value) + drive)
            z = bt.matmul(y * now, self.u.value, self.b.value)
            return (0.7 * h + 0.2 * y - 0.1 * c * z, 0.9 * c + 0.1 * h * h), z

        (self.h.value, self.c.value), zs = self.scan(
            body, (self.h.value, self.c.value), self.times(), reverse=True
        )
        return self.h.value * jnp.cos(self.c.value) + zs.sum(0) * jnp.sin(drive)


class Handed(Model):
    """A weight is carried, and handed on as it is."""

    def update(self, x: Any) -> Any:
        def body(carry: Any, now: Any) -> Any:
            h, w, c = carry
            return (0.9 * h + bt.matmul(now * x, jnp.abs(w), self.b.value), w, 0.5 * c), None

        start = self.h.value, self.w.value, self.c.value
        (self.h.value, _, c), _ = self.scan(body, start, self.times())
        self.c.value = c + bt.matmul(x @ jnp.ones((IN, HIDDEN)), self.u.value)
        return self.h.value * self.c.value


class Branching(Model):
    """A branch with an operation inside a loop inside a loop."""

    def update(self, x: Any) -> Any:
        def outer(h: Any, now: Any) -> Any:
            def inner(h: Any, then: Any) -> Any:
                taken = (x.sum() + now + then) % 1.0 > 0.4
                other = 0.3 * bt.matmul(jnp.where(taken, 0.0, x * now), self.w.value)
                if self.by_hand:
                    y = bt.matmul(jnp.where(taken, jnp.sin(h), 0.0), self.u.value)
                    y = jnp.where(taken, y, other)
                else:
                    y = lax.cond(
                        taken,
                        lambda: bt.matmul(jnp.sin(h), self.u.value),
                        lambda: 0.3 * bt.matmul(x * now, self.w.value),
                    )
                return 0.6 * h + 0.4 * jnp.tanh(y), None

            return self.scan(inner, h, self.times())[0] * 0.9, None

        self.h.value, _ = self.scan(outer, self.h.value, self.times())
        self.c.value = 0.5 * self.c.value + bt.matmul(x, self.w.value, self.b.value)
        return self.h.value * self.c.value


class Mixing(Model):
    """What is summed up is normalised, and every iteration leaves a row of a wider state."""

    names = ("h",)

    def init_state(self, batch_size: int | None = None) -> None:
        super().init_state(batch_size)
        self.c = brainstate.HiddenState(self.rows())

    def reset_state(self, batch_size: int | None = None) -> None:
        super().reset_state(batch_size)
        self.c.value = self.rows()

    def rows(self) -> Any:
        *head, width = self.h.value.shape
        return jnp.zeros((*head, self.length, width))

    def update(self, x: Any) -> Any:
        def body(total: Any, now: Any) -> Any:
            y = bt.matmul(jnp.cos(now * x), self.w.value, self.b.value)
            return total + y, y

        total, rows = self.scan(body, jnp.zeros_like(self.h.value), self.times())
        total = total - total.mean(-1, keepdims=True) * jnp.sin(total)
        self.h.value = (
            0.8 * self.h.value + total + bt.matmul(x @ jnp.ones((IN, HIDDEN)), self.u.value)
        )
        self.c.value = 0.7 * self.c.value + jnp.moveaxis(rows, 0, -2)
        return self.h.value * self.c.value.sum(-2)


def built(model: Any, by_hand: bool, batch: int | None = 2, **options: Any) -> zoo.Case:
    brainstate.random.seed(0)
    module = model(by_hand, **options)
    brainstate.nn.init_all_states(module, batch_size=batch)
    rng = np.random.default_rng(1)
    head = () if batch is None else (batch,)
    xs = jnp.asarray(rng.normal(size=(STEPS, *head, IN)))
    return zoo.Case(module, xs, jnp.asarray(rng.normal(size=(STEPS, *head, HIDDEN))), batch)


def gradients(case: zoo.Case, learner: Any, **options: Any) -> Any:
    return learner.etrace_grad(
        case.xs,
        case.ys,
        step_fn=lambda x, y: case.loss(learner(x), y),
        reduction="sum",
        **options,
    )


def compiled(case: zoo.Case, policy: Any = ROLLED, **options: Any) -> Any:
    learner = bt.D_RTRL(case.model, control_flow=policy, **options)
    learner.compile_graph(case.xs[0])
    return learner


@pytest.mark.filterwarnings("ignore:.*not_position_wise")
@pytest.mark.parametrize("model", [Parts, Recurrent, Handed, Branching, Mixing])
def test_equals_the_model_written_without(model: type) -> None:
    by_hand = built(model, True)
    oracle = d_rtrl_oracle(by_hand.model, (by_hand.xs, by_hand.ys), by_hand.loss)
    case = built(model, False)
    learner = compiled(case)
    zoo.check_jaxpr(learner.graph.module_info.jaxpr)
    for block in (1, "auto"):
        case.reset()
        learner.reset_state()
        assert_tree_close(gradients(case, learner, block_size=block), oracle.grads)


@pytest.mark.parametrize(("rule", "options"), [("pp_prop", {"decay_or_rank": 0.9}), ("snap", {})])
def test_every_rule_sees_what_it_sees_written_out(rule: str, options: Any) -> None:
    """One relation in the place of one for each iteration."""
    found = []
    for policy in (ROLLED, bt.ControlFlowPolicy()):
        case = built(Recurrent, False)
        of_case = {"batch_size": 2, "control_flow": policy, **options}
        learner = bt.compile(case.model, rule, case.xs[0], **of_case)
        found.append(gradients(case, learner))
    assert_tree_close(*found)


def test_a_model_of_one_example() -> None:
    by_hand = built(Recurrent, True)
    oracle = d_rtrl_oracle(by_hand.model, (by_hand.xs, by_hand.ys), by_hand.loss)
    case = built(Recurrent, False)
    options = {"vmap": True, "batch_size": 2, "control_flow": ROLLED}
    learner = bt.compile(case.model, "d_rtrl", case.xs[0], **options)
    assert_tree_close(gradients(case, learner), oracle.grads)


class Long(Model):
    """A thousand iterations."""

    def update(self, x: Any) -> Any:
        drive = bt.matmul(x, self.w.value)

        def body(h: Any, now: Any) -> Any:
            part = bt.matmul(jnp.sin(50.0 * now * x), self.w.value, self.b.value)
            return h + 0.001 * (drive + jnp.tanh(part) - h), None

        self.h.value, _ = self.scan(body, self.h.value, self.times())
        self.c.value = 0.5 * self.c.value + bt.matmul(x @ jnp.ones((IN, HIDDEN)), self.u.value)
        return jnp.sin(self.h.value) + self.c.value


def test_a_thousand_iterations_equal_bptt() -> None:
    """JAX's own derivative of the loop; the trace of a weight is as large as the weight."""
    case = built(Long, False, length=1000)
    _, reference = bptt(case.model, (case.xs, case.ys), case.loss)
    case.reset()
    learner = compiled(case, None)
    assert_tree_close(gradients(case, learner), reference)
    assert len(learner.graph.module_info.eqns) < 60
    shapes = [trace["weight"].shape for trace in learner.get_etrace_of(("w",))]
    assert shapes == [(2, IN, HIDDEN, 1)] * 2
    (record,) = (r for r in learner.graph.diagnostics if r.kind.value == "scan_descent_applied")
    assert "its 1000 iterations stay a loop" in record.message
    kinds = {record.kind.value for record in learner.graph.diagnostics}
    assert not kinds & {"parameter_outside_operation", "weight_in_control_flow"}


def test_an_operation_in_it_is_recorded_with_its_parameter() -> None:
    case = built(Recurrent, False)
    graph = compiled(case).graph
    names = [r.primitive.name for r in graph.hidden_param_op_relations]
    assert sorted(names) == ["etp_mm", "etp_mm_repeated", "etp_mm_repeated"]
    inside = [r for r in graph.diagnostics if r.kind.value == "primitive_inside_control_flow"]
    assert [r.weight_path for r in inside] == [("u",), ("u",)]


# --- what is refused ------------------------------------------------------------------------------


class WeightsInTurn(Model):
    def update(self, x: Any) -> Any:
        def body(y: Any, w: Any) -> Any:
            return y + bt.matmul(x, w), None

        stack = jnp.stack([self.w.value, jnp.abs(self.w.value), -self.w.value])
        self.h.value, _ = self.scan(body, 0.9 * self.h.value, stack)
        return self.h.value


class Loud(Model):
    def update(self, x: Any) -> Any:
        def body(y: Any, now: Any) -> Any:
            jax.debug.callback(lambda v: None, now)
            return y + bt.matmul(now * x, self.w.value), None

        self.h.value, _ = self.scan(body, 0.9 * self.h.value, self.times())
        return self.h.value


class Changing(Model):
    """A weight that is carried, and changes."""

    def update(self, x: Any) -> Any:
        def body(carry: Any, now: Any) -> Any:
            y, w = carry
            return (y + bt.matmul(now * x, w), 0.5 * w), None

        (self.h.value, _), _ = self.scan(body, (0.9 * self.h.value, self.w.value), self.times())
        return self.h.value


@pytest.mark.parametrize(
    ("model", "policy", "says"),
    [
        (WeightsInTurn, ROLLED, "cannot stay a loop: a weight of 'etp_mm' changes from iteration"),
        (Changing, ROLLED, "cannot stay a loop: a weight of 'etp_mm' changes from iteration"),
        (Loud, ROLLED, "cannot stay a loop: what it prints or calls back would happen more"),
        (
            Parts,
            bt.ControlFlowPolicy(scan_unroll_limit=2, scan_descent="off"),
            r"has 3 iterations; loops of up to 2 .*'off'\) does not keep a longer one a loop",
        ),
    ],
)
def test_what_has_no_trace_in_common_is_refused(model: type, policy: Any, says: str) -> None:
    case = built(model, False)
    with pytest.raises(bt.NotSupportedError, match=f"(?s)inside 'scan' at .*{says}"):
        compiled(case, policy)


def test_what_a_loop_holds() -> None:
    def run(w: Any, x: Any) -> Any:
        def body(carry: Any, now: Any) -> Any:
            y, idle = carry
            y = y + bt.matmul(now * x, w) + bt.matmul(x, 2.0 * w)
            return (y, idle * now), idle

        return [*lax.scan(body, (x, 1.0), jnp.arange(3.0))[0]]

    x, w = np.linspace(-1, 1, 6).reshape(2, 3), np.linspace(0.1, 1, 9).reshape(3, 3)
    eqns = versions.make_jaxpr(run, w, x).eqns
    (eqn,) = (e for e in eqns if e.primitive.name == "scan")
    body = versions.sub_jaxpr(eqn)
    loop = Rolled(eqn, body)
    assert len(loop.operations) == 2 and len(loop.moving) == len(loop.inputs) == 1
    assert loop.recurrent == [] and loop.why_not() is None
    assert "mul" in [e.primitive.name for e in loop.outside]  # 2 w
