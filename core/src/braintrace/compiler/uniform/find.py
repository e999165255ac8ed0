# SPDX-License-Identifier: Apache-2.0
"""Which hidden states have uniform linear dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ...base.types import Path
from ..groups import HiddenGroup
from ..module_info import ModuleInfo
from .descent import Descent
from .state import NotUniform, UniformState
from .step import Step


def find_uniform(
    minfo: ModuleInfo,
    path_to_group: Mapping[Path, HiddenGroup],
    scope: str = "diagonal",
    stay: Mapping[Path, str] = MappingProxyType({}),
) -> tuple[dict[Path, UniformState], dict[Path, str]]:
    """The uniform hidden states of a step, lower ones first, and why each other one is not.

    Recurrent input of a state is held where the recurrence ``scope`` cuts it; where the scope keeps
    it, such a state is not uniform. States that ``stay`` where they are, each for a reason, are not
    taken for uniform ones.
    """
    step = Step(minfo, path_to_group, scope == "diagonal")
    found: dict[Path, UniformState] = {}
    refused = dict(stay)
    undecided: set[Path] = set()

    def decide(path: Path) -> bool:
        """Whether the state at a path is uniform; ``False`` while that is being decided."""
        if path not in found and path not in refused and path not in undecided:
            undecided.add(path)
            try:
                found[path] = Descent(step, path, decide).result()
            except NotUniform as why:
                refused[path] = str(why)
            undecided.discard(path)
        return path in found

    for path in minfo.hidden_path_to_outvar:
        decide(path)
    return found, refused
