# SPDX-License-Identifier: Apache-2.0
"""What programs of ``braintrace`` 0.2 ask of learners, executors, reports and configurations."""

from __future__ import annotations

import brainstate
import jax
import jax.numpy as jnp
import pytest

import braintrace
from braintrace import nn

X = jnp.ones((2, 3), jnp.float32)


def gru():
    return nn.GRUCell(3, 4, key=0)


def made(algorithm, **options):
    return braintrace.compile(gru(), algorithm, X, batch_size=2, **options)


def ready():
    cell = gru()
    brainstate.nn.init_all_states(cell, batch_size=2)
    return cell


# --- attributes -----------------------------------------------------------------------------------


def test_whether_a_learner_is_compiled_and_its_states():
    cell = ready()
    learner = braintrace.D_RTRL(cell)
    assert not learner.is_compiled
    learner.compile_graph(X)
    assert learner.is_compiled and learner.executor.is_compiled
    assert learner.path_to_states == learner.executor.path_to_states
    assert learner.path_to_states["h",] is cell.h
    assert learner.state_id_to_path[cell.h] == ("h",)
    assert learner.executor.state_id_to_path == learner.state_id_to_path
    assert isinstance(learner.show_graph(verbose=False, return_msg=True), str)


def test_states_are_found_as_brainstate_gives_them():
    learner = made("d_rtrl")
    model = learner.model.states()
    found = learner.graph.module_info.retrieved_model_states
    for states in (learner.path_to_states, learner.executor.path_to_states, found):
        assert states == model and type(states) is type(model)
        assert states.filter(brainstate.HiddenState) == learner.hidden_states
        assert states.subset(brainstate.ParamState) == learner.param_states
    assert [*learner.param_states.to_nest()] == ["Wh", "Wr", "Wz"]
    zeros = jax.tree.map(jnp.zeros_like, learner.param_states.to_dict_values())
    grads = learner.etrace_grad(X[None], step_fn=lambda x: learner(x).sum())
    assert jax.tree.structure(zeros) == jax.tree.structure(grads)
    assert type(learner.trained_states) is type(learner.other_states) is type(model)


def test_the_module_of_a_mapped_learner(capsys):
    learner = made("d_rtrl", vmap=True)
    assert learner.module is learner
    learner.module.show_graph()
    assert "hidden group" in capsys.readouterr().out


def test_traces_are_started_with_example_inputs():
    learner = made("d_rtrl")
    learner(X)
    learner.init_etrace_state(X)
    assert not any(leaf.any() for leaf in jax.tree.leaves(learner.read_traces()))


def test_coefficients_are_attributes():
    assert made("eprop", kappa_filter_decay=0.7).kappa_filter_decay == 0.7
    assert made("eprop").kappa_filter_decay == 0.0
    assert made(braintrace.SnAp, n=2).n == 2 and made(braintrace.SnAp, n=1).n == 1
    assert made("pp_prop", decay_or_rank=0.9).decay == 0.9
    two = made("pp_prop", decay_or_rank=(0.5, 0.9))
    assert (two.decay_x, two.decay_f) == (0.5, 0.9)
    with pytest.raises(AttributeError, match=r"the decays are decay_x=0\.5, decay_f=0\.9"):
        two.decay  # noqa: B018
    feedforward = made("ostl_feedforward")
    assert feedforward.decay == feedforward.decay_x == feedforward.decay_f == 0.0


def test_attributes_of_then_say_what_to_use():
    learner = made("d_rtrl")
    for name, use in (("graph_executor", "executor"), ("etrace_bwg", r"get_etrace_of\(weight\)")):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'; .* use {use}"):
            getattr(learner, name)
    with pytest.raises(AttributeError, match="'D_RTRL' object has no attribute 'nothing'$"):
        learner.nothing  # noqa: B018
    with pytest.raises(AttributeError, match="'modulator'; .* use braintrace.ThreeFactor"):
        learner.modulator  # noqa: B018
    with pytest.raises(AttributeError, match="'sparse_n'; .* use config.sparse_n"):
        learner.executor.sparse_n  # noqa: B018
    with pytest.raises(AttributeError, match="'bypass_vars'; .* always in the gradient"):
        learner.graph.hidden_perturb.bypass_vars  # noqa: B018
    assert not hasattr(learner.executor, "nothing") and not hasattr(learner, "synthetic")


