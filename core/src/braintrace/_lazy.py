# SPDX-License-Identifier: Apache-2.0
"""Where each public name comes from, and its resolution on first use.

Nothing but the interpreter's own modules is imported here: ``import braintrace`` stays free of
jax, of pluggy and of package metadata.
"""

from __future__ import annotations

import sys
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from ._plugins._host import Host

#: Core's public names and the internal module that defines each.
CORE = {
    "CompilationError": "_errors",
    "NotSupportedError": "_errors",
    "BATCHED_PRIMITIVES": "_primitive",
    "ETP_PRIMITIVES": "_primitive",
    "ETP_PRIMITIVE_SPECS": "_primitive",
    "ETP_RULES_INIT_DRTRL": "_primitive",
    "ETP_RULES_INIT_PP": "_primitive",
    "ETP_RULES_XY_TO_DW": "_primitive",
    "ETP_RULES_YW_TO_W": "_primitive",
    "ETPPrimitive": "_primitive",
    "ETPPrimitiveSpec": "_primitive",
    "get_primitive_spec": "_primitive",
    "is_etp_primitive": "_primitive",
    "register_primitive": "_primitive",
    "register_primitive_spec": "_primitive",
    "CompilationRecord": "_compile",
    "ControlFlowPolicy": "_compile",
    "DiagnosticKind": "_compile",
    "DiagnosticLevel": "_compile",
    "ETraceGraph": "_compile",
    "HiddenGroup": "_compile",
    "HiddenParamOpRelation": "_compile",
    "HiddenPerturbation": "_compile",
    "ModuleInfo": "_compile",
    "add_hidden_perturbation_from_minfo": "_compile",
    "add_hidden_perturbation_in_module": "_compile",
    "compile_etrace_graph": "_compile",
    "extract_module_info": "_compile",
    "find_hidden_groups_from_minfo": "_compile",
    "find_hidden_groups_from_module": "_compile",
    "find_hidden_param_op_relations_from_minfo": "_compile",
    "find_hidden_param_op_relations_from_module": "_compile",
    "ETraceGraphExecutor": "_execute",
    "ETraceVjpGraphExecutor": "_vjp_executor",
    "ETraceAlgorithm": "_learner",
    "EligibilityTrace": "_learner",
    "DNI": "_further_learners",
    "D_RTRL": "_learners",
    "EProp": "_further_learners",
    "ES_D_RTRL": "_learners",
    "ETraceConfig": "_config",
    "ETraceVjpAlgorithm": "_learners",
    "IODimVjpAlgorithm": "_learners",
    "MultiStepData": "_windows",
    "OSTLFeedforward": "_further_learners",
    "OSTLRecurrent": "_further_learners",
    "OptaxOptimizer": "_optimizers",
    "ParamDimVjpAlgorithm": "_learners",
    "RTRL": "_further_learners",
    "SingleStepData": "_windows",
    "SnAp": "_further_learners",
    "ThreeFactor": "_further_learners",
    "UORO": "_further_learners",
    "compile": "_ready",
    "pp_prop": "_learners",
}

SUBMODULES = ("nn", "plugin_api", "plugins", "rules", "testing")

#: Official names of operations and layers, and the distribution that each belongs to.
OFFICIAL = {
    "ops": {
        "matmul": "braintrace-dense",
        "element_wise": "braintrace-elemwise",
        "conv": "braintrace-conv",
        "sparse_matmul": "braintrace-sparse",
        "lora_matmul": "braintrace-lora",
    },
    "nn": {
        **dict.fromkeys(
            (
                "Linear",
                "SignedWLinear",
                "ScaledWSLinear",
                "LeakyRateReadout",
                "ValinaRNNCell",
                "GRUCell",
                "MGUCell",
                "LSTMCell",
                "URLSTMCell",
                "MinimalRNNCell",
                "MiniGRU",
                "MiniLSTM",
                "CFNCell",
                "LRUCell",
            ),
            "braintrace-dense",
        ),
        "Conv1d": "braintrace-conv",
        "Conv2d": "braintrace-conv",
        "Conv3d": "braintrace-conv",
        "SparseLinear": "braintrace-sparse",
        "LoRA": "braintrace-lora",
    },
}

