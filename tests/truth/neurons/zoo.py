# SPDX-License-Identifier: Apache-2.0
"""Networks of the neurons and synapses of ``brainpy.state``, small and spiking.

Every model takes ``(t, x)``: the time, and inputs [IN] or [B, IN]; it returns [OUT] or [B, OUT].
States, weights, currents and conductances carry physical units.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import brainpy.state as bp
import brainstate
import jax.numpy as jnp
import numpy as np
import saiunit as u
from braintools import init, surrogate

import braintrace as bt

IN, N, OUT, STEPS = 3, 4, 2, 8

CURRENT = u.mA
RATE = u.mV / u.ms


def normal(seed: int, *shape: int) -> Any:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def linear(seed: int, size: int, out: int, unit: Any = u.UNITLESS, scale: float = 1.0) -> Any:
    """A dense ETP layer whose weight and bias carry a unit."""
    weight, bias = scale * normal(seed, size, out), 0.3 * scale * normal(seed + 1, out)
    return bt.nn.Linear(
        size, out, w_init=u.maybe_decimal(weight * unit), b_init=u.maybe_decimal(bias * unit)
    )


class Network(brainstate.nn.Module):
    """Inputs, and the network's own last spikes if ``recurrent``, drive one layer of neurons."""

    def __init__(
        self, neuron: Any, unit: Any, scale: float, drive: float, recurrent: bool = True
    ) -> None:
        super().__init__()
        self.neuron = neuron
        self.w = linear(1, IN, N, unit, scale)
        self.r = linear(3, N, N, unit, scale) if recurrent else None
        self.out = linear(5, N, OUT)
        self.drive = u.maybe_decimal(drive * unit)

    def update(self, inputs: Any) -> Any:
        t, x = inputs
        with brainstate.environ.context(t=t):
            current = self.drive + self.w(x)
            if self.r is not None:
                current = current + self.r(self.neuron.get_spike())
            return self.out(self.neuron(current))


# --- neurons: how to make one, the unit of its input, the size of weights, a constant drive ------

Recipe = tuple[Callable[..., Any], Any, float, float]
SHARP = surrogate.ReluGrad(alpha=0.5, width=3.0)
WIDE = surrogate.Arctan(alpha=1.0)


def start(low: float, high: float, unit: Any = u.mV) -> Any:
    """Potentials that differ from neuron to neuron."""
    return lambda shape, batch=None, **_: (
        jnp.broadcast_to(jnp.linspace(low, high, shape[-1]), shape) * unit
    )


