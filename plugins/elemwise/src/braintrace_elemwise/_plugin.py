# SPDX-License-Identifier: Apache-2.0
"""The plugin object that the entry point ``braintrace.plugins.v1: elemwise`` names."""

from __future__ import annotations

from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, hookimpl

from . import __version__
from ._primitives import ETP_ELEMWISE

LAYERS = (
    "TrainedAttribute",
    "LayerNorm",
    "RMSNorm",
    "GroupNorm",
    "BatchNorm0d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
)


class ElemwisePlugin:
    """Element-wise parameters: ``etp_elemwise``."""

    @hookimpl
    def braintrace_plugin_info(self) -> PluginInfo:
        """Who provides this family and which names it exports."""
        return PluginInfo(
            family="elemwise",
            api=(1, 0),
            distribution="braintrace-elemwise",
            version=__version__,
            exports={"ops": ("element_wise",), "nn": LAYERS},
        )

    @hookimpl
    def braintrace_primitives(self, api: object) -> tuple[ETPPrimitiveSpec, ...]:
        """The primitives of this family."""
        return (ETP_ELEMWISE,)


plugin = ElemwisePlugin()
