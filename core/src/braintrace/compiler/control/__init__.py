# SPDX-License-Identifier: Apache-2.0
"""Branches and loops, rewritten so that the passes after it see none."""
