# SPDX-License-Identifier: Apache-2.0
"""Helpers of ``examples/digits.py``: command line, accuracy, table and figure."""
