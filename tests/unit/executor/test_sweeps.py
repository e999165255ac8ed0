# SPDX-License-Identifier: Apache-2.0
"""A handful of derivatives give the bands of a matrix, however many states there are."""

from __future__ import annotations

import numpy as np
import pytest

from braintrace.executor.sweeps import sweeps_for
from braintrace.ops.traces.bands import bands_of


def patterns(steps: int) -> dict[str, np.ndarray]:
    """Of a unit (state 0) with a line: a shift, one that the unit reads, a ring, one it reads."""
    line, ring = np.zeros((2, steps + 1, steps + 1), bool)
    line[[0, 1], 0] = True
    line[range(2, steps + 1), range(1, steps)] = True
    heard, ring = line.copy(), np.eye(steps + 1, dtype=bool)
    heard[:2, steps] = ring[:, 0] = True
    read = ring.copy()
    read[0] = True
    return {"shift": line, "heard": heard, "ring": ring, "read": read}


@pytest.mark.parametrize("name", ["shift", "heard", "ring", "read"])
def test_as_many_sweeps_for_a_longer_line(name: str) -> None:
    counts = set()
    for steps in (10, 50):
        known = patterns(steps)[name]
        pattern = tuple(map(tuple, known))
        bands = bands_of(pattern, (1, steps))
        sweeps = sweeps_for(pattern, bands)
        assert bands is not None and sweeps is not None
        counts.add(len(sweeps))
        matrix = np.random.default_rng(0).normal(size=known.shape) * known
        assert sorted(n for sweep in sweeps for n in sweep.bands) == [*range(len(bands))]
        for sweep in sweeps:
            ones = np.isin(np.arange(steps + 1), [*sweep.seeds]).astype(float)
            found = matrix @ ones if sweep.forward else ones @ matrix
            for n in sweep.bands:
                where = bands[n].rows if sweep.forward else bands[n].columns
                own = [matrix[entry] for entry in bands[n].entries]
                np.testing.assert_allclose(found[where], own)
    assert len(counts) == 1 and max(counts) <= 4


def test_a_band_that_no_sweep_gives() -> None:
    """Ones of a whole diagonal meet the entries of the column, too, and of the row."""
    ring = patterns(10)["read"]
    pattern = tuple(map(tuple, ring))
    bands = bands_of(pattern)
    assert bands is not None and sweeps_for(pattern, bands) is None
