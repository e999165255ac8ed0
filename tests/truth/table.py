# SPDX-License-Identifier: Apache-2.0
"""The one table of models, learning rules and drivers: a new rule is one line of ``RULES``.

``test_table.py`` compares every rule with its oracle and its blocks with single steps,
``test_learning_rules.py`` uses the same rules on other models, ``same_numbers.py`` compares what
all of them compute before and after a change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import brainpy.state
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import optax
import saiunit as u
from braintools import surrogate
from jax import lax

import braintrace as bt
from braintrace.testing import (
    d_rtrl_oracle,
    e_prop_oracle,
    influence_oracle,
    pp_prop_oracle,
    rtrl_oracle,
    snap_oracle,
)

IN, HIDDEN, OUT, STEPS, BATCH = 4, 4, 2, 5, 2

# --- models -------------------------------------------------------------------------------------

Shapes = dict[str, tuple[int, ...]]
Step = Callable[[Any, Any, Any], tuple[dict[str, Any], Any]]


class Model(brainstate.nn.Module):
    """States and parameters by name, and a step that is a function of their values."""

    def __init__(self, step: Step, states: Shapes, parameters: Shapes, **layers: Any) -> None:
        super().__init__()
        self.step, self.shapes, self.names = step, states, (*parameters, *layers)
        for name, shape in parameters.items():
            value = 0.6 * jnp.asarray(brainstate.random.randn(*shape))
            setattr(self, name, brainstate.ParamState(value))
        for name, layer in layers.items():
            setattr(self, name, layer)

    def init_state(self, batch_size: int | None = None) -> None:
        """Create the states; they are given other values before they are used."""
        for name, shape in self.shapes.items():
            head = () if batch_size is None else (batch_size,)
            setattr(self, name, brainstate.HiddenState(jnp.zeros((*head, *shape))))

    def update(self, x: Any) -> Any:
        """One step."""
        own = {name: getattr(self, name) for name in self.names}
        values = {k: v.value if isinstance(v, brainstate.State) else v for k, v in own.items()}
        states = {name: getattr(self, name).value for name in self.shapes}
        new, out = self.step(SimpleNamespace(**values), SimpleNamespace(**states), x)
        for name, value in new.items():
            getattr(self, name).value = value
        return out


class Stack(brainstate.nn.Module):
    """One or two layers and a readout."""

    def __init__(self, first: Any, second: Any, readout: Any) -> None:
        super().__init__()
        self.first, self.second, self.readout = first, second, readout

    def update(self, x: Any) -> Any:
        """One step."""
        y = self.first(x)
        return self.readout(y if self.second is None else self.second(y))


class Turned(brainstate.nn.Module):
    """Two states in one array that lies across the operation's output."""

    def __init__(self) -> None:
        super().__init__()
        self.w = brainstate.ParamState(0.6 * jnp.asarray(brainstate.random.randn(2 * IN, HIDDEN)))

    def init_state(self, batch_size: int) -> None:
        """Create the state."""
        self.s = brainstate.HiddenGroupState(jnp.zeros((HIDDEN, batch_size, 2)))

    def update(self, x: Any) -> Any:
        """One step."""
        a, b = self.s.value[..., 0].T, self.s.value[..., 1].T
        y = bt.matmul(joined(x, a), self.w.value)
        a, b = jnp.tanh(0.6 * b + y), 0.5 * b + jnp.sin(a)
        self.s.value = jnp.stack([a.T, b.T], axis=-1)
        return a * b


class Neurons(brainstate.nn.Module):
    """Neurons of brainpy with physical units, their own spikes fed back."""

    def __init__(self, neuron: Any, readout: Any) -> None:
        super().__init__()
        self.neuron, self.readout = neuron, readout
        self.w, self.r = in_milliampere(IN), in_milliampere(HIDDEN)

    def update(self, x: Any) -> Any:
        """One step."""
        with brainstate.environ.context(t=0.0 * u.ms):
            current = 3.0 * u.mA + self.w(x) + self.r(self.neuron.get_spike())
            return self.readout(self.neuron(current))


