# SPDX-License-Identifier: Apache-2.0
"""The one table of public names: where each of core's is defined, and whose the others are.

Nothing is imported here. The stubs ``__init__.pyi`` and ``nn.pyi`` are written from this table.
"""

#: Core's public names and the module below ``braintrace`` that defines each.
CORE = {
    "ETraceConfig": "algorithms.config",
    "CompilationRecord": "base.diagnostics",
    "DiagnosticKind": "base.diagnostics",
    "DiagnosticLevel": "base.diagnostics",
    "CompilationError": "base.errors",
    "NotSupportedError": "base.errors",
    "compile_etrace_graph": "compiler.compile",
    "ControlFlowPolicy": "compiler.control.policy",
    "find_hidden_param_op_relations_from_minfo": "compiler.find_relations",
    "find_hidden_param_op_relations_from_module": "compiler.find_relations",
    "ETraceGraph": "compiler.graph",
    "HiddenGroup": "compiler.groups",
    "find_hidden_groups_from_minfo": "compiler.groups",
    "find_hidden_groups_from_module": "compiler.groups",
    "ModuleInfo": "compiler.module_info",
    "HiddenPerturbation": "compiler.perturbation",
    "add_hidden_perturbation_from_minfo": "compiler.plan_perturbation",
    "add_hidden_perturbation_in_module": "compiler.plan_perturbation",
    "HiddenParamOpRelation": "compiler.relation",
    "extract_module_info": "compiler.tracing.extract",
    "MultiStepData": "drivers.step_data",
    "SingleStepData": "drivers.step_data",
    "ETraceVjpGraphExecutor": "executor.by_name",
    "ETraceGraphExecutor": "executor.step",
    "compile": "learners.compile",
    "DNI": "learners.dni",
    "EProp": "learners.e_prop",
    "ETraceAlgorithm": "learners.learner",
    "D_RTRL": "learners.named",
    "ES_D_RTRL": "learners.named",
    "IODimVjpAlgorithm": "learners.named",
    "OSTLFeedforward": "learners.named",
    "OSTLRecurrent": "learners.named",
    "ParamDimVjpAlgorithm": "learners.named",
    "RTRL": "learners.named",
    "SnAp": "learners.named",
    "UORO": "learners.named",
    "pp_prop": "learners.named",
    "OptaxOptimizer": "learners.optimizers",
    "EligibilityTrace": "learners.stepping",
    "ThreeFactor": "learners.three_factor",
    "ETraceVjpAlgorithm": "learners.vjp",
    "ETPPrimitive": "ops.primitive",
    "get_primitive_spec": "ops.primitive",
    "is_etp_primitive": "ops.primitive",
    "register_primitive": "ops.primitive",
    "register_primitive_spec": "ops.primitive",
    "ETPPrimitiveSpec": "ops.spec",
    "BATCHED_PRIMITIVES": "ops.views",
    "ETP_PRIMITIVES": "ops.views",
    "ETP_PRIMITIVE_SPECS": "ops.views",
    "ETP_RULES_INIT_DRTRL": "ops.views",
    "ETP_RULES_INIT_PP": "ops.views",
    "ETP_RULES_XY_TO_DW": "ops.views",
    "ETP_RULES_YW_TO_W": "ops.views",
}

SUBMODULES = ("algorithms", "nn", "plugin_api", "plugins", "rules", "testing")

#: The plugin object that offers core's own algorithms.
PLUGIN_OF_CORE = "braintrace.learners.plugin:plugin"

#: Submodules that are a distribution of their own: its name and its import package.
DISTRIBUTED = {"testing": ("braintrace-testing", "braintrace_testing")}

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
