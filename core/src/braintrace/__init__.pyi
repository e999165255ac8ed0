# SPDX-License-Identifier: Apache-2.0
# Written by `python3 dev.py stubs`.

from braintrace_conv import conv as conv
from braintrace_dense import matmul as matmul
from braintrace_elemwise import element_wise as element_wise
from braintrace_lora import lora_matmul as lora_matmul
from braintrace_sparse import sparse_matmul as sparse_matmul
import braintrace_testing as testing

from .algorithms.config import ETraceConfig as ETraceConfig
from .base.diagnostics import CompilationRecord as CompilationRecord
from .base.diagnostics import DiagnosticKind as DiagnosticKind
from .base.diagnostics import DiagnosticLevel as DiagnosticLevel
from .base.errors import CompilationError as CompilationError
from .base.errors import NotSupportedError as NotSupportedError
from .compiler.compile import compile_etrace_graph as compile_etrace_graph
from .compiler.control.rewrite import ControlFlowPolicy as ControlFlowPolicy
from .compiler.graph import ETraceGraph as ETraceGraph
from .compiler.groups import HiddenGroup as HiddenGroup
from .compiler.groups import find_hidden_groups_from_minfo as find_hidden_groups_from_minfo
from .compiler.groups import find_hidden_groups_from_module as find_hidden_groups_from_module
from .compiler.module_info import ModuleInfo as ModuleInfo
from .compiler.perturbation import HiddenPerturbation as HiddenPerturbation
from .compiler.perturbation import add_hidden_perturbation_from_minfo as add_hidden_perturbation_from_minfo
from .compiler.perturbation import add_hidden_perturbation_in_module as add_hidden_perturbation_in_module
from .compiler.reach import Cone as Cone
from .compiler.reach import Reach as Reach
from .compiler.reach import TrainableOperand as TrainableOperand
from .compiler.reach import Transition as Transition
from .compiler.relation import HiddenParamOpRelation as HiddenParamOpRelation
from .compiler.relation import find_hidden_param_op_relations_from_minfo as find_hidden_param_op_relations_from_minfo
from .compiler.relation import find_hidden_param_op_relations_from_module as find_hidden_param_op_relations_from_module
from .compiler.tracing.extract import extract_module_info as extract_module_info
from .drivers.call_arguments import MultiStepData as MultiStepData
from .drivers.call_arguments import SingleStepData as SingleStepData
from .executor.graph_executor import ETraceGraphExecutor as ETraceGraphExecutor
from .executor.graph_executor import ETraceVjpGraphExecutor as ETraceVjpGraphExecutor
from .learners.compile import compile as compile
from .learners.learner import ETraceAlgorithm as ETraceAlgorithm
from .learners.learner import EligibilityTrace as EligibilityTrace
from .learners.named import D_RTRL as D_RTRL
from .learners.named import ES_D_RTRL as ES_D_RTRL
from .learners.named import IODimVjpAlgorithm as IODimVjpAlgorithm
from .learners.named import OSTLFeedforward as OSTLFeedforward
from .learners.named import OSTLRecurrent as OSTLRecurrent
from .learners.named import ParamDimVjpAlgorithm as ParamDimVjpAlgorithm
from .learners.named import RTRL as RTRL
from .learners.named import SnAp as SnAp
from .learners.named import UORO as UORO
from .learners.named import pp_prop as pp_prop
from .learners.optimizers import OptaxOptimizer as OptaxOptimizer
from .learners.signals import DNI as DNI
from .learners.signals import EProp as EProp
from .learners.signals import ThreeFactor as ThreeFactor
from .learners.vjp import ETraceVjpAlgorithm as ETraceVjpAlgorithm
from .ops.primitive import BATCHED_PRIMITIVES as BATCHED_PRIMITIVES
from .ops.primitive import ETPPrimitive as ETPPrimitive
from .ops.primitive import ETP_PRIMITIVES as ETP_PRIMITIVES
from .ops.primitive import ETP_PRIMITIVE_SPECS as ETP_PRIMITIVE_SPECS
from .ops.primitive import ETP_RULES_INIT_DRTRL as ETP_RULES_INIT_DRTRL
from .ops.primitive import ETP_RULES_INIT_PP as ETP_RULES_INIT_PP
from .ops.primitive import ETP_RULES_XY_TO_DW as ETP_RULES_XY_TO_DW
from .ops.primitive import ETP_RULES_YW_TO_W as ETP_RULES_YW_TO_W
from .ops.primitive import get_primitive_spec as get_primitive_spec
from .ops.primitive import is_etp_primitive as is_etp_primitive
from .ops.primitive import register_primitive as register_primitive
from .ops.primitive import register_primitive_spec as register_primitive_spec
from .ops.spec import ETPPrimitiveSpec as ETPPrimitiveSpec
from . import algorithms as algorithms
from . import nn as nn
from . import plugin_api as plugin_api
from . import plugins as plugins
from . import rules as rules

__version__: str
__version_info__: tuple[int, ...]
