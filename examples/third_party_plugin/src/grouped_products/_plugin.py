# SPDX-License-Identifier: Apache-2.0
"""The plugin object that the entry point ``braintrace.plugins.v1: grouped`` names."""

from __future__ import annotations

from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, hookimpl

from . import __version__
from ._primitives import DENDRITES, GROUPED_MM, GROUPED_MV


class GroupedPlugin:
    """Grouped products and dendrites."""

    @hookimpl
    def braintrace_plugin_info(self) -> PluginInfo:
        """Who provides this family and which names it exports."""
        return PluginInfo(
            family="grouped",
            api=(1, 0),
            distribution="grouped-products",
            version=__version__,
            exports={"ops": ("grouped_matmul", "dendrites")},
        )

    @hookimpl
    def braintrace_primitives(self, api: object) -> tuple[ETPPrimitiveSpec, ...]:
        """The primitives of this family."""
        return GROUPED_MV, GROUPED_MM, DENDRITES


plugin = GroupedPlugin()
