# SPDX-License-Identifier: Apache-2.0
"""Parts of ``benchmarks/streams.py``: series, models, cost and the table."""
