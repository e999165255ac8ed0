# SPDX-License-Identifier: Apache-2.0
"""Parts of ``benchmarks/bench.py``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))  # for _shared
