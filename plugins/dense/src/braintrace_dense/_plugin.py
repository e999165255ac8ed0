# SPDX-License-Identifier: Apache-2.0
"""The plugin object that the entry point ``braintrace.plugins.v1: dense`` names."""

from __future__ import annotations

from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, hookimpl

from . import __version__
from ._primitives import ETP_MM, ETP_MV


class DensePlugin:
    """Dense products: ``etp_mv`` for one example and ``etp_mm`` for a batch."""

    @hookimpl
    def braintrace_plugin_info(self) -> PluginInfo:
        """Who provides this family and which names it exports."""
        return PluginInfo(
            family="dense",
            api=(1, 0),
            distribution="braintrace-dense",
            version=__version__,
            exports={
                "ops": ("matmul",),
                "nn": (
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
            },
        )

    @hookimpl
    def braintrace_primitives(self, api: object) -> tuple[ETPPrimitiveSpec, ...]:
        """The primitives of this family."""
        return ETP_MV, ETP_MM


plugin = DensePlugin()
