# SPDX-License-Identifier: Apache-2.0
"""Programs as somebody writes them who knows ``braintrace`` 0.2: training loops, subclasses,
operations of one's own, introspection, mapped models, saved weights. See ``programs.py``.
"""

from __future__ import annotations

import io
import pickle

import brainstate
import brainunit as u
import jax
import jax.numpy as jnp
import numpy as np
import optax

import braintrace
from tests.published.programs import (
    BATCH,
    HIDDEN,
    IN,
    OUT,
    XS,
    YS,
    Leaky,
    Net,
    T,
    by_path,
    fill,
    program,
    squared,
    trained,
    wave,
)

# --- training ------------------------------------------------------------------------------------


def adam_of(weights):
    """Adam of a library without states, as loops of one's own have it."""
    optimizer = optax.adam(1e-2)
    memory = brainstate.ShortTermState(optimizer.init(weights.to_dict_values()))

    def update(grads):
        values = weights.to_dict_values()
        changes, memory.value = optimizer.update(grads, memory.value, values)
        for path, value in optax.apply_updates(values, changes).items():
            weights[path].value = value

    return update


@program
def epochs_of_training():
    """Compiled epochs over sequences, with states reset in between."""
    model = fill(Net(braintrace.nn.ValinaRNNCell(IN, HIDDEN, activation="tanh")))
    learner = braintrace.compile(model, braintrace.D_RTRL, XS[0], batch_size=BATCH)
    weights = model.states(brainstate.ParamState)
    update, step_loss = adam_of(weights), squared(learner)

    @brainstate.transform.jit
    def epoch(inputs, targets):
        brainstate.nn.reset_all_states(model, batch_size=BATCH)
        learner.reset_state(batch_size=BATCH)
        grads, losses = learner.etrace_grad(inputs, targets, step_fn=step_loss, return_value=True)
        update(grads)
        return losses.mean()

    return {"losses": jnp.stack([epoch(XS, YS) for _ in range(4)])}


@program
def an_update_at_every_step():
    model = fill(Net())
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    learner = braintrace.pp_prop(model, decay_or_rank=0.8)
    learner.compile_graph(XS[0])
    learner.init_etrace_state()
    weights = model.states(brainstate.ParamState)
    update, step_loss = adam_of(weights), squared(learner)

    def online(x, y):
        gradient = brainstate.transform.grad(step_loss, weights, return_value=True)
        grads, loss = gradient(x, y)
        update(grads)
        return loss

    return {"losses": brainstate.transform.for_loop(online, XS[:2], YS[:2])}


@program
def clipped_gradients_and_a_penalty():
    """A penalty on the weights, in the loss of the step, and gradients that are clipped."""
    model = fill(Net())
    learner = braintrace.compile(model, "d_rtrl", XS[0], batch_size=BATCH)
    readout = model.out.weight

    def step_loss(x, y):
        penalty = sum((w**2).sum() for w in jax.tree.leaves(readout.value))
        return ((learner(x) - y) ** 2).mean() + 0.1 * jax.lax.stop_gradient(penalty)

    grads, losses = learner.etrace_grad(XS, YS, step_fn=step_loss, return_value=True)
    clipped = jax.tree.map(lambda g: jnp.clip(g, -0.1, 0.1), by_path(grads))
    return {"losses": losses, "out": clipped["out/weight"]}


@program
def a_warm_up_and_a_second_sequence():
    learner = braintrace.compile(fill(Net()), "d_rtrl", XS[0], batch_size=BATCH)
    learner.etrace_evolve(XS[:3])
    first = learner.etrace_grad(XS[3:], YS[3:], step_fn=squared(learner))
    second = learner.etrace_grad(XS, YS, step_fn=squared(learner))
    return {"first": by_path(first), "second": by_path(second)}


