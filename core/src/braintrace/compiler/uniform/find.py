# SPDX-License-Identifier: Apache-2.0
"""Which hidden states have uniform linear dynamics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

from ...base.types import Path
from ..groups import HiddenGroup
from ..module_info import ModuleInfo
from .descent import Descent
from .state import NotUniform, UniformSource, UniformState
from .step import Step, closed


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
    refused = dict(stay)
    found: dict[Path, UniformState] = {}

    def decide(path: Path) -> bool:
        """Whether the state at a path is uniform, as far as is known."""
        return path not in refused

    todo = [path for path in minfo.hidden_path_to_outvar if path not in refused]
    while todo:
        why_not: dict[Path, str] = {}
        for path in todo:
            try:
                found[path] = Descent(step, path, decide).result()
            except NotUniform as why:
                found.pop(path, None)
                why_not[path] = str(why)
        refused.update(why_not)
        todo = [path for path, u in found.items() if why_not.keys() & _lower(u)]
    return _in_order(found), refused


def _in_order(found: Mapping[Path, UniformState]) -> dict[Path, UniformState]:
    """The states, lower ones first, without what closes loops of them.

    Where states drive one another, credit passes away from what drives them from elsewhere: to a
    state that is further from that, in states between.
    """
    below = _below(found)
    depth = dict.fromkeys(found, len(found))

    def further(path: Path, source: UniformSource) -> int | None:
        """How far from what drives a loop the value of another state of it lies."""
        looped = source.of is not None and path in below[source.of]
        return depth[source.of] if source.of is not None and looped else None

    for _ in found:
        for path, u in found.items():
            for source in u.sources.values():
                if (distance := further(path, source)) is not None:
                    depth[path] = min(depth[path], distance + 1)
                elif not source.cut:
                    depth[path] = 0

    def parted(path: Path, source: UniformSource) -> UniformSource:
        distance = further(path, source)
        closes = distance is not None and distance >= depth[path]
        return replace(source, of=None, loop=True) if closes else source

    parts = {
        path: replace(u, sources={v: parted(path, s) for v, s in u.sources.items()})
        for path, u in found.items()
    }
    below = _below(parts)
    return {path: parts[path] for path in sorted(parts, key=lambda path: len(below[path]))}


def _below(found: Mapping[Path, UniformState]) -> dict[Path, frozenset[Path]]:
    return closed({path: _lower(u) for path, u in found.items()})


def _lower(uniform: UniformState) -> frozenset[Path]:
    """The uniform states whose values drive one."""
    return frozenset(s.of for s in uniform.sources.values() if s.of is not None)
