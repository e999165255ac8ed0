# SPDX-License-Identifier: Apache-2.0
"""The plugin object that the entry point ``braintrace.plugins.v1: sparse`` names."""

from __future__ import annotations

from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, hookimpl

from . import __version__
from ._primitives import ETP_SP_MM, ETP_SP_MV


class SparsePlugin:
    """Sparse products: ``etp_sp_mv`` for one example and ``etp_sp_mm`` for a batch."""

    @hookimpl
    def braintrace_plugin_info(self) -> PluginInfo:
        """Who provides this family and which names it exports."""
        return PluginInfo(
            family="sparse",
            api=(1, 0),
            distribution="braintrace-sparse",
            version=__version__,
            exports={"ops": ("sparse_matmul",), "nn": ("SparseLinear",)},
        )

    @hookimpl
    def braintrace_primitives(self, api: object) -> tuple[ETPPrimitiveSpec, ...]:
        """The primitives of this family."""
        return ETP_SP_MV, ETP_SP_MM


plugin = SparsePlugin()
