# SPDX-License-Identifier: Apache-2.0
"""The plugin object of core: its learners by name, offered as any plugin offers its own."""

from __future__ import annotations

from collections.abc import Mapping

from ..plugins.hooks import hookimpl
from ..plugins.host import __version__
from ..plugins.records import HostInfo, PluginInfo
from .dni import DNI
from .e_prop import EProp
from .learner import ETraceAlgorithm
from .named import D_RTRL, RTRL, UORO, OSTLFeedforward, OSTLRecurrent, SnAp, pp_prop
from .three_factor import ThreeFactor


class CorePlugin:
    """The algorithms of ``braintrace-core``."""

    @hookimpl
    def braintrace_plugin_info(self) -> PluginInfo:
        """Who provides them."""
        return PluginInfo("core", distribution="braintrace-core", version=__version__)

    @hookimpl
    def braintrace_algorithms(self, api: HostInfo) -> Mapping[str, type[ETraceAlgorithm]]:
        """Learner classes by the names that ``braintrace.compile`` takes."""
        return {
            "d_rtrl": D_RTRL,
            **dict.fromkeys(("pp_prop", "es_d_rtrl", "esd_rtrl"), pp_prop),
            **dict.fromkeys(("eprop", "e_prop"), EProp),
            "ostl_recurrent": OSTLRecurrent,
            "ostl_feedforward": OSTLFeedforward,
            "snap": SnAp,
            "rtrl": RTRL,
            "uoro": UORO,
            "three_factor": ThreeFactor,
            "dni": DNI,
        }


plugin = CorePlugin()
