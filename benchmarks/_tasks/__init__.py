# SPDX-License-Identifier: Apache-2.0
"""Parts of ``benchmarks/tasks.py``: data, networks, learning rules, training and the table."""