_PACKAGE = __name__.rpartition(".")[0]
_MODULE_OF = {"ops": _PACKAGE, "nn": f"{_PACKAGE}.nn"}


def resolve_in_core(name: str) -> object:
    """``braintrace.<name>``: a core name, a submodule, or an operation of a plugin."""
    if name in SUBMODULES:
        return import_module(f"{_PACKAGE}.{name}")
    if name in CORE:
        value = getattr(import_module(f"{_PACKAGE}.{CORE[name]}"), name)
        setattr(sys.modules[_PACKAGE], name, value)
        return value
    return provided("ops", name)


def resolve_in_nn(name: str) -> object:
    """``braintrace.nn.<name>``: a layer of a plugin, or the name of ``brainstate.nn``."""
    if name.startswith("_"):
        raise _unknown("nn", name)
    if name in OFFICIAL["nn"] or name in _host().exported("nn"):
        return provided("nn", name)
    try:
        return getattr(import_module("brainstate.nn"), name)
    except AttributeError:
        raise _unknown("nn", name) from None


def provided(kind: str, name: str) -> object:
    """The object that a plugin exports as ``name`` among the ``ops`` or in ``nn``."""
    if name.startswith("_"):
        raise _unknown(kind, name)
    host = _host()
    if name not in OFFICIAL[kind] and name not in host.exported(kind):
        raise _unknown(kind, name)
    try:
        return host.resolve(kind, name)
    except host.errors.PluginError as error:
        raise host.errors.as_attribute_error(error, name, sys.modules[_MODULE_OF[kind]]) from (
            error.__cause__
        )


def names_of_core() -> list[str]:
    """What ``dir(braintrace)`` lists: everything that resolves."""
    return sorted({*vars(sys.modules[_PACKAGE]), *CORE, *SUBMODULES, *_host().available("ops")})


def names_of_nn() -> list[str]:
    """What ``dir(braintrace.nn)`` lists: everything that resolves."""
    forwarded = (n for n in dir(import_module("brainstate.nn")) if not n.startswith("_"))
    mine = {*forwarded} - OFFICIAL["nn"].keys()
    return sorted({*vars(sys.modules[_MODULE_OF["nn"]]), *mine, *_host().available("nn")})


def _host() -> Host:
    from ._plugins import host

    return host()


def _unknown(kind: str, name: str) -> AttributeError:
    module = sys.modules[_MODULE_OF[kind]]
    text = f"module {module.__name__!r} has no attribute {name!r}"
    return AttributeError(text, name=name, obj=module)


class _ProviderFinder:
    """Last on ``sys.meta_path``: ``import braintrace.conv`` says why it cannot be had.

    ``from braintrace import conv`` ends here too. The error names the provider as the missing
    module: an error that named the requested one would be swallowed by the import statement.
    """

    @staticmethod
    def find_spec(fullname: str, path: object = None, target: object = None) -> None:
        parent, _, name = fullname.rpartition(".")
        kind = {module: kind for kind, module in _MODULE_OF.items()}.get(parent)
        if kind is None or name.startswith("_") or name in SUBMODULES or name in CORE:
            return None
        if name not in OFFICIAL[kind] and name not in _host().exported(kind):
            return None
        host = _host()
        try:
            host.resolve(kind, name)
        except host.errors.PluginError as error:
            raise host.errors.as_import_error(error) from error.__cause__
        return None


def install_finder() -> None:
    """Append the finder once, however often the package is reloaded."""
    if not any(type(finder).__qualname__ == "_ProviderFinder" for finder in sys.meta_path):
        sys.meta_path.append(_ProviderFinder())
