# SPDX-License-Identifier: Apache-2.0
"""Online learning of recurrent and spiking networks by eligibility traces.

Importing this package imports nothing else: names are resolved on first use. Core's own names
come from its modules, operations and layers from the plugin that is installed for them.
"""

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from braintrace_conv import conv as conv
    from braintrace_dense import matmul as matmul
    from braintrace_elemwise import element_wise as element_wise
    from braintrace_lora import lora_matmul as lora_matmul
    from braintrace_sparse import sparse_matmul as sparse_matmul

    from . import nn as nn
    from . import plugin_api as plugin_api
    from . import plugins as plugins
    from . import rules as rules
    from . import testing as testing
    from ._compile import CompilationRecord as CompilationRecord
    from ._compile import ControlFlowPolicy as ControlFlowPolicy
    from ._compile import DiagnosticKind as DiagnosticKind
    from ._compile import DiagnosticLevel as DiagnosticLevel
    from ._compile import ETraceGraph as ETraceGraph
    from ._compile import HiddenGroup as HiddenGroup
    from ._compile import HiddenParamOpRelation as HiddenParamOpRelation
    from ._compile import HiddenPerturbation as HiddenPerturbation
    from ._compile import ModuleInfo as ModuleInfo
    from ._compile import add_hidden_perturbation_from_minfo as add_hidden_perturbation_from_minfo
    from ._compile import add_hidden_perturbation_in_module as add_hidden_perturbation_in_module
    from ._compile import compile_etrace_graph as compile_etrace_graph
    from ._compile import extract_module_info as extract_module_info
    from ._compile import find_hidden_groups_from_minfo as find_hidden_groups_from_minfo
    from ._compile import find_hidden_groups_from_module as find_hidden_groups_from_module
    from ._compile import (
        find_hidden_param_op_relations_from_minfo as find_hidden_param_op_relations_from_minfo,
    )
    from ._compile import (
        find_hidden_param_op_relations_from_module as find_hidden_param_op_relations_from_module,
    )
    from ._config import ETraceConfig as ETraceConfig
    from ._errors import CompilationError as CompilationError
    from ._errors import NotSupportedError as NotSupportedError
    from ._execute import ETraceGraphExecutor as ETraceGraphExecutor
    from ._further_learners import DNI as DNI
    from ._further_learners import RTRL as RTRL
    from ._further_learners import UORO as UORO
    from ._further_learners import EProp as EProp
    from ._further_learners import OSTLFeedforward as OSTLFeedforward
    from ._further_learners import OSTLRecurrent as OSTLRecurrent
    from ._further_learners import SnAp as SnAp
    from ._further_learners import ThreeFactor as ThreeFactor
    from ._learner import EligibilityTrace as EligibilityTrace
    from ._learner import ETraceAlgorithm as ETraceAlgorithm
    from ._learners import D_RTRL as D_RTRL
    from ._learners import ES_D_RTRL as ES_D_RTRL
    from ._learners import ETraceVjpAlgorithm as ETraceVjpAlgorithm
    from ._learners import IODimVjpAlgorithm as IODimVjpAlgorithm
    from ._learners import ParamDimVjpAlgorithm as ParamDimVjpAlgorithm
    from ._learners import pp_prop as pp_prop
    from ._optimizers import OptaxOptimizer as OptaxOptimizer
    from ._primitive import BATCHED_PRIMITIVES as BATCHED_PRIMITIVES
    from ._primitive import ETP_PRIMITIVE_SPECS as ETP_PRIMITIVE_SPECS
    from ._primitive import ETP_PRIMITIVES as ETP_PRIMITIVES
    from ._primitive import ETP_RULES_INIT_DRTRL as ETP_RULES_INIT_DRTRL
    from ._primitive import ETP_RULES_INIT_PP as ETP_RULES_INIT_PP
    from ._primitive import ETP_RULES_XY_TO_DW as ETP_RULES_XY_TO_DW
    from ._primitive import ETP_RULES_YW_TO_W as ETP_RULES_YW_TO_W
    from ._primitive import ETPPrimitive as ETPPrimitive
    from ._primitive import ETPPrimitiveSpec as ETPPrimitiveSpec
    from ._primitive import get_primitive_spec as get_primitive_spec
    from ._primitive import is_etp_primitive as is_etp_primitive
    from ._primitive import register_primitive as register_primitive
    from ._primitive import register_primitive_spec as register_primitive_spec
    from ._ready import compile as compile
    from ._vjp_executor import ETraceVjpGraphExecutor as ETraceVjpGraphExecutor
    from ._windows import MultiStepData as MultiStepData
    from ._windows import SingleStepData as SingleStepData
else:
    from . import _lazy

    def __getattr__(name):
        return _lazy.resolve_in_core(name)

    def __dir__():
        return _lazy.names_of_core()

    _lazy.install_finder()
