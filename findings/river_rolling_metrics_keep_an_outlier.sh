#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Guess: a metric over a rolling window, river's utils.Rolling of RMSE or R2, is the metric of the values that are
# in the window. What has left it has no say any more.
#
# Found: with river 0.26.1 a value that leaves is subtracted from running sums, whose round-off stays. After one
# wrong reading of 1e9 in 3000 steps of a wave of size 1, windows of 50 steps that it has left report an RMSE of
# 2.4 times their own up to the end of the stream, and an R2 above 1. MAE is right. Nothing is said, and no number
# is NaN.
#
# Why it matters to people who train networks online: prequential evaluation looks at such windows, to see drift,
# to choose between models and to stop. One broken sample makes both numbers wrong for the rest of a stream. Clip
# what is measured before it enters a metric, or make the metric anew after an outlier.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check river==0.26.1
"$folder/env/bin/python" - <<'PYTHON'
from importlib.metadata import version
from math import fsum, sin, sqrt

from river import metrics, utils

assert version("river") == "0.26.1"
WINDOW, GLITCH = 50, 500
kinds = metrics.RMSE, metrics.R2, metrics.MAE
rmse, r2, mae = (utils.Rolling(kind, window_size=WINDOW) for kind in kinds)
pairs = []
for t in range(3000):
    y = 1e9 if t == GLITCH else sin(t / 5)
    pairs.append((y, 0.9 * y))
    for metric in (rmse, r2, mae):
        metric.update(*pairs[-1])
    if t in (GLITCH - 1, 560, 600, 1000, 2999):
        errors = [y - p for y, p in pairs[-WINDOW:]]
        mean = fsum(y for y, _ in pairs[-WINDOW:]) / WINDOW
        squares, absolute = fsum(e * e for e in errors), fsum(map(abs, errors))
        exact = sqrt(squares / WINDOW), 1 - squares / fsum((y - mean) ** 2 for y, _ in pairs[-WINDOW:])
        print(f"step {t}: RMSE {rmse.get():.4f} of {exact[0]:.4f}, R2 {r2.get():.5f} of {exact[1]:.5f}")
        assert abs(mae.get() - absolute / WINDOW) < 1e-6
        if t < GLITCH:
            assert abs(rmse.get() - exact[0]) < 1e-9 and abs(r2.get() - exact[1]) < 1e-9
        else:
            assert max(rmse.get() / exact[0], exact[0] / rmse.get()) > 2 and r2.get() > 1 > exact[1]
PYTHON
