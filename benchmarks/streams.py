# SPDX-License-Identifier: Apache-2.0
"""Learn real series one sample at a time, beside the models of river.

The error is prequential: each sample is predicted, then learned. The series come inside of the
packages river (water flow, shuttle) and reservoirpy (laser). With --rate, the time of a learn_one
and of the compiled step that it calls are measured, one after the other; with --memory, what the
process holds along a stream. docs/streams.md has the results.

deep-river needs an environment of its own, in which this program runs it: write the series with
--write FILE here, and give them to --read FILE there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from _streams import models, series
from _streams.report import table
from river import metrics

#: Series by name, with the metric of each and what it is called.
SERIES = {
    "laser": (series.laser, metrics.MAE, "mean absolute error"),
    "water": (series.water, metrics.MAE, "mean absolute error of the next value, l/s"),
    "shuttle": (series.shuttle, metrics.MacroF1, "macro F1"),
}
UNCOUNTED = 100


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for and return the exit status."""
    parser = argparse.ArgumentParser(prog="streams.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--series", nargs="+", choices=SERIES, default=list(SERIES), metavar="NAME")
    add("--model", nargs="+", metavar="NAME", help="default: those that can be imported")
    add("--seeds", type=int, default=3, metavar="N", help="of models that draw numbers")
    add("--steps", type=int, metavar="N", help="samples of each series (default: all)")
    add("--write", type=Path, metavar="FILE", help="write the series to a file, and end")
    add("--read", type=Path, metavar="FILE", help="read the series from a file")
    add("--json", type=Path, metavar="FILE", help="write all figures to a file")
    add("--rate", action="store_true", help="measure the time of a learn_one")
    add("--memory", type=int, metavar="STEPS", help="measure the memory along a stream")
    chosen = parser.parse_args(arguments)
    if chosen.write:
        np.savez(chosen.write, **{name: SERIES[name][0]() for name in chosen.series})
        return 0
    if chosen.rate or chosen.memory:
        from _streams import cost

        if chosen.rate:
            cost.rate()
        if chosen.memory:
            cost.memory(chosen.memory)
        return 0
    found = list(runs(chosen))
    print(table(found))
    if chosen.json:
        chosen.json.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def runs(chosen: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Every chosen model on every chosen series."""
    kept = np.load(chosen.read) if chosen.read else None
    for name in chosen.series:
        load, metric, title = SERIES[name]
        try:
            array = (kept[name] if kept is not None else load())[: chosen.steps]
        except ModuleNotFoundError as error:
            print(f"left out: {error}", file=sys.stderr)
            continue
        available = models.available(name)
        for model in chosen.model or available:
            if model not in available:
                print(f"left out: {model} on {name}", file=sys.stderr)
                continue
            make, draws = available[model]
            values, spent = [], []
            for seed in range(chosen.seeds if draws else 1):
                start = time.process_time()
                values.append(prequential(make(seed), series.samples(name, array), metric()))
                spent.append((time.process_time() - start) / len(array) * 1e6)
            yield {
                "series": name, "measure": title, "model": model, "values": values,
                "mean": statistics.mean(values), "microseconds": statistics.median(spent),
            }  # fmt: skip
            print(f"{name} {model}: {values}", file=sys.stderr, flush=True)


def prequential(model: Any, data: Iterable[tuple[Any, Any]], metric: Any) -> float:
    """As ``river.evaluate.progressive_val_score``, without the first ``UNCOUNTED`` samples.

    Until then, the scalers know too little.
    """
    predict: Callable[[Any], Any] = model.predict_one
    for step, (x, y) in enumerate(data):
        predicted = predict(x)
        if predicted is not None and step >= UNCOUNTED:
            metric.update(y, predicted)
        model.learn_one(x, y)
    return float(metric.get())


if __name__ == "__main__":
    sys.exit(main())