def in_milliampere(size: int) -> Any:
    """A dense layer whose output is a current."""
    weight = jnp.asarray(brainstate.random.randn(size, HIDDEN))
    return bt.nn.Linear(size, HIDDEN, w_init=weight * u.mA, b_init=0.1 * u.mA)


def joined(x: Any, h: Any) -> Any:
    """Input and state along the last axis."""
    return jnp.concatenate([x.reshape(*h.shape[:-1], -1), h], -1)


@jax.custom_jvp
def spike(v: Any) -> Any:
    """A step function with a surrogate derivative."""
    return (v > 0.0).astype(v.dtype)


@spike.defjvp
def _spike_jvp(primals: Any, tangents: Any) -> Any:
    (v,), (dv,) = primals, tangents
    return spike(v), dv / (1.0 + 4.0 * v**2)


own = bt.register_primitive(
    "same_numbers_own",
    lambda x, w, b: jnp.tanh(x @ w) * jax.nn.softplus(b) + x.sum(-1, keepdims=True) * b**2,
    batched=True,
    trainable_invars_fn=lambda params: {"w": 1, "b": 2},
)


def dense(p: Any, s: Any, x: Any) -> Any:
    """A recurrent product beside a leak; the output reads the old state."""
    h = 0.6 * s.h + jnp.tanh(bt.matmul(joined(x, s.h), p.w, p.b))
    return {"h": h}, h + 0.4 * s.h**2


def processed(p: Any, s: Any, x: Any) -> Any:
    """Masked and absolute weights, a squared bias."""
    mask = np.arange(2 * IN * HIDDEN).reshape(2 * IN, HIDDEN) % 3 > 0
    drive = bt.matmul(
        joined(x, s.h), p.w, p.b, weight_fn=lambda w: jnp.abs(w) * mask, bias_fn=jnp.square
    )
    h = 0.6 * s.h + jnp.tanh(drive)
    return {"h": h}, h


def shared(p: Any, s: Any, x: Any) -> Any:
    """A weight in two operations, in a sum with another, and plainly in the output."""
    drive = bt.matmul(x, p.w) + bt.matmul(s.h, jnp.tanh(p.w) + p.v)
    h = 0.5 * s.h + jnp.tanh(drive)
    return {"h": h}, h @ p.w


def layer(p: Any, s: Any, x: Any) -> Any:
    """Any layer of input and state."""
    h = 0.5 * s.h + jnp.tanh(p.layer(joined(x, s.h)))
    return {"h": h}, jnp.sin(h)


def convolved(p: Any, s: Any, x: Any) -> Any:
    """A line of places whose neighbours are heard, [channels, places]."""
    line = x.reshape(-1, 1, IN)
    drive = bt.conv(line, p.k, p.b, padding="VALID", strides=2, bias_fn=jnp.exp)
    h = 0.4 * s.h + jnp.tanh(drive + bt.conv(s.h, p.r, kernel_fn=jnp.sin))
    return {"h": h}, h


def ring(p: Any, s: Any, x: Any) -> Any:
    """Every unit hears itself and a neighbour, with weights of one sign."""
    heard = bt.sparse_matmul(s.h, p.r, sparse_mat=p.to, bias=p.b, weight_fn=jax.nn.softplus)
    h = jnp.tanh(bt.matmul(x, p.w) + heard) + 0.3 * s.h
    return {"h": h}, h


def low_rank(p: Any, s: Any, x: Any) -> Any:
    """A recurrent product of rank one."""
    drive = bt.lora_matmul(joined(x, s.h), p.b, p.a, alpha=0.7, b_fn=jnp.tanh)
    h = 0.5 * s.h + jnp.tanh(drive)
    return {"h": h}, h


def grouped(p: Any, s: Any, x: Any) -> Any:
    """Two groups with products of their own, and a weight that both share."""
    pairs = joined(x, s.h).reshape(*x.shape[:-1], 2, IN)
    own = bt.grouped_matmul(pairs, p.w, p.b, weight_fn=jnp.sin)
    both = bt.einsum("...i,io->...o", pairs, p.v)
    h = 0.5 * s.h + jnp.tanh(own + both).reshape(s.h.shape)
    return {"h": h}, h


