# SPDX-License-Identifier: Apache-2.0
"""Values of small groups as states of what is below them, for exact credit."""
