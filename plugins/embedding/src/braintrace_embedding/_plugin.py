# SPDX-License-Identifier: Apache-2.0
"""The plugin object that the entry point ``braintrace.plugins.v1: embedding`` names."""

from __future__ import annotations

from braintrace.plugin_api import ETPPrimitiveSpec, PluginInfo, hookimpl

from . import __version__
from ._primitives import ETP_EMBEDDING, ETP_EMBEDDING_BATCHED


class EmbeddingPlugin:
    """Rows of a table: ``etp_embedding`` for one index, ``etp_embedding_batched`` for many."""

    @hookimpl
    def braintrace_plugin_info(self) -> PluginInfo:
        """Who provides this family and which names it exports."""
        return PluginInfo(
            family="embedding",
            api=(1, 0),
            distribution="braintrace-embedding",
            version=__version__,
            exports={"ops": ("embedding",), "nn": ("Embedding",)},
        )

    @hookimpl
    def braintrace_primitives(self, api: object) -> tuple[ETPPrimitiveSpec, ...]:
        """The primitives of this family."""
        return ETP_EMBEDDING, ETP_EMBEDDING_BATCHED


plugin = EmbeddingPlugin()