def learned_leak(p: Any, s: Any, x: Any) -> Any:
    """Parameters per unit and for all of them."""
    leak = bt.element_wise(p.leak, jax.nn.sigmoid)
    h = leak * s.h + bt.element_wise(p.gain) * bt.matmul(x, p.w)
    return {"h": h}, h


def lif(p: Any, s: Any, x: Any) -> Any:
    """Leaky integrate-and-fire neurons with recurrent spikes."""
    fired = spike(s.v - 0.5)
    current = bt.matmul(x, p.w) + bt.matmul(fired, p.r)
    v = 0.9 * s.v * (1.0 - lax.stop_gradient(fired)) + current
    return {"v": v}, spike(v - 0.5)


def alif(p: Any, s: Any, x: Any) -> Any:
    """The same with a threshold that adapts."""
    heaviside = surrogate.ReluGrad(alpha=0.5, width=3.0)
    fired = heaviside(s.v - 0.5 - 0.2 * s.a)
    v = 0.9 * s.v + bt.matmul(joined(x, fired), p.w) - 0.5 * fired
    a = 0.8 * s.a + fired
    return {"v": v, "a": a}, heaviside(v - 0.5 - 0.2 * a)


def branches(p: Any, s: Any, x: Any) -> Any:
    """Operations in a branch, in a loop and in a compiled function."""
    twice = jax.jit(
        lambda x: lax.fori_loop(0, 2, lambda i, y: jnp.tanh(y + bt.matmul(x, p.v)), s.h)
    )
    h = lax.cond(x.sum() > 0.0, lambda: 0.6 * s.h + bt.matmul(x, p.w), lambda: twice(x))
    return {"h": h}, h


def mixed(p: Any, s: Any, x: Any) -> Any:
    """A tail and a transition that mix positions."""
    y = bt.matmul(x, p.w)
    h = 0.5 * jnp.roll(s.h, 1, axis=-1) + y / (1.0 + (y**2).sum(-1, keepdims=True))
    return {"h": h}, h


def of_an_own_primitive(p: Any, s: Any, x: Any) -> Any:
    """A primitive of which nothing is known but what it computes."""
    y = own.bind(joined(x, s.h), p.w, p.b)
    v = 0.7 * s.v + y
    h = 0.6 * s.h * jnp.cos(v) + 0.5 * y
    return {"h": h, "v": v}, h * v


def noisy(p: Any, s: Any, x: Any) -> Any:
    """A random number at every step."""
    noise = brainstate.random.uniform(0.5, 1.0, size=s.h.shape)
    h = noise * s.h + bt.matmul(x, p.w)
    return {"h": h}, h


def two_groups(p: Any, s: Any, x: Any) -> Any:
    """Two states of different groups, one of which reads the other in the same step."""
    a = jnp.sin(s.a) + bt.matmul(joined(x, s.b), p.w)
    b = 0.7 * s.b + bt.matmul(jnp.tanh(a), p.u) + x @ p.v
    return {"a": a, "b": b}, joined(a, b)


def cell(name: str, **options: Any) -> Callable[[], Any]:
    """A recurrent cell with a readout."""
    return lambda: Stack(getattr(bt.nn, name)(IN, HIDDEN, **options), None, linear())


def linear() -> Any:
    """A readout."""
    return bt.nn.Linear(HIDDEN, OUT)


def around(make: Callable[[], Any], *shape: int) -> Callable[[], Any]:
    """A layer of input and state, of which the state has a shape."""
    return lambda: Model(layer, {"h": shape}, {}, layer=make())


def sparse_layer() -> Any:
    """A sparse layer whose structure is fixed."""
    kept = np.arange(2 * IN * HIDDEN).reshape(2 * IN, HIDDEN) % 3 == 0
    return bt.nn.SparseLinear(matrix(0.5 * kept), b_init=0.1)


def matrix(values: np.ndarray) -> Any:
    """A sparse matrix."""
    return u.sparse.CSR.fromdense(jnp.asarray(values))


