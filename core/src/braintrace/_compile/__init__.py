# SPDX-License-Identifier: Apache-2.0
"""The compiler: from a model to an :class:`ETraceGraph`, one pass per module."""

from ._cones import Cone, Pattern
from ._control import ControlFlowPolicy, Rewrite
from ._diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel, show_path
from ._environment import changed_setting, recorded_settings
from ._graph import ETraceGraph, compile_etrace_graph
from ._groups import (
    HiddenGroup,
    find_hidden_groups_from_minfo,
    find_hidden_groups_from_module,
)
from ._module_info import ModuleInfo, StateKind, StateSlot, extract_module_info
from ._operations import HiddenParamOpRelation, TrainableOperand
from ._perturb import (
    HiddenPerturbation,
    add_hidden_perturbation_from_minfo,
    add_hidden_perturbation_in_module,
)
from ._relations import (
    find_hidden_param_op_relations_from_minfo,
    find_hidden_param_op_relations_from_module,
)
from ._transitions import Transition, check_scope

__all__ = [
    "CompilationRecord",
    "Cone",
    "Pattern",
    "ControlFlowPolicy",
    "DiagnosticKind",
    "DiagnosticLevel",
    "ETraceGraph",
    "HiddenGroup",
    "HiddenParamOpRelation",
    "HiddenPerturbation",
    "ModuleInfo",
    "Rewrite",
    "StateKind",
    "StateSlot",
    "TrainableOperand",
    "Transition",
    "add_hidden_perturbation_from_minfo",
    "add_hidden_perturbation_in_module",
    "changed_setting",
    "recorded_settings",
    "check_scope",
    "compile_etrace_graph",
    "extract_module_info",
    "find_hidden_groups_from_minfo",
    "find_hidden_groups_from_module",
    "find_hidden_param_op_relations_from_minfo",
    "find_hidden_param_op_relations_from_module",
    "show_path",
]