def test_the_executor_of_a_learner():
    for learner, single in (
        (made("d_rtrl"), True),
        (made("d_rtrl", vjp_method="multi-step"), False),
    ):
        assert isinstance(learner.executor, braintrace.ETraceVjpGraphExecutor)
        assert learner.executor.vjp_method == learner.vjp_method
        assert (
            learner.executor.is_single_step_vjp is single is not learner.executor.is_multi_step_vjp
        )


def test_options_of_then_that_change_nothing():
    cell = ready()
    info = braintrace.extract_module_info(cell, X)
    graph = braintrace.compile_etrace_graph(cell, X, include_recurrent_mixing=False, sparse_n=None)
    groups, _ = braintrace.find_hidden_groups_from_minfo(info, include_recurrent_mixing=False)
    assert len(graph.hidden_groups) == len(groups) == 1
    executor = braintrace.ETraceGraphExecutor(cell, include_recurrent_mixing=False)
    assert executor.options == {} and "include_output_bypass" not in repr(executor.options)
    assert made("d_rtrl", include_output_bypass=True).is_compiled


def test_what_learners_are():
    params = ("OSTLRecurrent", "SnAp", "EProp", "ThreeFactor", "DNI")
    for name in params:
        assert issubclass(getattr(braintrace, name), braintrace.ParamDimVjpAlgorithm), name
    assert issubclass(braintrace.OSTLFeedforward, braintrace.pp_prop)
    assert isinstance(made("ostl_feedforward"), braintrace.IODimVjpAlgorithm)
    assert not issubclass(braintrace.UORO, braintrace.D_RTRL)
    assert not issubclass(braintrace.pp_prop, braintrace.D_RTRL)


def test_options_of_then():
    learner = made(braintrace.OSTLFeedforward, decay_or_rank=1e-6)
    assert learner.config.decay == 1e-6 and made(braintrace.OSTLFeedforward).config.decay == 0.0
    for name in ("fast_solve", "chunked_trace", "projection_eps", "snap_max_jacobian_elements"):
        with pytest.warns(UserWarning, match=f"{name} of braintrace 0.2 has no effect"):
            made(braintrace.UORO, **{name: 1e-12})


@pytest.mark.parametrize("method", ["single-step", "multi-step"])
def test_an_executor_knows_how_it_is_used(method):
    executor = braintrace.ETraceVjpGraphExecutor(ready(), vjp_method=method)
    executor.compile_graph(X)
    assert executor.vjp_method == method
    assert executor.is_multi_step_vjp is (method == "multi-step")
    assert executor.is_single_step_vjp is (method == "single-step")
    assert executor.solve_h2w_h2h_jacobian(X)[0].shape == (2, 4)


# --- reports and configurations -------------------------------------------------------------------


def test_a_report_in_parts(capsys):
    learner = made("d_rtrl")
    report = learner.report
    assert isinstance(report, braintrace.CompilationReport)
    assert report.hidden_groups == [(0, [("h",)])] and report.dynamic_states == []
    weights = [("Wz", "weight")] * 2 + [("Wh", "weight")] * 2
    assert report.etrace_weights == [(path, [0]) for path in weights]
    kind = "relation_excluded_weight_to_weight"
    assert report.excluded_weights == [(("Wr", "weight"), kind)]
    assert report.diagnostics is learner.graph.diagnostics is report.graph.diagnostics
    counts = {"hidden_groups": 1, "etrace_weights": 4, "excluded_weights": 1}
    assert report.counts == {**counts, "warnings": 0, "errors": 0}
    assert report.to_str(1) == report == report() and kind in report.to_str(2)
    report.show(2)
    assert capsys.readouterr().out == report.to_str(2) + "\n"
    of_graph = braintrace.CompilationReport(learner.graph)
    assert of_graph == learner.graph.report() and of_graph.counts == report.counts


