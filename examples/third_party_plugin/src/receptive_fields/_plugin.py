# SPDX-License-Identifier: Apache-2.0
"""The plugin object that the entry point ``braintrace.plugins.v1: receptive_fields`` names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from braintrace.plugin_api import (
    DoctorContext,
    ETPPrimitiveSpec,
    Finding,
    HostInfo,
    PluginInfo,
    hookimpl,
)

from . import __version__
from ._primitives import DENDRITES, FIELDS, FIELDS_BATCHED


class FieldsPlugin:
    """Receptive fields and dendrites."""

    @hookimpl
    def braintrace_plugin_info(self) -> PluginInfo:
        """Who provides this family and which names it exports."""
        return PluginInfo(
            family="receptive_fields",
            api=(1, 0),
            distribution="receptive-fields",
            version=__version__,
            exports={"ops": ("receptive_fields", "dendrites")},
        )

    @hookimpl
    def braintrace_primitives(self, api: HostInfo) -> tuple[ETPPrimitiveSpec, ...]:
        """The primitives of this family."""
        return FIELDS, FIELDS_BATCHED, DENDRITES

    @hookimpl
    def braintrace_algorithms(self, api: HostInfo) -> Mapping[str, type]:
        """A learner by the name that ``braintrace.compile`` takes."""
        from ._algorithm import LeakyTrace  # imported when an algorithm is asked for

        return {"leaky_trace": LeakyTrace}

    @hookimpl
    def braintrace_conformance_cases(self, api: HostInfo) -> Iterable[Any]:
        """Examples for the conformance kit."""
        from ._cases import CASES  # needs braintrace-testing

        return CASES

    @hookimpl
    def braintrace_doctor(self, context: DoctorContext) -> Iterable[Finding]:
        """Whether products have the precision of their operands."""
        precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
        if precision in (None, "default", "highest", "float32"):
            return ()
        text = f"computes its products in {precision}, as jax_default_matmul_precision says"
        return (Finding("matmul_precision", "info", text),)

    @hookimpl
    def braintrace_explain(self, record: Any) -> str | None:
        """Advice for diagnostics about the operations of this family."""
        names = {FIELDS.name, FIELDS_BATCHED.name, DENDRITES.name}
        if record.primitive in names and record.kind.value == "relation_excluded_non_temporal":
            return f"{record.primitive} is a readout here, which needs no trace: all is well"
        return None


plugin = FieldsPlugin()
