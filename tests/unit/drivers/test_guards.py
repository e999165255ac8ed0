# SPDX-License-Identifier: Apache-2.0
"""Checks of numbers that are not finite, and of transitions that grow."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from braintrace.drivers.guards import Flags, finite_of, report, spectral_radius
from tests.unit.drivers.net import (
    IN,
    B,
    Growing,
    made,
    of_windows,
    summed,
)


def test_a_number_that_is_not_finite_is_named_with_its_step(data: Any) -> None:
    xs, ys = data
    broken = xs.at[4].set(jnp.nan)
    learner = made()
    says = r"at step 4, .*the direct gradient of readout.weight\['bias'\].*the trace of cell.Wh"
    with pytest.raises(FloatingPointError, match=says):
        learner.etrace_grad(broken, ys, step_fn=summed(learner), check=True)
    learner = made()
    with pytest.raises(FloatingPointError, match="at step 4, "):
        learner.etrace_update(
            broken,
            ys,
            step_fn=summed(learner),
            optimizer=optax.sgd(0.1),
            update_every=3,
            check=True,
        )
    learner = made(vjp_method="multi-step")
    with pytest.raises(FloatingPointError, match="at steps 3 to 5, .*the gradient of cell.Wh"):
        learner.etrace_grad(broken, ys, step_fn=of_windows(learner), chunk_size=3, check=True)


def test_a_growing_transition_is_a_warning() -> None:
    xs = jnp.ones((12, B, IN))
    learner = made(model=Growing(1.1), downstream="step")
    with pytest.warns(UserWarning, match=r"spectral radius of D of h was above one.*at least 1.1"):
        learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), check=True)
    learner = made(model=Growing(0.9), downstream="step")
    learner.etrace_grad(xs, step_fn=lambda x: learner(x).sum(), check=True)


def positions(*matrices: Any) -> Any:
    return jnp.moveaxis(jnp.asarray(matrices, float), 0, -1)


def test_the_spectral_radius_position_by_position() -> None:
    assert spectral_radius(jnp.array([[[-2.0, 0.5]]])).tolist() == [2.0, 0.5]
    turned = [[0.0, -0.9], [0.9, 0.0]]
    found = spectral_radius(positions(turned, [[0, 1], [0, 0]], [[0, 0], [0, 0]], np.diag([3, 1])))
    np.testing.assert_allclose(found, [0.9, 0.0, 0.0, 3.0], rtol=0.03)
    assert float(found[1]) == float(found[2]) == 0.0


def test_large_powers_do_not_overflow() -> None:
    huge = spectral_radius(positions(np.diag([1e30, 1.0]), 1e-30 * np.eye(2)))
    np.testing.assert_allclose(huge, [1e30, 1e-30], rtol=0.03)


def test_values_of_one_name_are_taken_together() -> None:
    nan, whole = jnp.array([1.0, jnp.nan]), jnp.arange(3)
    found = finite_of([("a", [whole, 1.0 * whole]), ("b", nan), ("a", nan), ("c", whole)])
    assert {name: bool(value) for name, value in found.items()} == {
        "a": False,
        "b": False,
        "c": True,
    }
    assert finite_of([]) == {}


def flags(*finite: bool, **radius: Any) -> Flags:
    return Flags({"a": jnp.array([True, True, *finite]), "b": jnp.array([True] * 4)}, radius)


@pytest.mark.parametrize(
    ("finite", "size", "steps", "every", "when"),
    [
        ((False, True), 1, 4, 4, "step 2"),
        ((False, False), 2, 8, 8, "steps 4 to 5"),
        ((True, False), 3, 11, 11, "steps 9 to 10"),  # the last block is shorter
        ((True, False), 2, 6, 3, "step 5"),  # the second block of the second part
        ((False, True), 2, 6, 3, "steps 3 to 4"),
    ],
)
def test_the_first_block_that_is_not_finite_is_named(
    finite: tuple[bool, bool], size: int, steps: int, every: int, when: str
) -> None:
    with pytest.raises(FloatingPointError, match=f"^at {when}, a became NaN or infinite$"):
        report(flags(*finite), size, steps, every)


def test_a_radius_above_one_at_all_steps_is_a_warning() -> None:
    grown = {"h": jnp.array([[1.1, 0.9, 1.5], [1.2, 1.3, 1.4]])}
    text = r"of D of h was above one at all 12 steps at 2 of 3 positions \(at least 1.4\)"
    with pytest.warns(UserWarning, match=text):
        report(flags(True, True, **grown), 6, 12, 12)
    report(flags(True, True, **grown), 6, 9, 9)  # too short to say
    report(flags(True, True, h=jnp.array([[1.1], [0.9]])), 6, 12, 12)


def test_a_block_ends_where_its_part_does() -> None:
    second = Flags({"a": jnp.array([True, False, True, True])}, {})
    with pytest.raises(FloatingPointError, match="^at step 2, a became"):
        report(second, 2, 6, 3)  # steps 0 and 1, 2, then 3 and 4, 5
