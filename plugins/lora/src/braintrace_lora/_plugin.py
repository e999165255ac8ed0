# SPDX-License-Identifier: Apache-2.0
"""The plugin object that the entry point ``braintrace.plugins.v1: lora`` names."""

from __future__ import annotations

from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, hookimpl

from . import __version__
from ._primitives import ETP_LORA_MM, ETP_LORA_MV


class LoraPlugin:
    """Low-rank products: ``etp_lora_mv`` for one example and ``etp_lora_mm`` for a batch."""

    @hookimpl
    def braintrace_plugin_info(self) -> PluginInfo:
        """Who provides this family and which names it exports."""
        return PluginInfo(
            family="lora",
            api=(1, 0),
            distribution="braintrace-lora",
            version=__version__,
            exports={"ops": ("lora_matmul",), "nn": ("LoRA",)},
        )

    @hookimpl
    def braintrace_primitives(self, api: object) -> tuple[ETPPrimitiveSpec, ...]:
        """The primitives of this family."""
        return ETP_LORA_MV, ETP_LORA_MM


plugin = LoraPlugin()
