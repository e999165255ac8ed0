# SPDX-License-Identifier: Apache-2.0
"""The compiled graph: everything the executor and the algorithms need to know of a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from .found import Found
from .summary import summarize

if TYPE_CHECKING:
    from ..show.draw import Drawing


@dataclass(frozen=True, eq=False)
class ETraceGraph(Found):
    """A compiled model.

    Attributes
    ----------
    module_info
        One step as a flat program.
    hidden_groups, hid_path_to_group
        The hidden groups, and the group of each hidden state.
    hidden_param_op_relations
        Which ETP operations drive which groups.
    hidden_perturb
        The perturbed step.
    diagnostics
        What the compiler has to say.
    cones
        Per group, the part of the step between its relations and its new values.
    recurrence_scope
        Which paths from old to new values are in ``D``: ``'diagonal'`` or ``'coupled'``.
    frozen
        Parameters that the caller named as frozen.
    reach
        Per ETP operation, relation or not: its operands and the groups that it reaches.

    Examples
    --------
    >>> import brainstate, braintrace, jax.numpy as jnp
    >>> cell = braintrace.nn.GRUCell(3, 4)
    >>> _ = brainstate.nn.init_all_states(cell, batch_size=2)
    >>> graph = braintrace.compile_etrace_graph(cell, jnp.ones((2, 3)))
    >>> [relation.weight_path for relation in graph.hidden_param_op_relations]
    [('Wz', 'weight'), ('Wh', 'weight')]
    >>> graph.coverage()[("Wr", "weight")]
    'direct'
    """

    def report(self, width: int | None = None, fold: bool = True) -> str:
        """What the compiler found, as text for a terminal.

        Groups, relations, parameters, operations without a trace, warnings, and one line of
        totals.

        Parameters
        ----------
        width
            Columns of the text; ``None``: those of the terminal, 100 where there is none.
        fold
            Whether layers that are alike share a row, as ``layers[1-19]``.
        """
        from ..show.report import to_text  # slow to import, and seldom needed

        return to_text(summarize(self), width, fold)

    def draw(self, columns: int | None = None) -> Drawing:
        """An SVG drawing of groups, operations and what flows between them.

        Parameters
        ----------
        columns
            How many layers stand in a row; ``None``: as many as fit on a page.

        Returns
        -------
        Drawing
            ``str()`` of it is the SVG; ``.save(path)`` writes it; notebooks show it.

        Raises
        ------
        ValueError
            When ``columns`` is not positive.
        """
        from ..show.draw import draw

        return draw(summarize(self), columns)

    def _repr_html_(self) -> str:
        from ..show.report import to_html

        return to_html(summarize(self))