@program
def a_trainer_class():
    """A class around model and learner, whose methods are compiled."""

    class Trainer:
        def __init__(self, model, algorithm):
            self.model = model
            brainstate.nn.init_all_states(model, batch_size=BATCH)
            self.learner = algorithm(model)
            self.learner.compile_graph(XS[0])
            self.weights = model.states().subset(brainstate.ParamState)

        def loss(self, x, y):
            out = self.learner.update(x)
            return ((out - y) ** 2).mean(), out

        @brainstate.transform.jit(static_argnums=0)
        def run(self, inputs, targets):
            def step(total, pair):
                of = brainstate.transform.grad(
                    self.loss, self.weights, has_aux=True, return_value=True
                )
                grads, loss, out = of(*pair)
                return jax.tree.map(jnp.add, total, grads), (loss, out)

            zeros = jax.tree.map(jnp.zeros_like, self.weights.to_dict_values())
            return brainstate.transform.scan(step, zeros, (inputs, targets))

    grads, (losses, outs) = Trainer(fill(Net()), braintrace.D_RTRL).run(XS, YS)
    return {"grads": by_path(grads), "losses": losses, "outs": outs}


# --- subclasses ----------------------------------------------------------------------------------


@program
def a_subclass_of_a_learner():
    """It counts its calls and scales what it returns."""

    class Counting(braintrace.D_RTRL):
        def __init__(self, model, scale, **options):
            super().__init__(model, **options)
            self.scale, self.calls = scale, brainstate.ShortTermState(jnp.zeros(()))

        def update(self, *args):
            self.calls.value = self.calls.value + 1
            return self.scale * super().update(*args)

    model = fill(Net())
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    learner = Counting(model, 2.0)
    learner.compile_graph(XS[0])
    learner.init_etrace_state()
    grads = learner.etrace_grad(XS, YS, step_fn=squared(learner))
    return {"grads": by_path(grads), "calls": learner.calls.value}


@program
def a_subclass_of_a_cell():
    class Residual(braintrace.nn.ValinaRNNCell):
        def update(self, x):
            before = self.h.value
            self.h.value = 0.7 * before + 0.3 * super().update(x)
            return self.h.value

    return trained(fill(Net(Residual(IN, HIDDEN, activation="tanh"))), "d_rtrl")


# --- models --------------------------------------------------------------------------------------


@program
def layers_in_a_list():
    class Deep(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            sizes = ((IN, HIDDEN), (HIDDEN, 3), (3, HIDDEN))
            self.cells = [braintrace.nn.MGUCell(*size) for size in sizes]
            self.out = brainstate.nn.Sequential(
                braintrace.nn.Linear(HIDDEN, OUT), braintrace.nn.Tanh()
            )

        def update(self, x):
            for cell in self.cells:
                x = cell(x)
            return self.out(x)

    model = fill(Deep())
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    outs = brainstate.transform.for_loop(model, XS)
    learner = braintrace.compile(model, "d_rtrl", XS[0], batch_size=BATCH)
    return {"outs": outs, "learner": learner.etrace_evolve(XS, return_outputs=True)}


@program
def neurons_with_units():
    """An adaptive spiking neuron with a surrogate gradient, time constants and a time step."""

    @jax.custom_jvp
    def spike(v):
        return (v > 0).astype(v.dtype)

    @spike.defjvp
    def spike_jvp(primals, tangents):
        (v,), (dv,) = primals, tangents
        return spike(v), dv / (1 + (10 * v) ** 2)

    class Neurons(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(wave(IN, HIDDEN) * u.mA)
            self.tau = 5.0 * u.ms

        def init_state(self, batch_size=None, **kwargs):
            self.V = brainstate.HiddenState(jnp.zeros((batch_size, HIDDEN)) * u.mV)
            self.a = brainstate.HiddenState(jnp.zeros((batch_size, HIDDEN)))

        def update(self, x):
            dt = brainstate.environ.get("dt")
            v, a = self.V.value, self.a.value
            fired = spike(v / u.mV - 1.0 - 0.3 * a)
            current = braintrace.matmul(x, self.w.value)
            self.V.value = v + dt / self.tau * (current * (3.0 * u.ohm) - v) - fired * u.mV
            self.a.value = a + dt / (20.0 * u.ms) * (fired - a)
            return spike(self.V.value / u.mV - 1.0)

    with brainstate.environ.context(dt=1.0 * u.ms):
        return trained(Neurons(), "d_rtrl", 2 * XS, wave(T, BATCH, HIDDEN))


@program
def a_convolutional_cell_with_pooling():
    class Image(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = braintrace.nn.Conv2d((4, 4, 1), 2, (3, 3))
            self.pool = braintrace.nn.MaxPool2d((2, 2), (2, 2), in_size=(4, 4, 2), channel_axis=-1)
            self.out = braintrace.nn.Linear(8, OUT)

        def init_state(self, batch_size=None, **kwargs):
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, 4, 4, 2)))

        def update(self, x):
            self.h.value = 0.8 * self.h.value + jnp.tanh(self.conv(x))
            return self.out(self.pool(self.h.value).reshape(x.shape[0], -1))

    return trained(fill(Image()), "d_rtrl", wave(T, BATCH, 4, 4, 1))


