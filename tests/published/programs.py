# SPDX-License-Identifier: Apache-2.0
"""Programs in the way of the documentation of ``braintrace`` 0.2, which run there and here.

Each returns arrays by name: outputs, losses and gradients in float64, of parameters that do not
depend on how either of the two draws them. More are in ``arrivals.py``, and ``numbers.py`` runs
them with whichever ``braintrace`` is installed.
"""

from __future__ import annotations

import brainevent
import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import saiunit as u

import braintrace

T, BATCH, IN, HIDDEN, OUT = 7, 2, 3, 4, 2
PROGRAMS = {}


def program(function):
    """Enter a program under its name."""
    PROGRAMS[function.__name__] = function
    return function


# --- what the programs share ---------------------------------------------------------------------


def numpy_wave(*shape, start=0.0):
    """An array that looks like noise and is the same everywhere."""
    return np.sin(1.7 * np.arange(np.prod(shape)) ** 1.3 + start).reshape(shape)


def wave(*shape, start=0.0):
    """The same as an array of JAX."""
    return jnp.asarray(numpy_wave(*shape, start=start))


XS, YS = numpy_wave(T, BATCH, IN, start=1.0), numpy_wave(T, BATCH, OUT, start=2.0)


def fill(model, scale=0.6):
    """Give every parameter values that depend on its path only."""
    states = sorted(model.states(brainstate.ParamState).items(), key=lambda item: str(item[0]))
    for number, (_, state) in enumerate(states):
        leaves, treedef = jax.tree.flatten(state.value)
        new = [scale * wave(*leaf.shape, start=number + 0.3 * k) for k, leaf in enumerate(leaves)]
        state.value = treedef.unflatten(new)
    return model