def test_configurations():
    """Values of 0.2.8."""
    config, factorized = braintrace.ETraceConfig, {"trace_factorization": "io_factorized"}
    assert config().describe() == "default"
    described = config(trace_filter="kappa", kappa=0.8).describe()
    assert described == "trace_filter='kappa', kappa=0.8"
    leaky = config(decay=0.9, **factorized)
    assert (leaky.decay_x, leaky.decay_f, leaky.is_factorized) == (0.9, 0.9, True)
    assert (leaky.recursion_x, leaky.recursion_f) == ("scalar_leak", "jacobian")
    assert leaky.replace(decay=(0.5, 0.8)).decay_x == 0.5
    assert [
        config(recurrence_scope=s).include_recurrent_mixing for s in ("diagonal", "coupled")
    ] == [
        False,
        True,
    ]
    with pytest.raises(ValueError, match="needs decay"):
        leaky.replace(decay=None)
    for name in ("decay_x", "recursion_f"):
        assert not hasattr(config(), name)


# --- errors of the kinds that were caught ---------------------------------------------------------


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, braintrace.CompilationError])
def test_not_compiled(kind):
    learner = braintrace.D_RTRL(ready())
    for use in (lambda: learner(X), lambda: learner.graph, lambda: learner.report):
        with pytest.raises(kind, match="call compile_graph"):
            use()


@pytest.mark.parametrize("kind", [KeyError, ValueError])
def test_no_trace(kind):
    with pytest.raises(kind, match=r"Wr\.weight has no trace"):
        made("d_rtrl").get_etrace_of(("Wr", "weight"))


@pytest.mark.parametrize("kind", [RuntimeError, ValueError])
def test_no_modulator(kind):
    with pytest.raises(kind, match="ThreeFactor needs a modulator"):
        made("three_factor")(X)


@pytest.mark.parametrize("kind", [braintrace.NotSupportedError, NotImplementedError])
def test_a_parameter_that_is_written(kind):
    class Writes(nn.GRUCell):
        def update(self, x):
            self.Wz.weight.value = jax.tree.map(lambda w: 0.5 * w, self.Wz.weight.value)
            return super().update(x)

    with pytest.raises(kind, match=r"writes its parameter Wz\.weight"):
        braintrace.compile(Writes(3, 4), "d_rtrl", X, batch_size=2)


def test_no_example_input():
    with pytest.raises(ValueError, match="needs at least one example input"):
        braintrace.compile(gru(), "d_rtrl")

    class Clock(brainstate.nn.Module):
        def __init__(self):
            super().__init__()
            self.w = brainstate.ParamState(jnp.ones(4))

        def init_state(self, batch_size=None, **kwargs):
            self.h = brainstate.HiddenState(jnp.zeros(4))

        def update(self):
            self.h.value = 0.9 * self.h.value + braintrace.element_wise(self.w.value)
            return self.h.value

    assert braintrace.compile(Clock(), "d_rtrl")().shape == (4,)


