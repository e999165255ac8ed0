# SPDX-License-Identifier: Apache-2.0
"""Every attribute of records, executors, learners and reports, of the notebooks' models and a GRU.

    python tests/published/attributes.py save FILE    with any ``braintrace`` installed

What an attribute holds is said without what two programs cannot share: variables by their shapes
and dtypes, states and records by their types, programs by what goes in and out and their
operations. ``attributes.json`` has what 0.2.8 says, and ``test_attributes.py`` compares it.
"""

from __future__ import annotations

import enum
import json
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
from jax.extend import core

import braintrace

PLAIN = (str, int, float, bool, type(None))
#: Operations that are themselves, wherever they are; others depend on the version of JAX.
NAMED = ("etp_", "tanh", "logistic", "dot_general", "concatenate", "while", "scan", "cond")


class TwoLayerRNN(brainstate.nn.Module):
    """The model of the notebook on the compiler."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn1 = braintrace.nn.ValinaRNNCell(10, 32)
        self.rnn2 = braintrace.nn.ValinaRNNCell(32, 16)
        self.out = braintrace.nn.Linear(16, 5)

    def update(self, x: Any) -> Any:
        return self.out(self.rnn2(self.rnn1(x)))


class TinyRNN(brainstate.nn.Module):
    """The model of the notebook on primitives: one of two weights has an operation."""

    def __init__(self, sizes: tuple[int, int] = (4, 6)) -> None:
        super().__init__()
        self.W_rec = brainstate.ParamState(0.1 * jnp.ones((sizes[1], sizes[1])))
        self.W_in = brainstate.ParamState(0.1 * jnp.ones(sizes))

    def init_state(self, batch_size: int | None = None, **_: Any) -> None:
        self.h = brainstate.HiddenState(jnp.zeros((batch_size or 1, self.W_in.value.shape[1])))

    def update(self, x: Any) -> Any:
        recurrent = braintrace.matmul(self.h.value, self.W_rec.value)
        self.h.value = jax.nn.tanh(x @ self.W_in.value + recurrent)
        return self.h.value


class Gated(brainstate.nn.Module):
    """A GRU, of which one weight is behind another one, and a readout."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = braintrace.nn.GRUCell(3, 4), braintrace.nn.Linear(4, 2)

    def update(self, x: Any) -> Any:
        return self.out(self.cell(x))


#: Models, each with the size of its batch and the shape of its input.
MODELS = {
    "compiler notebook": (TwoLayerRNN, None, (10,)),
    "primitives notebook": (TinyRNN, 2, (2, 4)),
    "gated": (Gated, 2, (2, 3)),
}


