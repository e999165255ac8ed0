# SPDX-License-Identifier: Apache-2.0
"""The plugin object that the entry point ``braintrace.plugins.v1: conv`` names."""

from __future__ import annotations

from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, hookimpl

from . import __version__
from ._primitives import ETP_CONV


class ConvPlugin:
    """Convolutions: ``etp_conv`` for a batch in one to three dimensions."""

    @hookimpl
    def braintrace_plugin_info(self) -> PluginInfo:
        """Who provides this family and which names it exports."""
        return PluginInfo(
            family="conv",
            api=(1, 0),
            distribution="braintrace-conv",
            version=__version__,
            exports={"ops": ("conv",), "nn": ("Conv1d", "Conv2d", "Conv3d")},
        )

    @hookimpl
    def braintrace_primitives(self, api: object) -> tuple[ETPPrimitiveSpec, ...]:
        """The primitives of this family."""
        return (ETP_CONV,)


plugin = ConvPlugin()
