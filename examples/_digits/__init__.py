# SPDX-License-Identifier: Apache-2.0
"""Helpers of ``examples/digits.py``: data, command line, progress display and figure."""