NEURONS: dict[str, Recipe] = {
    "IF": (lambda **k: bp.IF(N, spk_fun=SHARP, **k), CURRENT, 1.0, 1.5),
    "LIF": (lambda **k: bp.LIF(N, spk_fun=SHARP, **k), CURRENT, 1.0, 1.5),
    "LIFRef": (lambda **k: bp.LIFRef(N, tau_ref=2.0 * u.ms, spk_fun=SHARP, **k), CURRENT, 1.0, 1.5),
    "ALIF": (lambda **k: bp.ALIF(N, spk_fun=WIDE, **k), CURRENT, 1.0, 1.5),
    "Gif": (
        lambda **k: bp.Gif(
            N,
            V_initializer=start(-70.0, -52.0),
            A1=0.2 * u.mA,
            A2=-0.1 * u.mA,
            a=0.01 / u.ms,
            spk_fun=WIDE,
            **k,
        ),
        CURRENT,
        1.0,
        6.0,
    ),
    "GifRef": (
        lambda **k: bp.GifRef(
            N,
            V_initializer=start(-70.0, -52.0),
            A1=0.2 * u.mA,
            A2=-0.1 * u.mA,
            a=0.01 / u.ms,
            spk_fun=WIDE,
            **k,
        ),
        CURRENT,
        1.0,
        6.0,
    ),
    "CubaLIF": (lambda **k: bp.CubaLIF(N, spk_fun=SHARP, **k), CURRENT, 1.0, 1.5),
    "CobaLIF": (lambda **k: bp.CobaLIF(N, spk_fun=SHARP, **k), CURRENT, 1.0, 1.5),
    "ExpIF": (
        lambda **k: bp.ExpIF(
            N,
            V_th=-50.0 * u.mV,
            V_initializer=start(-60.0, -52.0),
            spk_reset="hard",
            spk_fun=WIDE,
            **k,
        ),
        CURRENT,
        5.0,
        30.0,
    ),
    "ExpIFRef": (
        lambda **k: bp.ExpIFRef(
            N,
            V_th=-50.0 * u.mV,
            V_initializer=start(-60.0, -52.0),
            spk_reset="hard",
            spk_fun=WIDE,
            **k,
        ),
        CURRENT,
        5.0,
        30.0,
    ),
    "AdExIF": (
        lambda **k: bp.AdExIF(N, V_initializer=start(-60.0, -55.0), spk_fun=WIDE, **k),
        CURRENT,
        5.0,
        25.0,
    ),
    "AdExIFRef": (
        lambda **k: bp.AdExIFRef(N, V_initializer=start(-60.0, -55.0), spk_fun=WIDE, **k),
        CURRENT,
        5.0,
        25.0,
    ),
    "QuaIF": (
        lambda **k: bp.QuaIF(N, V_initializer=start(-55.0, -35.0), spk_fun=WIDE, **k),
        CURRENT,
        5.0,
        70.0,
    ),
    "AdQuaIF": (
        lambda **k: bp.AdQuaIF(N, V_initializer=start(-55.0, -35.0), spk_fun=WIDE, **k),
        CURRENT,
        5.0,
        80.0,
    ),
    "AdQuaIFRef": (
        lambda **k: bp.AdQuaIFRef(N, V_initializer=start(-55.0, -35.0), spk_fun=WIDE, **k),
        CURRENT,
        5.0,
        80.0,
    ),
    "Izhikevich": (
        lambda **k: bp.Izhikevich(N, V_initializer=start(-60.0, -40.0), spk_fun=WIDE, **k),
        RATE,
        2.0,
        12.0,
    ),
    "IzhikevichRef": (
        lambda **k: bp.IzhikevichRef(
            N, tau_ref=2.0 * u.ms, V_initializer=start(-60.0, -40.0), spk_fun=WIDE, **k
        ),
        RATE,
        2.0,
        12.0,
    ),
    "HH": (
        lambda **k: bp.HH(
            N,
            V_initializer=start(-60.0, -20.0),
            m_initializer=init.Constant(0.3),
            h_initializer=init.Constant(0.6),
            n_initializer=init.Constant(0.3),
            spk_fun=WIDE,
            **k,
        ),
        u.uA,
        5.0,
        20.0,
    ),
    "WangBuzsakiHH": (
        lambda **k: bp.WangBuzsakiHH(N, V_initializer=start(-60.0, -30.0), spk_fun=WIDE, **k),
        u.uA,
        5.0,
        20.0,
    ),
    "MorrisLecar": (
        lambda **k: bp.MorrisLecar(N, V_initializer=start(-20.0, 5.0), spk_fun=WIDE, **k),
        u.uA,
        20.0,
        100.0,
    ),
    "FitzHughNagumo": (
        lambda **k: bp.FitzHughNagumo(N, spk_fun=WIDE, V_initializer=start(-1.2, 0.5, 1.0), **k),
        u.UNITLESS,
        0.2,
        0.2,
    ),
    "HindmarshRose": (
        lambda **k: bp.HindmarshRose(
            N,
            spk_fun=WIDE,
            V_initializer=start(-0.5, 0.8, 1.0),
            y_initializer=init.Constant(-1.0),
            **k,
        ),
        u.UNITLESS,
        0.2,
        3.0,
    ),
}


def neuron(name: str, recurrent: bool, **options: Any) -> Network:
    make, unit, scale, drive = NEURONS[name]
    return Network(make(**options), unit, scale, drive, recurrent)


# --- synapses -----------------------------------------------------------------------------------


def membrane(**options: Any) -> Any:
    """A neuron in the usual range of potentials, for conductances of about a millisiemens."""
    return bp.LIF(
        N,
        R=1e3 * u.ohm,
        V_rest=-60.0 * u.mV,
        V_th=-50.0 * u.mV,
        V_reset=-62.0 * u.mV,
        V_initializer=start(-60.0, -51.0),
        spk_fun=SHARP,
        **options,
    )


class Wired(brainstate.nn.Module):
    """A layer of neurons driven through projections; ``make`` wires one of them from a layer."""

    def __init__(
        self,
        neuron: Any,
        make: Callable[[Any, Any], Any],
        unit: Any,
        scale: float,
        drive: Any,
        recurrent: bool = True,
    ) -> None:
        super().__init__()
        self.neuron = neuron
        self.w = make(linear(1, IN, N, unit, scale), neuron)
        self.r = make(linear(3, N, N, unit, scale), neuron) if recurrent else None
        self.out = linear(5, N, OUT)
        self.drive = drive

    def update(self, inputs: Any) -> Any:
        t, x = inputs
        with brainstate.environ.context(t=t):
            if self.r is not None:
                self.r(self.neuron.get_spike())
            self.w(x)
            return self.out(self.neuron(self.drive))


