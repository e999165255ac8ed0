# SPDX-License-Identifier: Apache-2.0
"""Which filters a step needs in front of its uniform states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax

from ...base import versions
from ...base.precision import sum_dtype
from ...base.types import Path
from ...base.versions import Var
from ...jaxprs.depends import Along, depends
from ..groups import HiddenGroup
from ..module_info import ModuleInfo
from .emitted import Emitted, Place
from .state import UniformState

Key = tuple[Any, ...]
"""A source of a uniform state, or a constant of its maps; behind it, where the source is another
uniform state, one of that state's keys; last, the number of the leak. Or a parameter leaf."""


@dataclass(frozen=True, eq=False)
class Filter:
    """What a filter holds.

    Attributes
    ----------
    of
        Path of the uniform state.
    key
        What it filters.
    type
        Shape and dtype: those of the source, or one number (per example) for a constant.
    credit
        Whether its source has a derivative.
    """

    of: Path
    key: Key
    type: jax.ShapeDtypeStruct
    credit: bool


@dataclass(frozen=True, eq=False)
class Moving:
    """Which filters a step needs.

    ``keeps_traces``: uniform states stay hidden states, from which parameters have their credit, so
    that there are filters of what has a derivative of the layers below alone.

    ``kappa``: the leak that credit has in all filters in place of theirs. Then what layers emit has
    a filter also where no leak is found above them: ``emitted``, by where it is read, and
    ``layers``, the first state of the layer that emits it.
    """

    minfo: ModuleInfo
    found: Mapping[Path, UniformState]
    keeps_traces: bool = False
    kappa: float | None = None
    emitted: Mapping[Place, Var] = field(default_factory=dict)
    layers: Mapping[Var, Path] = field(default_factory=dict)

    @cached_property
    def uniform(self) -> Mapping[Path, UniformState]:
        """The uniform states; those that keep traces, without constants and trained leaks."""
        if not self.keeps_traces:
            return self.found
        return {path: replace(u, affine={}, trained=()) for path, u in self.found.items()}

    @cached_property
    def filters(self) -> dict[tuple[Path, Key], Filter]:
        """All filters, lower ones first."""
        found = (self.filter(u, key) for u in self.uniform.values() for key in self.keys(u))
        return {(one.of, one.key): one for one in (*found, *map(self._emitted, self.layers))}

    def _emitted(self, var: Var) -> Filter:
        kind = jax.ShapeDtypeStruct(var.aval.shape, sum_dtype(var.aval.dtype))
        return Filter(self.layers[var], (var,), kind, True)

    def with_kappa(self, kappa: float, path_to_group: Mapping[Path, HiddenGroup]) -> Moving:
        """The same with filters of what layers emit, and with one leak for all credit.

        It raises as :meth:`Emitted.places <braintrace.compiler.uniform.emitted.Emitted.places>`.
        """
        counts = {
            path: sum(self.filter(u, key).credit for key in self.keys(u))
            for path, u in self.uniform.items()
        }
        emitted = Emitted(self.minfo, path_to_group, counts)
        places = emitted.places()
        layers = {var: emitted.layer(var) for var in places.values()}
        return replace(self, kappa=kappa, emitted=places, layers=layers)

    def keys(self, uniform: UniformState) -> list[Key]:
        """What the filters of a state filter."""
        keys = self.possible_keys(uniform)
        if self.keeps_traces:
            return [key for key in keys if self.filter(uniform, key).credit]
        return keys

    def possible_keys(self, uniform: UniformState) -> list[Key]:
        """What filters of a state may filter."""
        found: list[Key] = [(var,) for var in uniform.affine]
        for atom, source in uniform.sources.items():
            lower = [] if source.of is None else self.keys(self.uniform[source.of])
            if source.of is None or source.trained or self.keeps_traces:
                lower = [(), *lower]
            found += [(atom, *key) for key in lower]
        parts = range(len(uniform.parts))
        leaks: list[Key] = [(leaf,) for leaf in uniform.trained]
        return [*((*key, part) for key in found for part in parts), *leaks]

    def filter(self, uniform: UniformState, key: Key) -> Filter:
        """The filter of a key."""
        hidden, source = uniform.type, uniform.sources.get(key[0])
        shape: tuple[int, ...] = ()
        credit = False
        if key[0] in uniform.trained:
            shape = hidden.shape
        elif source is not None and source.of is not None and key[1:-1]:
            lower = self.filter(self.uniform[source.of], key[1:-1])
            shape, credit = lower.type.shape, lower.credit
        elif source is not None:
            held = source.cut or source.loop or (source.of is not None and not self.keeps_traces)
            shape, credit = key[0].aval.shape, key[0] in self.minfo.with_derivative and not held
        if uniform.by_example and not shape:
            shape = hidden.shape[:1]
        kind = jax.ShapeDtypeStruct(shape, sum_dtype(hidden.dtype))
        return Filter(uniform.slot.path, key, kind, credit)

    def read_elsewhere(self, path: Path) -> bool:
        """Whether anything but the state itself has a derivative of its old value."""
        info = self.minfo
        old, new = info.hidden_path_to_invar[path], info.hidden_path_to_outvar[path]
        marks = depends(
            info.eqns,
            {old: frozenset({0})},
            through=lambda var, found: frozenset() if var is new else found,
            along=Along.DERIVATIVES,
        )
        return any(versions.is_var(atom) and marks.get(atom) for atom in info.jaxpr.outvars)