def said(value: Any) -> Any:
    """A value as JSON."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, PLAIN):
        return str(value) if isinstance(value, str) else value
    if isinstance(value, brainstate.State):
        return type(value).__name__
    if isinstance(value, core.Primitive):
        return value.name
    if isinstance(value, core.Jaxpr | core.ClosedJaxpr):
        return said_of_program(value)
    if isinstance(value, core.Var | core.Literal | jax.Array):
        return f"{value.aval.dtype.name}{[*value.aval.shape]}"
    return said_of_parts(value)


def said_of_parts(value: Any) -> Any:
    """A container as JSON; a record by its type."""
    if isinstance(value, Mapping | brainstate.util.FlattedDict):
        if all(isinstance(key, int | brainstate.State) for key in value):  # ``id`` there
            return [said(one) for one in value.values()]
        return [[said(key), said(one)] for key, one in value.items()]
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return [said(one) for one in value]
    return type(value).__name__


def said_of_program(jaxpr: Any) -> Any:
    """What goes in, constants included, what comes out, and its operations."""
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    names = [eqn.primitive.name for eqn in jaxpr.eqns]
    return {
        "in": sorted(said([*jaxpr.constvars, *jaxpr.invars])),
        "out": said([*jaxpr.outvars]),
        "operations": [name for name in names if name.startswith(NAMED)],
    }


def attributes(record: Any, *names: str) -> dict[str, Any]:
    """The attributes of a record; without names, all public ones that are no methods."""
    chosen = names or [name for name in dir(record) if not name.startswith("_")]
    values = {name: getattr(record, name) for name in chosen}
    kept = {name: value for name, value in values.items() if names or not callable(value)}
    return {name: said(value) for name, value in kept.items()}


LEARNER = (
    "graph report executor param_states hidden_states other_states is_compiled path_to_states "
    "state_id_to_path"
).split()
EXECUTOR = "graph states path_to_states state_id_to_path".split()
REPORT = (
    "hidden_groups etrace_weights excluded_weights dynamic_states counts diagnostics graph"
).split()


def copies(graph: Any) -> dict[str, Any]:
    """What 0.2.8 wants to be given beside perturbations."""
    perturb, states = graph.hidden_perturb, graph.module_info.retrieved_model_states
    found = {}
    for argument, of in (("bypass_data", "param"), ("bypass_hidden_data", "hidden")):
        paths = getattr(perturb, f"bypass_{of}_paths", ())
        if paths:
            found[argument] = jax.tree.leaves([states[path].value for path in paths])
    return found


def of_model(name: str) -> dict[str, Any]:
    """Everything about a model."""
    make, batch, shape = MODELS[name]
    model, x = make(), jnp.zeros(shape)
    brainstate.nn.init_all_states(model, batch_size=batch)
    learner = braintrace.D_RTRL(model)
    learner.compile_graph(x)
    graph = learner.graph
    executor = braintrace.ETraceVjpGraphExecutor(model)
    executor.compile_graph(x)
    results = graph.module_info.jaxpr_call(x)
    zero = graph.hidden_perturb.init_perturb_data()
    perturbed = graph.call_hidden_perturb((x,), zero, **copies(graph))
    groups = [attributes(group) for group in graph.hidden_groups]
    old = [jnp.zeros(var.aval.shape) for var in graph.hidden_groups[0].hidden_invars]
    constants = graph.hidden_groups[0].transition_jaxpr_constvars
    free = [jnp.zeros(var.aval.shape, var.aval.dtype) for var in constants]
    return {
        "ETraceGraph": {**attributes(graph), "explain": said(graph.explain())},
        "ModuleInfo": {
            **attributes(graph.module_info),
            "split_state_outvars": said(graph.module_info.split_state_outvars()),
            "jaxpr_call": said(results[:3]),
        },
        "HiddenGroup": groups,
        "of the first group": {
            "transition": said(graph.hidden_groups[0].transition(old, free)),
            "diagonal_jacobian": said(graph.hidden_groups[0].diagonal_jacobian(old, free)),
            "full_jacobian": said(graph.hidden_groups[0].full_jacobian(old, free)),
        },
        "HiddenParamOpRelation": [attributes(r) for r in graph.hidden_param_op_relations],
        "HiddenPerturbation": {
            **attributes(graph.hidden_perturb),
            "init_perturb_data": said(zero),
            "group data": said(
                graph.hidden_perturb.perturb_data_to_hidden_group_data(zero, graph.hidden_groups)
            ),
            "call_hidden_perturb": said(perturbed[:3]),
        },
        "diagnostics": [of_diagnostic(record) for record in graph.diagnostics],
        "learner": attributes(learner, *LEARNER),
        "executor": attributes(learner.executor, *EXECUTOR),
        "executor with derivatives": attributes(
            executor, *EXECUTOR, "vjp_method", "is_single_step_vjp", "is_multi_step_vjp"
        ),
        "results": said(executor.solve_h2w_h2h_jacobian(x)[:3]),
        "report": attributes(learner.report, *REPORT),
    }


def of_diagnostic(record: Any) -> dict[str, Any]:
    """The attributes of a record of the compiler, but for the words of its message."""
    found = attributes(record)
    found["message"] = type(record.message).__name__
    return found


def everything() -> dict[str, Any]:
    """Everything about all models, in float32."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {name: of_model(name) for name in MODELS}


if __name__ == "__main__":
    found = {"version": braintrace.__version__, "models": everything()}
    Path(sys.argv[2]).write_text(json.dumps(found))
