# SPDX-License-Identifier: Apache-2.0
"""The plugin object that the entry point ``braintrace.plugins.v1: einsum`` names."""

from __future__ import annotations

from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, hookimpl

from . import __version__
from ._primitives import PRIMITIVES


class EinsumPlugin:
    """Contractions of an input and a weight, by the letters that they share."""

    @hookimpl
    def braintrace_plugin_info(self) -> PluginInfo:
        """Who provides this family and which names it exports."""
        return PluginInfo(
            family="einsum",
            api=(1, 0),
            distribution="braintrace-einsum",
            version=__version__,
            exports={"ops": ("einsum", "grouped_matmul"), "nn": ("GroupedLinear",)},
        )

    @hookimpl
    def braintrace_primitives(self, api: object) -> tuple[ETPPrimitiveSpec, ...]:
        """The primitives of this family."""
        return PRIMITIVES


plugin = EinsumPlugin()
