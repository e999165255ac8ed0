# SPDX-License-Identifier: Apache-2.0
"""What ``docs/from-0.2.md`` says of ``braintrace`` 0.2, in the left column of its tables.

    python -m tests.published.rows_there    with the distribution 0.2.6 or 0.2.8 installed

It prints what is not so, and ends with status 1 then. ``test_rows.py`` checks the right column.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import brainstate
import jax
import jax.numpy as jnp

import braintrace
from braintrace import nn

X = jnp.cos(jnp.arange(6.0)).reshape(2, 3)


def cell() -> Any:
    """A GRU with states."""
    made = nn.GRUCell(3, 4)
    brainstate.nn.init_all_states(made, batch_size=2)
    return made


def learner(algorithm: Any = "d_rtrl", **options: Any) -> Any:
    """A learner of a GRU."""
    return braintrace.compile(nn.GRUCell(3, 4), algorithm, X, batch_size=2, **options)


def error_of(call: Callable[[], Any]) -> type[BaseException] | None:
    """What a call raises."""
    try:
        call()
    except Exception as error:
        return type(error)
    return None


def learners() -> Iterator[tuple[str, bool]]:
    """Of learners and configurations."""
    of = learner()
    config = braintrace.ETraceConfig(trace_factorization="io_factorized", decay=0.9)
    wide = {"trace_factorization": "random_projection", "recurrence_scope": "coupled"}
    yield "get_etrace_of is a dict", isinstance(of.get_etrace_of(("Wz", "weight")), dict)
    mapped = learner(vmap=True)
    yield "an ETraceVmap", type(mapped).__name__ == "ETraceVmap" and mapped.module is not mapped
    yield (
        "DNI takes a synthesizer",
        error_of(lambda: braintrace.DNI(cell(), synthesizer=None)) is None,
    )
    yield "attach_synthesizer", hasattr(braintrace.DNI, "attach_synthesizer")
    yield "coordinates", hasattr(config, "temporal_recursion") and hasattr(config, "window_size")
    yield "the scope of UORO", error_of(lambda: braintrace.ETraceConfig(**wide)) is None
    yield "name by position", braintrace.D_RTRL(cell(), "mine").name == "mine"
    yield "a modulator is ignored", error_of(lambda: of.update(X, modulator=3.0)) is None
    yield "the decay of OSTLFeedforward", braintrace.OSTLFeedforward(cell()).decay == 1e-6
    yield "a pair of decays", config.decay == (0.9, 0.9)
    hooks = ("_solve_weight_gradients", "_update_etrace_data", "_compute_learning_signal")
    yield "hooks", all(hasattr(braintrace.D_RTRL, hook) for hook in hooks)
    yield "attributes", hasattr(of, "etrace_bwg") and hasattr(of, "graph_executor")
    yield "chunk_size of etrace_evolve", of.etrace_evolve(X[None], chunk_size=1) is None


def timed() -> Iterator[tuple[str, bool]]:
    """Of the environment."""

    class Timed(nn.GRUCell):
        def update(self, x: Any) -> Any:
            return super().update(x) * brainstate.environ.get("i")

    with brainstate.environ.context(i=jnp.zeros(())):
        of = braintrace.compile(Timed(3, 4), "d_rtrl", X, batch_size=2)
    with brainstate.environ.context(i=jnp.ones(())):
        yield "a value of the environment stays", not of(X).any()


def records() -> Iterator[tuple[str, bool]]:
    """Of records and executors."""
    of = learner()
    info, (group,) = of.graph.module_info, of.graph.hidden_groups
    relation = of.graph.hidden_param_op_relations[0]
    yield "records by hand", type(relation)(**relation._asdict()) == relation
    yield "keys by id", all(isinstance(key, int) for key in info.state_id_to_path)
    yield "a list of states", isinstance(info.compiled_model_states, list | tuple)
    yield "states by path", ("h",) in of.executor.states
    yield (
        "recurrent mixing",
        error_of(lambda: braintrace.compile_etrace_graph(cell(), X, include_recurrent_mixing=True))
        is None,
    )
    names = [eqn.primitive.name for eqn in group.transition_jaxpr.eqns]
    yield "a transition without operations", not any(name.startswith("etp_") for name in names)
    yield "all options of an operation", {"weight_fn", "bias_fn"} < relation.eqn_params.keys()
    extra = len(info.jaxpr.outvars) - info.num_var_out - info.num_var_state
    yield "intermediate values", extra > 0
    behind = [r for r in of.graph.diagnostics if r.weight_path == ("Wr", "weight")]
    yield "a warning", [r.level.value for r in behind] == ["warning"]
    executor = braintrace.ETraceVjpGraphExecutor(cell())
    executor.compile_graph(X)
    yield "six values", len(executor.solve_h2w_h2h_jacobian(X)) == 6
    if braintrace.__version__ != "0.2.6":
        yield "copies of parameters", hasattr(of.graph.hidden_perturb, "bypass_vars")


def layers() -> Iterator[tuple[str, bool]]:
    """Of layers and operations."""
    x, w = jnp.ones((2, 3)), jnp.ones((3, 4))
    yield "a signed weight", nn.SignedWLinear((5, 3), (5, 4)).weight.value.shape == (5, 3, 5, 4)
    yield "one example", nn.ScaledWSLinear(3, 4, ws_gain=True)(jnp.ones(3)).shape == (1, 4)
    yield "the size of an LRU", nn.LRUCell(3, 4).out_size in (4, (4,))
    for text, call in {
        "integers": lambda: braintrace.matmul(x.astype(int), w),
        "a bias that is broadcast": lambda: braintrace.matmul(x, w, jnp.ones((1, 4))),
        "a weight [in]": lambda: braintrace.matmul(x, w[:, 0]),
    }.items():
        yield text, error_of(call) is None


def main() -> int:
    """Check all; the exit status."""
    failed = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for part in (learners, timed, records, layers):
            for text, holds in part():
                failed |= not holds
                print(f"  {'true' if holds else 'NOT SO'}: {text}")
    return int(failed)


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", False)
    sys.exit(main())