@program
def dropout_and_normalisation():
    """Both as they are while a model is used, not fitted."""

    class Normed(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = braintrace.nn.LayerNorm((IN,))
            self.drop = braintrace.nn.Dropout(0.5)
            self.cell = braintrace.nn.GRUCell(IN, HIDDEN)
            self.out = braintrace.nn.Linear(HIDDEN, OUT)

        def update(self, x):
            return self.out(self.drop(self.cell(self.norm(x))))

    with brainstate.environ.context(fit=False):
        model = fill(Normed())
        learner = braintrace.compile(model, "d_rtrl", XS[0], batch_size=BATCH)
        weights = model.cell.states(brainstate.ParamState)
        grads, losses = learner.etrace_grad(
            XS, YS, step_fn=squared(learner), weights=weights, return_value=True
        )
    return {"grads": by_path(grads), "losses": losses}


@program
def contractions_and_groups():
    """The layer of groups in a leaky cell, beside both operations."""

    class Groups(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.groups = braintrace.nn.GroupedLinear(2, 3, 2)
            self.kernel = brainstate.ParamState(wave(2, 3, 2))
            self.mixed = brainstate.ParamState(wave(2, 2, OUT))

        def init_state(self, batch_size=None, **kwargs):
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, 2, 2)))

        def update(self, x):
            y = self.groups(x) + braintrace.grouped_matmul(x, self.kernel.value)
            self.h.value = 0.8 * self.h.value + jnp.tanh(y)
            return braintrace.einsum("bgn,gno->bo", self.h.value, self.mixed.value)

    return trained(fill(Groups()), "d_rtrl", wave(T, BATCH, 2, 3))


