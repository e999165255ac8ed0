#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: all synapses of one package pass the surrogate gradient of the spikes that they are called with,
# so that one can be put in place of another in a network that is trained.
#
# Found: in brainpy 2.8.2 and 2.9.0 (brainpy.state), Expon passes it, and AMPA, GABAa and BioNMDA pass
# none: for them a spike is the condition of a choice (the time of its arrival), which has no derivative.
# What is below has the gradient zero, and nothing tells so. Their conductances react to the spikes.
#
# Why it matters to people who train networks online: receptors with kinetics are what one takes for a
# network that shall be biological. No rule and no optimizer will move the weights in front of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
    brainpy==2.8.2 brainpy-state==0.1.0 brainstate==0.5.4 jax==0.10.2 jaxlib==0.10.2 saiunit==0.5.2
"$folder/env/bin/python" - <<'PYTHON'
import warnings

warnings.filterwarnings("ignore")
import brainpy
import brainstate
import jax.numpy as jnp
import saiunit as u

made = {
    "Expon": lambda: brainpy.state.Expon(3, tau=2 * u.ms),
    "AMPA": lambda: brainpy.state.AMPA(3),
    "GABAa": lambda: brainpy.state.GABAa(3),
    "BioNMDA": lambda: brainpy.state.BioNMDA(3),
}
brainstate.environ.set(dt=0.1 * u.ms)


def gradient(name):
    neurons, synapse = brainpy.state.LIF(3, R=1 * u.ohm, V_th=1 * u.mV, tau=5 * u.ms), made[name]()
    for part in (neurons, synapse):
        brainstate.nn.init_all_states(part)
    current = brainstate.ParamState(jnp.array([40.0, 60.0, 80.0]))

    def loss():
        total, spikes = 0.0, 0.0
        for k in range(40):
            with brainstate.environ.context(t=k * 0.1 * u.ms):
                spike = neurons(current.value * u.mA)
                conductance = synapse(spike * u.mS if name == "Expon" else spike)
            total, spikes = total + u.get_mantissa(conductance).sum(), spikes + spike.sum()
        return total, spikes

    found, total, spikes = brainstate.transform.grad(loss, current, has_aux=True, return_value=True)()
    return jnp.abs(found).max().item(), total.item(), spikes.item()


assert brainpy.__version__ == "2.8.2"
for name in made:
    largest, total, spikes = gradient(name)
    print(f"{name}: {spikes:.0f} spikes, conductances {total:.2f}, largest gradient {largest:.3g}")
    assert spikes > 10 and total > 1
    assert largest > 1e-3 if name == "Expon" else largest == 0.0
PYTHON
