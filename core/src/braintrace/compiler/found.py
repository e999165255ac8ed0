# SPDX-License-Identifier: Apache-2.0
"""What the compiler found of a model: the records of all passes, and questions about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..base.diagnostics import CompilationRecord, DiagnosticKind, DiagnosticLevel
from ..base.errors import CompilationError
from ..base.types import Path
from .cones import Cone
from .groups import HiddenGroup
from .module_info import ModuleInfo
from .perturbation import HiddenPerturbation
from .reach import Reach
from .relation import HiddenParamOpRelation


@dataclass(frozen=True, eq=False)
class Found:
    """The fields of an :class:`ETraceGraph`."""

    module_info: ModuleInfo
    hidden_groups: tuple[HiddenGroup, ...]
    hid_path_to_group: dict[Path, HiddenGroup]
    hidden_param_op_relations: tuple[HiddenParamOpRelation, ...]
    hidden_perturb: HiddenPerturbation | None
    diagnostics: tuple[CompilationRecord, ...]
    cones: tuple[Cone, ...]
    recurrence_scope: str
    frozen: frozenset[Path]
    reach: tuple[Reach, ...]
    _coverage: Mapping[Path, str] = field(repr=False)

    @property
    def perturbed(self) -> HiddenPerturbation:
        """The perturbed step.

        Raises
        ------
        CompilationError
            When the graph was compiled with ``include_hidden_perturb=False``.
        """
        if self.hidden_perturb is None:
            raise CompilationError(
                "the graph holds no perturbed step; compile it with include_hidden_perturb=True"
            )
        return self.hidden_perturb

    def coverage(self) -> dict[Path, str]:
        """How the gradient of each parameter arises.

        ``'trace'`` (through the eligibility trace), ``'direct'`` (ordinary derivative of the
        current step), ``'trace+direct'``, or ``'none'`` (only a frozen parameter may have none;
        one that has a gradient keeps it).
        """
        return dict(self._coverage)

    def explain(
        self,
        *,
        weight_path: Path | None = None,
        hidden_path: Path | None = None,
        kind: DiagnosticKind | str | None = None,
        level: DiagnosticLevel | str | None = None,
    ) -> list[CompilationRecord]:
        """The diagnostics about a parameter, a hidden state, of a kind or of a level.

        Parameters
        ----------
        weight_path, hidden_path
            Paths such as ``("Wr", "weight")``.
        kind, level
            Members of their enumerations, or the values of these.

        Raises
        ------
        ValueError
            When there is no such kind or level.

        Examples
        --------
        >>> import brainstate, braintrace, jax.numpy as jnp
        >>> cell = braintrace.nn.GRUCell(3, 4)
        >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
        >>> graph = braintrace.compile_etrace_graph(cell, jnp.ones((2, 3)))
        >>> [record.weight_path for record in graph.explain(kind="relation_included")]
        [('Wz', 'weight'), ('Wh', 'weight')]
        """
        kind = None if kind is None else DiagnosticKind(kind)
        level = None if level is None else DiagnosticLevel(level)
        return [
            record
            for record in self.diagnostics
            if (weight_path is None or record.weight_path == weight_path)
            and (hidden_path is None or hidden_path in record.hidden_paths)
            and (kind is None or record.kind is kind)
            and (level is None or record.level is level)
        ]
