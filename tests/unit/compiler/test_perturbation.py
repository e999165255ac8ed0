# SPDX-License-Identifier: Apache-2.0
"""The perturbed step, whose gradients are the learning signals."""

from __future__ import annotations

from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace as bt
from braintrace.base import versions
from tests.unit.compiler.reference import X


def test_perturbation_alone(model: Any) -> None:
    minfo = bt.extract_module_info(model, X)
    for perturbed in (
        bt.add_hidden_perturbation_from_minfo(minfo),
        bt.add_hidden_perturbation_in_module(model, X),
    ):
        assert perturbed.perturb_hidden_paths == (("rnn1", "h"), ("rnn2", "h"))
        assert perturbed.perturb_hidden_states == (model.rnn1.h, model.rnn2.h)
        assert [var.aval.shape for var in perturbed.perturb_vars] == [(32,), (16,)]
        inputs = len(minfo.jaxpr.invars)
        assert tuple(perturbed.perturb_jaxpr.invars[inputs:]) == perturbed.perturb_vars


def test_late_reads_are_called_old_reads(model: Any) -> None:
    perturb = bt.add_hidden_perturbation_in_module(model, X)
    with pytest.warns(DeprecationWarning, match="late_reads is called old_reads now"):
        assert perturb.late_reads is perturb.old_reads


class ReadsOld(brainstate.nn.Module):
    """h <- 0.5 h + w x (no product); the result reads the old value and the new one."""

    def __init__(self) -> None:
        super().__init__()
        self.w = brainstate.ParamState(jnp.full((2,), 3.0))
        self.h = brainstate.HiddenState(jnp.full((2,), 0.2))

    def update(self, x: Any) -> Any:
        old = self.h.value
        self.h.value = 0.5 * old + bt.element_wise(self.w.value, lambda w: w * w) * x
        return 7.0 * old + self.h.value**2 + self.w.value


def test_gradients_of_the_perturbed_step_are_sorted_by_paths() -> None:
    x = jnp.ones(2)
    perturbed = bt.add_hidden_perturbation_in_module(ReadsOld(), x)
    info = perturbed.minfo
    slots = {slot.path: slot.state.value for slot in info.slots}

    def loss(h: Any, w: Any, perturb: Any) -> Any:
        states = {("h",): h, ("w",): w}
        leaves = [leaf for p in slots for leaf in jax.tree.leaves(states.get(p, slots[p]))]
        outputs, (new,) = perturbed.run(
            [x, *leaves], [perturb], info.hidden_path_to_outvar.values()
        )
        return outputs[0].sum(), new

    args = slots["h",], slots["w",], jnp.zeros(2)
    (e, direct, signal), new = jax.grad(loss, (0, 1, 2), has_aux=True)(*args)
    h = 0.5 * 0.2 + 9.0
    assert jnp.allclose(signal, 2 * h)  # dL / d new
    assert jnp.allclose(e, 7.0)  # the new value held fixed
    assert jnp.allclose(direct, 1.0)  # without the way through the operation
    assert jnp.allclose(new, h)
    assert perturbed.old_reads == {0} and len(perturbed.direct_leaves) == 1


def test_zero_perturbations_change_nothing(model: Any) -> None:
    perturbed = bt.add_hidden_perturbation_in_module(model, X)
    info = perturbed.minfo
    leaves = [leaf for slot in info.slots for leaf in jax.tree.leaves(slot.state.value)]
    zeros = perturbed.init_perturb_data()
    assert [v.shape for v in zeros] == [(32,), (16,)] and not any(v.any() for v in zeros)
    plain = versions.jaxpr_as_fun(info.jaxpr)(X, *leaves)
    found, _ = perturbed.run([X, *leaves], zeros)
    assert all(jnp.allclose(a, b, rtol=1e-12) for a, b in zip(found, plain, strict=True))
    assert perturbed.old_reads == frozenset()
