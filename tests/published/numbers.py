# SPDX-License-Identifier: Apache-2.0
"""Two numbers of every array that the programs give, for whichever ``braintrace`` is installed.

    python -m tests.published.numbers save FILE
    python -m tests.published.numbers compare FILE    print what is otherwise than in a file

``numbers.json`` has those of the distribution 0.2.8.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import brainevent.config
import brainstate
import jax

import braintrace
from tests.published import arrivals  # noqa: F401  enters its programs
from tests.published.programs import PROGRAMS, numbers_of

#: Programs that a version cannot run.
TOO_NEW = {"0.2.6": ("outputs_beside_the_new_state",)}


def numbers() -> dict[str, dict[str, list[float]]]:
    """The numbers of all programs in float64."""
    left_out = TOO_NEW.get(braintrace.__version__, ())
    with warnings.catch_warnings(), brainstate.environ.context(precision=64):
        warnings.simplefilter("ignore")
        return {n: numbers_of(run()) for n, run in PROGRAMS.items() if n not in left_out}


def differences(then: dict[str, list[float]], now: dict[str, list[float]]) -> list[str]:
    """Arrays of which the two numbers differ, or that are not there."""

    def far(name: str) -> bool:
        pairs = zip(then[name], now.get(name, (float("nan"),) * 2), strict=True)
        return not all(abs(a - b) <= 5e-6 * abs(a) + 1e-7 * then[name][0] for a, b in pairs)

    return [name for name in then if far(name)]


def main(what: str, file: str) -> None:
    """Write the file, or compare with it."""
    jax.config.update("jax_enable_x64", True)
    brainevent.config.set_backend("cpu", "jax_raw")  # the other one needs a further package
    found = numbers()
    if what == "save":
        lines = [f'"{name}": {json.dumps(arrays)}' for name, arrays in found.items()]
        text = ",\n".join(lines)
        head = f'{{"version": "{braintrace.__version__}", "numbers": {{'
        Path(file).write_text(f"{head}\n{text}\n}}}}\n")
        return
    stored = json.loads(Path(file).read_text())
    print(f"braintrace {braintrace.__version__} beside {stored['version']}")
    for name, now in found.items():
        for array in differences(stored["numbers"][name], now):
            print(f"  {name}{array}: {now.get(array)}, there {stored['numbers'][name][array]}")


if __name__ == "__main__":
    main(*sys.argv[1:])
