# SPDX-License-Identifier: Apache-2.0
"""Every layer and cell of the ``braintrace`` 0.2 distribution, for five steps.

    python tests/published/layers.py save FILE    with that distribution installed

``result`` gives all parameters of a layer numbers that depend on their shapes and order alone, runs
it on inputs that do, and returns what it gives and its hidden states before and after. ``spread``
is how widely its parameters are drawn. ``layers.json`` has what 0.2.6 returns, as does 0.2.8, and
``test_layers.py`` compares it with what is returned here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import saiunit

import braintrace
from braintrace import nn

IN, OUT, BATCH, STEPS = 3, 4, 2, 5
INPUT = (IN,)
CELLS = (
    "ValinaRNNCell GRUCell MGUCell LSTMCell URLSTMCell MinimalRNNCell MiniGRU MiniLSTM CFNCell"
).split()


def numbers(*shape: int, seed: int = 0) -> np.ndarray:
    """An array that depends on its shape alone."""
    return np.cos(1.0 + seed + 1.7 * np.arange(np.prod(shape, dtype=int))).reshape(shape)


def mask(shape: tuple[int, ...]) -> Any:
    """Ones and zeros."""
    return jnp.asarray(numbers(*shape) > 0, float)


def fixed_number() -> Any:
    """A matrix of which each column has one entry."""
    import brainevent

    rows = np.arange(OUT)[:, None] % IN
    return brainevent.FixedNumPerPost((jnp.ones((OUT, 1)), rows), shape=(IN, OUT))


def cell(name: str, **options: Any) -> Callable[[], Any]:
    """A cell whose state does not start at zero."""
    start = brainstate.nn.init.Constant(0.3)
    return lambda: getattr(nn, name)(IN, OUT, state_init=start, **options)


def convolution(axes: int) -> Iterator[tuple[Callable[[], Any], tuple[int, ...]]]:
    """Layers of that many spatial axes, each with the shape of its input."""
    kind, space = getattr(nn, f"Conv{axes}d"), (4, 3, 2)[:axes]
    yield lambda: kind((*space, 2), 3, 2), (*space, 2)
    first: dict[str, Any] = {"channel_first": True, "padding": 1, "groups": 2, "b_init": jnp.zeros}
    yield lambda: kind((2, *space), 2, 2, 2, w_mask=mask, **first), (2, *space)


#: Layers, each with the shape of its input.
LAYERS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    **{name: (cell(name), INPUT) for name in CELLS},
    **{f"{n}, relu": (cell(n, activation="relu"), INPUT) for n in CELLS if not n.startswith("Min")},
    "LRUCell": (lambda: nn.LRUCell(IN, OUT), INPUT),
    "LeakyRateReadout": (lambda: nn.LeakyRateReadout(IN, OUT, 3.0 * saiunit.ms), INPUT),
    "Linear": (lambda: nn.Linear(IN, OUT), INPUT),
    "Linear, mask": (lambda: nn.Linear(IN, OUT, b_init=None, w_mask=mask), INPUT),
    "Linear, two axes": (lambda: nn.Linear((2, IN), (2, OUT)), (2, IN)),
    "SignedWLinear": (lambda: nn.SignedWLinear(IN, OUT), INPUT),
    "SignedWLinear, signs": (
        lambda: nn.SignedWLinear(IN, OUT, w_sign=2 * mask((IN, OUT)) - 1),
        INPUT,
    ),
    "ScaledWSLinear": (lambda: nn.ScaledWSLinear(IN, OUT), INPUT),
    "ScaledWSLinear, mask": (lambda: nn.ScaledWSLinear(IN, OUT, w_mask=mask((IN, OUT))), INPUT),
    "ScaledWSLinear, no gain": (
        lambda: nn.ScaledWSLinear(IN, OUT, b_init=None, ws_gain=False, eps=2.0),
        INPUT,
    ),
    "LoRA": (lambda: nn.LoRA(IN, 2, OUT), INPUT),
    "LoRA, base": (lambda: nn.LoRA(IN, 3, OUT, base_module=nn.Linear(IN, OUT)), INPUT),
    "SparseLinear": (lambda: nn.SparseLinear(fixed_number(), b_init=jnp.zeros), INPUT),
    **{f"Conv{n}d, {i}": made for n in (1, 2, 3) for i, made in enumerate(convolution(n))},
}


def fill(model: Any) -> None:
    """Numbers that depend on the shape and the order alone, for all parameters."""
    for i, (_, state) in enumerate(sorted(model.states(brainstate.ParamState).items())):
        state.value = jax.tree.map(
            lambda v, seed=i: jnp.asarray(numbers(*v.shape, seed=seed)), state.value
        )


def hidden(model: Any) -> dict[str, Any]:
    """Hidden states of the second example, by name."""
    found = model.states(brainstate.HiddenState).items()
    return {".".join(map(str, path)): rounded(state.value[1]) for path, state in found}


def rounded(value: Any) -> Any:
    """As lists, with as many digits as are compared."""
    return np.round(np.asarray(saiunit.get_mantissa(value), float), 5).tolist()


def result(name: str) -> dict[str, Any]:
    """What a layer does."""
    make, shape = LAYERS[name]
    with brainstate.environ.context(dt=1.0 * saiunit.ms):
        model = make()
        fill(model)
        brainstate.nn.init_all_states(model, batch_size=BATCH)
        before = hidden(model)
        xs = jnp.asarray(numbers(STEPS, BATCH, *shape))
        ys = brainstate.transform.for_loop(model, xs)
    return {"before": before, "last": rounded(ys[-1, 1]), "after": hidden(model)}


#: Layers whose initial values are compared, with enough of them for a mean.
WIDE: dict[str, Callable[[], Any]] = {
    **{name: lambda name=name: getattr(nn, name)(100, 200) for name in (*CELLS, "LRUCell")},
    "LeakyRateReadout": lambda: nn.LeakyRateReadout(100, 200),
    "Linear": lambda: nn.Linear(100, 200),
    "SignedWLinear": lambda: nn.SignedWLinear(100, 200),
    "ScaledWSLinear": lambda: nn.ScaledWSLinear(100, 200),
    "LoRA": lambda: nn.LoRA(100, 8, 200),
    "Conv2d": lambda: nn.Conv2d((8, 8, 20), 30, 3),
}


def spread(name: str) -> dict[str, float]:
    """The root of the mean square of the initial value of each parameter."""
    brainstate.random.seed(0)
    with brainstate.environ.context(dt=1.0 * saiunit.ms):
        states = WIDE[name]().states(brainstate.ParamState)
    leaves = {".".join(path): jax.tree.leaves_with_path(s.value) for path, s in states.items()}
    return {
        path + jax.tree_util.keystr(key): float(np.sqrt(np.mean(np.square(leaf))))
        for path, found in leaves.items()
        for key, leaf in found
    }


if __name__ == "__main__":
    found = {
        "version": braintrace.__version__,
        "layers": {name: result(name) for name in LAYERS},
        "spread": {name: spread(name) for name in WIDE},
    }
    Path(sys.argv[2]).write_text(json.dumps(found))