@program
def tables():
    """A layer and an operation that read a row for each token, below a cell."""

    class Tokens(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = braintrace.nn.Embedding(5, HIDDEN)
            self.table = brainstate.ParamState(wave(5, HIDDEN))

        def init_state(self, batch_size=None, **kwargs):
            self.h = brainstate.HiddenState(jnp.zeros((batch_size, HIDDEN)))

        def update(self, x):
            y = self.layer(x) + braintrace.embedding(x, self.table.value)
            self.h.value = 0.8 * self.h.value + jnp.tanh(y)
            return self.h.value

    tokens = jnp.arange(T * BATCH).reshape(T, BATCH) ** 2 % 5
    return trained(fill(Tokens()), "d_rtrl", tokens, wave(T, BATCH, HIDDEN))


@program
def one_layer_twice_and_calls_in_between():
    """A readout that is applied twice, and a compiled function inside of the step."""

    class Twice(Net):
        def update(self, x):
            h = brainstate.transform.jit(lambda x: self.cell(x))(x)
            return self.out(h) + self.out(0.5 * h)

    learner = braintrace.compile(fill(Twice()), "d_rtrl", XS[0], batch_size=BATCH)
    return {"outs": learner.etrace_evolve(XS, return_outputs=True)}


@program
def two_learners_of_one_model():
    model = fill(Net())
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    found = {}
    for rule in (braintrace.D_RTRL(model), braintrace.pp_prop(model, decay_or_rank=4)):
        brainstate.nn.reset_all_states(model, batch_size=BATCH)
        rule.compile_graph(XS[0])
        rule.init_etrace_state()
        found[type(rule).__name__] = by_path(
            rule.etrace_grad(XS, YS, step_fn=squared(rule), weights=model.cell.Wz.states())
        )
    return found


class Bypassing(brainstate.nn.Module):
    """A driven state ``h``, a second one, and an output of new and old values by a weight."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.w = brainstate.ParamState(wave(IN, HIDDEN))
        self.v = brainstate.ParamState(0.5 * wave(HIDDEN, OUT, start=2.0))

    def init_state(self, batch_size=None, **kwargs):
        self.h = brainstate.HiddenState(jnp.zeros((batch_size, HIDDEN)))
        self.second = brainstate.HiddenState(jnp.zeros((batch_size, HIDDEN)))

    def update(self, x):
        h, second = self.h.value, self.second.value
        y = braintrace.matmul(x, self.w.value)
        membrane = 0.9 * h + y
        spike = jax.nn.sigmoid(4 * (membrane - 0.5))
        latched = self.kind == "latch"
        self.h.value = 0.8 * h + jnp.tanh(second) if latched else membrane * (1 - spike)
        self.second.value = y if latched else h
        return braintrace.matmul(
            {
                "spike before the reset": spike,
                "shift register": self.second.value,
                "old value": jnp.tanh(h) * self.h.value,
                "new value and drive": self.h.value + jnp.sin(y),
                "latch": self.h.value,
            }[self.kind],
            self.v.value,
        )


@program
def outputs_beside_the_new_state():
    """Of 0.2.8: registers, latches, and outputs that old values and weights reach past the new."""
    kinds = (
        "spike before the reset",
        "shift register",
        "old value",
        "new value and drive",
        "latch",
    )
    return {kind: trained(Bypassing(kind), "d_rtrl") for kind in kinds}


# --- mapped over examples ------------------------------------------------------------------------


@program
def new_states_under_vmap():
    """The batch as a map over states, made by hand."""
    model = fill(Net())
    learner = braintrace.D_RTRL(model)

    @brainstate.transform.vmap_new_states(state_tag="new", axis_size=BATCH)
    def init():
        brainstate.nn.init_all_states(model)
        learner.compile_graph(jnp.asarray(XS[0, 0]))

    init()
    mapped = brainstate.nn.Vmap(learner, vmap_states="new")
    weights = model.states(brainstate.ParamState)

    def step_loss(x, y):
        return ((mapped(x) - y) ** 2).mean()

    def one(total, pair):
        grads, loss = brainstate.transform.grad(step_loss, weights, return_value=True)(*pair)
        return jax.tree.map(jnp.add, total, grads), loss

    zeros = jax.tree.map(jnp.zeros_like, weights.to_dict_values())
    grads, losses = brainstate.transform.scan(one, zeros, (jnp.asarray(XS), jnp.asarray(YS)))
    return {"grads": by_path(grads), "losses": losses}


@program
def one_example_without_an_axis():
    return trained(fill(Net()), "d_rtrl", XS[:, 0], YS[:, 0], None)


# --- operations ----------------------------------------------------------------------------------


def scaled_impl(x, w, *, gain):
    return gain * (x @ jnp.tanh(w))


def own_operation(name):
    """An operation with all its rules, as the tutorial on operations writes them."""
    operation = braintrace.register_primitive(name, scaled_impl, batched=True)

    def dt_to_t(hidden_dim, trace, *, gain):
        return {"weight": trace["weight"] * jnp.expand_dims(hidden_dim, axis=-2)}

    def xy_to_dw(x, hidden_dim, weights, *, gain):
        _, pull = jax.vjp(lambda w: scaled_impl(x, w["weight"], gain=gain), weights)
        return pull(hidden_dim)[0]

    def init_drtrl(x_var, y_var, weight_vars, num_state):
        shape = (x_var.aval.shape[0], *weight_vars["weight"].aval.shape, num_state)
        return {"weight": jnp.zeros(shape)}

    def init_pp(x_var, y_var, weight_vars, num_state):
        return jnp.zeros((*y_var.aval.shape, num_state))

    operation.register_etp_rules(
        dt_to_t=dt_to_t, xy_to_dw=xy_to_dw, init_drtrl=init_drtrl, init_pp=init_pp
    )
    return operation


@program
def an_operation_with_rules():
    operation = own_operation("etp_arrival_scaled")

    class Own(Leaky):
        def drive(self, x):
            return operation.bind(x, self.w.value, gain=1.5)

    ys = wave(T, BATCH, HIDDEN)
    return {
        rule: trained(Own((HIDDEN,), w=wave(IN, HIDDEN)), rule, ys=ys, **options)
        for rule, options in (("d_rtrl", {}), ("pp_prop", {"decay_or_rank": 0.7}))
    }


@program
def rules_one_by_one():
    """Each rule by its own method, also as a decorator; the operation is found by its flag."""
    operation = braintrace.register_primitive(
        "etp_arrival_gain", lambda x, w: x * w, batched=True, x_invar_index=0, y_outvar_index=0
    )
    operation.register_dt_to_t(lambda dy, trace: {"weight": trace["weight"] * dy})
    operation.register_xy_to_dw(lambda x, dy, w: {"weight": x * dy})
    operation.register_init_drtrl(
        lambda x, y, w, n: {"weight": jnp.zeros((*x.aval.shape, n), x.aval.dtype)}
    )
    operation.register_init_pp(lambda x, y, w, n: jnp.zeros((*y.aval.shape, n), y.aval.dtype))

    x, w = jnp.asarray(XS[0]), wave(IN)
    return {"y": operation.bind(x, w), "grad": jax.grad(lambda w: operation.bind(x, w).sum())(w)}


# --- introspection -------------------------------------------------------------------------------


@program
def numbers_of_a_graph():
    """What tutorials print and compute from a compiled graph."""
    learner = braintrace.compile(fill(Net()), braintrace.D_RTRL, XS[0], batch_size=BATCH)
    graph, report = learner.graph, learner.report
    (group,) = graph.hidden_groups
    kinds = [record.kind for record in graph.diagnostics if record.kind == "relation_included"]
    shapes = {
        ".".join(path): [leaf.shape for leaf in jax.tree.leaves(state.value)]
        for path, state in learner.param_states.items()
    }
    included = graph.explain(kind=braintrace.DiagnosticKind.RELATION_INCLUDED)
    assert isinstance(report, braintrace.CompilationReport)
    assert "hidden group" in str(learner.show_graph(verbose=False, return_msg=True)).lower()
    return {
        "group": np.asarray([group.index, group.num_state, *group.varshape]),
        "relations": float(len(graph.hidden_param_op_relations)),
        "kinds": float(len(kinds)),
        "included": float(len(included)),
        "shapes": np.concatenate([np.ravel(s) for v in shapes.values() for s in v]),
        "weights": float(report.counts["etrace_weights"]),
        "excluded": float(report.counts["excluded_weights"]),
        "version": float(braintrace.__version_info__ >= (0, 1)),
        "names": float({"D_RTRL", "compile", "nn", "matmul"} <= {*braintrace.__all__}),
    }


@program
def jacobians_of_a_group():
    """The diagonal Jacobian of a linear state, by its group, at values of one's own."""

    class Linear(Leaky):
        def update(self, x):
            y = braintrace.matmul(x, self.w.value)
            self.h.value = 0.8 * self.h.value + y
            return self.h.value

    model = Linear((HIDDEN,), w=wave(IN, HIDDEN))
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    graph = braintrace.compile_etrace_graph(model, jnp.asarray(XS[0]))
    (group,) = graph.hidden_groups
    free = [jnp.ones(var.aval.shape) for var in group.transition_jaxpr_constvars]
    old = [wave(BATCH, HIDDEN)]
    return {
        "diagonal": group.diagonal_jacobian(old, free),
        "full": group.full_jacobian(old, free),
        "concat": group.concat_hidden(old),
    }


# --- weights that are kept ------------------------------------------------------------------------


@program
def weights_in_a_file():
    """Saved as numpy arrays by path, and given to another model."""
    model, file = fill(Net()), io.BytesIO()
    weights = model.states(brainstate.ParamState)
    kept = {path: jax.tree.map(np.asarray, state.value) for path, state in weights.items()}
    pickle.dump(kept, file)
    file.seek(0)
    other = Net()
    for path, value in pickle.load(file).items():
        other.states(brainstate.ParamState)[path].value = jax.tree.map(jnp.asarray, value)
    return trained(other, "d_rtrl")


# --- layers that are brainstate's ----------------------------------------------------------------

ACTIVATIONS = (
    "ReLU Hardtanh ReLU6 Sigmoid Hardsigmoid Tanh SiLU Mish Hardswish ELU CELU SELU GLU GELU "
    "Hardshrink LeakyReLU LogSigmoid Softplus Softshrink PReLU Softsign Tanhshrink Softmin Softmax "
    "LogSoftmax Identity"
)
DROPOUTS = "Dropout1d Dropout2d Dropout3d"
POOLS = (
    "AvgPool1d AvgPool2d AvgPool3d MaxPool1d MaxPool2d MaxPool3d AdaptiveAvgPool1d "
    "AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d"
)
BATCH_NORMS = "BatchNorm0d BatchNorm1d BatchNorm2d BatchNorm3d"


@program
def layers_of_brainstate():
    nn, found = braintrace.nn, {}
    with brainstate.environ.context(fit=False):
        for name in ACTIVATIONS.split():
            found[name] = getattr(nn, name)()(wave(BATCH, 4))
        found["SpikeBitwise"] = nn.SpikeBitwise(op="and")(wave(BATCH, 4) > 0, wave(BATCH, 4) > 0.5)
        found["RReLU"] = nn.RReLU(0.25, 0.25)(wave(BATCH, 4))  # no slope is drawn
        found["Softmax2d"] = nn.Softmax2d()(wave(2, 3, 4))
        found["Dropout"] = nn.Dropout(0.5)(wave(BATCH, 4))
        for name in (*DROPOUTS.split(), *POOLS.split(), *BATCH_NORMS.split()):
            kind, space = getattr(nn, name), (4,) * int(name[-2])
            if name in POOLS:
                layer = kind((2,) * len(space), channel_axis=-1)
            else:
                layer = kind(0.5) if name in DROPOUTS else kind((*space, 2))
            found[name] = layer(wave(BATCH, *space, 2))
        found["LayerNorm"] = nn.LayerNorm((4,))(wave(BATCH, 4))
        found["RMSNorm"] = nn.RMSNorm((4,))(wave(BATCH, 4))
        found["GroupNorm"] = nn.GroupNorm((4,), num_groups=2)(wave(BATCH, 4))
        found["Flatten"] = nn.Flatten(1)(wave(BATCH, 2, 3))
        found["Unflatten"] = nn.Unflatten(-1, (2, 3))(wave(BATCH, 6))
    return found