class Plain(brainstate.nn.Module):
    """A leaky state without any ETP operation."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(jnp.ones((3, 4)))

    def init_state(self, batch_size=None, **kwargs):
        self.h = brainstate.HiddenState(jnp.zeros((2, 4)))

    def update(self, x):
        self.h.value = 0.9 * self.h.value + x @ self.w.value
        return self.h.value


@pytest.mark.filterwarnings("ignore::braintrace.CompilationWarning")
def test_a_model_without_any_trace():
    for algorithm in ("d_rtrl", "pp_prop", "uoro"):
        options = {"decay_or_rank": 0.9} if algorithm == "pp_prop" else {}
        with pytest.raises(braintrace.CompilationError, match=r"nothing to train.*vmap over a w"):
            braintrace.compile(Plain(), algorithm, X, batch_size=2, **options)
    learner = braintrace.compile(Plain(), "d_rtrl", X, batch_size=2, require_trace=False)
    assert learner(X).shape == (2, 4)
    assert braintrace.compile_etrace_graph(learner.model, X).coverage() == {("w",): "direct"}
    assert braintrace.compile(Plain(), "dni", X, batch_size=2).is_compiled


def test_a_name_that_is_not_here_inside_of_a_model():
    class Tokens(nn.GRUCell):
        def update(self, x):
            return braintrace.MatMulOp()(x, self.Wz.weight.value)

    with pytest.raises(braintrace.CompilationError, match=r"use braintrace\.matmul") as caught:
        braintrace.compile(Tokens(3, 4), "d_rtrl", X, batch_size=2)
    assert "init_all_states" not in str(caught.value)
    with pytest.raises(braintrace.CompilationError, match="init_all_states"):
        braintrace.D_RTRL(Pair()).compile_graph(X)


# --- modulators -----------------------------------------------------------------------------------


def test_a_weight_without_an_operation_in_a_report():
    class Outside(nn.GRUCell):
        def __init__(self, *sizes, **options):
            super().__init__(*sizes, **options)
            self.plain = brainstate.ParamState(jnp.ones((4, 4)))

        def update(self, x):
            return super().update(x) @ self.plain.value

    report = braintrace.compile(Outside(3, 4, key=0), "d_rtrl", X, batch_size=2).report
    kind = "relation_excluded_weight_to_weight"
    assert report.excluded_weights == [(("Wr", "weight"), kind), (("plain",), None)]
    assert report.counts["excluded_weights"] == 2


class Pair(brainstate.nn.Module):
    """Two states at each position: one group."""

    def __init__(self):
        super().__init__()
        self.w = brainstate.ParamState(jnp.cos(jnp.arange(12.0)).reshape(3, 4))

    def init_state(self, batch_size=None, **kwargs):
        self.a, self.b = (brainstate.HiddenState(jnp.zeros((2, 4))) for _ in range(2))

    def update(self, x):
        old = self.b.value
        self.b.value = 0.5 * old + 0.3 * self.a.value
        self.a.value = 0.8 * self.a.value - 0.2 * old + braintrace.matmul(x, self.w.value)
        return self.a.value


def modulated(modulator):
    learner = braintrace.compile(Pair(), braintrace.ThreeFactor, X, batch_size=2)
    (group,) = learner.graph.hidden_groups
    assert group.num_state == 2
    xs = jnp.sin(jnp.arange(18.0)).reshape(3, 2, 3)

    def step_loss(x):
        return learner(x, modulator=modulator).sum()

    return learner.etrace_grad(xs, step_fn=step_loss, reduction="sum")["w",]


def test_a_modulator_for_every_state_of_a_position():
    per_position = jnp.cos(jnp.arange(8.0)).reshape(2, 4)
    same = jnp.stack([per_position] * 2, axis=-1)
    assert jnp.allclose(modulated(same), modulated(per_position), rtol=1e-5)
    first, second = (same * jnp.eye(2)[k] for k in range(2))
    parts = modulated(first), modulated(second)
    assert all(part.any() for part in parts)
    assert jnp.allclose(sum(parts), modulated(same), rtol=1e-4, atol=1e-5)
    assert jnp.allclose(modulated(per_position[..., None]), modulated(per_position), rtol=1e-5)
    with pytest.raises(ValueError, match="does not broadcast to the positions"):
        modulated(jnp.ones(5))


@pytest.mark.parametrize("several", [(jnp.ones(()), -jnp.ones(())), [1.0, 2.0], {"a": 1.0}])
def test_several_modulators_are_refused(several):
    learner = made(braintrace.ThreeFactor)
    with pytest.raises(TypeError, match="one number or array for the positions of every hidden"):
        learner(X, modulator=several)
    with pytest.raises(TypeError, match="one number or array for the positions of every hidden"):
        learner.modulator = several