def numbers_of(tree):
    """Of every array of a pytree, its norm and its product with another one."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(u.get_mantissa(leaf), dtype=float).ravel()
        other = np.cos(np.arange(array.size))
        found[jax.tree_util.keystr(path)] = [float(np.linalg.norm(array)), float(array @ other)]
    return found


def by_path(grads):
    """Gradients with the paths of their parameters as texts, in one order."""
    return {"/".join(map(str, path)): grads[path] for path in sorted(grads, key=str)}


class Net(brainstate.nn.Module):
    """A cell and a readout."""

    def __init__(self, cell=None, width=HIDDEN):
        super().__init__()
        self.cell = braintrace.nn.GRUCell(IN, HIDDEN) if cell is None else cell
        self.out = braintrace.nn.Linear(width, OUT)

    def update(self, x):
        return x >> self.cell >> self.out


class Leaky(brainstate.nn.Module):
    """A leaky state of any shape, driven by any function of the input."""

    def __init__(self, shape, **params):
        super().__init__()
        self.shape = shape
        for name, value in params.items():
            setattr(self, name, brainstate.ParamState(value))

    def init_state(self, batch_size=None, **kwargs):
        lead = () if batch_size is None else (batch_size,)
        self.h = brainstate.HiddenState(jnp.zeros((*lead, *self.shape)))

    def drive(self, x):
        raise NotImplementedError

    def update(self, x):
        self.h.value = jnp.tanh(0.8 * self.h.value + self.drive(x))
        return self.h.value


def squared(learner):
    """The loss of one step."""

    def step_loss(x, y):
        return ((learner(x) - y) ** 2).mean()

    return step_loss


def trained(model, algorithm, xs=XS, ys=YS, batch_size=BATCH, **options):
    """Gradients and losses of a sequence."""
    learner = braintrace.compile(model, algorithm, xs[0], batch_size=batch_size, **options)
    step_loss = squared(learner)
    grads, losses = learner.etrace_grad(xs, ys, step_fn=step_loss, return_value=True)
    return {"grads": by_path(grads), "losses": losses}


def as_published():
    """The option for credit that ends at the layer of a weight, as it does in 0.2."""
    return {"downstream": "step"} if hasattr(braintrace.ETraceConfig(), "downstream") else {}


# --- learning rules ------------------------------------------------------------------------------


@program
def d_rtrl_by_class_name_and_config():
    algorithms = {
        "class": braintrace.D_RTRL,
        "other name": braintrace.ParamDimVjpAlgorithm,
        "text": "d_rtrl",
        "text in capitals": "D_RTRL",
        "config": braintrace.ETraceConfig(),
    }
    return {how: trained(fill(Net()), algorithm) for how, algorithm in algorithms.items()}


@program
def pp_prop_by_decay_and_by_rank():
    names = (braintrace.pp_prop, braintrace.ES_D_RTRL, braintrace.IODimVjpAlgorithm, "pp_prop")
    values = (0.9, 19, (0.5, 0.9), 3)
    return [
        trained(fill(Net()), name, decay_or_rank=value)
        for name, value in zip(names, values, strict=True)
    ]


@program
def e_prop_with_a_filter():
    return trained(fill(Net()), braintrace.EProp, kappa_filter_decay=0.9)


@program
def ostl():
    return {
        "recurrent": trained(fill(Net()), braintrace.OSTLRecurrent),
        "feedforward": trained(fill(Net()), braintrace.OSTLFeedforward),
    }


@program
def snap():
    cell = braintrace.nn.ValinaRNNCell(IN, HIDDEN, activation="tanh")
    return {str(n): trained(fill(Net(cell)), braintrace.SnAp, n=n) for n in (1, 2)}


@program
def three_factor_with_a_reward_for_each_step():
    class Recurrent(Leaky):
        def drive(self, x):
            return x + braintrace.matmul(self.h.value, self.w.value)

    model = Recurrent((IN,), w=0.5 * wave(IN, IN))
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    learner = braintrace.ThreeFactor(model)
    learner.compile_graph(XS[0])
    learner.init_etrace_state()
    ys, rewards = wave(T, BATCH, IN, start=3.0), wave(T)

    def step_loss(x, reward, y):
        return ((learner.update(x, modulator=reward) - y) ** 2).mean()

    grads, losses = learner.etrace_grad(XS, rewards, ys, step_fn=step_loss, return_value=True)
    learner.modulator = -1.0
    standing = learner.etrace_grad(XS, ys, step_fn=squared(learner))
    return {"grads": by_path(grads), "losses": losses, "standing": by_path(standing)}


@program
def windows_of_several_steps():
    learner = braintrace.compile(
        fill(Net()), braintrace.D_RTRL, XS[0], batch_size=BATCH, vjp_method="multi-step"
    )

    def window_loss(xs, ys):
        return ((learner(braintrace.MultiStepData(xs)) - ys) ** 2).mean((1, 2))

    grads, losses = learner.etrace_grad(
        XS[:6], YS[:6], step_fn=window_loss, chunk_size=3, return_value=True
    )
    return {"grads": by_path(grads), "losses": losses}


@program
def windows_of_one_step():
    """The default of ``chunk_size``: single steps, and reverse mode inside of each."""

    def step_loss(x, y):
        out = learner(x)
        return ((out - y) ** 2).mean(), out

    found = {}
    for chunk_size in (None, 1):
        learner = braintrace.compile(
            fill(Net()), braintrace.D_RTRL, XS[0], batch_size=BATCH, vjp_method="multi-step"
        )
        grads, losses, aux = learner.etrace_grad(
            XS, YS, step_fn=step_loss, chunk_size=chunk_size, has_aux=True, return_value=True
        )
        found[str(chunk_size)] = {"aux": aux, "grads": by_path(grads), "losses": losses}
    return found


@program
def windows_with_auxiliary_data():
    """An entry for each window, of any shape."""
    learner = braintrace.compile(
        fill(Net()), braintrace.D_RTRL, XS[0], batch_size=BATCH, vjp_method="multi-step"
    )

    def window_loss(xs, ys):
        out = learner(braintrace.MultiStepData(xs))
        return ((out - ys) ** 2).mean((1, 2)), {"out": out, "sum": out.sum()}

    _, aux = learner.etrace_grad(XS[:6], YS[:6], step_fn=window_loss, chunk_size=3, has_aux=True)
    return aux


@program
def by_hand():
    """The loop that adds up the gradients of the steps."""
    model = fill(Net())
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    learner = braintrace.D_RTRL(model)
    learner.compile_graph(XS[0])
    learner.init_etrace_state()
    weights = model.states(brainstate.ParamState)
    step_loss = squared(learner)

    def one(total, step):
        grads, loss = brainstate.transform.grad(step_loss, weights, return_value=True)(*step)
        return jax.tree.map(jnp.add, total, grads), loss

    zeros = jax.tree.map(jnp.zeros_like, weights.to_dict_values())
    grads, losses = brainstate.transform.scan(one, zeros, (XS, YS))
    trace = learner.get_etrace_of(model.cell.Wz.weight)
    trace = trace[0] if isinstance(trace, list) else trace  # a documented difference
    return {"grads": by_path(grads), "losses": losses, "traced": float(trace is not None)}


@program
def drivers():
    """Masks, reductions, auxiliary data, losses in three forms, and a free run before."""
    mask, found = jnp.asarray([1.0, 1, 0, 1, 0, 1, 1]), {}
    for reduction in ("mean", "sum"):
        for loss_output in ("per_step", "masked", "scalar"):
            learner = braintrace.compile(fill(Net()), "d_rtrl", XS[0], batch_size=BATCH)
            found["free run"] = learner.etrace_evolve(XS[:2], return_outputs=True)
            grads, loss = learner.etrace_grad(
                XS,
                YS,
                step_fn=squared(learner),
                mask=mask,
                reduction=reduction,
                loss_output=loss_output,
                return_value=True,
            )
            found[f"{reduction}, {loss_output}"] = {"grads": by_path(grads), "loss": loss}
    return found


@program
def auxiliary_data_and_some_weights():
    model = fill(Net())
    learner = braintrace.compile(model, "d_rtrl", XS[0], batch_size=BATCH)

    def step_loss(x, y):
        out = learner(x)
        return ((out - y) ** 2).mean(), {"out": out}

    weights = model.cell.states(brainstate.ParamState)
    grads, losses, aux = learner.etrace_grad(
        XS, YS, step_fn=step_loss, weights=weights, has_aux=True, return_value=True
    )
    return {"aux": aux, "grads": by_path(grads), "losses": losses}


@program
def mapped_over_examples():
    """``vmap=True``: a model for one example, a batch of them."""
    learner = braintrace.compile(fill(Net()), "d_rtrl", XS[0], batch_size=BATCH, vmap=True)
    grads, losses = learner.etrace_grad(XS, YS, step_fn=squared(learner), return_value=True)
    return {"grads": by_path(grads), "losses": losses}


@program
def random_estimates():
    """UORO: its random signs are not those of the other, so the gradients are not either."""
    model = fill(Net())
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    learner = braintrace.UORO(model, projection_key=0)
    learner.compile_graph(braintrace.MultiStepData(XS[:2]))
    learner.init_etrace_state()

    def window_loss(xs, ys):
        return ((learner(braintrace.MultiStepData(xs)) - ys) ** 2).mean((1, 2))

    grads, losses = learner.etrace_grad(
        XS[:6], YS[:6], step_fn=window_loss, chunk_size=2, return_value=True
    )
    finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(grads))
    return {"losses": losses, "finite": float(finite)}


@program
def synthetic_gradients():
    """How DNI learns to predict is its own; the model is run as by any other rule."""
    model = fill(Net())
    brainstate.nn.init_all_states(model, batch_size=BATCH)
    learner = braintrace.DNI(model)
    learner.compile_graph(braintrace.MultiStepData(jnp.asarray(XS[:2])))
    learner.init_etrace_state()
    if hasattr(learner, "attach_synthesizer"):  # a documented difference
        shapes = learner.group_signal_shapes()
        learner.attach_synthesizer(braintrace.SyntheticGradient(shapes))
    return {"out": learner(braintrace.MultiStepData(jnp.asarray(XS[:2])))}


@program
def arguments_of_windows():
    """One argument has a value for every step, the other one for the window."""

    class Scaled(Net):
        def update(self, x, scale):
            return scale * super().update(x)

    learner = braintrace.compile(
        fill(Scaled()),
        braintrace.D_RTRL,
        braintrace.MultiStepData(jnp.asarray(XS[:3])),
        braintrace.SingleStepData(jnp.asarray(2.0)),
        batch_size=BATCH,
        vjp_method="multi-step",
    )
    steps = braintrace.MultiStepData(jnp.asarray(XS[:3]))
    return {"out": learner(steps, braintrace.SingleStepData(jnp.asarray(2.0)))}


# --- operations in a model of one's own ----------------------------------------------------------


@program
def dense_operations():
    class Dense(Leaky):
        def drive(self, x):
            return braintrace.matmul(
                x, self.w.value, bias=self.b.value, weight_fn=jnp.tanh, bias_fn=jnp.sin
            )

    def model():
        return Dense((HIDDEN,), w=wave(IN, HIDDEN), b=0.3 * wave(HIDDEN))

    ys = wave(T, BATCH, HIDDEN)
    return {
        "batch": trained(model(), "d_rtrl", ys=ys),
        "one": trained(model(), "d_rtrl", XS[:, 0], ys[:, 0], None),
        "pp_prop": trained(model(), "pp_prop", ys=ys, decay_or_rank=0.8),
    }


@program
def element_wise_operations():
    class Gated(Leaky):
        def drive(self, x):
            return x * braintrace.element_wise(self.w.value, weight_fn=jnp.tanh)

    return trained(Gated((IN,), w=wave(IN)), "d_rtrl", ys=wave(T, BATCH, IN))


@program
def convolutions():
    class Conv(Leaky):
        def drive(self, x):
            return braintrace.conv(
                x,
                self.kernel.value,
                strides=(1,),
                padding="SAME",
                dimension_numbers=("NWC", "WIO", "NWC"),
                kernel_fn=jnp.tanh,
            )

    model = Conv((5, 2), kernel=wave(3, 3, 2))
    return trained(model, "d_rtrl", wave(T, BATCH, 5, 3), wave(T, BATCH, 5, 2))


def ring():
    """A sparse matrix of six units."""
    dense = np.where(np.eye(6, k=1) + np.eye(6, k=-1) + np.eye(6, k=5), np.asarray(wave(6, 6)), 0.0)
    return brainevent.CSR.fromdense(jnp.asarray(dense))


@program
def sparse_products():
    matrix = ring()

    class Sparse(Leaky):
        def drive(self, x):
            return braintrace.sparse_matmul(x, self.w.value, sparse_mat=matrix, bias=self.b.value)

    model = Sparse((6,), w=matrix.data, b=0.2 * wave(6))
    return trained(model, "d_rtrl", wave(T, BATCH, 6), wave(T, BATCH, 6, start=1.0))


@program
def low_rank_products():
    class LowRank(Leaky):
        def drive(self, x):
            return braintrace.lora_matmul(x, self.p.value["B"], self.p.value["A"], alpha=0.5)

    model = LowRank((HIDDEN,), p={"B": wave(IN, 2), "A": wave(2, HIDDEN, start=1.0)})
    return trained(model, "d_rtrl", ys=wave(T, BATCH, HIDDEN))


@program
def units():
    """Weights and inputs with units, as a current that charges a membrane."""

    class Membrane(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(wave(IN, HIDDEN) * u.siemens)

        def init_state(self, batch_size=None, **kwargs):
            self.v = brainstate.HiddenState(jnp.zeros((batch_size, HIDDEN)) * u.mV)

        def update(self, x):
            current = braintrace.matmul(x * u.mV, self.w.value)
            self.v.value = 0.9 * self.v.value + current * (0.1 * u.ohm)
            return self.v.value / u.mV

    return trained(Membrane(), "d_rtrl", ys=wave(T, BATCH, HIDDEN))


@program
def a_primitive_of_ones_own():
    def scaled(x, w, *, scale=1.0):
        return scale * (x @ w)

    scaled_p = braintrace.register_primitive("etp_published_scaled", scaled, batched=True)
    assert isinstance(scaled_p, braintrace.ETPPrimitive)
    x, w = XS[0], wave(IN, HIDDEN)
    grad = jax.grad(lambda w: (scaled_p.bind(x, w, scale=2.0) ** 2).sum())(w)
    return {"y": scaled_p.bind(x, w, scale=2.0), "grad": grad}


# --- the compiler --------------------------------------------------------------------------------


@program
def passes_of_the_compiler():
    model = fill(Net())
    brainstate.nn.init_all_states(model)
    x = jnp.asarray(XS[0, 0])
    info = braintrace.extract_module_info(model, x)
    groups, of_path = braintrace.find_hidden_groups_from_minfo(info)
    relations = braintrace.find_hidden_param_op_relations_from_minfo(info, of_path)
    perturb = braintrace.add_hidden_perturbation_from_minfo(info)
    graph = braintrace.compile_etrace_graph(model, x)
    kinds = [record.kind for record in graph.explain(weight_path=("cell", "Wz", "weight"))]
    types = (
        (info, braintrace.ModuleInfo),
        (groups[0], braintrace.HiddenGroup),
        (relations[0], braintrace.HiddenParamOpRelation),
        (perturb, braintrace.HiddenPerturbation),
        (graph, braintrace.ETraceGraph),
        (graph.diagnostics[0], braintrace.CompilationRecord),
        (graph.diagnostics[0].level, braintrace.DiagnosticLevel),
    )
    assert all(isinstance(value, cls) for value, cls in types)
    assert braintrace.DiagnosticKind.RELATION_INCLUDED in kinds
    from_module = (
        braintrace.find_hidden_groups_from_module(model, x)[0],
        braintrace.find_hidden_param_op_relations_from_module(model, x),
        braintrace.add_hidden_perturbation_in_module(model, x).perturb_vars,
    )
    values = [wave(HIDDEN)]
    return {
        "states": float(len(info.compiled_model_states)),
        "from info": [float(len(v)) for v in (groups, relations, perturb.perturb_vars)],
        "from module": [float(len(v)) for v in from_module],
        "shape": np.asarray(groups[0].varshape),
        "width": float(groups[0].num_state),
        "split": groups[0].split_hidden(groups[0].concat_hidden(values)),
        "zero": perturb.init_perturb_data(),
        "indices": {name: float(k) for name, k in relations[0].trainable_leaf_indices.items()},
    }


@program
def executors():
    """What a learner runs, by itself."""
    for cls in (braintrace.ETraceGraphExecutor, braintrace.ETraceVjpGraphExecutor):
        model = fill(Net())
        brainstate.nn.init_all_states(model)
        executor = cls(model)
        executor.compile_graph(jnp.asarray(XS[0, 0]))
        assert isinstance(executor.show_graph(verbose=False, return_msg=True), str)
        assert {*executor.path_to_states} >= {("cell", "h"), ("out", "weight")}
    out, hidden, other, *_ = executor.solve_h2w_h2h_jacobian(jnp.asarray(XS[0, 0]))
    return {"out": out, "hidden": by_path(hidden), "other": float(len(other))}


@program
def what_a_learner_shows():
    model = fill(Net())
    learner = braintrace.compile(model, braintrace.D_RTRL, XS[0], batch_size=BATCH)
    assert isinstance(learner, braintrace.ETraceVjpAlgorithm)
    assert isinstance(learner, braintrace.ETraceAlgorithm)
    assert isinstance(learner.graph, braintrace.ETraceGraph)
    assert isinstance(learner.executor, braintrace.ETraceGraphExecutor)
    traces = model.states(braintrace.EligibilityTrace) | learner.states(braintrace.EligibilityTrace)
    learner.update(XS[0])
    learner.reset_state(batch_size=BATCH)
    return {
        "traces": float(len(traces) > 0),
        "parameters": float(len(learner.param_states)),
        "hidden": float(len(learner.hidden_states)),
        "other": float(len(learner.other_states)),
        "after a reset": learner(XS[1]) * 0.0,
    }


@program
def branches_and_short_loops():
    class Branching(Leaky):
        def drive(self, x):
            total = braintrace.matmul(x, self.w.value)
            total = jax.lax.cond(x.sum() > 0, jnp.tanh, lambda v: 0.5 * v, total)
            return jax.lax.scan(lambda v, _: (0.5 * v + total, None), total, None, length=3)[0]

    policy = braintrace.ControlFlowPolicy(cond="convert", scan_unroll_limit=16)
    model = Branching((HIDDEN,), w=wave(IN, HIDDEN))
    ys = wave(T, BATCH, HIDDEN)
    return trained(model, braintrace.D_RTRL, ys=ys, control_flow=policy)


@program
def a_loop_of_unknown_length():
    """A hidden state passes a ``while`` before its new value."""

    class Settling(Leaky):
        def drive(self, x):
            return braintrace.matmul(x, self.w.value)

        def update(self, x):
            y = jnp.tanh(0.9 * self.h.value + self.drive(x))

            def body(carry):
                return carry[0] + 1, 0.5 * carry[1] + 0.1 * jnp.sin(carry[1])

            self.h.value = jax.lax.while_loop(lambda carry: carry[0] < 3, body, (0, y))[1]
            return self.h.value

    policy = braintrace.ControlFlowPolicy(while_hidden="opaque-fwd", etp_in_control_flow="error")
    model, ys = Settling((HIDDEN,), w=wave(IN, HIDDEN)), wave(T, BATCH, HIDDEN)
    return trained(model, braintrace.D_RTRL, ys=ys, control_flow=policy)


@program
def a_long_loop():
    """An operation in each of 40 steps within a step."""

    class Stepping(Leaky):
        def update(self, x):
            def body(h, _):
                return h + 0.05 * (jnp.tanh(braintrace.matmul(x, self.w.value)) - h), None

            self.h.value = jax.lax.scan(body, self.h.value, None, length=40)[0]
            return self.h.value

    policy = braintrace.ControlFlowPolicy(scan_descent="auto", fixpoint_iteration_limit=64)
    model, ys = Stepping((HIDDEN,), w=wave(IN, HIDDEN)), wave(T, BATCH, HIDDEN)
    return trained(model, braintrace.D_RTRL, ys=ys, control_flow=policy)


@program
def what_is_refused():
    """A loop of unknown length with an operation inside."""

    class Looping(Leaky):
        def drive(self, x):
            def body(carry):
                return carry[0] + 1, carry[1] + braintrace.matmul(carry[1], self.w.value)

            return jax.lax.while_loop(lambda carry: carry[0] < 2, body, (0, jnp.asarray(x)))[1]

    assert issubclass(braintrace.CompilationError, Exception)
    try:
        braintrace.compile(Looping((IN,), w=wave(IN, IN)), "d_rtrl", XS[0], batch_size=BATCH)
    except (braintrace.NotSupportedError, NotImplementedError):
        return {"refused": 1.0}


# --- layers --------------------------------------------------------------------------------------

GATED = "GRUCell MGUCell LSTMCell URLSTMCell MinimalRNNCell MiniGRU MiniLSTM CFNCell"
CELLS = f"ValinaRNNCell {GATED} LRUCell".split()


@program
def cells():
    found = {}
    for name in CELLS:
        cell = getattr(braintrace.nn, name)(IN, HIDDEN)
        width = IN if name == "LRUCell" else HIDDEN
        found[name] = trained(fill(Net(cell, width)), "d_rtrl")
    return found


@program
def linear_layers():
    nn, x = braintrace.nn, XS[0]
    layers = {
        "Linear": nn.Linear(IN, HIDDEN),
        "no bias": nn.Linear(IN, HIDDEN, b_init=None),
        "masked": nn.Linear(IN, HIDDEN, w_mask=wave(IN, HIDDEN) > 0),
        "SignedWLinear": nn.SignedWLinear(IN, HIDDEN, w_sign=-jnp.ones((IN, HIDDEN))),
        "ScaledWSLinear": nn.ScaledWSLinear(IN, HIDDEN),
        "LoRA": nn.LoRA(IN, 2, HIDDEN),
        "LoRA of a base": nn.LoRA(IN, 2, HIDDEN, base_module=brainstate.nn.Linear(IN, HIDDEN)),
    }
    found = {name: fill(layer)(x) for name, layer in layers.items()}
    return found | {"SparseLinear": fill(nn.SparseLinear(ring(), in_size=(6,)))(wave(BATCH, 6))}


@program
def convolution_layers():
    nn = braintrace.nn
    layers = {
        "1": nn.Conv1d((8, 3), 2, 3, b_init=jnp.zeros),
        "2": nn.Conv2d((6, 5, 3), 2, (3, 3), stride=2, padding="VALID"),
        "3": nn.Conv3d((4, 4, 4, 2), 2, 3, groups=2),
        "channels first": nn.Conv1d((3, 8), 2, 3, channel_first=True),
    }
    return {name: fill(layer)(wave(BATCH, *layer.in_size)) for name, layer in layers.items()}


@program
def a_leaky_readout():
    class Rate(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = braintrace.nn.GRUCell(IN, HIDDEN)
            self.out = braintrace.nn.LeakyRateReadout(HIDDEN, OUT, tau=5.0 * u.ms)

        def update(self, x):
            return self.out(self.cell(x))

    with brainstate.environ.context(dt=1.0 * u.ms):
        return trained(fill(Rate()), "d_rtrl", **as_published())