class Conducted(brainstate.nn.Module):
    """Hand-made projection: ``before`` the dense product, the product, a synapse behind it."""

    def __init__(self, comm: Any, neuron: Any, synapse: Any, out: Any, before: Any = None) -> None:
        super().__init__()
        self.before, self.comm, self.synapse, self.out_ = before, comm, synapse, out
        neuron.add_current_input(f"{id(self)}", out)

    def update(self, x: Any) -> None:
        if self.before is not None:
            x = self.before(x)
        self.out_.bind_cond(self.synapse(self.comm(x)))


TAU = 4.0 * u.ms


def merged(comm: Any, neuron: Any) -> Any:
    """Both projections share one synapse, by its description."""
    return bp.AlignPostProj(
        comm=comm,
        syn=bp.Expon.desc(N, tau=TAU),
        out=bp.COBA.desc(E=0.0 * u.mV),
        post=neuron,
    )


def expon(comm: Any, neuron: Any) -> Any:
    return bp.AlignPostProj(comm=comm, syn=bp.Expon(N, tau=TAU), out=bp.CUBA(), post=neuron)


def coba(comm: Any, neuron: Any) -> Any:
    return bp.AlignPostProj(
        comm=comm, syn=bp.Expon(N, tau=TAU), out=bp.COBA(E=0.0 * u.mV), post=neuron
    )


def dual_expon(comm: Any, neuron: Any) -> Any:
    synapse = bp.DualExpon(N, tau_decay=TAU, tau_rise=1.0 * u.ms)
    return bp.AlignPostProj(comm=comm, syn=synapse, out=bp.COBA(E=0.0 * u.mV), post=neuron)


def alpha(comm: Any, neuron: Any) -> Any:
    return Conducted(comm, neuron, bp.Alpha(N, tau=TAU), bp.COBA(E=0.0 * u.mV))


def nmda_block(comm: Any, neuron: Any) -> Any:
    block = bp.MgBlock(E=0.0 * u.mV, alpha=0.062 / u.mV, V_offset=0.0 * u.mV)
    return Conducted(comm, neuron, bp.Expon(N, tau=TAU), block)


def stp(comm: Any, neuron: Any) -> Any:
    before = bp.STP(comm.in_size, U=0.3, tau_f=20.0 * u.ms, tau_d=10.0 * u.ms)
    return Conducted(comm, neuron, bp.Expon(N, tau=TAU), bp.COBA(E=0.0 * u.mV), before)


def std(comm: Any, neuron: Any) -> Any:
    before = bp.STD(comm.in_size, U=0.4, tau=10.0 * u.ms)
    return Conducted(comm, neuron, bp.Expon(N, tau=TAU), bp.COBA(E=0.0 * u.mV), before)


def delta(comm: Any, neuron: Any) -> Any:
    return bp.DeltaProj(comm=comm, post=neuron)


def current(comm: Any, neuron: Any) -> Any:
    return bp.CurrentProj(comm=comm, out=bp.CUBA(scale=1.0 * u.ohm / u.ohm), post=neuron)


Wiring = tuple[Callable[[Any, Any], Any], Callable[..., Any], Any, float, Any]


def unit_lif(**options: Any) -> Any:
    return bp.LIF(N, spk_fun=SHARP, **options)


SYNAPSES: dict[str, Wiring] = {
    "Expon-CUBA": (expon, unit_lif, u.mS, 0.7, 1.0 * u.mA),
    "Expon-COBA": (coba, membrane, u.mS, 0.1, 5.0 * u.uA),
    "Expon-COBA-merged": (merged, membrane, u.mS, 0.1, 5.0 * u.uA),
    "DualExpon-COBA": (dual_expon, membrane, u.mS, 0.1, 5.0 * u.uA),
    "Alpha-COBA": (alpha, membrane, u.mS, 0.3, 5.0 * u.uA),
    "Expon-MgBlock": (nmda_block, membrane, u.mS, 0.8, 5.0 * u.uA),
    "STP": (stp, membrane, u.mS, 0.2, 5.0 * u.uA),
    "STD": (std, membrane, u.mS, 0.2, 5.0 * u.uA),
    "Delta": (delta, unit_lif, u.mV, 0.4, 1.0 * u.mA),
    "Current": (current, unit_lif, u.mA, 1.0, 1.0 * u.mA),
}


def wired(name: str, recurrent: bool, **options: Any) -> Wired:
    make, neuron_, unit, scale, drive = SYNAPSES[name]
    return Wired(neuron_(**options), make, unit, scale, drive, recurrent)