def two_layers() -> Any:
    """A GRU, an LSTM and a readout."""
    return Stack(bt.nn.GRUCell(IN, 3), bt.nn.LSTMCell(3, HIDDEN), linear())


def spiking_layers() -> Any:
    """LIF and ALIF neurons and a readout that leaks."""
    first = Model(lif, {"v": (HIDDEN,)}, SQUARES)
    second = Model(alif, {"v": (HIDDEN,), "a": (HIDDEN,)}, JOINED)
    return Stack(first, second, bt.nn.LeakyRateReadout(HIDDEN, OUT))


ONE: Shapes = {"h": (HIDDEN,)}
JOINED: Shapes = {"w": (2 * IN, HIDDEN)}
BIASED: Shapes = {**JOINED, "b": (HIDDEN,)}
SQUARES: Shapes = {"w": (IN, HIDDEN), "r": (HIDDEN, HIDDEN)}

CELLS: dict[str, Callable[[], Any]] = {
    "vanilla": cell("ValinaRNNCell", activation="tanh"),
    "gru": cell("GRUCell"),
    "lstm": cell("LSTMCell"),
    "mgu": cell("MGUCell"),
    "urlstm": cell("URLSTMCell"),
    "minimal": cell("MinimalRNNCell"),
    "mini-gru": cell("MiniGRU", recurrent_gates=False),
    "mini-lstm": cell("MiniLSTM", recurrent_gates=False),
    "cfn": cell("CFNCell"),
    "lru": cell("LRUCell"),
    "leaky-rate": lambda: bt.nn.LeakyRateReadout(IN, OUT),
}

