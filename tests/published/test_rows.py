# SPDX-License-Identifier: Apache-2.0
"""Each row of the tables of ``docs/from-0.2.md`` is true."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import braintrace
from braintrace import nn

PAGE = Path(__file__).resolve().parents[2] / "docs" / "from-0.2.md"
BATCH, STEPS = 2, 3
ROWS: dict[str, Callable[[], None]] = {}


def row(text: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """The check of the row whose first cell has these words."""

    def register(check: Callable[[], None]) -> Callable[[], None]:
        ROWS[text] = check
        return check

    return register


def sequence() -> jax.Array:
    """Inputs [STEPS, BATCH, 3]."""
    return jnp.cos(jnp.arange(STEPS * BATCH * 3.0)).reshape(STEPS, BATCH, 3)


@cache
def learner(rule: str = "d_rtrl") -> Any:
    """A GRU that learns."""
    return braintrace.compile(nn.GRUCell(3, 4, key=0), rule, sequence()[0], batch_size=BATCH)


# --- learners -------------------------------------------------------------------------------------


@row("`reset_state(batch_size)` resets traces")
def resets() -> None:
    of = learner()
    of.etrace_evolve(sequence())
    of.reset_state(BATCH)
    assert of.model.h.value.any()
    (trace,) = of.get_etrace_of(("Wz", "weight"))
    assert not any(leaf.any() for leaf in jax.tree.leaves(trace))
    of.reset_state(BATCH + 1, model_states=True)
    assert of.model.h.value.shape == (BATCH + 1, 4) and not of.model.h.value.any()
    of.reset_state(BATCH, model_states=True)


@row("after `init_all_states`, gradients are")
def resets_of_the_model() -> None:
    of = learner()
    for restart in (brainstate.nn.init_all_states, brainstate.nn.reset_all_states):
        of.etrace_evolve(sequence())
        restart(of.model, batch_size=BATCH)
        assert of.hidden_states["h",] is of.model.h
        assert int(of.running_index.value) == 0
        assert not any(leaf.any() for leaf in jax.tree.leaves(of.read_traces()))
    start = of.model.h
    of.model.h = brainstate.HiddenState(start.value[:1])
    with pytest.raises(braintrace.CompilationError, match="call compile_graph again"):
        of(sequence()[0])
    of.model.h = start


@row("the gradient of a layer below a leaky readout")
def credit_through_a_readout() -> None:
    xs, found = sequence(), {}
    with brainstate.environ.context(dt=1.0):
        for how in ({}, {"downstream": "step"}, {"config": braintrace.ETraceConfig()}):
            cell, out = nn.GRUCell(3, 4, key=0), nn.LeakyRateReadout(4, 2, tau=5.0, key=1)
            model = brainstate.nn.Sequential(cell, out)
            made = braintrace.compile(model, "d_rtrl", xs[0], batch_size=BATCH, **how)
            grads = made.etrace_grad(xs, step_fn=lambda x, made=made: (made(x) ** 2).sum())
            found[str(how)] = grads["layers", 0, "Wz", "weight"]["weight"]
    default, published, config = map(np.asarray, found.values())
    assert np.array_equal(default, config)
    assert np.linalg.norm(default - published) > 0.1 * np.linalg.norm(default)


@row("`get_etrace_of(weight)` is a dict")
def traces_of_a_weight() -> None:
    found = learner().get_etrace_of(("Wz", "weight"))
    assert [sorted(trace) for trace in found] == [["bias", "weight"]]
    with pytest.raises(KeyError, match="Wr.weight has no trace"):
        learner().get_etrace_of(("Wr", "weight"))
    with brainstate.environ.context(dt=1.0):
        out = nn.LeakyRateReadout(3, 2, tau=5.0)
        leaky = braintrace.compile(out, "d_rtrl", sequence()[0], batch_size=BATCH)
        with pytest.raises(KeyError, match="a filter of its input in place of a trace"):
            leaky.get_etrace_of(next(iter(leaky.param_states)))


@row("`compile(..., vmap=True)` returns")
def mapped() -> None:
    cell = nn.GRUCell(3, 4)
    made = braintrace.compile(cell, "d_rtrl", sequence()[0], batch_size=BATCH, vmap=True)
    assert isinstance(made, braintrace.D_RTRL) and made.module is made


@row("`DNI` needs `attach_synthesizer`")
def predictions_are_trained() -> None:
    of, path = learner("dni"), ("synthesizer", "h")
    of.etrace_evolve(sequence())
    grads = of.etrace_grad(sequence(), step_fn=lambda x: (of(x) ** 2).sum())
    assert path in of.param_states
    assert all(leaf.any() for leaf in jax.tree.leaves(grads[path]))
    assert grads["Wh", "weight"]["weight"].any()


@row("`chunk_size=k` divides the length of the sequence")
def a_shorter_last_window() -> None:
    cell, xs = nn.GRUCell(3, 4), sequence()
    of = braintrace.compile(cell, "d_rtrl", xs[0], batch_size=BATCH, vjp_method="multi-step")

    def losses(x: Any) -> Any:
        out = of(braintrace.MultiStepData(x)).sum((1, 2))
        return out, out

    options = {"chunk_size": 2, "return_value": True}
    assert of.etrace_grad(xs, step_fn=lambda x: losses(x)[0], **options)[1].shape == (STEPS,)
    with pytest.raises(ValueError, match="the last window has fewer steps, and its aux has shape"):
        of.etrace_grad(xs, step_fn=losses, has_aux=True, **options)


@row("`UORO(projection_key=...)` draws certain signs")
def signs() -> None:
    def grads(key: int) -> Any:
        cell, xs = nn.GRUCell(3, 4, key=0), sequence()
        of = braintrace.compile(cell, "uoro", xs[0], batch_size=BATCH, projection_key=key)
        return of.etrace_grad(xs, step_fn=lambda x: (of(x) ** 2).sum())["Wh", "weight"]["weight"]

    assert (grads(0) == grads(0)).all() and (grads(0) != grads(1)).any()


@row("`etrace_evolve(..., chunk_size=k)`")
def evolves_without_windows() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'chunk_size'"):
        learner().etrace_evolve(sequence(), chunk_size=2)


@row("`ETraceConfig(temporal_recursion=...")
def coordinates_that_are_not_there() -> None:
    for name in ("temporal_recursion", "update_schedule", "window_size"):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            braintrace.ETraceConfig(**{name: 1})
    with pytest.raises(ValueError, match="recurrence_scope"):
        braintrace.ETraceConfig("io_factorized", "jacobian", decay=0.9)


@row("`EProp(feedback='random')` divides")
def random_feedback_is_linear() -> None:
    of = braintrace.compile(
        nn.GRUCell(3, 4, key=0),
        braintrace.EProp,
        sequence()[0],
        batch_size=BATCH,
        feedback="random",
        random_feedback_key=jax.random.key(0),
    )

    def grads(scale: float) -> Any:
        of.reset_state(BATCH, model_states=True)
        return of.etrace_grad(sequence(), step_fn=lambda x: scale * (of(x) ** 2).sum())

    once, thrice = grads(1.0), grads(3.0)
    assert any(leaf.any() for leaf in jax.tree.leaves(once))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(3 * a, b, 1e-5, 1e-6), once, thrice)
    of.reset_state(BATCH, model_states=True)
    error = jnp.zeros((BATCH, 2))  # in the place of what the loss says
    none = of.etrace_grad(sequence(), step_fn=lambda x: (of(x, error=error) ** 2).sum())
    assert not any(leaf.any() for leaf in jax.tree.leaves(none))


@row("`UORO`: `ETraceConfig(recurrence_scope='coupled'")
def scope_of_uoro() -> None:
    whole = {"trace_factorization": "random_projection"}
    with pytest.raises(ValueError, match=r"goes with recurrence_scope in \('full',\)"):
        braintrace.ETraceConfig(recurrence_scope="coupled", **whole)
    assert braintrace.ETraceConfig(recurrence_scope="full", **whole)


@row("the second positional argument of learners is `name`")
def positions_of_options() -> None:
    assert braintrace.pp_prop(nn.GRUCell(3, 4), 0.8).config.decay == 0.8
    with (
        pytest.warns(DeprecationWarning, match="options of D_RTRL are given by name"),
        pytest.raises(ValueError, match="vjp_method must be"),
    ):
        braintrace.D_RTRL(nn.GRUCell(3, 4), "name")


@row("`_solve_weight_gradients`, `_update_etrace_data`")
def hooks_of_a_subclass() -> None:
    for name in ("_solve_weight_gradients", "_update_etrace_data", "_compute_learning_signal"):
        with pytest.raises(TypeError, match=f"defines {name}, which nothing calls.*of your own"):
            type("Mine", (braintrace.D_RTRL,), {name: lambda self: None})


@row("a value of `brainstate.environ` that the step reads")
def values_of_the_environment() -> None:
    class Timed(nn.GRUCell):
        def update(self, x: Any) -> Any:
            return super().update(x) * brainstate.environ.get("i")

    with brainstate.environ.context(i=jnp.zeros(())):
        of = braintrace.compile(Timed(3, 4, key=0), "d_rtrl", sequence()[0], batch_size=BATCH)
    outs = []
    for i in (1.0, 2.0):
        with brainstate.environ.context(i=jnp.asarray(i)):
            of.reset_state(BATCH, model_states=True)
            outs.append(of(sequence()[0]))
    assert outs[0].any() and jnp.allclose(2 * outs[0], outs[1])


@row("an argument `modulator` is ignored by rules")
def modulators_that_nobody_reads() -> None:
    with pytest.raises(TypeError, match="modulator"):
        learner()(sequence()[0], modulator=1.0)


@row("`DNI(model, synthesizer=...)`")
def synthesizers_of_the_caller() -> None:
    with pytest.raises(TypeError, match="unknown option 'synthesizer'; .* makes its predictions"):
        braintrace.DNI(nn.GRUCell(3, 4), synthesizer=nn.Linear(4, 4))


@row("attributes of learners and executors that said")
def attributes_that_said_how() -> None:
    for name, use in (("etrace_bwg", "get_etrace_of"), ("graph_executor", "executor")):
        with pytest.raises(AttributeError, match=f"{name}.*, use {use}"):
            getattr(learner(), name)


@row("`OSTLFeedforward` has the decay")
def no_memory() -> None:
    assert braintrace.OSTLFeedforward(nn.GRUCell(3, 4)).config.decay == 0.0
    given = braintrace.OSTLFeedforward(nn.GRUCell(3, 4), decay_or_rank=1e-6)
    assert given.config.decay == 1e-6


@row("`ETraceConfig(decay=0.9).decay` is a pair")
def decays_of_a_configuration() -> None:
    config = braintrace.ETraceConfig(trace_factorization="io_factorized", decay=0.9)
    assert (config.decay, config.decay_x, config.decay_f) == (0.9, 0.9, 0.9)


# --- records ------------------------------------------------------------------------------------


@row("records can be made by hand")
def records_are_made_by_the_compiler() -> None:
    values = learner().graph.hidden_param_op_relations[0].dict()
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        braintrace.HiddenParamOpRelation(**values)


@row("`state_id_to_path` has keys")
def keys_of_states() -> None:
    info = learner().graph.module_info
    assert all(info.compiled_model_states[path] is s for s, path in info.state_id_to_path.items())


@row("`include_recurrent_mixing=True` and `sparse_n`")
def scopes_of_then() -> None:
    cell, x = learner().model, sequence()[0]
    info = braintrace.extract_module_info(cell, x)
    for option, use in (
        ({"include_recurrent_mixing": True}, "recurrence_scope='coupled'"),
        ({"sparse_n": 2}, r"SnAp\(model, n\)"),
    ):
        for refuses in (
            lambda option: braintrace.compile_etrace_graph(cell, x, **option),
            lambda option: braintrace.find_hidden_groups_from_module(cell, x, **option),
            lambda option: braintrace.find_hidden_groups_from_minfo(info, **option),
            lambda option: braintrace.ETraceGraphExecutor(cell, **option),
            lambda option: braintrace.ETraceVjpGraphExecutor(cell, **option),
        ):
            with pytest.raises(TypeError, match=f"option '{next(iter(option))}'; .* use .*{use}"):
                refuses(option)
    coupled = braintrace.compile_etrace_graph(cell, x, recurrence_scope="coupled")
    paths = [group.hidden_paths for group in coupled.hidden_groups]
    assert paths == [group.hidden_paths for group in learner().graph.hidden_groups]


@row("`bypass_param_paths`, `bypass_vars`")
def bypasses() -> None:
    graph = learner().graph
    for name in ("bypass_param_paths", "bypass_vars", "bypass_hidden_paths", "bypass_hidden_vars"):
        with pytest.raises(AttributeError, match=f"{name}.*, use "):
            getattr(graph.hidden_perturb, name)
    assert graph.coverage()["Wr", "weight"] == "direct"


@row("programs (`closed_jaxpr`, `perturb_jaxpr`)")
def results_of_programs() -> None:
    info = learner().graph.module_info
    leaves = [leaf for slot in info.slots for leaf in info.outvars_of(slot)]
    assert [*info.closed_jaxpr.outvars[1:]] == leaves
    assert [slot.path for slot in info.slots] == sorted(slot.path for slot in info.slots)
    assert [*info.compiled_model_states] != sorted(info.compiled_model_states)
    y = learner().graph.hidden_param_op_relations[0].y
    assert y not in info.closed_jaxpr.outvars and y in info.add_jaxpr_outs([y]).jaxpr.outvars


@row("`transition_jaxpr` has results of recurrent operations")
def operations_of_a_transition() -> None:
    (group,) = learner().graph.hidden_groups
    names = [eqn.primitive.name for eqn in group.transition_jaxpr.eqns]
    assert names.count("etp_mm") == 3
    weights = {var for vs in group.module_info.weight_path_to_invars.values() for var in vs}
    assert weights < {*group.transition_jaxpr_constvars}


@row("`eqn_params` has all options")
def options_of_an_operation() -> None:
    relation = learner().graph.hidden_param_op_relations[0]
    assert relation.eqn_params == {"has_bias": True}


@row("`executor.states` by path")
def states_of_an_executor() -> None:
    executor = learner().executor
    assert executor.states == (*executor.path_to_states.values(),)


@row("a weight behind another one is a record")
def level_of_a_weight_behind_another() -> None:
    (record,) = learner().graph.explain(kind="relation_excluded_weight_to_weight")
    assert record.level is braintrace.DiagnosticLevel.INFO
    assert record.weight_path == ("Wr", "weight")


@row("`solve_h2w_h2h_jacobian` returns six values")
def jacobians_of_a_step() -> None:
    _, _, _, h2w, h2h = learner().executor.solve_h2w_h2h_jacobian(sequence()[0])
    assert [(one.paths, one.group) for one in h2w] == [
        ((("Wz", "weight"),), 0),
        ((("Wh", "weight"),), 0),
    ]
    assert h2h[0].shape == (BATCH, 4, 1, 1)
    with pytest.raises(TypeError, match="etrace_stepper"):
        learner().executor.solve_h2w_h2h_jacobian(sequence()[0], etrace_stepper=None)


@row("`ControlFlowPolicy(cond='opaque')`")
def policies_of_then() -> None:
    for options, says in (
        ({"cond": "opaque"}, "is 'refuse' here"),
        ({"etp_in_control_flow": "exclude"}, "Use a plain product in the loop"),
        ({"scan_unroll_limit": -1}, "must not be negative"),
    ):
        with pytest.raises(ValueError, match=says):
            braintrace.ControlFlowPolicy(**options)
    limit = {"fixpoint_iteration_limit": 2}
    assert braintrace.ControlFlowPolicy(scan_unroll_limit=0, cond="refuse", **limit)


@row("hidden groups are numbered in the order")
def numbers_of_groups() -> None:
    class Two(brainstate.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.GRUCell(3, 4), nn.GRUCell(4, 3)

        def update(self, x: Any) -> Any:
            return self.first(self.second(x))

    made = braintrace.compile(Two(), "d_rtrl", sequence()[0], batch_size=BATCH)
    assert [*made.graph.module_info.hidden_path_to_invar] == [("second", "h"), ("first", "h")]
    paths = [group.hidden_paths for group in made.graph.hidden_groups]
    assert paths == [(("first", "h"),), (("second", "h"),)]


# --- layers and operations ------------------------------------------------------------------------


@row("a seed of `brainstate.random` draws")
def draws() -> None:
    """The distributions are compared in ``test_layers.py``."""
    made = []
    for _ in range(2):
        brainstate.random.seed(0)
        made.append(nn.LSTMCell(3, 4).Wi.weight.value["weight"])
    assert (made[0] == made[1]).all()


@row("`nn.SignedWLinear` with sizes of several axes")
def a_signed_weight() -> None:
    layer = nn.SignedWLinear((5, 3), (5, 4))
    assert layer.weight.value.shape == (3, 4)
    assert layer(jnp.ones((2, 5, 3))).shape == (2, 5, 4)


@row("`nn.ScaledWSLinear` with a gain gives one example")
def a_standardised_weight() -> None:
    assert nn.ScaledWSLinear(3, 4, ws_gain=True)(jnp.ones(3)).shape == (4,)


@row("`nn.LRUCell` has the `out_size`")
def the_size_of_what_an_lru_returns() -> None:
    cell = nn.LRUCell(3, 4)
    cell.init_state()
    assert cell.out_size == cell(jnp.ones(3)).shape == (3,)


@row("`matmul` takes integers and booleans")
def operands() -> None:
    x, weight = jnp.ones((2, 3)), jnp.ones((3, 4))
    for integers in (x.astype(int), x > 0):
        with pytest.raises(TypeError, match=r"x has dtype .*astype\(jax.numpy.float32\)"):
            braintrace.matmul(integers, weight)
    for bias in (jnp.ones((1, 4)), jnp.ones(())):
        with pytest.raises(ValueError, match=r"bias must have shape \(4,\)"):
            braintrace.matmul(x, weight, bias)
    with pytest.raises(ValueError, match=r"weight must have shape \[in, out\]"):
        braintrace.matmul(x, weight[:, 0])
    assert braintrace.matmul(x, weight[:, :1]).shape == (2, 1)


@row("`sparse_matmul(x, weight=...)`")
def names_of_arguments() -> None:
    values = {"weight": jnp.ones(3)}
    with pytest.raises(TypeError, match="unexpected keyword argument 'weight'"):
        braintrace.sparse_matmul(jnp.ones(3), sparse_mat=None, **values)
    function = {"impl_fn": jnp.add}
    with pytest.raises(TypeError, match="unexpected keyword argument 'impl_fn'"):
        braintrace.register_primitive("published_impl", **function)


@row("arguments by name of `register_dt_to_t(fn=...)`")
def names_of_arguments_of_methods() -> None:
    (group,) = learner().graph.hidden_groups
    primitive = learner().graph.hidden_param_op_relations[0].primitive
    old = [jnp.ones((BATCH, 4))]
    free = [jnp.ones(var.aval.shape) for var in group.transition_jaxpr_constvars]
    (new,) = group.transition(old, free)
    assert new.shape == (BATCH, 4)
    for refuses, name in (
        (lambda name: group.transition(**{name: old}), "hidden_vals"),
        (lambda name: primitive.register_dt_to_t(**{name: None}), "fn"),
        (lambda name: nn.LRUCell(3, 4).update(**{name: None}), "inputs"),
    ):
        with pytest.raises(TypeError, match=f"unexpected keyword argument '{name}'"):
            refuses(name)


@row("`register_etp_rules(fast_path=...")
def further_rules() -> None:
    primitive = learner().graph.hidden_param_op_relations[0].primitive
    for name in ("fast_path", "pp_x_repr", "snap_anchor", "snap_adjacency"):
        with pytest.raises(TypeError, match=rf"unknown rules \['{name}'\]"):
            primitive.register_etp_rules(**{name: None})


# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ROWS)
def test_a_row_is_true(text: str) -> None:
    ROWS[text]()


def test_each_row_has_a_check() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    found = [line[2:] for line in lines if line.startswith("| ") and line != "| in 0.2 | here |"]
    unchecked = [line for line in found if not any(line.startswith(text) for text in ROWS)]
    assert not unchecked, "rows of docs/from-0.2.md without a check here"
    assert len(found) == len(ROWS)
