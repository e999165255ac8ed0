# SPDX-License-Identifier: Apache-2.0
"""The one table of public names: where each of core's is defined, and whose the others are.

Nothing is imported here. The stubs ``__init__.pyi`` and ``nn.pyi`` are written from this table.
"""

#: Modules below ``braintrace``, and core's public names that each defines.
_DEFINED_IN = {
    "algorithms.config": "ETraceConfig",
    "base.diagnostics": "CompilationRecord DiagnosticKind DiagnosticLevel",
    "base.errors": "CompilationError CompilationWarning NotSupportedError",
    "compiler.compile": "compile_etrace_graph",
    "compiler.control.rewrite": "ControlFlowPolicy",
    "compiler.exact.record": "ExactCredit",
    "compiler.graph": "ETraceGraph",
    "compiler.groups": "HiddenGroup find_hidden_groups_from_minfo find_hidden_groups_from_module",
    "compiler.module_info": "ModuleInfo",
    "compiler.perturbation": (
        "HiddenPerturbation add_hidden_perturbation_from_minfo add_hidden_perturbation_in_module"
    ),
    "compiler.reach": "Cone Reach TrainableOperand Transition",
    "compiler.relation": (
        "HiddenParamOpRelation find_hidden_param_op_relations_from_minfo "
        "find_hidden_param_op_relations_from_module"
    ),
    "compiler.tracing.extract": "extract_module_info",
    "compiler.uniform.state": "UniformConstant UniformSource UniformFactor UniformState",
    "drivers.call_arguments": "MultiStepData SingleStepData",
    "executor.graph_executor": "ETraceGraphExecutor ETraceVjpGraphExecutor",
    "learners.compile": "compile",
    "learners.learner": "ETraceAlgorithm",
    "learners.ledger": "CreditEntry CreditLedger",
    "learners.named": (
        "D_RTRL ES_D_RTRL IODimVjpAlgorithm OSTLFeedforward OSTLRecurrent ParamDimVjpAlgorithm "
        "RTRL SnAp UORO pp_prop"
    ),
    "learners.optimizers": "OptaxOptimizer",
    "learners.report": "CompilationReport",
    "learners.signals": "DNI EProp ThreeFactor",
    "learners.states": "EligibilityTrace",
    "learners.vjp": "ETraceVjpAlgorithm",
    "ops.primitive": (
        "BATCHED_PRIMITIVES ETPPrimitive ETP_PRIMITIVES ETP_PRIMITIVE_SPECS ETP_RULES_INIT_DRTRL "
        "ETP_RULES_INIT_PP ETP_RULES_XY_TO_DW ETP_RULES_YW_TO_W get_primitive_spec "
        "is_etp_primitive register_primitive register_primitive_spec"
    ),
    "ops.spec": "ETPPrimitiveSpec",
    "published": "PathClassification",
}
CORE = {name: module for module, names in _DEFINED_IN.items() for name in names.split()}

SUBMODULES = ("algorithms", "nn", "plugin_api", "plugins", "rules", "testing")

#: The plugin object that offers core's own algorithms.
PLUGIN_OF_CORE = "braintrace.learners.compile:plugin"

#: Submodules that are a distribution of their own: its name and its import package.
DISTRIBUTED = {"testing": ("braintrace-testing", "braintrace_testing")}

#: Of each official distribution, the operations and the layers.
_PROVIDED_BY = {
    "braintrace-conv": ("conv", "Conv1d Conv2d Conv3d"),
    "braintrace-dense": (
        "matmul",
        "Linear SignedWLinear ScaledWSLinear LeakyRateReadout ValinaRNNCell GRUCell MGUCell "
        "LSTMCell URLSTMCell MinimalRNNCell MiniGRU MiniLSTM CFNCell LRUCell",
    ),
    "braintrace-einsum": ("einsum grouped_matmul", "GroupedLinear"),
    "braintrace-embedding": ("embedding", "Embedding"),
    "braintrace-elemwise": (
        "element_wise",
        "TrainedAttribute LayerNorm RMSNorm GroupNorm BatchNorm0d BatchNorm1d BatchNorm2d "
        "BatchNorm3d",
    ),
    "braintrace-lora": ("lora_matmul", "LoRA"),
    "braintrace-sparse": ("sparse_matmul", "SparseLinear"),
}

#: Official names of operations and layers, and the distribution that each belongs to.
OFFICIAL = {
    "ops": {op: of for of, (ops, _) in _PROVIDED_BY.items() for op in ops.split()},
    "nn": {layer: of for of, (_, layers) in _PROVIDED_BY.items() for layer in layers.split()},
}

_PRIVATE = "public names: from braintrace import ..."
_PRIVATE_MODULES = "_algorithm _compile _compiler _etrace_compiler _etrace_op _input_data _misc _op"
_NEURONS = "ALIF Alpha DualExpon Expon IF LIF STD STP"

#: Names of the ``braintrace`` 0.2 distribution that are not here, and what to use in their place.
INSTEAD = {
    "ops": {
        "ConvOp": "braintrace.conv",
        "ETraceOp": "an operation, such as braintrace.matmul, or braintrace.register_primitive",
        "ETraceParam": "brainstate.ParamState, and an operation of braintrace on its value",
        "ETraceVmap": "what braintrace.compile(..., vmap=True) returns, which is a learner",
        "ElemWiseOp": "braintrace.element_wise",
        "ElemWiseParam": "brainstate.ParamState, and braintrace.element_wise on its value",
        "FakeETraceParam": "an array, and operations of jax.numpy",
        "FakeElemWiseParam": "an array, and operations of jax.numpy",
        "FixedRandomFeedback": "braintrace.EProp(model, feedback='random')",
        "GradExpon": "optax.trace(decay)",
        "KappaFilter": "optax.ema(kappa, debias=False)",
        "LoraOp": "braintrace.lora_matmul",
        "MatMulOp": "braintrace.matmul",
        "NonTempParam": "brainstate.ParamState, and operations of jax.numpy on its value",
        "RandomProjectionVjpAlgorithm": "braintrace.UORO",
        "SequenceDriverMixin": "braintrace.ETraceAlgorithm, which has etrace_grad and its kin",
        "SpMatMulOp": "braintrace.sparse_matmul",
        "SyntheticGradient": "braintrace.DNI, which makes its predictions itself",
        **dict.fromkeys(_PRIVATE_MODULES.split(), _PRIVATE),
        "train_synthetic_gradient": "braintrace.DNI, which trains its predictions with the weights",
    },
    "nn": {**{name: f"brainpy.state.{name}" for name in _NEURONS.split()}},
}
