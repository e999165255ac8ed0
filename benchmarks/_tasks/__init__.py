# SPDX-License-Identifier: Apache-2.0
"""Parts of ``benchmarks/tasks.py``: learning rules, training and the table.

Data and networks are those of the examples, in ``examples/_shared``.
"""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "examples"))