FAMILIES: dict[str, Callable[[], Any]] = {
    "dense": partial(Model, dense, ONE, BIASED),
    "processed": partial(Model, processed, ONE, BIASED),
    "shared": partial(Model, shared, ONE, {"w": (IN, HIDDEN), "v": (IN, HIDDEN)}),
    "conv": partial(Model, convolved, {"h": (2, 2)}, {"k": (2, 1, 2), "b": (2,), "r": (2, 2, 3)}),
    "sparse": lambda: Model(
        ring,
        ONE,
        {"w": (IN, HIDDEN), "r": (2 * HIDDEN,), "b": (HIDDEN,)},
        to=matrix(np.eye(HIDDEN) + np.roll(np.eye(HIDDEN), 1, axis=1)),
    ),
    "lora": partial(Model, low_rank, ONE, {"b": (2 * IN, 1), "a": (1, HIDDEN)}),
    "groups": partial(
        Model,
        grouped,
        ONE,
        {"w": (2, IN, HIDDEN // 2), "b": (2, HIDDEN // 2), "v": (IN, HIDDEN // 2)},
    ),
    "element-wise": partial(
        Model, learned_leak, ONE, {"w": (IN, HIDDEN), "leak": (HIDDEN,), "gain": ()}
    ),
    "lif": partial(Model, lif, {"v": (HIDDEN,)}, SQUARES),
    "alif": partial(Model, alif, {"v": (HIDDEN,), "a": (HIDDEN,)}, JOINED),
}

LAYERS: dict[str, Callable[[], Any]] = {
    "linear-masked": around(
        lambda: bt.nn.Linear(2 * IN, HIDDEN, w_mask=np.arange(32).reshape(8, 4) % 2.0), HIDDEN
    ),
    "signed": around(lambda: bt.nn.SignedWLinear(2 * IN, HIDDEN), HIDDEN),
    "standardised": around(lambda: bt.nn.ScaledWSLinear(2 * IN, HIDDEN), HIDDEN),
    "conv1d": around(lambda: bt.nn.Conv1d((4, 3), 2, 3, b_init=lambda size: jnp.ones(size)), 4, 2),
    "conv2d": around(lambda: bt.nn.Conv2d((2, 2, 3), 2, 2), 2, 2, 2),
    "conv3d": around(lambda: bt.nn.Conv3d((2, 2, 1, 2), 1, (2, 1, 1)), 2, 2, 1, 1),
    "sparse-layer": around(sparse_layer, HIDDEN),
    "lora-layer": around(
        lambda: bt.nn.LoRA(2 * IN, 2, HIDDEN, base_module=bt.nn.Linear(2 * IN, HIDDEN), alpha=1.0),
        HIDDEN,
    ),
}


class Tokens(brainstate.nn.Module):
    """A table that is read where an input is largest, normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.table = bt.nn.Embedding(2 * IN, HIDDEN, rows=2 * IN)
        self.norm = bt.nn.LayerNorm((HIDDEN,))

    def update(self, x: Any) -> Any:
        return self.table(jnp.argmax(x, -1)) + self.norm(x[..., :HIDDEN])


LAYERS["tokens"] = around(Tokens, HIDDEN)

OTHERS: dict[str, Callable[[], Any]] = {
    "two-layers": two_layers,
    "spiking-layers": spiking_layers,
    "neurons-lif": lambda: Neurons(
        brainpy.state.LIF(HIDDEN, spk_fun=surrogate.ReluGrad(alpha=0.5, width=3.0)), linear()
    ),
    "neurons-alif": lambda: Neurons(
        brainpy.state.ALIF(HIDDEN, spk_fun=surrogate.Arctan(alpha=1.0)), linear()
    ),
    "turned": Turned,
    "branches": partial(Model, branches, ONE, {"w": (IN, HIDDEN), "v": (IN, HIDDEN)}),
    "mixed": partial(Model, mixed, ONE, {"w": (IN, HIDDEN)}),
    "own": partial(Model, of_an_own_primitive, {**ONE, "v": (HIDDEN,)}, BIASED),
    "noisy": partial(Model, noisy, ONE, {"w": (IN, HIDDEN)}),
    "two-groups": partial(
        Model,
        two_groups,
        {"a": (HIDDEN,), "b": (3,)},
        {"w": (IN + 3, HIDDEN), "u": (HIDDEN, 3), "v": (IN, 3)},
    ),
}

MODELS = {**CELLS, **FAMILIES, **LAYERS, **OTHERS}


# --- rules --------------------------------------------------------------------------------------


def plainly(y: Any) -> dict[str, Any]:
    """What most rules are given besides the input."""
    return {}


class Rule(NamedTuple):
    """A learner class, its options, what a call is given besides its input, and the oracle."""

    algorithm: Any
    options: dict[str, Any]
    given: Callable[[Any], dict[str, Any]] = plainly
    oracle: Callable[..., Any] | None = None

    @property
    def learner(self) -> Callable[..., Any]:
        """The class with its options: the rule as published, as its oracle."""
        return partial(self.algorithm, **{"downstream": "step", **self.options})


RULES = {
    "d_rtrl": Rule(bt.D_RTRL, {}, oracle=d_rtrl_oracle),
    "d_rtrl-coupled": Rule(
        bt.D_RTRL,
        {"recurrence_scope": "coupled"},
        oracle=partial(d_rtrl_oracle, recurrence_scope="coupled"),
    ),
    "pp_prop": Rule(
        bt.pp_prop,
        {"decay_or_rank": (0.7, 0.6)},
        oracle=partial(pp_prop_oracle, decay_x=0.7, decay_f=0.6),
    ),
    "pp_prop-rank": Rule(
        bt.pp_prop,
        {"decay_or_rank": 4},
        oracle=partial(pp_prop_oracle, decay_x=0.6, decay_f=0.6),
    ),
    "eprop": Rule(bt.EProp, {"kappa_filter_decay": 0.6}, oracle=partial(e_prop_oracle, kappa=0.6)),
    "eprop-random": Rule(bt.EProp, {"feedback": "random", "random_feedback_key": 3}),
    "eprop-error": Rule(
        bt.EProp,
        {"feedback": "random", "random_feedback_key": 3},
        lambda y: {"error": jnp.stack([y, jnp.cos(y), y**2], -1)},
    ),
    "ostl-recurrent": Rule(
        bt.OSTLRecurrent, {}, oracle=partial(d_rtrl_oracle, recurrence_scope="coupled")
    ),
    "ostl-feedforward": Rule(bt.OSTLFeedforward, {}, oracle=partial(pp_prop_oracle, decay_x=0.0)),
    **{
        f"snap-{n}": Rule(
            bt.SnAp, {"n": n, "downstream": "linear"}, oracle=partial(influence_oracle, n=n)
        )
        for n in (1, 2, 3)
    },
    "rtrl": Rule(bt.RTRL, {"downstream": "linear"}, oracle=influence_oracle),
    **{
        f"snap-{n}-step": Rule(
            bt.SnAp, {"n": n, "downstream": "step"}, oracle=partial(snap_oracle, n=n)
        )
        for n in (2, 3)
    },
    "rtrl-step": Rule(bt.RTRL, {"downstream": "step"}, oracle=rtrl_oracle),
    "uoro": Rule(bt.UORO, {"projection_key": 7, "vjp_method": "single-step"}),
    "three-factor": Rule(bt.ThreeFactor, {}, lambda y: {"modulator": jnp.sin(y).mean()}),
    "three-factor-standing": Rule(bt.ThreeFactor, {"modulator": -0.4}),
    "dni": Rule(bt.DNI, {}),
}


# --- drivers: what is run, and what it returns --------------------------------------------------


def losses(out: Any, y: Any) -> Any:
    """A loss [*shape of y], for every step and example."""
    out = out.reshape(*y.shape, -1)
    return (jnp.sin(out + y[..., None] * jnp.arange(1.0, 1.0 + out.shape[-1])) + out**2).sum(-1)


@dataclass(frozen=True, eq=False)
class Job:
    """A learner with data and the functions of a step."""

    learner: Any
    given: Callable[[Any], dict[str, Any]]
    xs: Any
    ys: Any

    def step(self, x: Any, y: Any) -> Any:
        """The loss of a step."""
        return self.of_examples(x, y).sum()

    def of_examples(self, x: Any, y: Any) -> Any:
        """The losses of a step, [B]."""
        return losses(self.learner(x, **self.given(y)), y)

    def of_window(self, x: Any, y: Any) -> Any:
        """The losses of a window, [k]."""
        return losses(self.learner(bt.MultiStepData(x)), y).sum(-1)

    def weights(self) -> dict[Any, Any]:
        """All parameters."""
        return {path: state.value for path, state in self.learner.param_states.items()}


Run = Callable[[], dict[str, Any]]


def grad(job: Job, step: str = "step", steps: slice = slice(None), **options: Any) -> Run:
    """``etrace_grad``."""

    def run() -> dict[str, Any]:
        grads, found = job.learner.etrace_grad(
            job.xs[steps],
            job.ys[steps],
            step_fn=getattr(job, step),
            return_value=True,
            **{"reduction": "sum", **options},
        )
        return {"grads": grads, "losses": found}

    return run


def masked(job: Job) -> Run:
    """``etrace_grad`` of sequences of several lengths, the mean of the losses."""
    mask = np.arange(STEPS)[:, None] < np.array([STEPS, 3])
    options = {"reduction": "mean", "loss_output": "masked", "block_size": 2}
    return grad(job, "of_examples", mask=mask, **options)


def called(job: Job) -> Run:
    """One gradient for each of two calls."""

    def one(x: Any, y: Any) -> Any:
        return brainstate.transform.grad(lambda: job.step(x, y), job.learner.param_states)()

    return lambda: {"grads": [one(x, y) for x, y in zip(job.xs[:2], job.ys, strict=False)]}


def carried(job: Job) -> Run:
    """``etrace_evolve``, then two calls of ``etrace_grad`` that go on."""
    first, second = grad(job, steps=slice(2, 4), block_size=2), grad(job, steps=slice(4, None))

    def run() -> dict[str, Any]:
        outputs = job.learner.etrace_evolve(job.xs[:2], return_outputs=True)
        return {"outputs": outputs, "grads": [first(), second()]}

    return run


def updated(job: Job, transformation: Any, **options: Any) -> Run:
    """``etrace_update``: the new weights."""
    job.learner.optimizer(transformation)

    def run() -> dict[str, Any]:
        found = job.learner.etrace_update(
            job.xs, job.ys, step_fn=job.step, optimizer=transformation, **options
        )
        return {"weights": job.weights(), "losses": found}

    return run


SGD, ADAM = optax.sgd(0.1), optax.adam(0.1)

DRIVERS: dict[str, Callable[[Job], Run]] = {
    "auto": grad,
    "block-1": partial(grad, block_size=1),
    "block-3": partial(grad, block_size=3),
    "not-carried": partial(grad, carry_trace=False),
    "mask": masked,
    "windows-2": partial(grad, step="of_window", chunk_size=2),
    "call": called,
    "carried": carried,
    "update": partial(updated, transformation=SGD, update_every=2),
    "update-1": partial(updated, transformation=SGD),
}


# --- cases --------------------------------------------------------------------------------------


class Case(NamedTuple):
    """Names of the tables, and whether examples are in the model, mapped over, or only one."""

    model: str
    rule: str = "d_rtrl"
    driver: str = "block-3"
    batch: str = "batch"

    def __str__(self) -> str:
        return "/".join(self)


def cases() -> list[Case]:
    """All of them, mostly in two blocks, because the second one has traces to start with."""
    found = [Case(model) for model in (*CELLS, *LAYERS)]
    found += [Case(m, rule) for m in (*FAMILIES, *OTHERS) for rule in ("d_rtrl", "pp_prop")]
    found += [Case("dense", rule) for rule in RULES if rule not in ("dni", "snap-3", "snap-3-step")]
    found += [Case("two-layers", rule) for rule in ("eprop-error", "snap-2", "uoro")]
    found += [Case("conv", rule) for rule in ("snap-2", "snap-2-step", "uoro")]
    found += [Case("sparse", rule) for rule in ("snap-2", "rtrl")]
    found += [Case("own", "d_rtrl-coupled"), Case("lif", "eprop"), Case("lora", "rtrl")]
    found += [Case("lstm", "d_rtrl", driver) for driver in DRIVERS]
    found += [Case("dense", "pp_prop", driver) for driver in DRIVERS]
    found += [Case("dense", rule, "windows-2") for rule in ("eprop", "rtrl", "uoro")]
    found += [Case("two-layers", rule, "windows-2") for rule in ("pp_prop", "dni")]
    found += [Case("dense", rule, "call") for rule in ("snap-2", "uoro", "three-factor")]
    found += [Case("alif", "d_rtrl", driver) for driver in ("call", "update")]
    for batch in ("vmap", "single"):
        found += [Case("two-layers", "d_rtrl", "block-3", batch)]
        found += [Case("dense", rule, "block-3", batch) for rule in ("pp_prop", "rtrl")]
        found += [Case(m, "d_rtrl", "block-3", batch) for m in ("conv1d", "lif", "noisy")]
    return list(dict.fromkeys(found))


def prepared(case: Case, seed: int = 0) -> Job:
    """A compiled learner in a state where no number is zero by chance, with its data.

    The seed is that of the learner's state, not of the data.
    """
    brainstate.random.seed(seed)
    rng = np.random.default_rng(1)
    rule, options = RULES[case.rule], {}
    if case.driver.startswith("windows"):
        options["vjp_method"] = "multi-step"
    head = () if case.batch == "single" else (BATCH,)
    xs, ys = rng.normal(size=(STEPS, *head, IN)), rng.normal(size=(STEPS, *head))
    learner = bt.compile(
        MODELS[case.model](),
        rule.algorithm,
        xs[0],
        batch_size=None if case.batch == "single" else BATCH,
        vmap=case.batch == "vmap",
        **{"downstream": "step", **rule.options, **options},
    )
    rng = np.random.default_rng((2, seed))
    stirred = {**learner.param_states, **learner.hidden_states}
    for path in sorted(stirred, key=str):
        stirred[path].value = jax.tree.map(partial(moved, rng), stirred[path].value)
    return Job(learner, rule.given, jnp.asarray(xs), jnp.asarray(ys))


def moved(rng: np.random.Generator, leaf: Any) -> Any:
    """An array with noise added."""
    return leaf + jnp.asarray(0.2 * rng.normal(size=jnp.shape(leaf)))
