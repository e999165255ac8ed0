# SPDX-License-Identifier: Apache-2.0
"""Tests of one file each: tests/unit/<folder>/test_<file>.py."""
