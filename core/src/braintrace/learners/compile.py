# SPDX-License-Identifier: Apache-2.0
"""``compile``: a ready learner from a model and a name; core's names, offered as a plugin's are."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext, suppress
from typing import Any

import brainstate

from ..algorithms.config import ETraceConfig
from ..compiler.keywords import in_order, names_of, signature_of
from ..drivers.call_arguments import one_step_of
from ..executor.graph_executor import compile_options
from ..plugins import services
from ..plugins.hooks import hookimpl
from ..plugins.host import __version__
from ..plugins.process import host
from ..plugins.records import HostInfo, PluginInfo
from .example_inputs import explained, initialise
from .learner import ETraceAlgorithm
from .named import D_RTRL, RTRL, UORO, OSTLFeedforward, OSTLRecurrent, SnAp, pp_prop
from .options import OBSOLETE, options_of
from .signals import DNI, EProp, ThreeFactor
from .vjp import ETraceVjpAlgorithm


def compile(
    model: brainstate.nn.Module,
    algorithm: str | type[ETraceAlgorithm] | ETraceConfig,
    *example_inputs: Any,
    batch_size: int | None = None,
    vmap: bool = False,
    seed: Any = None,
    verbose: int = 0,
    **options: Any,
) -> ETraceAlgorithm:
    """Initialise a model's states and return a ready learner.

    Parameters
    ----------
    model
        A ``brainstate.nn.Module``.
    algorithm
        A learner class; its name, such as ``'d_rtrl'``, ``'pp_prop'``, ``'eprop'``, ``'uoro'``, or
        one of an installed plugin; or a learning rule as an :class:`ETraceConfig`.
    *example_inputs
        Arguments of one step. Those that are given by name are among ``**options``.
    batch_size
        Passed on to ``brainstate.nn.init_all_states``. With ``vmap``, the number of examples;
        default: the leading axis of the example inputs.
    vmap
        Whether the model is written for one example. The example inputs, and those of every later
        step, have a leading axis of examples (a scalar is the same for all of them); so have the
        results and all states of the model but its parameters. The gradient is the sum over the
        examples, as of a model with the batch inside. Each example draws its own random numbers.
    seed
        An integer or a JAX key, for the random numbers with which states are initialised; what is
        drawn from ``brainstate.random`` later does not change. The model has its parameters
        already.
    verbose
        0: print nothing; 1 or 2: print :attr:`ETraceAlgorithm.report`.
    **options
        Passed on to the learner, such as ``decay_or_rank`` of :class:`pp_prop`. Names that are
        none of its options, but arguments of the model's step, are example inputs.

    Raises
    ------
    ValueError
        For an unknown algorithm, or another ``verbose``.
    TypeError
        For an option that the learner does not have, or one that is missing.
    CompilationError, NotSupportedError
        When the model cannot be compiled.

    Examples
    --------
    >>> import braintrace, jax.numpy as jnp
    >>> learner = braintrace.compile(
    ...     braintrace.nn.GRUCell(3, 4), "d_rtrl", jnp.ones((2, 3)), batch_size=2
    ... )
    >>> learner(jnp.ones((2, 3))).shape
    (2, 4)
    """
    if verbose not in (0, 1, 2):
        raise ValueError(f"verbose must be 0, 1 or 2, got {verbose!r}")
    if isinstance(algorithm, ETraceConfig):
        if "config" in options:
            raise TypeError("a config is given twice: as algorithm and as the option config")
        options = options if algorithm.needs_windows else {"config": algorithm, **options}
        if algorithm.trace_factorization == "random_projection":
            options = {"vjp_method": "multi-step", **options}  # as UORO
        own = {"bootstrapped": DNI, "modulatory": ThreeFactor}
        algorithm = own.get(algorithm.learning_signal, ETraceVjpAlgorithm)
    if isinstance(algorithm, str):
        name = algorithm.lower().replace("-", "_")
        algorithm = services.algorithm(host(), name, ETraceAlgorithm)
    if not (isinstance(algorithm, type) and issubclass(algorithm, ETraceAlgorithm)):
        raise TypeError(f"algorithm must be a name or a learner class, got {algorithm!r:.80}")
    required = {name for name, p in options_of(algorithm).items() if p.default is p.empty}
    if missing := sorted(required - {*options}):
        raise TypeError(
            f"{algorithm.__name__} needs the option {missing[0]!r}: pass {missing[0]}=... to "
            f"compile; help({algorithm.__name__}) says which values it takes"
        )
    named = {name: options.pop(name) for name in _arguments(model, algorithm) if name in options}
    learner = algorithm(model, **options, **({"vmap": True} if vmap else {}))
    inputs = in_order(model, example_inputs, named) if named else example_inputs
    if not inputs:
        _check_takes_nothing(model)
    step = one_step_of(inputs)
    try:
        with nullcontext() if seed is None else brainstate.random.seed_context(seed):
            initialise(model, step, batch_size, vmap)
        learner.compile_graph(*inputs)
    except Exception as error:
        better = explained(error, model, step, batch_size, vmap)
        if better is error:
            raise
        raise better from error
    if verbose:
        print(learner.report)
    return learner


def _arguments(model: Any, algorithm: type[ETraceAlgorithm]) -> frozenset[str]:
    """Names of arguments of the model's step that are no options of a learner."""
    if not isinstance(model, brainstate.nn.Module):
        return frozenset()  # which the learner refuses
    return names_of(model) - {*options_of(algorithm), *compile_options(), *OBSOLETE}


def _check_takes_nothing(model: brainstate.nn.Module) -> None:
    """Raise ``ValueError`` for a model whose steps have arguments."""
    with suppress(TypeError):
        signature_of(model).bind()
        return
    raise ValueError(
        "compile() needs at least one example input: those of a step, as in "
        "compile(model, 'd_rtrl', x0)"
    )


class CorePlugin:
    """The algorithms of ``braintrace-core``."""

    @hookimpl
    def braintrace_plugin_info(self) -> PluginInfo:
        """Who provides them."""
        return PluginInfo("core", distribution="braintrace-core", version=__version__)

    @hookimpl
    def braintrace_algorithms(self, api: HostInfo) -> Mapping[str, type[ETraceAlgorithm]]:
        """Learner classes by the names that ``braintrace.compile`` takes."""
        return {
            "d_rtrl": D_RTRL,
            **dict.fromkeys(("pp_prop", "es_d_rtrl", "esd_rtrl"), pp_prop),
            **dict.fromkeys(("eprop", "e_prop"), EProp),
            "ostl_recurrent": OSTLRecurrent,
            "ostl_feedforward": OSTLFeedforward,
            "snap": SnAp,
            "rtrl": RTRL,
            "uoro": UORO,
            "three_factor": ThreeFactor,
            "dni": DNI,
        }


plugin = CorePlugin()
